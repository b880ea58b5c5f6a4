// The table of a cell with one product a step, over all paths.
#pragma once

#include "cells/recurrent_cuda.cuh"
#include "cells/recurrent_cuda_group.cuh"
#include "cells/recurrent_cuda_levels.cuh"
#include "cells/recurrent_cuda_matrix.cuh"
#include "cells/recurrent_cuda_tile.cuh"

namespace penstock::cuda::mixing {

template <class Family>
std::size_t forward_scratch_bytes(const Dims& d) {
  using Shape = typename Family::Shape;
  return ForwardScratch(d, Shape::kGates, Shape::kBiases, /*resets=*/false, nullptr).bytes;
}

template <class Family>
std::size_t backward_scratch_bytes(const Dims& d) {
  return BackwardScratch(d, Family::Shape::kGates, /*resets=*/false, nullptr).bytes;
}

template <class Family>
void prepare_forward(const Context& ctx, const Scan& a) {
  combine_bias<typename Family::Shape>(ctx, a);
}
inline void prepare_nothing(const Context&, const Scan&) {}

template <class Family>
void forward(const Context& ctx, const ForwardScan& a) {
  if (empty(a)) return;
  const DeviceGuard guard(ctx);
  if (forward_by_matrix<Family>(ctx, a)) return;
  if (a.x != nullptr) throw Error(ErrorCode::kRuntime, "CUDA: a scan that takes x fits no tile");
  const RecurrentPlan plan = plan_of<Family>(ctx, a);
  if (plan.path >= RecurrentPath::kBlock) return forward_by_group<Family>(ctx, a, plan);
  if (plan.path == RecurrentPath::kTile) return forward_by_tiles<Family>(ctx, a, plan);
  forward_by_steps<Family>(ctx, a);
}

template <class Family>
void backward(const Context& ctx, const BackwardScan& a) {
  if (empty(a)) return;
  const DeviceGuard guard(ctx);
  if (backward_by_matrix<Family>(ctx, a)) return;
  const RecurrentPlan plan = plan_of<Family>(ctx, a);
  if (plan.path >= RecurrentPath::kBlock) return backward_by_group<Family>(ctx, a, plan);
  if (plan.path == RecurrentPath::kTile) return backward_by_tiles<Family>(ctx, a, plan);
  backward_by_steps<Family>(ctx, a);
}

/// The table of a cell with one product a step.
template <class Family>
constexpr recurrent::Kernels kernels(recurrent::Spec (*spec)(const Options&)) {
  return {spec,
          &plan,
          &forward_scratch_bytes<Family>,
          &backward_scratch_bytes<Family>,
          &prepare_forward<Family>,
          &prepare_nothing,
          &forward<Family>,
          &replay<Family>,
          &backward<Family>,
          &takes_input<Family>,
          &kLevelKernels<OneProduct<Family>>};
}

}  // namespace penstock::cuda::mixing
