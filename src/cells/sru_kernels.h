// What a backend provides for the SRU. src/cells/sru_work.cc calls these in order, with matrix
// products between them.
//
// Sequences come in parts of equal length (recurrent::Cut); the plain SRU has one part. A row is
// one (part, step, batch row): arrays over time hold rows in this order, whatever the direction.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cells/recurrent_kernels.h"
#include "core/backend.h"
#include "core/scalar_math.h"
#include "penstock/sru.h"

namespace penstock::sru {

constexpr const char* kKernelsName = "sru";

struct Dims {
  std::int64_t steps = 0, batch = 0, input = 0, hidden = 0;  // of a part; B, D, H
  std::int64_t parts = 1;
  std::int64_t dirs = 1, blocks = 3;  // dirs, K
  // Forced inline, as is all that per-ISA objects and kernels share: no symbol of theirs may meet.
  PENSTOCK_HOST_DEVICE std::int64_t rows() const { return parts * steps * batch; }
  PENSTOCK_HOST_DEVICE std::int64_t states() const { return parts * batch; }
  PENSTOCK_HOST_DEVICE std::int64_t width() const { return dirs * hidden; }
  bool skip_from_x = false;               // K = 3 with a skip term, read from x or x_skip
  DataType dtype = DataType::kFloat32;    // of the arrays
  DataType compute = DataType::kFloat32;  // of u, du and what the kernels read and write
  DataType state = DataType::kFloat32;    // of c and its gradient
  bool independent_rows = false;          // no row of u or dx may depend on how many rows there are
  bool linear = false;                    // v = 0: c is linear in the c before it
  // Steps, in processing order, between two states that the forward scan keeps for the backward
  // scan, which finds the others again; 1: it keeps that after each step (Kernels::keep).
  std::int64_t keep = 1;
  // States kept of a channel and part; with `keep` > 1, those before steps keep, 2 keep, …
  std::int64_t kept_steps = 0;
  std::int64_t kept_rows() const { return parts * kept_steps * batch; }
};

/// How a backend cuts the work. Each group of channels goes through time on its own: matrix product
/// for a chunk of rows, then the scan over it, so that u stays in a cache. The cut is a function
/// of the dimensions alone, never of the number of threads.
struct Plan {
  std::int64_t channels = 0;        // per group; the last one of a direction may be smaller
  std::int64_t dirs_per_group = 1;  // dirs: one group holds both directions (then channels = H)
  std::int64_t chunk_parts = 1;     // parts per matrix product; more than one only with all steps,
  std::int64_t chunk_steps = 0;     // so that a chunk's rows lie next to each other
  bool pack_weight = false;         // copy each group's rows of the weight next to each other
  bool pack_operand = false;  // bring them into the backend's form for products, if it has one
  std::int64_t dx_rows = 0;   // rows of dx per matrix product
  // Where groups are few and their chunks many, the products of one window of this many chunks and
  // the scans of another run at the same time; 0: each group takes product and scan in turn. The
  // window, too, is a function of the dimensions, and results do not depend on `overlap`.
  std::int64_t window = 0;
  bool overlap = false;
};

/// Strided access to an array whose element (row, direction, channel) is
/// data[row * row_stride + dir * dir_stride + channel], counted from the first row, direction and
/// channel of the scan at hand.
struct Plane {
  void* data = nullptr;
  std::int64_t row_stride = 0;
  std::int64_t dir_stride = 0;
};

/// The part of the arrays that one scan covers. Steps count in processing order: step s of a
/// reverse direction is a part's time `steps` - 1 - s.
struct Range {
  std::int64_t dir_begin = 0, dir_end = 1;
  std::int64_t channel_begin = 0, channel_end = 0;
  std::int64_t part_begin = 0, part_end = 1;
  std::int64_t step_begin = 0, step_end = 0;
};

struct ScanArgs {
  Dims dims;
  Range range;
  Activation activation = Activation::kIdentity;
  MaskSite mask_site = MaskSite::kOutput;
  bool first_reverse = false;  // direction 0 reads time in reverse
  double scale_x = 1.0;

  recurrent::Cut cut;                 // which steps count, if `masked`
  bool masked = false;                // whether the cut knows of padding
  const std::uint8_t* pad = nullptr;  // (rows,), true where padding, whatever the cut says; or null

