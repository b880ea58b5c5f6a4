// The state-mixing cells on the CPU: what each provides per instruction set, and the kernel tables
// made from it.
#pragma once

#include "cells/recurrent_kernels.h"
#include "cpu/isa.h"

namespace penstock::cpu {

/// How a step multiplies its rows with R.
enum class Products {
  kPanels,  // floating point, R in panels (src/cpu/panels.h)
  kFixed,   // fixed point on the matrix unit (src/cpu/amx.h)
  kRead,    // floating point, R as it is: for few steps of large weights
};

/// Rows [begin, end) of one direction (part p of sequence b is row p * batch + b), at most
/// kMostBlockRows; rows are independent of each other.
struct RowBlock {
  std::int64_t dir = 0, begin = 0, end = 0;
  void* scratch = nullptr;  // the direction's
  Products products = Products::kPanels;
  // Which of the block's units: share `share` of `shares` equal ones. With more than one, a step
  // has phases, each of which reads what all shares of the one before wrote; -1 is all phases.
  std::int64_t share = 0, shares = 1;
  int phase = -1;

  bool does(int which) const { return phase < 0 || phase == which; }
  std::int64_t first_of(std::int64_t n) const { return n * share / shares; }
  std::int64_t last_of(std::int64_t n) const { return n * (share + 1) / shares; }
};

/// Steps of one cell in one element type.
struct RecurrentSteps {
  /// Bytes of scratch for one direction.
  std::int64_t (*forward_scratch)(const recurrent::Dims&, Products);
  std::int64_t (*backward_scratch)(const recurrent::Dims&, Products);
  /// Fill one share of a direction's scratch from its weights.
  void (*pack_forward)(const recurrent::Scan&, const RowBlock&);
  void (*pack_backward)(const recurrent::Scan&, const RowBlock&);
  /// All of the scan's steps.
  void (*forward)(const recurrent::ForwardScan&, const RowBlock&);
  void (*backward)(const recurrent::BackwardScan&, const RowBlock&);
  /// One step's share of units, for few rows: forward, backward, and what comes after the last step
  /// forward. Steps of a direction follow each other, phase by phase.
  void (*forward_step)(const recurrent::ForwardScan&, const RowBlock&, std::int64_t k);
  void (*backward_step)(const recurrent::BackwardScan&, const RowBlock&, std::int64_t k);
  void (*forward_end)(const recurrent::ForwardScan&, const RowBlock&);
  int forward_phases, backward_phases;
  /// The gates of entries [begin, end) among the scan's own (part, step in time, sequence).
  void (*replay)(const recurrent::ForwardScan&, const RowBlock&);
};

constexpr std::int64_t kMostBlockRows = 32;

/// Both element types of one variant of a cell.
struct RecurrentVariant {
  RecurrentSteps f32, f64;
};

/// Fill the table of a cell from `spec` and `variant`, the cell's own functions of its options.
using SpecFunction = recurrent::Spec (*)(const recurrent::Options&);
using VariantFunction = const RecurrentVariant& (*)(const recurrent::Options&);
template <SpecFunction kSpec, VariantFunction kVariant>
const recurrent::Kernels& recurrent_kernels();

namespace recurrent_detail {
recurrent::Plan plan(const recurrent::Dims&, const recurrent::Spec&);
std::size_t scratch_bytes(const recurrent::Dims&, const RecurrentVariant&, bool forward);
void prepare(const Context&, const recurrent::Scan&, const RecurrentVariant&, bool forward);
void forward(const Context&, const recurrent::ForwardScan&, const RecurrentVariant&);
void replay(const Context&, const recurrent::ForwardScan&, const RecurrentVariant&);
void backward(const Context&, const recurrent::BackwardScan&, const RecurrentVariant&);
}  // namespace recurrent_detail

template <SpecFunction kSpec, VariantFunction kVariant>
const recurrent::Kernels& recurrent_kernels() {
  namespace detail = recurrent_detail;
  using recurrent::BackwardScan;
  using recurrent::Dims;
  using recurrent::ForwardScan;
  using recurrent::Scan;
  static constexpr recurrent::Kernels table = {
      kSpec,
      [](const Dims& d) { return detail::plan(d, kSpec(d.options)); },
      [](const Dims& d) { return detail::scratch_bytes(d, kVariant(d.options), true); },
      [](const Dims& d) { return detail::scratch_bytes(d, kVariant(d.options), false); },
      [](const Context& ctx, const Scan& s) {
        detail::prepare(ctx, s, kVariant(s.dims.options), true);
      },
      [](const Context& ctx, const Scan& s) {
        detail::prepare(ctx, s, kVariant(s.dims.options), false);
      },
      [](const Context& ctx, const ForwardScan& s) {
        detail::forward(ctx, s, kVariant(s.dims.options));
      },
      [](const Context& ctx, const ForwardScan& s) {
        detail::replay(ctx, s, kVariant(s.dims.options));
      },
      [](const Context& ctx, const BackwardScan& s) {
        detail::backward(ctx, s, kVariant(s.dims.options));
      },
  };
  return table;
}

const recurrent::Kernels& rnn_kernels();
const recurrent::Kernels& gru_kernels();
const recurrent::Kernels& lstm_kernels();

}  // namespace penstock::cpu
