#include "ffi/frame.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <exception>
#include <new>

namespace penstock::ffi {
namespace {

/// An error of XLA's own on its way out.
class XlaError : public std::exception {
 public:
  explicit XlaError(xla::Error* error) : error_(error) {}
  xla::Error* error() const { return error_; }

 private:
  xla::Error* error_;
};

void check(xla::Error* error) {
  if (error != nullptr) throw XlaError(error);
}

Context context_for(const xla::CallFrame& call, DeviceType device) {
  if (device == DeviceType::kCpu) return Context::cpu();
  const xla::Api& api = *call.api;
  xla::StreamGetArgs stream = {};
  stream.struct_size = xla::kStreamGetArgsSize;
  stream.context = call.context;
  check(api.get_stream(&stream));
  xla::DeviceOrdinalGetArgs ordinal = {};
  ordinal.struct_size = xla::kDeviceOrdinalGetArgsSize;
  ordinal.context = call.context;
  if (api.struct_size < xla::kApiSize) {
    throw Error(ErrorCode::kRuntime,
                "expected an XLA that tells a call its device; install a newer jaxlib");
  }
  check(api.get_device_ordinal(&ordinal));
  return Context::cuda(ordinal.ordinal, stream.stream);
}

const char* dtype_of(xla::DataType dtype, DataType* result) {
  switch (dtype) {
    case xla::kPred: *result = DataType::kBool; return nullptr;
    case xla::kS32: *result = DataType::kInt32; return nullptr;
    case xla::kS64: *result = DataType::kInt64; return nullptr;
    case xla::kU8: *result = DataType::kUInt8; return nullptr;
    case xla::kF16: *result = DataType::kFloat16; return nullptr;
    case xla::kF32: *result = DataType::kFloat32; return nullptr;
    case xla::kF64: *result = DataType::kFloat64; return nullptr;
    case xla::kBF16: *result = DataType::kBFloat16; return nullptr;
  }
  return "expected a floating type, bool, uint8, int32 or int64";
}

/// `op: name: what`
std::string message(const char* op, std::string_view name, const std::string& what) {
  return std::string(op) + ": " + std::string(name) + ": " + what;
}

TensorView view_of(const char* op, std::string_view name, const xla::Buffer& buffer, Device device,
                   bool read_only) {
  TensorView v;
  if (const char* problem = dtype_of(buffer.dtype, &v.dtype); problem != nullptr) {
    throw Error(ErrorCode::kType,
                message(op, name,
                        std::string(problem) + " (actual: XLA's number " +
                            std::to_string(static_cast<std::uint32_t>(buffer.dtype)) + ")"));
  }
  if (buffer.rank < 0 || buffer.rank > TensorView::kMaxRank) {
    throw Error(
        ErrorCode::kValue,
        message(op, name, "expected at most 4 axes (actual: " + std::to_string(buffer.rank) + ")"));
  }
  v.data = buffer.data;
  v.device = device;
  v.rank = static_cast<int>(buffer.rank);
  v.read_only = read_only;
  std::int64_t stride = 1;
  for (int axis = v.rank - 1; axis >= 0; --axis) {
    v.shape[axis] = buffer.dims[axis];
    v.strides[axis] = stride;
    stride *= buffer.dims[axis];
  }
  return v;
}

/// What to answer if the call only asks about the handler.
bool answered(xla::CallFrame& call) {
  for (xla::Extension* e = call.extension; e != nullptr; e = e->next) {
    if (e->type != xla::kMetadataExtension) continue;
    xla::Metadata& metadata = *reinterpret_cast<xla::MetadataExtension*>(e)->metadata;
    xla::ApiVersion& version = metadata.api_version;
    version = {};
    version.struct_size = xla::kApiVersionSize;
    version.major = xla::kMajorVersion;
    // What is used here has been the same in all versions; an XLA of an older one wants to hear
    // its own, and the oldest does not tell it.
    const std::int32_t minor =
        call.api == nullptr ? xla::kOldestMinorVersion : call.api->version.minor;
    version.minor = std::min(minor, xla::kMinorVersion);
    // Not to be captured in command buffers: a device's first call makes its cuBLAS handle, which
    // must not happen under capture.
    metadata.traits = 0;
    if (minor >= xla::kMinorVersion) metadata.state_type_id = 0;
    return true;
  }
  return false;
}

xla::ErrorCode code_of(ErrorCode code) {
  switch (code) {
    case ErrorCode::kValue:
    case ErrorCode::kType: return xla::kInvalidArgument;
    case ErrorCode::kBuffer: return xla::kFailedPrecondition;
    case ErrorCode::kRuntime: break;
  }
  return xla::kInternal;
}

xla::Error* error_of(const xla::CallFrame& call, xla::ErrorCode code, const char* message) {
  xla::ErrorCreateArgs args = {};
  args.struct_size = xla::kErrorCreateArgsSize;
  args.message = message;
  args.code = code;
  return call.api->create_error(&args);
}

}  // namespace

Frame::Frame(const char* op, const xla::CallFrame& call, DeviceType device)
    : op_(op), call_(call), context_(context_for(call, device)) {
  const xla::Arguments& arguments = call.arguments;
  const xla::Results& results = call.results;
  for (std::int64_t i = 0; i < arguments.size; ++i) {
    if (arguments.types[i] != xla::kBufferArgument) fail("operands", "expected buffers alone");
  }
  for (std::int64_t i = 0; i < results.size; ++i) {
    if (results.types[i] != xla::kBufferResult) fail("results", "expected buffers alone");
  }
  read(operands_, "operands", arguments.size, arguments.values, /*read_only=*/true);
  read(results_, "results", results.size, results.values, /*read_only=*/false);
}

void Frame::read(Buffers& to, const char* attribute, std::int64_t size, void* const* values,
                 bool read_only) const {
  std::string_view names = text(attribute);
  while (!names.empty()) {
    const std::size_t comma = std::min(names.find(','), names.size());
    if (to.count == Buffers::kMost || to.count == size) {
      fail(attribute, "expected as many arrays as names (actual: " + std::to_string(size) + ")");
    }
    const std::string_view name = names.substr(0, comma);
    const auto& buffer = *static_cast<const xla::Buffer*>(values[to.count]);
    to.names[to.count] = name;
    to.views[to.count] = view_of(op_, name, buffer, context_.device(), read_only);
    ++to.count;
    names.remove_prefix(std::min(comma + 1, names.size()));
  }
  if (to.count != size) {
    fail(attribute, "expected a name for each of " + std::to_string(size) +
                        " arrays (actual: " + std::to_string(to.count) + ")");
  }
}

TensorView Frame::Buffers::take(std::string_view name) {
  for (int i = 0; i < count; ++i) {
    if (taken[i] || names[i] != name) continue;
    taken[i] = true;
    return views[i];
  }
  return {};
}

TensorView Frame::workspace() {
  TensorView v = result("workspace");
  const auto past =
      static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(v.data) % kWorkspaceAlignment);
  const std::int64_t skipped =
      past == 0 ? 0 : static_cast<std::int64_t>(kWorkspaceAlignment) - past;
  if (v.rank == 1 && v.dtype == DataType::kUInt8 && v.shape[0] >= skipped) {
    v.data = v.as<char>() + skipped;
    v.shape[0] -= skipped;
  }
  return v;
}

