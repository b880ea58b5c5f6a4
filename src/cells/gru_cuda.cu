// The gated recurrent unit on CUDA. With the reset after the product a step is as in the other
// cells; with the reset before it, recurrent_cuda_reset_before.cuh.

#include "cells/gru_cell.h"
#include "cells/recurrent_cuda_reset_before.cuh"
#include "cells/recurrent_cuda_table.cuh"

namespace penstock::cuda {
namespace {

using recurrent::BackwardScan;
using recurrent::Dims;
using recurrent::ForwardScan;
using recurrent::Options;
using recurrent::Scan;
using reset_before::Before;

struct After {
  using Shape = gru_cell::CellAfter<Activation::kTanh>;
  static constexpr int kSplit = 2;
  template <class F>
  static __device__ __forceinline__ void with_cell(const Options& o, F&& f) {
    switch (o.activation) {
      case Activation::kTanh: return f(gru_cell::CellAfter<Activation::kTanh>{});
      case Activation::kRelu: return f(gru_cell::CellAfter<Activation::kRelu>{});
      case Activation::kIdentity: return f(gru_cell::CellAfter<Activation::kIdentity>{});
    }
  }
};

bool is_before(const Options& o) { return o.reset == ResetMode::kBefore; }

recurrent::Spec spec(const Options& o) {
  return is_before(o) ? Before::Shape::spec() : After::Shape::spec();
}

std::size_t forward_scratch_bytes(const Dims& d) {
  if (!is_before(d.options)) return mixing::forward_scratch_bytes<After>(d);
  return reset_before::forward_scratch(d, nullptr).bytes;
}

std::size_t backward_scratch_bytes(const Dims& d) {
  if (!is_before(d.options)) return mixing::backward_scratch_bytes<After>(d);
  return reset_before::backward_scratch(d, nullptr).bytes;
}

void prepare_forward(const Context& ctx, const Scan& a) {
  if (!is_before(a.dims.options)) return mixing::prepare_forward<After>(ctx, a);
  mixing::combine_bias<Before::Shape>(ctx, a);
}

void forward(const Context& ctx, const ForwardScan& a) {
  if (!is_before(a.dims.options)) return mixing::forward<After>(ctx, a);
  if (mixing::empty(a)) return;
  const DeviceGuard guard(ctx);
  reset_before::forward(ctx, a);
}

void backward(const Context& ctx, const BackwardScan& a) {
  if (!is_before(a.dims.options)) return mixing::backward<After>(ctx, a);
  if (mixing::empty(a)) return;
  const DeviceGuard guard(ctx);
  reset_before::backward(ctx, a);
}

void replay(const Context& ctx, const ForwardScan& a) {
  if (!is_before(a.dims.options)) return mixing::replay<After>(ctx, a);
  if (mixing::empty(a)) return;
  const DeviceGuard guard(ctx);
  reset_before::replay(ctx, a);
}

bool takes_input(const Context& ctx, const Dims& d) {
  return !is_before(d.options) && mixing::takes_input<After>(ctx, d);
}

int first_level(const Context& ctx, const Dims* levels, int count, bool backward) {
  return is_before(levels[0].options)
             ? mixing::first_level<reset_before::Steps>(ctx, levels, count, backward)
             : mixing::first_level<mixing::OneProduct<After>>(ctx, levels, count, backward);
}

void forward_levels(const Context& ctx, const recurrent::LevelForward* levels, int count,
                    void* scratch) {
  if (is_before(levels[0].dims.options)) {
    return mixing::forward_levels<reset_before::Steps>(ctx, levels, count, scratch);
  }
  mixing::forward_levels<mixing::OneProduct<After>>(ctx, levels, count, scratch);
}

void backward_levels(const Context& ctx, const recurrent::LevelBackward* levels, int count,
                     void* scratch) {
  if (is_before(levels[0].dims.options)) {
    return mixing::backward_levels<reset_before::Steps>(ctx, levels, count, scratch);
  }
  mixing::backward_levels<mixing::OneProduct<After>>(ctx, levels, count, scratch);
}

}  // namespace

const recurrent::Kernels& gru_kernels() {
  static constexpr recurrent::LevelKernels levels = {&first_level, mixing::kLevelsScratchBytes,
                                                     &forward_levels, &backward_levels};
  static constexpr recurrent::Kernels table = {&spec,
                                               &mixing::plan,
                                               &forward_scratch_bytes,
                                               &backward_scratch_bytes,
                                               &prepare_forward,
                                               &mixing::prepare_nothing,
                                               &forward,
                                               &replay,
                                               &backward,
                                               &takes_input,
                                               &levels};
  return table;
}

}  // namespace penstock::cuda
