// The C interface beside the C++ one: the same bits, from the same arguments, over each backend.
// tests/cpp/test_c_api.c is the rest, in C.

#include <gtest/gtest.h>

#include <cstring>
#include <thread>
#include <vector>

#include "array.h"
#include "backends.h"
#include "c/context.h"
#include "penstock/c.h"
#include "penstock/penstock.h"
#include "recurrent_problem.h"
#include "sru_problem.h"

extern "C" int test_c_api(void);      // test_c_api.c, compiled as C99
extern "C" int test_c_api_cpp(void);  // the same text, compiled as C++

namespace penstock::tests {
namespace {

constexpr DataType kTypes[] = {DataType::kFloat32, DataType::kFloat64, DataType::kFloat16,
                               DataType::kBFloat16};
constexpr Layout kLayouts[] = {Layout::kContiguous, Layout::kFortran, Layout::kNegative,
                               Layout::kGaps};

penstock_tensor c_tensor(const TensorView& view) {
  penstock_tensor t = {};
  if (!view.given()) return t;
  t.data = view.data;
  t.dtype = static_cast<std::int32_t>(view.dtype);
  t.device_type = static_cast<std::int32_t>(view.device.type);
  t.device_index = view.device.index;
  t.rank = view.rank;
  t.read_only = view.read_only ? 1 : 0;
  for (int axis = 0; axis < view.rank; ++axis) {
    t.shape[axis] = view.shape[axis];
    t.strides[axis] = view.strides[axis];
  }
  return t;
}

template <class Enum>
std::int32_t c_option(Enum value) {
  return static_cast<std::int32_t>(value);
}

void expect_ok(penstock_status status) { ASSERT_EQ(status, PENSTOCK_OK) << penstock_last_error(); }

/// The functions of one operation.
template <class Forward, class Backward>
struct Operation {
  penstock_status (*forward_init)(Forward*, size_t);
  penstock_status (*backward_init)(Backward*, size_t);
  penstock_status (*forward_workspace_bytes)(const penstock_context*, const Forward*, size_t*);
  penstock_status (*reserve_bytes)(const penstock_context*, const Forward*, size_t*);
  penstock_status (*backward_workspace_bytes)(const penstock_context*, const Backward*, size_t*);
  penstock_status (*forward)(const penstock_context*, const Forward*);
  penstock_status (*backward)(const penstock_context*, const Backward*);

  void run(const Context& context, const Forward& f, const Backward& b) const {
    const penstock_context c{context};
    std::size_t bytes = 0;
    expect_ok(forward_workspace_bytes(&c, &f, &bytes));
    EXPECT_EQ(static_cast<std::int64_t>(bytes), f.workspace.shape[0]);
    expect_ok(reserve_bytes(&c, &f, &bytes));
    EXPECT_EQ(static_cast<std::int64_t>(bytes), f.reserve.shape[0]);
    expect_ok(backward_workspace_bytes(&c, &b, &bytes));
    EXPECT_EQ(static_cast<std::int64_t>(bytes), b.workspace.shape[0]);
    expect_ok(forward(&c, &f));
    expect_ok(backward(&c, &b));
  }
};

#define OPERATION(x)                                                                             \
  Operation<penstock_##x##_forward_args, penstock_##x##_backward_args> {                         \
    penstock_##x##_forward_init, penstock_##x##_backward_init,                                   \
        penstock_##x##_forward_workspace_bytes, penstock_##x##_reserve_bytes,                    \
        penstock_##x##_backward_workspace_bytes, penstock_##x##_forward, penstock_##x##_backward \
  }

void expect_same_bits(const std::vector<const Array*>& a, const std::vector<const Array*>& b,
                      const std::string& words) {
  ASSERT_EQ(a.size(), b.size());
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (!a[i]->given()) continue;
    EXPECT_EQ(a[i]->raw(), b[i]->raw()) << "output " << i << " " << words;
    // All bits set is what nobody has written.
    const auto untouched = std::vector<unsigned char>(a[i]->raw().size(), 0xff);
    EXPECT_NE(b[i]->raw(), untouched) << "output " << i << " " << words;
  }
}

// ---- sru ----------------------------------------------------------------------------------------

