// That the operations may be captured in a CUDA graph: while a stream captures nothing runs, and a
// replay works with what the arrays hold by then. Anything that an operation does beside the stream
// would show: done too early, not again, or refused.

#include <gtest/gtest.h>

#include <dlfcn.h>

#include <functional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "array.h"
#include "core/backend.h"
#include "penstock/penstock.h"
#include "plugin_streams.h"
#include "sru_problem.h"

namespace penstock::tests {
namespace {

struct Plugin {
  const Backend* backend;
  const cuda_emulation::PluginStreams* streams;
};

const Plugin& plugin() {
  static const Plugin loaded = [] {
    void* handle = dlopen(PENSTOCK_EMULATED_PLUGIN, RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) throw std::runtime_error(dlerror());
    const auto backend = reinterpret_cast<PluginEntry>(dlsym(handle, kPluginEntryName));
    const auto streams = reinterpret_cast<cuda_emulation::PluginStreamsEntry>(
        dlsym(handle, cuda_emulation::kPluginStreamsName));
    if (backend == nullptr || streams == nullptr) throw std::runtime_error("not the plugin");
    return Plugin{backend(), streams()};
  }();
  return loaded;
}

Context context_of(cudaStream_t stream) {
  return Context::with_backend(*plugin().backend, Device{}, stream);
}

/// Forward and backward of one operation, with arrays that stay.
struct Operation {
  std::vector<Array*> inputs;
  std::vector<const Array*> outputs;
  std::function<void(const Context&)> run;
};

using Bytes = std::vector<std::vector<unsigned char>>;

Bytes contents(const Operation& op) {
  Bytes all;
  for (const Array* a : op.outputs) all.push_back(a->raw());
  return all;
}

void fill_inputs(const Operation& op, std::uint64_t seed) {
  Numbers numbers(seed);
  for (Array* a : op.inputs) {
    if (a->given()) a->set(numbers.take(a->view().numel(), 0.5));
  }
}

void poison_outputs(const Operation& op) {
  for (const Array* a : op.outputs) {
    if (a->given()) std::memset(a->view().data, 0xff, a->raw().size());
  }
}

void check_capture(const Operation& op) {
  const cuda_emulation::PluginStreams& streams = *plugin().streams;
  Bytes expected[2];
  for (const std::uint64_t seed : {1, 2}) {
    fill_inputs(op, seed);
    op.run(context_of(nullptr));
    expected[seed - 1] = contents(op);
  }
  ASSERT_NE(expected[0], expected[1]);

  fill_inputs(op, 1);
  poison_outputs(op);
  const Bytes poisoned = contents(op);
  cudaStream_t stream = nullptr;
  ASSERT_EQ(streams.create(&stream, cudaStreamNonBlocking), cudaSuccess);
  ASSERT_EQ(streams.begin_capture(stream, cudaStreamCaptureModeGlobal), cudaSuccess);
  op.run(context_of(stream));
  cudaGraph_t graph = nullptr;
  ASSERT_EQ(streams.end_capture(stream, &graph), cudaSuccess);
  EXPECT_EQ(contents(op), poisoned) << "something ran while the stream was capturing";
  cudaGraphExec_t exec = nullptr;
  ASSERT_EQ(streams.instantiate(&exec, graph, 0), cudaSuccess);
  for (const std::uint64_t seed : {2, 1, 1}) {
    fill_inputs(op, seed);
    poison_outputs(op);
    EXPECT_EQ(streams.launch(exec, stream), cudaSuccess);
    EXPECT_EQ(contents(op), expected[seed - 1]) << "replay with inputs " << seed;
  }
  streams.destroy_exec(exec);
  streams.destroy_graph(graph);
  streams.destroy(stream);
}

TEST(EmulatedCapture, Sru) {
  for (const DataType dtype : {DataType::kFloat32, DataType::kBFloat16}) {
    SruShape shape;
    shape.direction = Direction::kBidirectional;
    shape.lengths = true;
    SruCall call(context_of(nullptr), shape, random_values(shape, dtype, 1), dtype);
    Operation op;
    op.inputs = {&call.x, &call.weight, &call.weight_c, &call.bias, &call.c0, &call.dy};
    op.outputs = call.outputs();
    op.run = [&](const Context& ctx) {
      sru_forward(ctx, call.forward);
      sru_backward(ctx, call.backward);
    };
    check_capture(op);
  }
}

constexpr std::int64_t kSteps = 5, kBatch = 3, kInput = 4;

/// One of the cells that recurrent.h describes, bidirectional, with lengths.
template <class Forward, class Backward>
struct Cell {
  using Bytes = std::size_t (*)(const Context&, const Forward&);
  int gates;
  Bytes forward_workspace_bytes, reserve_bytes;
  std::size_t (*backward_workspace_bytes)(const Context&, const Backward&);
  void (*forward)(const Context&, const Forward&);
  void (*backward)(const Context&, const Backward&);