void Frame::no_others() const {
  const auto check_all = [this](const Buffers& buffers, const char* attribute) {
    for (int i = 0; i < buffers.count; ++i) {
      if (buffers.taken[i]) continue;
      fail(attribute, "expected names that it knows, once each (actual: '" +
                          std::string(buffers.names[i]) + "')");
    }
  };
  check_all(operands_, "operands");
  check_all(results_, "results");
}

const void* Frame::find(std::string_view name, xla::AttributeType type) const {
  const xla::Attributes& attributes = call_.attributes;
  for (std::int64_t i = 0; i < attributes.size; ++i) {
    const xla::Span& there = *attributes.names[i];
    if (std::string_view(there.data, there.size) == name) {
      return attributes.types[i] == type ? attributes.values[i] : nullptr;
    }
  }
  return nullptr;
}

void Frame::fail(const char* name, const std::string& what) const {
  throw Error(ErrorCode::kValue, message(op_, name, what));
}

bool Frame::flag(const char* name) const {
  const auto* scalar = static_cast<const xla::Scalar*>(find(name, xla::kScalarAttribute));
  if (scalar == nullptr || scalar->dtype != xla::kPred) fail(name, "expected a bool attribute");
  bool value = false;
  std::memcpy(&value, scalar->value, sizeof value);
  return value;
}

double Frame::number(const char* name) const {
  const auto* scalar = static_cast<const xla::Scalar*>(find(name, xla::kScalarAttribute));
  if (scalar == nullptr || scalar->dtype != xla::kF64) fail(name, "expected a float64 attribute");
  double value = 0.0;
  std::memcpy(&value, scalar->value, sizeof value);
  return value;
}

std::string_view Frame::text(const char* name) const {
  const auto* span = static_cast<const xla::Span*>(find(name, xla::kStringAttribute));
  if (span == nullptr) fail(name, "expected a string attribute");
  return {span->data, span->size};
}

int Frame::integers(const char* name, std::int64_t* values, int room) const {
  const auto* array = static_cast<const xla::Array*>(find(name, xla::kArrayAttribute));
  if (array == nullptr || array->dtype != xla::kS64) {
    fail(name, "expected an attribute of int64 numbers");
  }
  if (array->size > static_cast<std::size_t>(room)) {
    fail(name, "expected at most " + std::to_string(room) +
                   " numbers (actual: " + std::to_string(array->size) + ")");
  }
  if (array->size > 0) std::memcpy(values, array->data, array->size * sizeof *values);
  return static_cast<int>(array->size);
}

xla::Error* handle(const char* op, Work work, DeviceType device, xla::CallFrame* call) noexcept {
  if (answered(*call)) return nullptr;
  try {
    if (call->stage != xla::kExecute) {
      throw Error(ErrorCode::kRuntime, std::string(op) + ": expected a call that executes");
    }
    Frame frame(op, *call, device);
    work(frame);
    return nullptr;
  } catch (const XlaError& e) {
    return e.error();
  } catch (const Error& e) {
    return error_of(*call, code_of(e.code()), e.what());
  } catch (const std::bad_alloc& e) {
    return error_of(*call, xla::kResourceExhausted, e.what());
  } catch (const std::exception& e) {
    return error_of(*call, xla::kInternal, e.what());
  } catch (...) {
    return error_of(*call, xla::kInternal, "an unknown exception");
  }
}

}  // namespace penstock::ffi
