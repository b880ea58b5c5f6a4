// RNN, GRU and LSTM for XLA: one reading of arguments for all three.

#include <type_traits>

#include "ffi/operations.h"
#include "ffi/options.h"
#include "penstock/gru.h"
#include "penstock/lstm.h"
#include "penstock/rnn.h"

namespace penstock::ffi {
namespace {

void read_inputs(Frame& frame, RecurrentInputs& in) {
  in.x = frame.operand("x");
  in.weight_ih = frame.operand("weight_ih");
  in.weight_hh = frame.operand("weight_hh");
  in.bias_ih = frame.operand("bias_ih");
  in.bias_hh = frame.operand("bias_hh");
  in.h0 = frame.operand("h0");
  in.lengths = frame.operand("lengths");
  in.direction = direction_of(frame);
  in.recompute = frame.flag("recompute");
}

void read_own(Frame& frame, RnnInputs& in) { in.activation = activation_of(frame); }
void read_own(Frame& frame, GruInputs& in) {
  in.activation = activation_of(frame);
  in.reset = reset_of(frame);
}
void read_own(Frame& frame, LstmInputs& in) { in.c0 = frame.operand("c0"); }

template <class Args>
Args forward_args(Frame& frame) {
  Args args;
  read_inputs(frame, args);
  read_own(frame, args);
  args.y = frame.result("y");
  args.h_last = frame.result("h_last");
  if constexpr (std::is_base_of_v<LstmInputs, Args>) args.c_last = frame.result("c_last");
  args.reserve = frame.result("reserve");
  args.need_grad = args.reserve.given();
  args.workspace = frame.workspace();
  frame.no_others();
  return args;
}

template <class Args>
Args backward_args(Frame& frame) {
  Args args;
  read_inputs(frame, args);
  read_own(frame, args);
  args.reserve = frame.operand("reserve");
  args.dy = frame.operand("dy");
  args.dh_last = frame.operand("dh_last");
  args.dx = frame.result("dx");
  args.dweight_ih = frame.result("dweight_ih");
  args.dweight_hh = frame.result("dweight_hh");
  args.dbias_ih = frame.result("dbias_ih");
  args.dbias_hh = frame.result("dbias_hh");
  args.dh0 = frame.result("dh0");
  if constexpr (std::is_base_of_v<LstmInputs, Args>) {
    args.dc_last = frame.operand("dc_last");
    args.dc0 = frame.result("dc0");
  }
  args.workspace = frame.workspace();
  frame.no_others();
  return args;
}

}  // namespace

void rnn_forward(Frame& frame) {
  penstock::rnn_forward(frame.context(), forward_args<RnnForwardArgs>(frame));
}
void rnn_backward(Frame& frame) {
  penstock::rnn_backward(frame.context(), backward_args<RnnBackwardArgs>(frame));
}
void gru_forward(Frame& frame) {
  penstock::gru_forward(frame.context(), forward_args<GruForwardArgs>(frame));
}
void gru_backward(Frame& frame) {
  penstock::gru_backward(frame.context(), backward_args<GruBackwardArgs>(frame));
}
void lstm_forward(Frame& frame) {
  penstock::lstm_forward(frame.context(), forward_args<LstmForwardArgs>(frame));
}
void lstm_backward(Frame& frame) {
  penstock::lstm_backward(frame.context(), backward_args<LstmBackwardArgs>(frame));
}

}  // namespace penstock::ffi