  void check(DataType dtype, std::int64_t hidden, bool recompute) const {
    const Context ctx = context_of(nullptr);
    const Shape weight_ih_shape = {2, gates * hidden, kInput}, bias_shape = {2, gates * hidden},
                weight_hh_shape = {2, gates * hidden, hidden}, row = {kBatch, 2 * hidden},
                step = {kSteps, kBatch, 2 * hidden};
    Array x(dtype, {kSteps, kBatch, kInput}), weight_ih(dtype, weight_ih_shape),
        weight_hh(dtype, weight_hh_shape), bias_ih(dtype, bias_shape), bias_hh(dtype, bias_shape),
        h0(dtype, row), dy(dtype, step), dh_last(dtype, row);
    const Array lengths(DataType::kInt64, {kBatch}, {5, 0, 3});
    Array y(dtype, step), h_last(dtype, row), dx(dtype, {kSteps, kBatch, kInput}),
        dweight_ih(dtype, weight_ih_shape), dweight_hh(dtype, weight_hh_shape),
        dbias_ih(dtype, bias_shape), dbias_hh(dtype, bias_shape), dh0(dtype, row);
    Forward f;
    f.x = x.view();
    f.weight_ih = weight_ih.view();
    f.weight_hh = weight_hh.view();
    f.bias_ih = bias_ih.view();
    f.bias_hh = bias_hh.view();
    f.h0 = h0.view();
    f.lengths = lengths.view();
    f.direction = Direction::kBidirectional;
    f.recompute = recompute;
    f.y = y.view();
    f.h_last = h_last.view();
    Operation op;
    Array c_last(dtype, row), dc_last(dtype, row);
    if constexpr (std::is_same_v<Forward, LstmForwardArgs>) {
      f.c_last = c_last.view();
      op.outputs.push_back(&c_last);
    }
    const Array forward_workspace = Array::bytes(forward_workspace_bytes(ctx, f));
    const Array reserve = Array::bytes(reserve_bytes(ctx, f));
    f.workspace = forward_workspace.view();
    f.reserve = reserve.view();
    Backward b;
    b.x = f.x;
    b.weight_ih = f.weight_ih;
    b.weight_hh = f.weight_hh;
    b.bias_ih = f.bias_ih;
    b.bias_hh = f.bias_hh;
    b.h0 = f.h0;
    b.lengths = f.lengths;
    b.direction = f.direction;
    b.recompute = recompute;
    b.reserve = reserve.view();
    b.dy = dy.view();
    b.dh_last = dh_last.view();
    b.dx = dx.view();
    b.dweight_ih = dweight_ih.view();
    b.dweight_hh = dweight_hh.view();
    b.dbias_ih = dbias_ih.view();
    b.dbias_hh = dbias_hh.view();
    b.dh0 = dh0.view();
    const Array backward_workspace = Array::bytes(backward_workspace_bytes(ctx, b));
    b.workspace = backward_workspace.view();

    op.inputs = {&x, &weight_ih, &weight_hh, &bias_ih, &bias_hh, &h0, &dy, &dh_last};
    for (const Array* a :
         {&y, &h_last, &dx, &dweight_ih, &dweight_hh, &dbias_ih, &dbias_hh, &dh0}) {
      op.outputs.push_back(a);
    }
    op.run = [&](const Context& c) {
      forward(c, f);
      backward(c, b);
    };
    check_capture(op);
  }

