// Argument checks of rnn; the order of work is in recurrent.cc.

#include "penstock/rnn.h"

#include "cells/recurrent.h"

namespace penstock {
namespace {

using checks::Checker;

recurrent::Level level_of(Checker& check, const Context& ctx, const RnnInputs& in) {
  recurrent::Options options;
  options.activation = in.activation;
  return recurrent::check_inputs(check, ctx, "rnn", in, 1, options);
}

}  // namespace

std::size_t rnn_forward_workspace_bytes(const Context& ctx, const RnnForwardArgs& a) {
  Checker check("rnn", ctx);
  return recurrent::forward_workspace_bytes(ctx, level_of(check, ctx, a), a, nullptr);
}

std::size_t rnn_reserve_bytes(const Context& ctx, const RnnForwardArgs& a) {
  Checker check("rnn", ctx);
  const recurrent::Level level = level_of(check, ctx, a);
  return a.need_grad ? recurrent::level_reserve_bytes(ctx, level) : 0;
}

std::size_t rnn_backward_workspace_bytes(const Context& ctx, const RnnBackwardArgs& a) {
  Checker check("rnn.backprop", ctx);
  return recurrent::backward_workspace_bytes(ctx, level_of(check, ctx, a), a, nullptr, nullptr);
}

void rnn_forward(const Context& ctx, const RnnForwardArgs& a) {
  Checker check("rnn", ctx);
  recurrent::forward(check, ctx, level_of(check, ctx, a), a, nullptr);
}

void rnn_backward(const Context& ctx, const RnnBackwardArgs& a) {
  Checker check("rnn.backprop", ctx);
  recurrent::backward(check, ctx, level_of(check, ctx, a), a, nullptr, nullptr);
}

}  // namespace penstock
