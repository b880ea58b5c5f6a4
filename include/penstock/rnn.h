// The plain recurrent layer (Elman, "Finding Structure in Time", 1990), as torch.nn.RNN computes
// it.
//
//   h = act(W x + b_ih + R h_prev + b_hh)       act: tanh, relu or identity
//
// G = 1. Sums of 16-bit types are kept in float32, and so is the state between steps.
#pragma once

#include "penstock/recurrent.h"

namespace penstock {

struct RnnInputs : RecurrentInputs {
  Activation activation = Activation::kTanh;
};
struct RnnForwardArgs : RnnInputs, RecurrentForward {};
struct RnnBackwardArgs : RnnInputs, RecurrentBackward {};

/// Bytes of scratch memory that rnn_forward needs for these arguments (outputs, workspace and
/// reserve need not be given yet). Checks the inputs and throws as rnn_forward does.
PENSTOCK_EXPORT std::size_t rnn_forward_workspace_bytes(const Context&, const RnnForwardArgs&);
/// Bytes that rnn_forward keeps for rnn_backward; 0 without need_grad.
PENSTOCK_EXPORT std::size_t rnn_reserve_bytes(const Context&, const RnnForwardArgs&);
/// Bytes of scratch memory that rnn_backward needs. Which outputs are given counts: give the same
/// ones, if only as views without memory.
PENSTOCK_EXPORT std::size_t rnn_backward_workspace_bytes(const Context&, const RnnBackwardArgs&);

/// Compute y and h_last. Allocates nothing (the CPU's threads and packing buffers are made once and
/// kept); on CUDA, ordered on the context's stream and safe under stream capture. Throws Error and
/// writes nothing if an argument is wrong.
PENSTOCK_EXPORT void rnn_forward(const Context&, const RnnForwardArgs&);
/// Gradients of every input and parameter, with the inputs that rnn_forward was given.
PENSTOCK_EXPORT void rnn_backward(const Context&, const RnnBackwardArgs&);

}  // namespace penstock