  Plane u;                         // compute type; row 0 is the range's earliest
  std::int64_t gate_stride = 0;    // between u0, u1, u2, u3
  const void* x = nullptr;         // (rows, dirs·H) compute type, if dims.skip_from_x
  const void* weight_c = nullptr;  // (dirs, 2, H) compute type
  const void* bias = nullptr;      // (dirs, 2, H) compute type
  const void* mask_c = nullptr;    // (B, dirs·H) compute type, or null
  Plane c;                         // state type, kept_rows() rows, in an order that is the
                                   // backend's own; data may be null
  void* scratch = nullptr;         // Kernels::scratch_bytes, the range's own; its content is lost

  PENSTOCK_HOST_DEVICE bool reversed(std::int64_t dir) const { return first_reverse || dir == 1; }
  PENSTOCK_HOST_DEVICE std::int64_t time(std::int64_t step, std::int64_t dir) const {
    return reversed(dir) ? dims.steps - 1 - step : step;
  }
  PENSTOCK_HOST_DEVICE std::int64_t row(std::int64_t part, std::int64_t t, std::int64_t b) const {
    return (part * dims.steps + t) * dims.batch + b;
  }
  /// The range's earliest row, which is row 0 of u.
  PENSTOCK_HOST_DEVICE std::int64_t first_row(std::int64_t dir) const {
    return row(range.part_begin, time(reversed(dir) ? range.step_end - 1 : range.step_begin, dir),
               0);
  }
  /// Times [*begin, *end) of a part of sequence b count, but for `pad`.
  PENSTOCK_HOST_DEVICE void valid(std::int64_t part, std::int64_t b, std::int64_t* begin,
                                  std::int64_t* end) const {
    *begin = 0;
    *end = dims.steps;
    if (masked) cut.valid(part, b, begin, end);
  }
  /// Whether a step carries the state.
  PENSTOCK_HOST_DEVICE bool padded(std::int64_t part, std::int64_t t, std::int64_t b) const {
    if (pad != nullptr && pad[row(part, t, b)] != 0) return true;
    if (!masked) return false;
    std::int64_t begin = 0, end = 0;
    cut.valid(part, b, &begin, &end);
    return t < begin || t >= end;
  }
  /// Whether a step is the last valid one of its part in processing order, but for `pad`.
  PENSTOCK_HOST_DEVICE bool last(std::int64_t part, std::int64_t t, std::int64_t b,
                                 std::int64_t dir) const {
    std::int64_t begin = 0, end = 0;
    valid(part, b, &begin, &end);
    return begin < end && t == (reversed(dir) ? begin : end - 1);
  }
};

struct ForwardScan : ScanArgs {
  void* c_state = nullptr;  // (parts·B, dirs·H) state type: state before the range, then after it
  void* y = nullptr;        // (rows, dirs·H) compute type, or null
  void* h_last = nullptr;   // (parts·B, dirs·H) compute type, or null: overwritten with the last
                            // valid output of the range's steps, where there is one
};

struct BackwardScan : ScanArgs {
  const void* c0 = nullptr;       // (parts·B, dirs·H) state type
  const void* dy = nullptr;       // (rows, dirs·H) compute type, or null
  const void* dh_last = nullptr;  // (parts·B, dirs·H) compute type, of the last valid output; or
                                  // null. Not with dy or pad
  void* dc_state = nullptr;  // (parts·B, dirs·H) state type: gradient after the range, then before
  Plane du;                  // compute type, strides and gates as u
  void* dx_skip = nullptr;   // (rows, dirs·H) compute type, if dims.skip_from_x
  void* dparams = nullptr;   // param_partial_bytes, zeroed before the first range; accumulated
  void* dmask = nullptr;     // (B, dirs·H) state type, zeroed before; accumulated; or null
};

struct Kernels {
  Plan (*plan)(const Dims&);
  /// Dims::keep, a function of the other dimensions but `steps`, `linear` and `independent_rows`,
  /// so that forward, backward and whoever asks for sizes agree on it.
  std::int64_t (*keep)(const Context&, const Dims&);
  void (*forward)(const Context&, const ForwardScan&);
  /// Steps of the range from the last to the first.
  void (*backward)(const Context&, const BackwardScan&);
  std::size_t (*scratch_bytes)(const Context&, const Dims&, bool backward);
  std::size_t (*param_partial_bytes)(const Context&, const Dims&);
  /// Sum the partial gradients in a fixed order into dweight_c and dbias, (dirs, 2, H) of the
  /// arrays' type; either may be null.
  void (*reduce_params)(const Context&, const Dims&, const void* dparams, void* dweight_c,
                        void* dbias);
};

}  // namespace penstock::sru
