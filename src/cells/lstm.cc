// Argument checks of lstm; the order of work is in recurrent.cc.

#include "penstock/lstm.h"

#include "cells/recurrent.h"

namespace penstock {
namespace {

using checks::Checker;

recurrent::Level level_of(Checker& check, const Context& ctx, const LstmInputs& in) {
  recurrent::Level level = recurrent::check_inputs(check, ctx, "lstm", in, 4, recurrent::Options());
  const std::int64_t width = in.weight_hh.shape[0] * in.weight_hh.shape[2];
  check.input("c0", in.c0, in.x.dtype, {in.x.shape[1], width}, "(B, dirs*H)");
  level.c0 = in.c0;
  return level;
}

}  // namespace

std::size_t lstm_forward_workspace_bytes(const Context& ctx, const LstmForwardArgs& a) {
  Checker check("lstm", ctx);
  return recurrent::forward_workspace_bytes(ctx, level_of(check, ctx, a), a, &a.c_last);
}

std::size_t lstm_reserve_bytes(const Context& ctx, const LstmForwardArgs& a) {
  Checker check("lstm", ctx);
  const recurrent::Level level = level_of(check, ctx, a);
  return a.need_grad ? recurrent::level_reserve_bytes(ctx, level) : 0;
}

std::size_t lstm_backward_workspace_bytes(const Context& ctx, const LstmBackwardArgs& a) {
  Checker check("lstm.backprop", ctx);
  return recurrent::backward_workspace_bytes(ctx, level_of(check, ctx, a), a, &a.dc_last, &a.dc0);
}

void lstm_forward(const Context& ctx, const LstmForwardArgs& a) {
  Checker check("lstm", ctx);
  recurrent::forward(check, ctx, level_of(check, ctx, a), a, &a.c_last);
}

void lstm_backward(const Context& ctx, const LstmBackwardArgs& a) {
  Checker check("lstm.backprop", ctx);
  recurrent::backward(check, ctx, level_of(check, ctx, a), a, &a.dc_last, &a.dc0);
}

}  // namespace penstock
