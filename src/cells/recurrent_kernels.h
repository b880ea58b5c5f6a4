// What a backend provides for the cells whose steps mix the state through a matrix. The order of
// work is in src/cells/recurrent.cc: chunk by chunk, the products W x of all its steps, then the
// scan over them; backward, the scan that gives the gates' gradients, then the products with them.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/backend.h"
#include "core/scalar_math.h"
#include "penstock/gru.h"

namespace penstock::recurrent {

/// How sequences are cut into parts of equal length, by arithmetic alone. An entry is one step of
/// one level's input, for all B sequences: step i of part p is entry p * steps + i, of which the
/// first `shift` come before the input's own (padding in front). Row p * batch + b is part p of
/// sequence b.
struct Cut {
  std::int64_t time = 0;   // entries that the input has
  std::int64_t batch = 0;  // B
  std::int64_t parts = 1;
  std::int64_t steps = 0;  // per part
  std::int64_t shift = 0;  // entries of padding in front

  // Which steps count. An entry of level 0 is one step of the sequence, one of a higher level
  // `unit` of them; lengths and `whole` are in steps of the sequence.
  bool skip = true;                       // padding carries the state; else all entries count
  bool left = false;                      // a sequence's valid steps are its last ones
  const std::int64_t* lengths = nullptr;  // (B,), or null: `whole`
  std::int64_t whole = 0;                 // T
  std::int64_t padded = 0;                // T and its padding
  std::int64_t unit = 1;

  // Forced inline, as is all that per-ISA objects and kernels share: no symbol of theirs may meet.
  PENSTOCK_HOST_DEVICE std::int64_t rows() const { return parts * batch; }
  PENSTOCK_HOST_DEVICE std::int64_t entries() const { return parts * steps; }

  /// Steps [*begin, *end) of row (part, b) count.
  PENSTOCK_HOST_DEVICE void valid(std::int64_t part, std::int64_t b, std::int64_t* begin,
                                  std::int64_t* end) const {
    *begin = 0;
    *end = steps;
    if (!skip) return;
    std::int64_t length = lengths == nullptr ? whole : lengths[b];
    length = length < 0 ? 0 : length > whole ? whole : length;
    std::int64_t first = left ? padded - length : 0;
    std::int64_t last = length == 0 ? 0 : (first + length + unit - 1) / unit;
    first = length == 0 ? 0 : first / unit;
    first -= part * steps;
    last -= part * steps;
    *begin = first < 0 ? 0 : first > steps ? steps : first;
    *end = last < 0 ? 0 : last > steps ? steps : last;
  }
};

struct Options {
  Activation activation = Activation::kTanh;
  ResetMode reset = ResetMode::kAfter;
};

struct Dims {
  std::int64_t input = 0, hidden = 0;  // D, H
  std::int64_t dirs = 1;
  Cut cut;
  Options options;
  DataType dtype = DataType::kFloat32;    // of the arrays
  DataType compute = DataType::kFloat32;  // of products, gates and what is kept
  DataType state = DataType::kFloat32;    // of h and c between steps, and of their gradients
  PENSTOCK_HOST_DEVICE std::int64_t width() const { return dirs * hidden; }
};

/// What the order of work must know of a cell. A block is H values of a row.
struct Spec {
  int gates = 1;   // G: row blocks of the weights
  int saved = 1;   // blocks of a step's row in `gates` that backward reads, saved >= gates. Forward
                   // finds W x in the first G
  int dgates = 1;  // blocks of a step's row of gate gradients, dgates >= gates. The first G are
                   // those of W x, in the order of the weights' rows
  int h_split = 0;   // the weights' row blocks from this one on find their gradient of R h_prev
  int h_block = 0;   // in the blocks from this one on; the blocks before it, in the first ones
  int operand = -1;  // block of `gates` that the rows from h_split on multiply instead of h_prev
  bool has_c = false;
};

/// How a backend cuts the work into chunks: parts and steps by the dimensions alone, items of work
/// also by the number of threads.
struct Plan {
  std::int64_t parts = 0;      // per chunk
  std::int64_t steps = 0;      // per chunk; less than all only where a chunk's parts are all or one
  std::int64_t tile_rows = 0;  // rows of W x and dx that one item of work takes
  std::int64_t tile_outputs =
      0;                         // columns of W x that one item takes, where weights are not packed
  std::int64_t tile_units = 0;   // rows of a weight gradient that one item of work takes
  std::int64_t sum_columns = 0;  // columns of a bias gradient that one item of work takes
  bool pack_weights = false;     // bring weights into the backend's form for products
};

/// One array with a row for each (direction, part, step, sequence), from the chunk's first part and
/// first step in time on. Row r of a direction is data[dir] + r * row_stride.
struct Rows {
  void* data[2] = {nullptr, nullptr};
  std::int64_t row_stride = 0;  // elements
  std::int64_t part_rows = 0;   // rows from one part to the next
};

/// The part of a level that one scan covers. Steps count in processing order: step k of a reverse
/// direction is step `steps - 1 - k` in time.
struct Scan {
  Dims dims;
  bool first_reverse = false;  // direction 0 reads time in reverse
  std::int64_t part_begin = 0, part_end = 0;
  std::int64_t step_begin = 0, step_end = 0;

