// The handlers for XLA, called as XLA calls them: by a stand-in that makes call frames over buffers
// of its own.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <new>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "ffi/xla_abi.h"
#include "penstock/penstock.h"

namespace xla = penstock::ffi::xla;

extern "C" {
xla::Error* penstock_xla_gru_forward_cpu(xla::CallFrame*);
xla::Error* penstock_xla_gru_forward_cuda(xla::CallFrame*);
xla::Error* penstock_xla_gru_backward_cpu(xla::CallFrame*);
xla::Error* penstock_xla_gru_backward_cuda(xla::CallFrame*);
xla::Error* penstock_xla_sliced_forward_cpu(xla::CallFrame*);
xla::Error* penstock_xla_sru_forward_cpu(xla::CallFrame*);
}

struct xla::Error {
  xla::ErrorCode code;
  std::string message;
};

/// What the stand-in knows of a call.
struct xla::ExecutionContext {
  void* stream = nullptr;
  std::int32_t ordinal = 0;
  xla::Error* stream_error = nullptr;
  int streams_asked = 0, ordinals_asked = 0;
};

namespace penstock::tests {
namespace {

xla::Error* create_error(xla::ErrorCreateArgs* args) {
  EXPECT_EQ(args->struct_size, xla::kErrorCreateArgsSize);
  return new xla::Error{args->code, args->message};
}

xla::Error* get_stream(xla::StreamGetArgs* args) {
  EXPECT_EQ(args->struct_size, xla::kStreamGetArgsSize);
  ++args->context->streams_asked;
  args->stream = args->context->stream;
  return args->context->stream_error;
}

xla::Error* get_ordinal(xla::DeviceOrdinalGetArgs* args) {
  EXPECT_EQ(args->struct_size, xla::kDeviceOrdinalGetArgsSize);
  ++args->context->ordinals_asked;
  args->ordinal = args->context->ordinal;
  return nullptr;
}

xla::Api api_of_version(std::int32_t minor) {
  xla::Api api = {};
  api.struct_size = xla::kApiSize;
  api.version = {xla::kApiVersionSize, nullptr, 0, minor};
  api.create_error = &create_error;
  api.get_stream = &get_stream;
  api.get_device_ordinal = &get_ordinal;
  return api;
}

/// 256-byte aligned, as the strictest backend wants it.
struct Block {
  explicit Block(std::size_t bytes) {
    const std::size_t size = (std::max<std::size_t>(bytes, 1) + 255) / 256 * 256;
    if (posix_memalign(&data, 256, size) != 0) throw std::bad_alloc();
    std::memset(data, 0x5a, size);
  }
  ~Block() { std::free(data); }
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;
  void* data = nullptr;
};

/// A call in the making. Pointers into the deques stay when they grow.
class Call {
 public:
  Call() = default;
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  void* operand(const std::string& name, xla::DataType dtype, std::vector<std::int64_t> dims,
                std::size_t item) {
    operand_names += (operand_names.empty() ? "" : ",") + name;
    return add(arguments_, dtype, std::move(dims), item);
  }
  void* result(const std::string& name, xla::DataType dtype, std::vector<std::int64_t> dims,
               std::size_t item) {
    result_names += (result_names.empty() ? "" : ",") + name;
    return add(results_, dtype, std::move(dims), item);
  }
  /// Numbers from -0.5 to 0.5.
  float* random_operand(const std::string& name, std::vector<std::int64_t> dims) {
    std::int64_t n = 1;
    for (const std::int64_t d : dims) n *= d;
    auto* values = static_cast<float*>(operand(name, xla::kF32, std::move(dims), sizeof(float)));
    for (std::int64_t i = 0; i < n; ++i) {
      state_ = state_ * 6364136223846793005u + 1442695040888963407u;
      values[i] = static_cast<float>(state_ >> 40) / 16777216.0f - 0.5f;
    }
    return values;
  }
  void text(const char* name, std::string value) {
    texts_.push_back(std::move(value));
    spans_.push_back({texts_.back().data(), texts_.back().size()});
    attribute(name, xla::kStringAttribute, &spans_.back());
  }
  void flag(const char* name, bool value) {
    numbers_.push_back(value ? 1 : 0);
    scalars_.push_back({xla::kPred, &numbers_.back()});
    attribute(name, xla::kScalarAttribute, &scalars_.back());
  }
  void integers(const char* name, std::vector<std::int64_t> values) {
    lists_.push_back(std::move(values));
    arrays_.push_back({xla::kS64, lists_.back().size(), lists_.back().data()});
    attribute(name, xla::kArrayAttribute, &arrays_.back());
  }

