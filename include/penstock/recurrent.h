// What the cells whose steps mix the state through a matrix (rnn.h, gru.h, lstm.h) have in common.
//
// Sizes: T time steps, B batch, D input features, H hidden features, dirs = 1 or 2 directions,
// G gates (row blocks of the weights).
#pragma once

#include <cstddef>

#include "penstock/context.h"
#include "penstock/export.h"
#include "penstock/tensor_view.h"
#include "penstock/types.h"

namespace penstock {

/// What forward and backward have in common. All floating arrays share x's element type (float32,
/// float64, float16 or bfloat16) and device. Inputs may have any strides; they are never written.
struct RecurrentInputs {
  TensorView x;          ///< (T, B, D)
  TensorView weight_ih;  ///< (dirs, G·H, D)
  TensorView weight_hh;  ///< (dirs, G·H, H)
  TensorView bias_ih;    ///< (dirs, G·H). Not given: zeros
  TensorView bias_hh;    ///< (dirs, G·H). Not given: zeros
  TensorView h0;         ///< (B, dirs·H) initial state. Not given: zeros
  TensorView lengths;  ///< (B,) int32 or int64 in [0, T]: a step t >= lengths[b] carries the state
                       ///< and outputs 0. Checked where the host can read it, else clamped
  Direction direction = Direction::kForward;
  /// Keep only the states for the backward pass, which then computes the gates again: about a
  /// quarter of the memory for about a third more arithmetic.
  bool recompute = false;
};

/// Outputs of a forward pass and what it works with.
struct RecurrentForward {
  /// Keep what the backward pass needs in `reserve`.
  bool need_grad = true;

  // Outputs: contiguous, not overlapping any input or each other, overwritten.
  TensorView y;       ///< (T, B, dirs·H); 0 at padded steps
  TensorView h_last;  ///< (B, dirs·H) state after the last step of each direction

  TensorView workspace;  ///< (…_forward_workspace_bytes,) uint8, 256-byte aligned; scratch
  TensorView reserve;    ///< (…_reserve_bytes,) uint8, 64-byte aligned; only with need_grad
};

/// Inputs and outputs of a backward pass beyond those of the forward pass.
struct RecurrentBackward {
  TensorView reserve;  ///< as forward left it; read only, so backward may run more than once

  TensorView dy;       ///< (T, B, dirs·H). Not given: zeros; ignored at padded steps
  TensorView dh_last;  ///< (B, dirs·H). Not given: zeros

  // Outputs: contiguous, overwritten. dx, dweight_ih and dweight_hh must be given; of the others
  // those not given are not computed.
  TensorView dx;          ///< (T, B, D)
  TensorView dweight_ih;  ///< (dirs, G·H, D)
  TensorView dweight_hh;  ///< (dirs, G·H, H)
  TensorView dbias_ih;    ///< (dirs, G·H); only if bias_ih is given
  TensorView dbias_hh;    ///< (dirs, G·H); only if bias_hh is given
  TensorView dh0;         ///< (B, dirs·H)

  TensorView workspace;  ///< (…_backward_workspace_bytes,) uint8, 256-byte aligned; scratch
};

}  // namespace penstock