  const void* weight_hh = nullptr;  // (dirs, G·H, H) compute type
  const void* bias_ih = nullptr;    // (dirs, G·H) compute type; zeros where not given
  const void* bias_hh = nullptr;
  void* scratch = nullptr;  // Kernels::forward_scratch_bytes or backward_scratch_bytes

  // Padded steps: forward leaves the state in h_kept and c_kept, and zeros in the block of `gates`
  // that is an operand of products (Spec::operand).
  Rows gates;   // compute type; forward: in, the products W x, out, what backward reads, if `save`
  Rows h_kept;  // compute type: the state before each step; data null where it is not kept
  Rows c_kept;  // state type, likewise

  PENSTOCK_HOST_DEVICE bool reversed(std::int64_t dir) const { return first_reverse || dir == 1; }
  /// First step in time of the scan's steps.
  PENSTOCK_HOST_DEVICE std::int64_t first_time(std::int64_t dir) const {
    return reversed(dir) ? dims.cut.steps - step_end : step_begin;
  }
  /// Row of `Rows` for processing step k.
  PENSTOCK_HOST_DEVICE std::int64_t row(const Rows& rows, std::int64_t dir, std::int64_t part,
                                        std::int64_t k, std::int64_t b) const {
    const std::int64_t time = reversed(dir) ? dims.cut.steps - 1 - k : k;
    return (part - part_begin) * rows.part_rows + (time - first_time(dir)) * dims.cut.batch + b;
  }
  /// Index of processing step k of a part among the entries that the input has; may lie outside.
  PENSTOCK_HOST_DEVICE std::int64_t entry(std::int64_t dir, std::int64_t part,
                                          std::int64_t k) const {
    const std::int64_t time = reversed(dir) ? dims.cut.steps - 1 - k : k;
    return part * dims.cut.steps + time - dims.cut.shift;
  }
};

struct ForwardScan : Scan {
  bool save = false;        // write what backward reads into `gates`
  bool zero_state = false;  // the state before step_begin is zero
  void* h = nullptr;        // (rows, dirs·H) state type: before the scan's steps, then after them
  void* h_next = nullptr;   // as h; scratch
  void* c = nullptr;        // as h; where the cell has one
  void* y = nullptr;        // (time, B, dirs·H) compute type, 0 at padded steps; or null
  // Where the scan takes x itself (Kernels::takes_input): the level's (time, B, D) and the weights
  // (dirs, G·H, D), compute type. `gates` then holds nothing before the scan, and is given only if
  // `save`.
  const void* x = nullptr;
  const void* weight_ih = nullptr;
};

struct BackwardScan : Scan {
  Rows dgates;               // compute type, dgates·H columns; 0 at padded steps
  const void* dy = nullptr;  // (time, B, dirs·H) compute type, or null
  void* dh = nullptr;  // (rows, dirs·H) state type: gradient after the scan's steps, then before
  void* dc = nullptr;
  bool want_first = true;  // whether the gradient of the state before step 0 is wanted
};

/// A level of a sliced network among several that a backend takes at once, all steps of all parts,
/// from the zero state. Of ForwardScan, `scratch`, h, h_next, c and y are not there; x are the
/// outputs of the level below, which the same call finds, or null where `gates` holds the products
/// W x.
struct LevelForward : ForwardScan {
  void* outputs = nullptr;  // (rows, dirs·H) array type: the last states of h
  void* kept = nullptr;     // the same again, or null
};

/// The same backward. Of BackwardScan, `scratch`, dy, dh and dc are not there.
struct LevelBackward : BackwardScan {
  const void* weight_ih = nullptr;
  const void* doutputs = nullptr;  // (rows, dirs·H) array type: of the outputs, but for what comes
                                   // from the level above; or null
  void* dx = nullptr;  // (dirs, entries * B, D) state type, scratch: what each direction adds to
                       // the gradient of the level below; null: nothing is below
};

/// What a backend provides that can take levels at once. Arrays have a place for each entry of the
/// level, and levels come from the lowest on. A backend that has this computes in the array type.
struct LevelKernels {
  /// The level from which on the rest is best taken at once; `count`: none is. A function of its
  /// arguments, the device and settings.
  int (*first)(const Context&, const Dims* levels, int count, bool backward);
  std::size_t scratch_bytes;
  void (*forward)(const Context&, const LevelForward* levels, int count, void* scratch);
  void (*backward)(const Context&, const LevelBackward* levels, int count, void* scratch);
};

struct Kernels {
  Spec (*spec)(const Options&);
  Plan (*plan)(const Dims&);
  std::size_t (*forward_scratch_bytes)(const Dims&);
  std::size_t (*backward_scratch_bytes)(const Dims&);
  /// Fill the scratch from the weights, once before the scans.
  void (*prepare_forward)(const Context&, const Scan&);
  void (*prepare_backward)(const Context&, const Scan&);
  void (*forward)(const Context&, const ForwardScan&);
  /// The gates of all the scan's steps from W x and the kept states: what `forward` saves.
  void (*replay)(const Context&, const ForwardScan&);
  /// Steps from the last to the first.
  void (*backward)(const Context&, const BackwardScan&);
  /// Whether `forward` of these dimensions takes x in place of W x; null: never.
  bool (*takes_input)(const Context&, const Dims&) = nullptr;
  const LevelKernels* levels = nullptr;  // or null: levels are taken one after the other
};

}  // namespace penstock::recurrent
