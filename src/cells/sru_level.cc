#include "cells/sru_level.h"

#include "cells/sru_work.h"
#include "penstock/error.h"

namespace penstock::sru {
namespace {

using recurrent::Level;
using recurrent::LevelGradients;
using recurrent::LevelOutputs;

void fill(SruInputs& in, const Level& level) {
  in.x = level.x;
  in.weight = level.weight_ih;
  in.weight_c = level.weight_hh;
  in.bias = level.bias_ih;
  in.lengths = level.lengths;
  in.activation = level.options.activation;
  in.skip = level.skip;
  in.scale_x = level.scale_x;
  in.direction = level.direction;
}

ForwardWork work_of(const Context& ctx, const Level& level, const LevelOutputs& out) {
  ForwardWork work;
  fill(work, level);
  work.cut = level.cut;
  work.dims = dims_of(ctx, work, level.cut);
  work.dims.independent_rows = true;
  work.need_grad = level.need_grad;
  work.part_outputs = true;
  work.h_last = out.h_last;
  return work;
}

BackwardWork work_of(const Context& ctx, const Level& level, const LevelGradients& grads) {
  BackwardWork work;
  fill(work, level);
  work.cut = level.cut;
  work.dims = dims_of(ctx, work, level.cut);
  work.dims.independent_rows = true;
  work.dh_last = grads.dh_last;
  work.dx = grads.dx;
  work.dweight = grads.dweight_ih;
  work.dweight_c = grads.dweight_hh;
  work.dbias = grads.dbias_ih;
  return work;
}

}  // namespace

std::int64_t check_level(checks::Checker& check, const SlicedInputs& in, const SlicedLevel& level,
                         const char* const* names, std::int64_t input, int) {
  SruInputs call;
  call.x = in.x;  // for its type
  call.weight = level.weight_ih;
  call.weight_c = level.weight_hh;
  call.bias = level.bias_ih;
  call.skip = in.skip;
  call.direction = in.direction;
  const std::int64_t hidden = check_parameters(check, call, names, input);
  if (level.bias_hh.given()) {
    check.fail(ErrorCode::kValue, names[3], "expected none, because the SRU has one bias");
  }
  return hidden;
}

std::size_t level_reserve_bytes(const Context& ctx, const Level& level) {
  return reserve_bytes(ctx, work_of(ctx, level, LevelOutputs()).dims);
}
std::size_t level_forward_workspace_bytes(const Context& ctx, const Level& level,
                                          const LevelOutputs& out) {
  return workspace_bytes(ctx, work_of(ctx, level, out));
}
std::size_t level_backward_workspace_bytes(const Context& ctx, const Level& level,
                                           const LevelGradients& grads) {
  return workspace_bytes(ctx, work_of(ctx, level, grads));
}
void level_forward(const Context& ctx, const Level& level, const LevelOutputs& out, void* workspace,
                   void* reserve) {
  forward(ctx, work_of(ctx, level, out), workspace, reserve);
}
void level_backward(const Context& ctx, const Level& level, const LevelGradients& grads,
                    void* workspace, const void* reserve) {
  backward(ctx, work_of(ctx, level, grads), workspace, reserve);
}

}  // namespace penstock::sru