void run_through_c(const Context& context, const SruCall& call) {
  const auto op = OPERATION(sru);
  penstock_sru_forward_args f;
  std::memset(&f, 0x5a, sizeof f);
  expect_ok(op.forward_init(&f, sizeof f));
  const SruForwardArgs& from = call.forward;
  f.activation = c_option(from.activation);
  f.skip = from.skip ? 1 : 0;
  f.mask_site = c_option(from.mask_site);
  f.direction = c_option(from.direction);
  f.scale_x = from.scale_x;
  f.x = c_tensor(from.x);
  f.weight = c_tensor(from.weight);
  f.weight_c = c_tensor(from.weight_c);
  f.bias = c_tensor(from.bias);
  f.c0 = c_tensor(from.c0);
  f.mask_pad = c_tensor(from.mask_pad);
  f.lengths = c_tensor(from.lengths);
  f.x_skip = c_tensor(from.x_skip);
  f.mask_c = c_tensor(from.mask_c);
  f.y = c_tensor(from.y);
  f.c_last = c_tensor(from.c_last);
  f.workspace = c_tensor(from.workspace);
  f.reserve = c_tensor(from.reserve);
  penstock_sru_backward_args b;
  std::memset(&b, 0x5a, sizeof b);
  expect_ok(op.backward_init(&b, sizeof b));
  b.forward = &f;
  b.dy = c_tensor(call.backward.dy);
  b.dc_last = c_tensor(call.backward.dc_last);
  b.dx = c_tensor(call.backward.dx);
  b.dweight = c_tensor(call.backward.dweight);
  b.dweight_c = c_tensor(call.backward.dweight_c);
  b.dbias = c_tensor(call.backward.dbias);
  b.dc0 = c_tensor(call.backward.dc0);
  b.dmask_c = c_tensor(call.backward.dmask_c);
  b.dx_skip = c_tensor(call.backward.dx_skip);
  b.workspace = c_tensor(call.backward.workspace);
  op.run(context, f, b);
}

class CApi : public BackendTest {};
INSTANTIATE_TEST_SUITE_P(Backends, CApi, testing::ValuesIn(backend_names()),
                         [](const auto& tested) { return tested.param; });

TEST_P(CApi, SruHasTheBitsOfCpp) {
  std::vector<SruShape> shapes(7);
  shapes[1].direction = Direction::kBidirectional;
  shapes[1].activation = Activation::kTanh;
  shapes[1].mask_c = shapes[1].lengths = true;
  shapes[1].mask_site = MaskSite::kState;
  shapes[2].direction = Direction::kReverse;
  shapes[2].blocks = 3;
  shapes[2].x_skip = shapes[2].mask_pad = true;
  shapes[2].scale_x = 1.7;
  shapes[2].activation = Activation::kRelu;
  shapes[3].blocks = 3;
  shapes[3].skip = false;
  shapes[4].blocks = 3;
  shapes[4].input = shapes[4].hidden;
  shapes[4].scale_x = -0.5;
  shapes[5].weight_c = shapes[5].c0 = shapes[5].dc_last = false;
  shapes[6].dy = false;
  for (std::size_t i = 0; i < shapes.size(); ++i) {
    for (DataType dtype : kTypes) {
      shapes[i].layout = kLayouts[i % 4];
      const SruValues values = random_values(shapes[i], dtype, i);
      const SruCall expected(ctx(), shapes[i], values, dtype);
      sru_forward(ctx(), expected.forward);
      sru_backward(ctx(), expected.backward);
      const SruCall got(ctx(), shapes[i], values, dtype);
      run_through_c(ctx(), got);
      expect_same_bits(expected.outputs(), got.outputs(), shapes[i].words());
    }
  }
}

// ---- rnn, gru, lstm -----------------------------------------------------------------------------