  /// The error, or null.
  std::unique_ptr<xla::Error> run(xla::Handler handler) {
    text("operands", operand_names);
    text("results", result_names);
    std::vector<xla::ArgumentType> argument_types(arguments_.size(), argument_type);
    std::vector<xla::ResultType> result_types(results_.size(), xla::kBufferResult);
    xla::CallFrame frame = {};
    frame.struct_size = sizeof frame;
    frame.api = &api;
    frame.context = &context;
    frame.stage = stage;
    frame.arguments = {sizeof frame.arguments, nullptr,
                       static_cast<std::int64_t>(arguments_.size()), argument_types.data(),
                       arguments_.data()};
    frame.results = {sizeof frame.results, nullptr, static_cast<std::int64_t>(results_.size()),
                     result_types.data(), results_.data()};
    frame.attributes = {
        sizeof frame.attributes, nullptr,       static_cast<std::int64_t>(names_.size()),
        types_.data(),           names_.data(), values_.data()};
    std::unique_ptr<xla::Error> error(handler(&frame));
    EXPECT_EQ(frame.future, nullptr);
    return error;
  }

  xla::Api api = api_of_version(xla::kMinorVersion);
  xla::ExecutionContext context;
  xla::Stage stage = xla::kExecute;
  xla::ArgumentType argument_type = xla::kBufferArgument;
  std::string operand_names, result_names;

 private:
  void* add(std::vector<void*>& to, xla::DataType dtype, std::vector<std::int64_t> dims,
            std::size_t item) {
    lists_.push_back(std::move(dims));
    std::vector<std::int64_t>& shape = lists_.back();
    for (const std::int64_t d : shape) item *= static_cast<std::size_t>(d);
    blocks_.emplace_back(item);
    buffers_.push_back({sizeof(xla::Buffer), nullptr, dtype, blocks_.back().data,
                        static_cast<std::int64_t>(shape.size()), shape.data()});
    to.push_back(&buffers_.back());
    return blocks_.back().data;
  }
  void attribute(const char* name, xla::AttributeType type, void* value) {
    texts_.emplace_back(name);
    spans_.push_back({texts_.back().data(), texts_.back().size()});
    names_.push_back(&spans_.back());
    types_.push_back(type);
    values_.push_back(value);
  }

  std::uint64_t state_ = 1;
  std::vector<void*> arguments_, results_, values_;
  std::vector<xla::Span*> names_;
  std::vector<xla::AttributeType> types_;
  std::deque<Block> blocks_;
  std::deque<xla::Buffer> buffers_;
  std::deque<std::string> texts_;
  std::deque<xla::Span> spans_;
  std::deque<xla::Scalar> scalars_;
  std::deque<xla::Array> arrays_;
  std::deque<std::int64_t> numbers_;
  std::deque<std::vector<std::int64_t>> lists_;
};

constexpr std::int64_t kSteps = 5, kBatch = 3, kInput = 4, kHidden = 6;
constexpr std::int64_t kRoom = 1 << 23;  // bytes of workspace and reserve, plenty

void options(Call& call) {
  call.text("direction", "forward");
  call.text("activation", "tanh");
  call.text("reset", "after");
  call.flag("recompute", false);
}

using Handler = xla::Handler;

/// One GRU and its gradient, through the handlers and by the library's own functions.
struct Gru {
  Call call, back;
  float *x = nullptr, *weight_ih = nullptr, *weight_hh = nullptr, *bias_hh = nullptr;
  float *y = nullptr, *h_last = nullptr;
  void* reserve = nullptr;

