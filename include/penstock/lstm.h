// Long short-term memory (Hochreiter and Schmidhuber, 1997; with the forget gate of Gers et al.,
// 2000), as torch.nn.LSTM computes it.
//
//   i = sigmoid(W_i x + b_ii + R_i h_prev + b_hi)
//   f = sigmoid(W_f x + b_if + R_f h_prev + b_hf)
//   g = tanh   (W_g x + b_ig + R_g h_prev + b_hg)
//   o = sigmoid(W_o x + b_io + R_o h_prev + b_ho)
//   c = f * c_prev + i * g
//   h = o * tanh(c)
//
// G = 4, row blocks in the order i, f, g, o. Sums of 16-bit types are kept in float32, and so are
// both states between steps.
#pragma once

#include "penstock/recurrent.h"

namespace penstock {

struct LstmInputs : RecurrentInputs {
  TensorView c0;  ///< (B, dirs·H) initial cell state. Not given: zeros
};
struct LstmForwardArgs : LstmInputs, RecurrentForward {
  TensorView c_last;  ///< output: (B, dirs·H) cell state after the last step of each direction
};
struct LstmBackwardArgs : LstmInputs, RecurrentBackward {
  TensorView dc_last;  ///< (B, dirs·H). Not given: zeros
  TensorView dc0;      ///< output: (B, dirs·H). Not given: not computed
};

/// Bytes of scratch memory that lstm_forward needs for these arguments (outputs, workspace and
/// reserve need not be given yet). Checks the inputs and throws as lstm_forward does.
PENSTOCK_EXPORT std::size_t lstm_forward_workspace_bytes(const Context&, const LstmForwardArgs&);
/// Bytes that lstm_forward keeps for lstm_backward; 0 without need_grad.
PENSTOCK_EXPORT std::size_t lstm_reserve_bytes(const Context&, const LstmForwardArgs&);
/// Bytes of scratch memory that lstm_backward needs. Which outputs are given counts: give the same
/// ones, if only as views without memory.
PENSTOCK_EXPORT std::size_t lstm_backward_workspace_bytes(const Context&, const LstmBackwardArgs&);

/// Compute y, h_last and c_last. Allocates nothing (the CPU's threads and packing buffers are made
/// once and kept); on CUDA, ordered on the context's stream and safe under stream capture. Throws
/// Error and writes nothing if an argument is wrong.
PENSTOCK_EXPORT void lstm_forward(const Context&, const LstmForwardArgs&);
/// Gradients of every input and parameter, with the inputs that lstm_forward was given.
PENSTOCK_EXPORT void lstm_backward(const Context&, const LstmBackwardArgs&);

}  // namespace penstock