template <class Forward>
void set_common(const RecurrentCall& call, Forward* f) {
  const RecurrentInputs& in = call.forward_inputs;
  f->direction = c_option(in.direction);
  f->recompute = in.recompute ? 1 : 0;
  f->x = c_tensor(in.x);
  f->weight_ih = c_tensor(in.weight_ih);
  f->weight_hh = c_tensor(in.weight_hh);
  f->bias_ih = c_tensor(in.bias_ih);
  f->bias_hh = c_tensor(in.bias_hh);
  f->h0 = c_tensor(in.h0);
  f->lengths = c_tensor(in.lengths);
  f->y = c_tensor(call.forward.y);
  f->h_last = c_tensor(call.forward.h_last);
  f->workspace = c_tensor(call.forward.workspace);
  f->reserve = c_tensor(call.forward.reserve);
}
void set_special(const RecurrentCall& call, penstock_rnn_forward_args* f) {
  f->activation = c_option(call.shape.activation);
}
void set_special(const RecurrentCall& call, penstock_gru_forward_args* f) {
  f->activation = c_option(call.shape.activation);
  f->reset = c_option(call.shape.reset);
}
void set_special(const RecurrentCall& call, penstock_lstm_forward_args* f) {
  f->c0 = c_tensor(call.c0_view);
  f->c_last = c_tensor(call.c_last_view);
}
template <class Backward>
void set_special(const RecurrentCall&, Backward*) {}
void set_special(const RecurrentCall& call, penstock_lstm_backward_args* b) {
  b->dc_last = c_tensor(call.dc_last_view);
  b->dc0 = c_tensor(call.dc0_view);
}

template <class Forward, class Backward>
void run_through_c(const RecurrentCall& call, const Operation<Forward, Backward>& op) {
  Forward f;
  std::memset(&f, 0x5a, sizeof f);
  expect_ok(op.forward_init(&f, sizeof f));
  set_common(call, &f);
  set_special(call, &f);
  Backward b;
  std::memset(&b, 0x5a, sizeof b);
  expect_ok(op.backward_init(&b, sizeof b));
  b.forward = &f;
  b.dy = c_tensor(call.backward.dy);
  b.dh_last = c_tensor(call.backward.dh_last);
  b.dx = c_tensor(call.backward.dx);
  b.dweight_ih = c_tensor(call.backward.dweight_ih);
  b.dweight_hh = c_tensor(call.backward.dweight_hh);
  b.dbias_ih = c_tensor(call.backward.dbias_ih);
  b.dbias_hh = c_tensor(call.backward.dbias_hh);
  b.dh0 = c_tensor(call.backward.dh0);
  b.workspace = c_tensor(call.backward.workspace);
  set_special(call, &b);
  op.run(call.ctx, f, b);
}

TEST_P(CApi, RecurrentCellsHaveTheBitsOfCpp) {
  for (Cell cell : {Cell::kRnn, Cell::kGru, Cell::kLstm}) {
    std::vector<RecurrentShape> shapes(6);
    shapes[1].direction = Direction::kBidirectional;
    shapes[1].lengths = true;
    shapes[1].activation = Activation::kRelu;
    shapes[2].direction = Direction::kReverse;
    shapes[2].reset = ResetMode::kBefore;
    shapes[2].activation = Activation::kIdentity;
    shapes[3].bias_ih = shapes[3].h0 = shapes[3].c0 = shapes[3].state_gradients = false;
    shapes[4].bias_hh = shapes[4].dy = false;
    shapes[4].recompute = true;
    shapes[5].dh_last = shapes[5].dc_last = false;
    for (std::size_t i = 0; i < shapes.size(); ++i) {
      for (DataType dtype : kTypes) {
        shapes[i].cell = cell;
        shapes[i].layout = kLayouts[i % 4];
        const RecurrentValues values = random_values(shapes[i], dtype, i);
        const RecurrentCall expected(ctx(), shapes[i], values, dtype);
        expected.run_forward();
        expected.run_backward();
        const RecurrentCall got(ctx(), shapes[i], values, dtype);
        switch (cell) {
          case Cell::kRnn: run_through_c(got, OPERATION(rnn)); break;
          case Cell::kGru: run_through_c(got, OPERATION(gru)); break;
          case Cell::kLstm: run_through_c(got, OPERATION(lstm)); break;
        }
        expect_same_bits(expected.outputs(), got.outputs(), shapes[i].words());
      }
    }
  }
}

// ---- sliced -------------------------------------------------------------------------------------

struct SlicedOptions {
  const char* cell = "gru";
  std::int64_t gates = 3;
  std::vector<std::int64_t> slices = {3, 2};
  bool lengths = false, recompute = false, top_gradient_alone = false, skip = true;
  PadSide pad = PadSide::kLeft;
  SliceMask mask = SliceMask::kSkip;
  Direction direction = Direction::kForward;
  Activation activation = Activation::kTanh;
  ResetMode reset = ResetMode::kAfter;
  double scale_x = 1.0;
};

