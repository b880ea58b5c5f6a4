// Argument checks of gru; the order of work is in recurrent.cc.

#include "penstock/gru.h"

#include "cells/recurrent.h"

namespace penstock {
namespace {

using checks::Checker;

recurrent::Level level_of(Checker& check, const Context& ctx, const GruInputs& in) {
  recurrent::Options options;
  options.activation = in.activation;
  options.reset = in.reset;
  return recurrent::check_inputs(check, ctx, "gru", in, 3, options);
}

}  // namespace

std::size_t gru_forward_workspace_bytes(const Context& ctx, const GruForwardArgs& a) {
  Checker check("gru", ctx);
  return recurrent::forward_workspace_bytes(ctx, level_of(check, ctx, a), a, nullptr);
}

std::size_t gru_reserve_bytes(const Context& ctx, const GruForwardArgs& a) {
  Checker check("gru", ctx);
  const recurrent::Level level = level_of(check, ctx, a);
  return a.need_grad ? recurrent::level_reserve_bytes(ctx, level) : 0;
}

std::size_t gru_backward_workspace_bytes(const Context& ctx, const GruBackwardArgs& a) {
  Checker check("gru.backprop", ctx);
  return recurrent::backward_workspace_bytes(ctx, level_of(check, ctx, a), a, nullptr, nullptr);
}

void gru_forward(const Context& ctx, const GruForwardArgs& a) {
  Checker check("gru", ctx);
  recurrent::forward(check, ctx, level_of(check, ctx, a), a, nullptr);
}

void gru_backward(const Context& ctx, const GruBackwardArgs& a) {
  Checker check("gru.backprop", ctx);
  recurrent::backward(check, ctx, level_of(check, ctx, a), a, nullptr, nullptr);
}

}  // namespace penstock
