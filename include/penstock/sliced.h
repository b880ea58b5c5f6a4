// Sliced recurrence (Yu and Liu, "Sliced Recurrent Neural Networks", arXiv 1807.02291) over any
// cell.
//
// slices = (n_1, …, n_k) cuts a sequence into n_1 parts, each of them into n_2, and so on. Level 0
// runs the cell over l_0 = T / (n_1 ··· n_k) steps of s_0 = n_1 ··· n_k parts at once; the last
// hidden state of each part (of the SRU: its last output h) is one step of the next level's input,
// which has l_1 = n_k steps and s_1 = n_1 ··· n_(k-1) parts; level k has n_1 steps and one part.
// All parts start from a zero state. Cutting is arithmetic on strides: x is not copied (by the SRU,
// only where T does not divide).
//
// A T that does not divide is completed with steps of padding in front (kLeft) or behind (kRight).
// With mask = kSkip a padded step carries the state, and a part of padding alone is no step of its
// parent; with kNone steps beyond T are zeros in x, and lengths do not count.
#pragma once

#include <cstddef>
#include <cstdint>

#include "penstock/gru.h"

namespace penstock {

/// On which side of a sequence its padding lies.
enum class PadSide : std::int32_t { kLeft = 0, kRight = 1 };
/// Whether padding carries the state or is data.
enum class SliceMask : std::int32_t { kSkip = 0, kNone = 1 };

/// Parameters of one level, shaped as the cell's; D is x's at level 0 and dirs·H above. For the
/// cell "sru": weight_ih is its weight, weight_hh its weight_c and bias_ih its bias.
struct SlicedLevel {
  TensorView weight_ih;
  TensorView weight_hh;
  TensorView bias_ih;
  TensorView bias_hh;
};

struct SlicedInputs {
  const char* cell = "gru";             ///< "rnn", "gru", "lstm" or "sru"
  TensorView x;                         ///< (T, B, D)
  const SlicedLevel* levels = nullptr;  ///< slice_count + 1, level 0 first
  const std::int64_t* slices = nullptr;
  int slice_count = 0;  ///< k; 0 is the plain cell. At most kMaxSlices
  TensorView lengths;   ///< (B,) int32 or int64 in [0, T]: how many steps of each sequence count,
                        ///< its last ones with kLeft, its first ones with kRight
  PadSide pad = PadSide::kLeft;
  SliceMask mask = SliceMask::kSkip;
  Direction direction = Direction::kForward;
  Activation activation = Activation::kTanh;  ///< of "rnn", "gru" and "sru"
  ResetMode reset = ResetMode::kAfter;        ///< of "gru"
  bool skip = true;                           ///< of "sru"
  double scale_x = 1.0;                       ///< of "sru"
  bool recompute = false;                     ///< as in RecurrentInputs; not of "sru"

  static constexpr int kMaxSlices = 15;
};

struct SlicedForwardArgs : SlicedInputs {
  bool need_grad = true;
  /// Outputs, slice_count + 1: level i's last states (s_i, B, dirs·H), contiguous; that of the last
  /// level, (1, B, dirs·H), is the network's. 0 where a part has no valid step.
  const TensorView* outputs = nullptr;
  TensorView workspace;  ///< (sliced_forward_workspace_bytes,) uint8, 256-byte aligned; scratch
  TensorView reserve;    ///< (sliced_reserve_bytes,) uint8, 64-byte aligned; only with need_grad
};

struct SlicedBackwardArgs : SlicedInputs {
  TensorView reserve;  ///< as sliced_forward left it; read only
  /// Gradients of the levels' outputs, slice_count + 1; those not given are zeros.
  const TensorView* doutputs = nullptr;
  TensorView dx;  ///< (T, B, D), contiguous, overwritten
  /// slice_count + 1 sets of outputs, shaped as the parameters; the weights' must be given.
  const SlicedLevel* dlevels = nullptr;
  TensorView workspace;  ///< (sliced_backward_workspace_bytes,) uint8, 256-byte aligned; scratch
};

/// Steps and parts of each level for sequences of T steps: `steps` and `parts` have room for
/// slice_count + 1. Throws Error if a slice is less than 1.
PENSTOCK_EXPORT void sliced_shape(std::int64_t time, const std::int64_t* slices, int slice_count,
                                  std::int64_t* steps, std::int64_t* parts);

PENSTOCK_EXPORT std::size_t sliced_forward_workspace_bytes(const Context&,
                                                           const SlicedForwardArgs&);
PENSTOCK_EXPORT std::size_t sliced_reserve_bytes(const Context&, const SlicedForwardArgs&);
PENSTOCK_EXPORT std::size_t sliced_backward_workspace_bytes(const Context&,
                                                            const SlicedBackwardArgs&);

/// Compute every level's outputs. Guarantees are those of gru_forward.
PENSTOCK_EXPORT void sliced_forward(const Context&, const SlicedForwardArgs&);
/// Gradients of x and of every level's parameters.
PENSTOCK_EXPORT void sliced_backward(const Context&, const SlicedBackwardArgs&);

}  // namespace penstock