/// A sliced network's arguments with their arrays; T = 11 steps, so that some of them are padding.
struct SlicedArrays {
  SlicedArrays(const Context& ctx, const SlicedOptions& o, DataType dtype) {
    constexpr std::int64_t kSteps = 11, kBatch = 3, kInput = 4, kHidden = 5;
    Numbers numbers(77);
    const auto filled = [&](DataType type, const Shape& shape) {
      return Array(type, shape, numbers.take(product(shape), 0.4));
    };
    const bool sru = std::strcmp(o.cell, "sru") == 0;
    const std::int64_t dirs = o.direction == Direction::kBidirectional ? 2 : 1;
    const int count = static_cast<int>(o.slices.size()) + 1;
    std::vector<std::int64_t> steps(o.slices.size() + 1), parts(o.slices.size() + 1);
    sliced_shape(kSteps, o.slices.data(), count - 1, steps.data(), parts.data());
    const auto array = [&](Array a) {
      arrays.push_back(std::move(a));
      return arrays.back().view();
    };
    for (int i = 0; i < count; ++i) {
      const std::int64_t in = i == 0 ? kInput : dirs * kHidden;
      const Shape ih = {dirs, o.gates * kHidden, in},
                  hh = sru ? Shape{dirs, 2, kHidden} : Shape{dirs, o.gates * kHidden, kHidden},
                  bias = sru ? hh : Shape{dirs, o.gates * kHidden},
                  out = {parts[static_cast<std::size_t>(i)], kBatch, dirs * kHidden};
      SlicedLevel p, d;
      p.weight_ih = array(filled(dtype, ih));
      p.weight_hh = array(filled(dtype, hh));
      p.bias_ih = array(filled(dtype, bias));
      d.weight_ih = array(Array(dtype, ih));
      written.push_back(arrays.size() - 1);
      d.weight_hh = array(Array(dtype, hh));
      written.push_back(arrays.size() - 1);
      d.bias_ih = array(Array(dtype, bias));
      written.push_back(arrays.size() - 1);
      if (!sru) {
        p.bias_hh = array(filled(dtype, bias));
        d.bias_hh = array(Array(dtype, bias));
        written.push_back(arrays.size() - 1);
      }
      levels.push_back(p);
      dlevels.push_back(d);
      outputs.push_back(array(Array(dtype, out)));
      written.push_back(arrays.size() - 1);
      const bool skipped = o.top_gradient_alone && i + 1 < count;
      doutputs.push_back(skipped ? TensorView() : array(filled(dtype, out)));
    }
    slices = o.slices;
    forward.cell = o.cell;
    forward.x = array(filled(dtype, {kSteps, kBatch, kInput}));
    if (o.lengths) forward.lengths = array(Array(DataType::kInt64, {kBatch}, {11, 0, 6}));
    forward.levels = levels.data();
    forward.slices = slices.data();
    forward.slice_count = count - 1;
    forward.pad = o.pad;
    forward.mask = o.mask;
    forward.direction = o.direction;
    forward.activation = o.activation;
    forward.reset = o.reset;
    forward.skip = o.skip;
    forward.scale_x = o.scale_x;
    forward.recompute = o.recompute;
    static_cast<SlicedInputs&>(backward) = forward;
    forward.outputs = outputs.data();
    forward.workspace = array(Array::bytes(sliced_forward_workspace_bytes(ctx, forward)));
    forward.reserve = array(Array::bytes(sliced_reserve_bytes(ctx, forward)));
    backward.reserve = forward.reserve;
    backward.doutputs = doutputs.data();
    backward.dlevels = dlevels.data();
    backward.dx = array(Array(dtype, {kSteps, kBatch, kInput}));
    written.push_back(arrays.size() - 1);
    backward.workspace = array(Array::bytes(sliced_backward_workspace_bytes(ctx, backward)));
  }
  SlicedArrays(const SlicedArrays&) = delete;

  std::vector<const Array*> results() const {
    std::vector<const Array*> all;
    for (std::size_t i : written) all.push_back(&arrays[i]);
    return all;
  }

