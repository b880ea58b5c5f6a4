// The SRU's checks and its public operations; the work itself is in sru_work.cc.

#include "penstock/sru.h"

#include <string>

#include "cells/recurrent.h"
#include "cells/sru_work.h"
#include "core/backend.h"
#include "core/cell_table.h"
#include "core/checks.h"
#include "penstock/error.h"

namespace penstock {
namespace sru {
namespace {

std::int64_t blocks_of(const SruInputs& in) {
  return in.skip && in.weight.shape[1] == 4 * in.bias.shape[2] ? 4 : 3;
}

}  // namespace

std::int64_t check_parameters(checks::Checker& check, const SruInputs& in, const char* const* names,
                              std::int64_t input) {
  const char* const weight = names[0];
  const char* const weight_c = names[1];
  const char* const bias = names[2];
  check.required(weight, in.weight);
  check.required(bias, in.bias);
  check.rank(weight, in.weight, 3, "(dirs, K*H, D)");
  check.rank(bias, in.bias, 3, "(dirs, 2, H)");
  const DataType dtype = in.x.dtype;
  const std::int64_t dirs = in.direction == Direction::kBidirectional ? 2 : 1;
  const std::int64_t hidden = in.bias.shape[2];
  if (hidden < 1) {
    check.fail(ErrorCode::kValue, bias,
               "expected at least one hidden feature (actual: " + in.bias.shape_string() + ")");
  }
  check.input(bias, in.bias, dtype, {dirs, 2, hidden}, "(dirs, 2, H)");
  const std::int64_t weight_rows = in.weight.shape[1];
  const std::int64_t blocks = blocks_of(in);
  const char* formula = blocks == 4 ? "(dirs, 4*H, D)" : "(dirs, 3*H, D)";
  check.input(weight, in.weight, dtype, {dirs, blocks * hidden, input}, formula);
  const bool skip_from_x = in.skip && blocks == 3;
  if (in.x_skip.given()) {
    if (!skip_from_x) {
      check.fail(ErrorCode::kValue, "x_skip",
                 "expected only with a skip term and 3*H rows of weight (actual: skip = " +
                     std::string(in.skip ? "true" : "false") + ", " + std::to_string(weight_rows) +
                     " rows)");
    }
  } else if (skip_from_x && input != dirs * hidden) {
    check.fail(ErrorCode::kValue, weight,
               "expected 4*H = " + std::to_string(4 * hidden) +
                   " rows, because x cannot be the skip term: its " + std::to_string(input) +
                   " features are not dirs*H = " + std::to_string(dirs * hidden) +
                   " (actual: " + std::to_string(weight_rows) + " rows)");
  }
  check.input(weight_c, in.weight_c, dtype, {dirs, 2, hidden}, "(dirs, 2, H)");
  return hidden;
}

Dims dims_of(const Context& ctx, const SruInputs& in, const recurrent::Cut& cut) {
  Dims d;
  d.steps = cut.steps;
  d.batch = cut.batch;
  d.input = in.x.shape[2];
  d.hidden = in.bias.shape[2];
  d.parts = cut.parts;
  d.dirs = in.direction == Direction::kBidirectional ? 2 : 1;
  d.blocks = blocks_of(in);
  d.skip_from_x = in.skip && d.blocks == 3;
  d.linear = !in.weight_c.given();
  d.dtype = in.x.dtype;
  d.compute = ctx.backend().compute_dtype(d.dtype);
  d.state = d.dtype == DataType::kFloat64 ? DataType::kFloat64 : DataType::kFloat32;
  d.keep = kernels_of<Kernels>(ctx, kKernelsName).keep(ctx, d);
  d.kept_steps = d.keep == 1 ? d.steps : (d.steps - 1) / d.keep;
  return d;
}

}  // namespace sru

namespace {

using checks::Checker;
using sru::Dims;

/// The work of a call, but for what forward and backward do not share.
template <class Work, class Args>
Work check_inputs(Checker& check, const Context& ctx, const Args& in) {
  check.required("x", in.x);
  if (!is_floating(in.x.dtype)) {
    check.fail(ErrorCode::kType, "x",
               std::string("expected float32, float64, float16 or bfloat16 (actual: ") +
                   name_of(in.x.dtype) + ")");
  }
  check.rank("x", in.x, 3, "(T, B, D)");
  const DataType dtype = in.x.dtype;
  const std::int64_t steps = in.x.shape[0], batch = in.x.shape[1];
  check.input("x", in.x, dtype, {steps, batch, in.x.shape[2]}, "(T, B, D)");
  static constexpr const char* kNames[] = {"weight", "weight_c", "bias"};
  sru::check_parameters(check, in, kNames, in.x.shape[2]);
  recurrent::Cut cut;
  cut.time = cut.steps = cut.whole = cut.padded = steps;
  cut.batch = batch;
  const Dims d = sru::dims_of(ctx, in, cut);
  check.input("x_skip", in.x_skip, dtype, {steps, batch, d.width()}, "(T, B, dirs*H)");
  check.input("c0", in.c0, dtype, {batch, d.width()}, "(B, dirs*H)");
  check.input("mask_c", in.mask_c, dtype, {batch, d.width()}, "(B, dirs*H)");
  if (in.mask_pad.given()) {
    const bool byte = in.mask_pad.dtype == DataType::kBool || in.mask_pad.dtype == DataType::kUInt8;
    check.input("mask_pad", in.mask_pad, byte ? in.mask_pad.dtype : DataType::kBool, {steps, batch},
                "(T, B)");
  }
  recurrent::check_lengths(check, ctx, in.lengths, batch, steps);
  if (static_cast<int>(in.activation) < 0 || static_cast<int>(in.activation) > 2) {
    check.fail(ErrorCode::kValue, "activation", "expected identity, tanh or relu");
  }
  if (in.mask_site != MaskSite::kOutput && in.mask_site != MaskSite::kState) {
    check.fail(ErrorCode::kValue, "mask_site", "expected kOutput or kState");
  }
  if (static_cast<int>(in.direction) < 0 || static_cast<int>(in.direction) > 2) {
    check.fail(ErrorCode::kValue, "direction", "expected kForward, kReverse or kBidirectional");
  }

  Work work;
  static_cast<Args&>(work) = in;
  work.cut = cut;
  work.dims = d;
  return work;
}

using sru::BackwardWork;
using sru::ForwardWork;

}  // namespace

std::size_t sru_forward_workspace_bytes(const Context& ctx, const SruForwardArgs& a) {
  Checker check("sru", ctx);
  return sru::workspace_bytes(ctx, check_inputs<ForwardWork>(check, ctx, a));
}

std::size_t sru_reserve_bytes(const Context& ctx, const SruForwardArgs& a) {
  Checker check("sru", ctx);
  const ForwardWork work = check_inputs<ForwardWork>(check, ctx, a);
  return a.need_grad ? sru::reserve_bytes(ctx, work.dims) : 0;
}

std::size_t sru_backward_workspace_bytes(const Context& ctx, const SruBackwardArgs& a) {
  Checker check("sru.backprop", ctx);
  return sru::workspace_bytes(ctx, check_inputs<BackwardWork>(check, ctx, a));
}

void sru_forward(const Context& ctx, const SruForwardArgs& a) {
  Checker check("sru", ctx);
  const ForwardWork work = check_inputs<ForwardWork>(check, ctx, a);
  const Dims& dims = work.dims;
  const std::size_t alignment = ctx.backend().alignment;
  check.required("y", a.y);
  check.required("c_last", a.c_last);
  check.output("y", a.y, dims.dtype, {dims.steps, dims.batch, dims.width()}, "(T, B, dirs*H)");
  check.output("c_last", a.c_last, dims.dtype, {dims.batch, dims.width()}, "(B, dirs*H)");
  check.buffer("workspace", a.workspace, sru::workspace_bytes(ctx, work), alignment,
               /*written=*/true);
  if (a.need_grad) {
    check.buffer("reserve", a.reserve, sru::reserve_bytes(ctx, dims), kReserveAlignment,
                 /*written=*/true);
  }
  // A call that needs no workspace still runs: any non-null base will do, as nothing is cut off it.
  char none = 0;
  sru::forward(ctx, work, a.workspace.data != nullptr ? a.workspace.data : &none, a.reserve.data);
}

void sru_backward(const Context& ctx, const SruBackwardArgs& a) {
  Checker check("sru.backprop", ctx);
  const BackwardWork work = check_inputs<BackwardWork>(check, ctx, a);
  const Dims& dims = work.dims;
  const std::size_t alignment = ctx.backend().alignment;
  check.input("dy", a.dy, dims.dtype, {dims.steps, dims.batch, dims.width()}, "(T, B, dirs*H)");
  check.input("dc_last", a.dc_last, dims.dtype, {dims.batch, dims.width()}, "(B, dirs*H)");
  check.buffer("reserve", a.reserve, sru::reserve_bytes(ctx, dims), kReserveAlignment,
               /*written=*/false);
  check.required("dx", a.dx);
  check.required("dweight", a.dweight);
  check.output("dx", a.dx, dims.dtype, {dims.steps, dims.batch, dims.input}, "(T, B, D)");
  check.output("dweight", a.dweight, dims.dtype, {dims.dirs, dims.blocks * dims.hidden, dims.input},
               "(dirs, K*H, D)");
  check.output("dweight_c", a.dweight_c, dims.dtype, {dims.dirs, 2, dims.hidden}, "(dirs, 2, H)");
  check.output("dbias", a.dbias, dims.dtype, {dims.dirs, 2, dims.hidden}, "(dirs, 2, H)");
  check.output("dc0", a.dc0, dims.dtype, {dims.batch, dims.width()}, "(B, dirs*H)");
  if (a.dmask_c.given() && !a.mask_c.given()) {
    check.fail(ErrorCode::kValue, "dmask_c", "expected mask_c to be given too (actual: it is not)");
  }
  check.output("dmask_c", a.dmask_c, dims.dtype, {dims.batch, dims.width()}, "(B, dirs*H)");
  if (a.dx_skip.given() && !a.x_skip.given()) {
    check.fail(ErrorCode::kValue, "dx_skip", "expected x_skip to be given too (actual: it is not)");
  }
  check.output("dx_skip", a.dx_skip, dims.dtype, {dims.steps, dims.batch, dims.width()},
               "(T, B, dirs*H)");
  check.buffer("workspace", a.workspace, sru::workspace_bytes(ctx, work), alignment,
               /*written=*/true);
  sru::backward(ctx, work, a.workspace.data, a.reserve.data);
}

}  // namespace penstock
