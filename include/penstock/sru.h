// The Simple Recurrent Unit (Lei et al., "Simple Recurrent Units for Highly Parallelizable
// Recurrence", arXiv 1709.02755).
//
// Sizes: T time steps, B batch, D input features, H hidden features, dirs = 1 or 2 directions,
// K = 3 or 4 row blocks of the weight (candidate, forget, reset and, when K = 4, skip).
//
//   u0, u1, u2 [, u3] = weight · x_t                      one matrix product over all time steps
//   f  = sigmoid(u1 + v_f * c_prev + b_f)
//   r  = sigmoid(u2 + v_r * c_prev + b_r)
//   c  = f * c_prev + (1 - f) * u0
//   x' = scale_x * s_t  (K = 3)  |  u3  (K = 4)  |  0  (skip = false)
//   with s = x (then D = dirs·H) or an array of its own, x_skip
//   h  = r * m * (g(c) - x') + x'      mask_site = kOutput, m the dropout mask, constant over time
//   h  = r * (m * g(c) - x') + x'      mask_site = kState, as in the paper's first version
//   a padded step:  c = c_prev, h = 0
//
// Products of 16-bit types are accumulated in float32, and the state c is float32 for them.
#pragma once

#include <cstddef>

#include "penstock/context.h"
#include "penstock/export.h"
#include "penstock/tensor_view.h"
#include "penstock/types.h"

namespace penstock {

/// Where the dropout mask multiplies.
enum class MaskSite : std::int32_t { kOutput = 0, kState = 1 };

/// What forward and backward have in common. All floating arrays share x's element type (float32,
/// float64, float16 or bfloat16) and device. Inputs may have any strides; they are never written.
struct SruInputs {
  TensorView x;         ///< (T, B, D)
  TensorView weight;    ///< (dirs, K·H, D), rows in blocks of H: candidate, forget, reset[, skip]
  TensorView weight_c;  ///< (dirs, 2, H): v_f, v_r. Not given: v = 0, the early version
  TensorView bias;      ///< (dirs, 2, H): b_f, b_r
  TensorView c0;        ///< (B, dirs·H) initial state. Not given: zeros
  TensorView mask_pad;  ///< (T, B) bool, true where a step is padding. Not given: no padding
  TensorView lengths;   ///< (B,) int32 or int64 in [0, T]: steps t >= lengths[b] are padding.
                        ///< Checked where the host can read it, else values outside are clamped
  TensorView x_skip;    ///< (T, B, dirs·H) for the skip term when K = 3. Not given: x itself, which
                        ///< needs D = dirs·H. For layers that normalise or drop out x first
  TensorView mask_c;    ///< (B, dirs·H) dropout mask, scaling included. Not given: ones
  Activation activation = Activation::kIdentity;  ///< g
  bool skip = true;                               ///< false: x' = 0 (then K = 3)
  double scale_x = 1.0;                           ///< factor in the skip term when K = 3
  MaskSite mask_site = MaskSite::kOutput;
  Direction direction = Direction::kForward;
};

struct SruForwardArgs : SruInputs {
  /// Keep what sru_backward needs in `reserve`.
  bool need_grad = true;

  // Outputs: contiguous, not overlapping any input or each other, overwritten.
  TensorView y;       ///< (T, B, dirs·H); 0 at padded steps
  TensorView c_last;  ///< (B, dirs·H) state after the last step of each direction

  TensorView workspace;  ///< (sru_forward_workspace_bytes,) uint8, 256-byte aligned; scratch
  TensorView reserve;    ///< (sru_reserve_bytes,) uint8, 64-byte aligned; only with need_grad
};

struct SruBackwardArgs : SruInputs {
  TensorView reserve;  ///< as sru_forward left it; read only, so backward may run more than once

  TensorView dy;       ///< (T, B, dirs·H). Not given: zeros; ignored at padded steps
  TensorView dc_last;  ///< (B, dirs·H). Not given: zeros

  // Outputs: contiguous, overwritten. Those not given are not computed, except that
  // dx and dweight must be given.
  TensorView dx;         ///< (T, B, D)
  TensorView dweight;    ///< (dirs, K·H, D)
  TensorView dweight_c;  ///< (dirs, 2, H)
  TensorView dbias;      ///< (dirs, 2, H)
  TensorView dc0;        ///< (B, dirs·H)
  TensorView dmask_c;    ///< (B, dirs·H); only if mask_c is given
  TensorView dx_skip;    ///< (T, B, dirs·H); only if x_skip is given

  TensorView workspace;  ///< (sru_backward_workspace_bytes,) uint8, 256-byte aligned; scratch
};

/// Bytes of scratch memory that sru_forward needs for these arguments (outputs, workspace and
/// reserve need not be given yet). Checks the inputs and throws as sru_forward does.
PENSTOCK_EXPORT std::size_t sru_forward_workspace_bytes(const Context&, const SruForwardArgs&);
/// Bytes that sru_forward keeps for sru_backward; 0 without need_grad.
PENSTOCK_EXPORT std::size_t sru_reserve_bytes(const Context&, const SruForwardArgs&);
/// Bytes of scratch memory that sru_backward needs. Which outputs are given counts: give the same
/// ones, if only as views without memory.
PENSTOCK_EXPORT std::size_t sru_backward_workspace_bytes(const Context&, const SruBackwardArgs&);

/// Compute y and c_last. Allocates nothing (the CPU's threads, and packing buffers of 1.4 MB each
/// for large products, are made once and kept); on CUDA, ordered on the context's stream and safe
/// under stream capture. Throws Error and writes nothing if an argument is wrong.
PENSTOCK_EXPORT void sru_forward(const Context&, const SruForwardArgs&);
/// Gradients of every input and parameter, with the inputs that sru_forward was given.
PENSTOCK_EXPORT void sru_backward(const Context&, const SruBackwardArgs&);

}  // namespace penstock