  Gru() {
    options(call);
    x = call.random_operand("x", {kSteps, kBatch, kInput});
    weight_ih = call.random_operand("weight_ih", {1, 3 * kHidden, kInput});
    weight_hh = call.random_operand("weight_hh", {1, 3 * kHidden, kHidden});
    bias_hh = call.random_operand("bias_hh", {1, 3 * kHidden});
    y = floats(call, "y", {kSteps, kBatch, kHidden});
    h_last = floats(call, "h_last", {kBatch, kHidden});
    reserve = call.result("reserve", xla::kU8, {kRoom}, 1);
    call.result("workspace", xla::kU8, {kRoom}, 1);
  }
  static float* floats(Call& call, const char* name, std::vector<std::int64_t> dims) {
    return static_cast<float*>(call.result(name, xla::kF32, std::move(dims), sizeof(float)));
  }
  static TensorView view(float* data, std::initializer_list<std::int64_t> shape) {
    return TensorView(static_cast<void*>(data), DataType::kFloat32, shape);
  }
  void give(GruInputs& in) const {
    in.x = view(x, {kSteps, kBatch, kInput});
    in.weight_ih = view(weight_ih, {1, 3 * kHidden, kInput});
    in.weight_hh = view(weight_hh, {1, 3 * kHidden, kHidden});
    in.bias_hh = view(bias_hh, {1, 3 * kHidden});
  }
  /// What the library computes on the CPU: y, then dweight_hh for a gradient of ones of h_last.
  std::vector<float> expected() const {
    const Context ctx = Context::cpu();
    const auto bytes = [](Block& block) {
      return TensorView(block.data, DataType::kUInt8, {kRoom});
    };
    Block workspace(kRoom), kept(kRoom);
    std::vector<float> found(kSteps * kBatch * kHidden + 3 * kHidden * kHidden);
    std::vector<float> h(kBatch * kHidden), dx(kSteps * kBatch * kInput), dw(3 * kHidden * kInput),
        ones(kBatch * kHidden, 1.0f);
    GruForwardArgs f;
    give(f);
    f.y = view(found.data(), {kSteps, kBatch, kHidden});
    f.h_last = view(h.data(), {kBatch, kHidden});
    f.workspace = bytes(workspace);
    f.reserve = bytes(kept);
    gru_forward(ctx, f);
    GruBackwardArgs b;
    give(b);
    b.reserve = bytes(kept);
    b.dh_last = view(ones.data(), {kBatch, kHidden});
    b.dx = view(dx.data(), {kSteps, kBatch, kInput});
    b.dweight_ih = view(dw.data(), {1, 3 * kHidden, kInput});
    b.dweight_hh = view(found.data() + kSteps * kBatch * kHidden, {1, 3 * kHidden, kHidden});
    b.workspace = bytes(workspace);
    gru_backward(ctx, b);
    return found;
  }
  /// The same by the handlers; no error may come.
  std::vector<float> run(Handler forward, Handler backward) {
    const auto failed = call.run(forward);
    EXPECT_EQ(failed, nullptr) << (failed ? failed->message : "");
    options(back);
    const auto copy = [this](const char* name, const float* from, std::vector<std::int64_t> dims) {
      std::int64_t n = 1;
      for (const std::int64_t d : dims) n *= d;
      std::copy_n(from, n, back.random_operand(name, std::move(dims)));
    };
    copy("x", x, {kSteps, kBatch, kInput});
    copy("weight_ih", weight_ih, {1, 3 * kHidden, kInput});
    copy("weight_hh", weight_hh, {1, 3 * kHidden, kHidden});
    copy("bias_hh", bias_hh, {1, 3 * kHidden});
    std::memcpy(back.operand("reserve", xla::kU8, {kRoom}, 1), reserve, kRoom);
    const std::vector<float> ones(kBatch * kHidden, 1.0f);
    copy("dh_last", ones.data(), {kBatch, kHidden});
    floats(back, "dx", {kSteps, kBatch, kInput});
    floats(back, "dweight_ih", {1, 3 * kHidden, kInput});
    const float* dweight_hh = floats(back, "dweight_hh", {1, 3 * kHidden, kHidden});
    floats(back, "dbias_hh", {1, 3 * kHidden});
    back.result("workspace", xla::kU8, {kRoom}, 1);
    const auto failed_back = back.run(backward);
    EXPECT_EQ(failed_back, nullptr) << (failed_back ? failed_back->message : "");
    std::vector<float> found(y, y + kSteps * kBatch * kHidden);
    found.insert(found.end(), dweight_hh, dweight_hh + 3 * kHidden * kHidden);
    return found;
  }
};

TEST(XlaFfiTest, RunsOnTheCpu) {
  Gru gru;
  EXPECT_EQ(gru.run(&penstock_xla_gru_forward_cpu, &penstock_xla_gru_backward_cpu), gru.expected());
  EXPECT_EQ(gru.call.context.streams_asked, 0);
}

/// Where the CUDA sources run on the host, in place of a device; see CMakeLists.txt.
bool emulated_cuda() {
  const char* plugin = std::getenv("PENSTOCK_CUDA_PLUGIN");
  return plugin != nullptr && std::strstr(plugin, "emulated") != nullptr;
}

TEST(XlaFfiCuda, RunsOnTheStreamAndDeviceOfTheCall) {
  if (!emulated_cuda()) GTEST_SKIP() << "needs the CUDA sources over the stand-in runtime";
  Gru gru;
  const std::vector<float> found =
      gru.run(&penstock_xla_gru_forward_cuda, &penstock_xla_gru_backward_cuda);
  const std::vector<float> expected = gru.expected();
  ASSERT_EQ(found.size(), expected.size());
  for (std::size_t i = 0; i < found.size(); ++i) EXPECT_NEAR(found[i], expected[i], 1e-5) << i;
  EXPECT_EQ(gru.call.context.streams_asked, 1);
  EXPECT_EQ(gru.call.context.ordinals_asked, 1);
  EXPECT_EQ(gru.back.context.streams_asked, 1);
}

TEST(XlaFfiCuda, RefusesADeviceThatIsNotThere) {
  if (!emulated_cuda()) GTEST_SKIP() << "needs the CUDA sources over the stand-in runtime";
  Gru gru;
  gru.call.context.ordinal = 99;
  const auto error = gru.call.run(&penstock_xla_gru_forward_cuda);
  ASSERT_NE(error, nullptr);
  EXPECT_EQ(error->code, xla::kInvalidArgument);
  EXPECT_NE(error->message.find("device: expected an index below"), std::string::npos)
      << error->message;
}

TEST(XlaFfiCuda, SaysWhyThereIsNone) {
  if (config().cuda_available) GTEST_SKIP() << "there is CUDA";
  Gru gru;
  const auto error = gru.call.run(&penstock_xla_gru_forward_cuda);
  ASSERT_NE(error, nullptr);
  EXPECT_EQ(error->code, xla::kInternal);
  EXPECT_NE(error->message.find("CUDA is not available: "), std::string::npos) << error->message;
}

TEST(XlaFfiCuda, HandsOnXlasOwnErrors) {
  Gru gru;
  auto* given = new xla::Error{xla::kInternal, "no stream today"};
  gru.call.context.stream_error = given;
  const auto error = gru.call.run(&penstock_xla_gru_forward_cuda);
  EXPECT_EQ(error.get(), given);
}

TEST(XlaFfiCuda, NeedsAnXlaThatTellsTheDevice) {
  Gru gru;
  gru.call.api.struct_size = xla::kApiSize - sizeof(void*);
  gru.call.api.get_device_ordinal = nullptr;  // beyond what this XLA knows
  const auto error = gru.call.run(&penstock_xla_gru_forward_cuda);
  ASSERT_NE(error, nullptr);
  EXPECT_NE(error->message.find("install a newer jaxlib"), std::string::npos) << error->message;
}

// ---- questions about the handler
// -----------------------------------------------------------------

xla::Metadata metadata_for(const xla::Api* api) {
  xla::Metadata metadata = {};
  metadata.struct_size = offsetof(xla::Metadata, traits) + sizeof metadata.traits;
  metadata.traits = 77;
  metadata.state_type_id = 77;
  xla::MetadataExtension extension = {};
  extension.base = {sizeof extension.base, xla::kMetadataExtension, nullptr};
  extension.metadata = &metadata;
  xla::Extension other = {sizeof other, static_cast<xla::ExtensionType>(1234), &extension.base};
  xla::CallFrame frame = {};
  frame.struct_size = sizeof frame;
  frame.api = api;
  frame.extension = &other;
  EXPECT_EQ(penstock_xla_gru_forward_cpu(&frame), nullptr);
  return metadata;
}

TEST(XlaFfiTest, TellsItsVersionAndTraits) {
  for (const std::int32_t minor : {1, 2, 3, 8}) {
    const xla::Api api = api_of_version(minor);
    const xla::Metadata metadata = metadata_for(&api);
    EXPECT_EQ(metadata.api_version.major, xla::kMajorVersion);
    EXPECT_EQ(metadata.api_version.minor, std::min(minor, xla::kMinorVersion));
    EXPECT_EQ(metadata.api_version.struct_size, xla::kApiVersionSize);
    EXPECT_EQ(metadata.traits, 0u);
    // In older versions the structure ends before.
    EXPECT_EQ(metadata.state_type_id, minor >= xla::kMinorVersion ? 0 : 77);
  }
  EXPECT_EQ(metadata_for(nullptr).api_version.minor, xla::kOldestMinorVersion);
}

// ---- errors
// --------------------------------------------------------------------------------------

void expect_error(Call& call, Handler handler, xla::ErrorCode code, const std::string& words) {
  const auto error = call.run(handler);
  ASSERT_NE(error, nullptr) << words;
  EXPECT_EQ(error->code, code) << error->message;
  EXPECT_NE(error->message.find(words), std::string::npos) << error->message;
}

TEST(XlaFfiTest, ErrorsOfTheLibraryBecomeXlas) {
  Call call;
  options(call);
  call.random_operand("x", {kSteps, kBatch, kInput});
  call.random_operand("weight_ih", {1, 3 * kHidden, kInput + 1});
  call.random_operand("weight_hh", {1, 3 * kHidden, kHidden});
  expect_error(call, &penstock_xla_gru_forward_cpu, xla::kInvalidArgument,
               "gru: weight_ih: expected shape");
}

TEST(XlaFfiTest, WrongBuffers) {
  const auto with = [](const char* name, xla::DataType dtype, std::vector<std::int64_t> dims,
                       const char* words) {
    Call call;
    options(call);
    call.operand(name, dtype, std::move(dims), 8);
    expect_error(call, &penstock_xla_gru_forward_cpu, xla::kInvalidArgument, words);
  };
  with("x", xla::kF64, {1, 1, 1, 1, 1}, "gru: x: expected at most 4 axes (actual: 5)");
  with("x", static_cast<xla::DataType>(15), {1}, "gru: x: expected a floating type");
  with("y", xla::kF64, {1, 1, 1}, "gru: operands: expected names that it knows, once each");
}

TEST(XlaFfiTest, NamesThatAreNotThoseOfTheBuffers) {
  for (const auto& [operands, results, words] :
       {std::tuple("x,weight_ih,weight_hh", "y,h_last,reserve,workspace",
                   "gru: operands: expected a name for each of 4 arrays (actual: 3)"),
        std::tuple("x,weight_ih,weight_hh,bias_hh,h0", "y,h_last,reserve,workspace",
                   "gru: operands: expected as many arrays as names (actual: 4)"),
        std::tuple("x,weight_ih,weight_hh,bias_xx", "y,h_last,reserve,workspace",
                   "gru: operands: expected names that it knows, once each (actual: 'bias_xx')"),
        std::tuple("x,x,weight_hh,bias_hh", "y,h_last,reserve,workspace",
                   "gru: operands: expected names that it knows, once each (actual: 'x')"),
        std::tuple("x,weight_ih,weight_hh,bias_hh", "y,h_last,reserve,c_last",
                   "gru: results: expected names that it knows, once each (actual: 'c_last')")}) {
    Gru gru;
    gru.call.operand_names = operands;
    gru.call.result_names = results;
    expect_error(gru.call, &penstock_xla_gru_forward_cpu, xla::kInvalidArgument, words);
  }
}

TEST(XlaFfiTest, OptionsThatAreMissingOrWrong) {
  Call none;
  expect_error(none, &penstock_xla_gru_forward_cpu, xla::kInvalidArgument,
               "gru: direction: expected a string attribute");
  Call word;
  word.text("direction", "sideways");
  expect_error(word, &penstock_xla_gru_forward_cpu, xla::kInvalidArgument,
               "gru: direction: expected a word that it knows (actual: 'sideways')");
  Call flag;
  flag.text("direction", "forward");
  flag.text("recompute", "yes");
  expect_error(flag, &penstock_xla_gru_forward_cpu, xla::kInvalidArgument,
               "gru: recompute: expected a bool attribute");
  Call number;
  number.text("activation", "tanh");
  number.flag("skip", true);
  number.flag("scale_x", true);
  expect_error(number, &penstock_xla_sru_forward_cpu, xla::kInvalidArgument,
               "sru: scale_x: expected a float64 attribute");
  Call slices;
  slices.text("cell", "gru");
  expect_error(slices, &penstock_xla_sliced_forward_cpu, xla::kInvalidArgument,
               "sliced: slices: expected an attribute of int64 numbers");
  Call many;
  many.text("cell", "gru");
  many.integers("slices", std::vector<std::int64_t>(16, 1));
  expect_error(many, &penstock_xla_sliced_forward_cpu, xla::kInvalidArgument,
               "sliced: slices: expected at most 15 numbers (actual: 16)");
}

TEST(XlaFfiTest, CallsThatAreNone) {
  Gru other_stage;
  other_stage.call.stage = xla::kInitialize;
  expect_error(other_stage.call, &penstock_xla_gru_forward_cpu, xla::kInternal,
               "gru: expected a call that executes");
  Gru other_argument;
  other_argument.call.argument_type = static_cast<xla::ArgumentType>(9);
  expect_error(other_argument.call, &penstock_xla_gru_forward_cpu, xla::kInvalidArgument,
               "gru: operands: expected buffers alone");
}

TEST(XlaFfiTest, TooLittleMemoryIsNotTouched) {
  Call call;
  options(call);
  call.random_operand("x", {kSteps, kBatch, kInput});
  call.random_operand("weight_ih", {1, 3 * kHidden, kInput});
  call.random_operand("weight_hh", {1, 3 * kHidden, kHidden});
  const float* y = Gru::floats(call, "y", {kSteps, kBatch, kHidden});
  Gru::floats(call, "h_last", {kBatch, kHidden});
  call.result("workspace", xla::kU8, {1}, 1);
  const std::vector<float> before(y, y + kSteps * kBatch * kHidden);
  const auto error = call.run(&penstock_xla_gru_forward_cpu);
  ASSERT_NE(error, nullptr);
  EXPECT_NE(error->message.find("gru: workspace: expected at least"), std::string::npos)
      << error->message;
  EXPECT_EQ(std::memcmp(before.data(), y, before.size() * sizeof(float)), 0);
}

}  // namespace
}  // namespace penstock::tests