  std::vector<Array> arrays;
  std::vector<std::size_t> written;
  std::vector<std::int64_t> slices;
  std::vector<SlicedLevel> levels, dlevels;
  std::vector<TensorView> outputs, doutputs;
  SlicedForwardArgs forward;
  SlicedBackwardArgs backward;
};

std::vector<penstock_sliced_level> c_levels(const std::vector<SlicedLevel>& levels) {
  std::vector<penstock_sliced_level> all;
  for (const SlicedLevel& level : levels) {
    all.push_back({c_tensor(level.weight_ih), c_tensor(level.weight_hh), c_tensor(level.bias_ih),
                   c_tensor(level.bias_hh)});
  }
  return all;
}

void run_through_c(const Context& context, const SlicedArrays& call) {
  const auto op = OPERATION(sliced);
  const SlicedForwardArgs& from = call.forward;
  const auto levels = c_levels(call.levels), dlevels = c_levels(call.dlevels);
  std::vector<penstock_tensor> outputs, doutputs;
  for (const TensorView& v : call.outputs) outputs.push_back(c_tensor(v));
  for (const TensorView& v : call.doutputs) doutputs.push_back(c_tensor(v));
  penstock_sliced_forward_args f;
  std::memset(&f, 0x5a, sizeof f);
  expect_ok(op.forward_init(&f, sizeof f));
  f.cell = from.cell;
  f.levels = levels.data();
  f.slices = from.slices;
  f.slice_count = from.slice_count;
  f.pad = c_option(from.pad);
  f.mask = c_option(from.mask);
  f.direction = c_option(from.direction);
  f.activation = c_option(from.activation);
  f.reset = c_option(from.reset);
  f.skip = from.skip ? 1 : 0;
  f.recompute = from.recompute ? 1 : 0;
  f.scale_x = from.scale_x;
  f.x = c_tensor(from.x);
  f.lengths = c_tensor(from.lengths);
  f.outputs = outputs.data();
  f.workspace = c_tensor(from.workspace);
  f.reserve = c_tensor(from.reserve);
  penstock_sliced_backward_args b;
  std::memset(&b, 0x5a, sizeof b);
  expect_ok(op.backward_init(&b, sizeof b));
  b.forward = &f;
  b.doutputs = doutputs.data();
  b.dx = c_tensor(call.backward.dx);
  b.dlevels = dlevels.data();
  b.workspace = c_tensor(call.backward.workspace);
  op.run(context, f, b);
}

TEST_P(CApi, SlicedNetworksHaveTheBitsOfCpp) {
  std::vector<SlicedOptions> all(8);
  all[1].direction = Direction::kBidirectional;
  all[1].lengths = true;
  all[1].pad = PadSide::kRight;
  all[2].mask = SliceMask::kNone;
  all[2].reset = ResetMode::kBefore;
  all[2].activation = Activation::kIdentity;
  all[3].cell = "rnn";
  all[3].gates = 1;
  all[3].direction = Direction::kReverse;
  all[3].top_gradient_alone = true;
  all[4].cell = "lstm";
  all[4].gates = 4;
  all[4].recompute = true;
  all[5].cell = "sru";
  all[5].gates = 4;
  all[5].activation = Activation::kRelu;
  all[6].cell = "sru";
  all[6].skip = false;
  all[7].slices = {};
  for (const SlicedOptions& options : all) {
    for (DataType dtype : kTypes) {
      const SlicedArrays expected(ctx(), options, dtype);
      sliced_forward(ctx(), expected.forward);
      sliced_backward(ctx(), expected.backward);
      const SlicedArrays got(ctx(), options, dtype);
      run_through_c(ctx(), got);
      expect_same_bits(expected.results(), got.results(), options.cell);
    }
  }
}

// ---- the library --------------------------------------------------------------------------------