  void check_all() const {
    // Sizes for which R fits on chip, and for which it does not.
    for (const std::int64_t hidden : {6, 260}) {
      check(DataType::kFloat32, hidden, false);
    }
    check(DataType::kBFloat16, 6, false);
    check(DataType::kFloat64, 6, true);
  }
};

TEST(EmulatedCapture, Rnn) {
  Cell<RnnForwardArgs, RnnBackwardArgs>{1,
                                        &rnn_forward_workspace_bytes,
                                        &rnn_reserve_bytes,
                                        &rnn_backward_workspace_bytes,
                                        &rnn_forward,
                                        &rnn_backward}
      .check_all();
}

TEST(EmulatedCapture, Gru) {
  Cell<GruForwardArgs, GruBackwardArgs>{3,
                                        &gru_forward_workspace_bytes,
                                        &gru_reserve_bytes,
                                        &gru_backward_workspace_bytes,
                                        &gru_forward,
                                        &gru_backward}
      .check_all();
}

TEST(EmulatedCapture, Lstm) {
  Cell<LstmForwardArgs, LstmBackwardArgs>{4,
                                          &lstm_forward_workspace_bytes,
                                          &lstm_reserve_bytes,
                                          &lstm_backward_workspace_bytes,
                                          &lstm_forward,
                                          &lstm_backward}
      .check_all();
}

TEST(EmulatedCapture, Sliced) {
  constexpr std::int64_t kHidden = 6, kTime = 11;
  const Context ctx = context_of(nullptr);
  const DataType dtype = DataType::kFloat32;
  const std::int64_t slices[] = {2, 3};
  std::int64_t steps[3], parts[3];
  sliced_shape(kTime, slices, 2, steps, parts);
  Array x(dtype, {kTime, kBatch, kInput}), dx(dtype, {kTime, kBatch, kInput});
  const Array lengths(DataType::kInt64, {kBatch}, {11, 0, 4});
  std::vector<Array> parameters, dparameters, outputs, doutputs;
  std::vector<SlicedLevel> levels, dlevels;
  std::vector<TensorView> output_views, doutput_views;
  const auto level_of = [&](std::vector<Array>* arrays, std::int64_t input) {
    SlicedLevel level;
    arrays->emplace_back(dtype, Shape{1, 3 * kHidden, input});
    level.weight_ih = arrays->back().view();
    arrays->emplace_back(dtype, Shape{1, 3 * kHidden, kHidden});
    level.weight_hh = arrays->back().view();
    arrays->emplace_back(dtype, Shape{1, 3 * kHidden});
    level.bias_ih = arrays->back().view();
    arrays->emplace_back(dtype, Shape{1, 3 * kHidden});
    level.bias_hh = arrays->back().view();
    return level;
  };
  for (int i = 0; i < 3; ++i) {
    levels.push_back(level_of(&parameters, i == 0 ? kInput : kHidden));
    dlevels.push_back(level_of(&dparameters, i == 0 ? kInput : kHidden));
    outputs.emplace_back(dtype, Shape{parts[i], kBatch, kHidden});
    output_views.push_back(outputs.back().view());
    doutputs.emplace_back(dtype, Shape{parts[i], kBatch, kHidden});
    doutput_views.push_back(doutputs.back().view());
  }
  SlicedForwardArgs f;
  f.x = x.view();
  f.levels = levels.data();
  f.slices = slices;
  f.slice_count = 2;
  f.lengths = lengths.view();
  f.outputs = output_views.data();
  const Array forward_workspace = Array::bytes(sliced_forward_workspace_bytes(ctx, f));
  const Array reserve = Array::bytes(sliced_reserve_bytes(ctx, f));
  f.workspace = forward_workspace.view();
  f.reserve = reserve.view();
  SlicedBackwardArgs b;
  static_cast<SlicedInputs&>(b) = f;
  b.reserve = reserve.view();
  b.doutputs = doutput_views.data();
  b.dx = dx.view();
  b.dlevels = dlevels.data();
  const Array backward_workspace = Array::bytes(sliced_backward_workspace_bytes(ctx, b));
  b.workspace = backward_workspace.view();

  Operation op;
  op.inputs = {&x};
  op.outputs = {&dx};
  for (Array& a : parameters) op.inputs.push_back(&a);
  for (Array& a : doutputs) op.inputs.push_back(&a);
  for (const Array& a : dparameters) op.outputs.push_back(&a);
  for (const Array& a : outputs) op.outputs.push_back(&a);
  op.run = [&](const Context& c) {
    sliced_forward(c, f);
    sliced_backward(c, b);
  };
  check_capture(op);
}

}  // namespace
}  // namespace penstock::tests
