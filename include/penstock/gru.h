// The gated recurrent unit (Cho et al., "Learning Phrase Representations using RNN
// Encoder-Decoder", arXiv 1406.1078) in both of its usual forms.
//
//   r = sigmoid(W_r x + b_ir + R_r h_prev + b_hr)
//   z = sigmoid(W_z x + b_iz + R_z h_prev + b_hz)
//   n = act(W_n x + b_in + r * (R_n h_prev + b_hn))     reset = kAfter, as PyTorch and cuDNN
//   n = act(W_n x + b_in + R_n (r * h_prev) + b_hn)     reset = kBefore, as Cho et al. and the code
//                                                       published with sliced RNNs
//   h = (1 - z) * n + z * h_prev                        act: tanh, relu or identity
//
// G = 3, row blocks in the order r, z, n. Sums of 16-bit types are kept in float32, and so is the
// state between steps.
#pragma once

#include "penstock/recurrent.h"

namespace penstock {

/// Whether a GRU's reset gate multiplies after or before the product with R_n.
enum class ResetMode : std::int32_t { kAfter = 0, kBefore = 1 };

struct GruInputs : RecurrentInputs {
  Activation activation = Activation::kTanh;
  ResetMode reset = ResetMode::kAfter;
};
struct GruForwardArgs : GruInputs, RecurrentForward {};
struct GruBackwardArgs : GruInputs, RecurrentBackward {};

/// Bytes of scratch memory that gru_forward needs for these arguments (outputs, workspace and
/// reserve need not be given yet). Checks the inputs and throws as gru_forward does.
PENSTOCK_EXPORT std::size_t gru_forward_workspace_bytes(const Context&, const GruForwardArgs&);
/// Bytes that gru_forward keeps for gru_backward; 0 without need_grad.
PENSTOCK_EXPORT std::size_t gru_reserve_bytes(const Context&, const GruForwardArgs&);
/// Bytes of scratch memory that gru_backward needs. Which outputs are given counts: give the same
/// ones, if only as views without memory.
PENSTOCK_EXPORT std::size_t gru_backward_workspace_bytes(const Context&, const GruBackwardArgs&);

/// Compute y and h_last. Allocates nothing (the CPU's threads and packing buffers are made once and
/// kept); on CUDA, ordered on the context's stream and safe under stream capture. Throws Error and
/// writes nothing if an argument is wrong.
PENSTOCK_EXPORT void gru_forward(const Context&, const GruForwardArgs&);
/// Gradients of every input and parameter, with the inputs that gru_forward was given.
PENSTOCK_EXPORT void gru_backward(const Context&, const GruBackwardArgs&);

}  // namespace penstock