TEST(CApiCpu, ConfigSaysWhatCppSays) {
  penstock_config got;
  expect_ok(penstock_get_config(&got, sizeof got));
  const Config expected = config();
  EXPECT_EQ(got.size, sizeof got);
  EXPECT_EQ(got.version, expected.version);
  EXPECT_EQ(penstock_version(), expected.version);
  EXPECT_EQ(got.compiler, expected.compiler);
  EXPECT_EQ(got.cpu_isa, expected.cpu_isa);
  EXPECT_EQ(got.cpu_warning, expected.cpu_warning);
  EXPECT_EQ(got.blas, expected.blas);
  EXPECT_EQ(got.blas_core, expected.blas_core);
  EXPECT_EQ(got.blas_warning, expected.blas_warning);
  EXPECT_EQ(got.cuda_status, expected.cuda_status);
  EXPECT_EQ(got.cuda_available != 0, expected.cuda_available);
  EXPECT_EQ(got.num_threads, expected.num_threads);
}

TEST(CApiCpu, CudaContextOrTheReason) {
  penstock_context* context = nullptr;
  const penstock_status status = penstock_context_create_cuda(0, nullptr, &context);
  const Config c = config();
  EXPECT_EQ(status == PENSTOCK_OK, c.cuda_available);
  if (status != PENSTOCK_OK) {
    EXPECT_EQ(status, PENSTOCK_ERROR_RUNTIME);
    EXPECT_EQ(penstock_last_error(), "CUDA is not available: " + c.cuda_status);
    EXPECT_EQ(context, nullptr);
  }
  penstock_context_destroy(context);
}

TEST(CApiCpu, NumbersAreThoseOfCpp) {
  EXPECT_EQ(PENSTOCK_FLOAT32, c_option(DataType::kFloat32));
  EXPECT_EQ(PENSTOCK_FLOAT64, c_option(DataType::kFloat64));
  EXPECT_EQ(PENSTOCK_FLOAT16, c_option(DataType::kFloat16));
  EXPECT_EQ(PENSTOCK_BFLOAT16, c_option(DataType::kBFloat16));
  EXPECT_EQ(PENSTOCK_BOOL, c_option(DataType::kBool));
  EXPECT_EQ(PENSTOCK_INT32, c_option(DataType::kInt32));
  EXPECT_EQ(PENSTOCK_INT64, c_option(DataType::kInt64));
  EXPECT_EQ(PENSTOCK_UINT8, c_option(DataType::kUInt8));
  EXPECT_EQ(PENSTOCK_DEVICE_CPU, c_option(DeviceType::kCpu));
  EXPECT_EQ(PENSTOCK_DEVICE_CUDA, c_option(DeviceType::kCuda));
  EXPECT_EQ(PENSTOCK_IDENTITY, c_option(Activation::kIdentity));
  EXPECT_EQ(PENSTOCK_TANH, c_option(Activation::kTanh));
  EXPECT_EQ(PENSTOCK_RELU, c_option(Activation::kRelu));
  EXPECT_EQ(PENSTOCK_FORWARD, c_option(Direction::kForward));
  EXPECT_EQ(PENSTOCK_REVERSE, c_option(Direction::kReverse));
  EXPECT_EQ(PENSTOCK_BIDIRECTIONAL, c_option(Direction::kBidirectional));
  EXPECT_EQ(PENSTOCK_MASK_OUTPUT, c_option(MaskSite::kOutput));
  EXPECT_EQ(PENSTOCK_MASK_STATE, c_option(MaskSite::kState));
  EXPECT_EQ(PENSTOCK_RESET_AFTER, c_option(ResetMode::kAfter));
  EXPECT_EQ(PENSTOCK_RESET_BEFORE, c_option(ResetMode::kBefore));
  EXPECT_EQ(PENSTOCK_PAD_LEFT, c_option(PadSide::kLeft));
  EXPECT_EQ(PENSTOCK_PAD_RIGHT, c_option(PadSide::kRight));
  EXPECT_EQ(PENSTOCK_SKIP_PADDING, c_option(SliceMask::kSkip));
  EXPECT_EQ(PENSTOCK_PADDING_IS_DATA, c_option(SliceMask::kNone));
  EXPECT_EQ(PENSTOCK_MAX_RANK, TensorView::kMaxRank);
}

/// The C structures' defaults are those of the C++ ones.
TEST(CApiCpu, DefaultsAreThoseOfCpp) {
  penstock_sru_forward_args sru;
  expect_ok(penstock_sru_forward_init(&sru, sizeof sru));
  const SruForwardArgs sru_cpp;
  EXPECT_EQ(sru.activation, c_option(sru_cpp.activation));
  EXPECT_EQ(sru.skip != 0, sru_cpp.skip);
  EXPECT_EQ(sru.mask_site, c_option(sru_cpp.mask_site));
  EXPECT_EQ(sru.direction, c_option(sru_cpp.direction));
  EXPECT_EQ(sru.scale_x, sru_cpp.scale_x);
  EXPECT_EQ(sru.need_grad != 0, sru_cpp.need_grad);
  penstock_rnn_forward_args rnn;
  expect_ok(penstock_rnn_forward_init(&rnn, sizeof rnn));
  const RnnForwardArgs rnn_cpp;
  EXPECT_EQ(rnn.activation, c_option(rnn_cpp.activation));
  EXPECT_EQ(rnn.direction, c_option(rnn_cpp.direction));
  EXPECT_EQ(rnn.recompute != 0, rnn_cpp.recompute);
  EXPECT_EQ(rnn.need_grad != 0, rnn_cpp.need_grad);
  penstock_gru_forward_args gru;
  expect_ok(penstock_gru_forward_init(&gru, sizeof gru));
  const GruForwardArgs gru_cpp;
  EXPECT_EQ(gru.activation, c_option(gru_cpp.activation));
  EXPECT_EQ(gru.reset, c_option(gru_cpp.reset));
  EXPECT_EQ(gru.need_grad != 0, gru_cpp.need_grad);
  penstock_lstm_forward_args lstm;
  expect_ok(penstock_lstm_forward_init(&lstm, sizeof lstm));
  const LstmForwardArgs lstm_cpp;
  EXPECT_EQ(lstm.direction, c_option(lstm_cpp.direction));
  EXPECT_EQ(lstm.recompute != 0, lstm_cpp.recompute);
  EXPECT_EQ(lstm.need_grad != 0, lstm_cpp.need_grad);
  penstock_sliced_forward_args sliced;
  expect_ok(penstock_sliced_forward_init(&sliced, sizeof sliced));
  const SlicedForwardArgs sliced_cpp;
  EXPECT_STREQ(sliced.cell, sliced_cpp.cell);
  EXPECT_EQ(sliced.slice_count, sliced_cpp.slice_count);
  EXPECT_EQ(sliced.pad, c_option(sliced_cpp.pad));
  EXPECT_EQ(sliced.mask, c_option(sliced_cpp.mask));
  EXPECT_EQ(sliced.direction, c_option(sliced_cpp.direction));
  EXPECT_EQ(sliced.activation, c_option(sliced_cpp.activation));
  EXPECT_EQ(sliced.reset, c_option(sliced_cpp.reset));
  EXPECT_EQ(sliced.skip != 0, sliced_cpp.skip);
  EXPECT_EQ(sliced.scale_x, sliced_cpp.scale_x);
  EXPECT_EQ(sliced.recompute != 0, sliced_cpp.recompute);
  EXPECT_EQ(sliced.need_grad != 0, sliced_cpp.need_grad);
}

TEST(CApiCpu, EachThreadHasItsLastError) {
  ASSERT_EQ(penstock_set_num_threads(0), PENSTOCK_ERROR_VALUE);
  const std::string mine = penstock_last_error();
  EXPECT_EQ(mine, "set_num_threads: n: expected at least 1 (actual: 0)");
  std::string first, second;
  std::thread([&] {
    first = penstock_last_error();
    penstock_set_num_threads(-3);
    second = penstock_last_error();
  }).join();
  EXPECT_EQ(first, "");
  EXPECT_EQ(second, "set_num_threads: n: expected at least 1 (actual: -3)");
  EXPECT_EQ(penstock_last_error(), mine);
}

TEST(CApiCpu, BatchInvariance) {
  const bool before = penstock::batch_invariant();
  penstock_set_batch_invariant(1);
  EXPECT_EQ(penstock_batch_invariant(), 1);
  EXPECT_TRUE(penstock::batch_invariant());
  penstock_set_batch_invariant(0);
  EXPECT_EQ(penstock_batch_invariant(), 0);
  penstock::set_batch_invariant(before);
}

TEST(CApiCpu, FromC) { EXPECT_EQ(test_c_api(), 0); }
TEST(CApiCpu, FromCCompiledAsCpp) { EXPECT_EQ(test_c_api_cpp(), 0); }

}  // namespace
}  // namespace penstock::tests
