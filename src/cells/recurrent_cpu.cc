// How the CPU cuts the work of the state-mixing cells, and how it spreads it over threads.

#include "cells/recurrent_cpu.h"

#include <algorithm>

#include "cpu/amx.h"
#include "cpu/batch_invariance.h"
#include "cpu/subnormals.h"
#include "cpu/threads.h"

namespace penstock::cpu::recurrent_detail {
namespace {

using recurrent::BackwardScan;
using recurrent::Dims;
using recurrent::ForwardScan;
using recurrent::Plan;
using recurrent::Scan;
using recurrent::Spec;

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// A chunk's gates, or their gradients, are about this large, so that they are still in a
// second-level cache when the next product or scan reads them.
constexpr std::int64_t kChunkBytes = std::int64_t{1} << 20;
constexpr std::int64_t kFewestChunkRows = 256, kMostChunkRows = 8192;
// With fewer rows at a time, threads would go without work.
constexpr std::int64_t kParallelRows = 128;

// For a single step of so few sequences, bringing large weights (H * max(H, D)) into another order
// costs more than it saves. These products round otherwise than those with packed weights.
constexpr std::int64_t kFewRows = 16;
constexpr std::int64_t kLargeWeights = 20000;

bool few_rows(const Dims& d) {
  return d.cut.entries() == 1 && d.cut.batch < kFewRows && !batch_invariant() &&
         d.hidden * std::max(d.hidden, d.input) >= kLargeWeights;
}

/// How many rows one item takes: a multiple of `unit`, at most `most`, such that the busiest of
/// `threads` has the fewest; the largest of several.
std::int64_t even_rows(std::int64_t rows, std::int64_t unit, std::int64_t most,
                       std::int64_t threads) {
  std::int64_t best = most, least = rows;
  for (std::int64_t size = most; size >= unit; size -= unit) {
    const std::int64_t items = ceil_div(rows, size), rounds = ceil_div(items, threads);
    const bool last_alone = items - (rounds - 1) * threads == 1;  // in the last round
    const std::int64_t busiest =
        last_alone ? rows - (items - rounds) * size : std::min(rows, rounds * size);
    if (busiest < least) {
      best = size;
      least = busiest;
    }
  }
  return best;
}

Products products_of(const Dims& d, bool forward) {
  if (few_rows(d)) return Products::kRead;
  // From here on by the size of the weights alone, so that a row's result does not depend on
  // others.
  constexpr std::int64_t kMostGates = 4;
  const bool fixed = d.compute == DataType::kFloat32 &&
                     fixed_pays(d.hidden, forward ? d.hidden : kMostGates * d.hidden);
  return fixed ? Products::kFixed : Products::kPanels;
}

const RecurrentSteps& steps_of(const Dims& d, const RecurrentVariant& v) {
  return d.compute == DataType::kFloat64 ? v.f64 : v.f32;
}

std::size_t dir_bytes(const Dims& d, const RecurrentVariant& v, bool forward) {
  const RecurrentSteps& steps = steps_of(d, v);
  const std::int64_t bytes =
      (forward ? steps.forward_scratch : steps.backward_scratch)(d, products_of(d, forward));
  return static_cast<std::size_t>((bytes + 63) / 64 * 64);
}

RowBlock block_of(const Scan& s, const RecurrentVariant& v, bool forward, std::int64_t dir) {
  RowBlock b;
  b.dir = dir;
  b.scratch =
      static_cast<char*>(s.scratch) + static_cast<std::size_t>(dir) * dir_bytes(s.dims, v, forward);
  b.products = products_of(s.dims, forward);
  return b;
}

double product_work(const Scan& s, std::int64_t rows, int gates) {
  return static_cast<double>(rows * (s.step_end - s.step_begin)) *
         static_cast<double>(s.dims.hidden * s.dims.hidden * gates * s.dims.dirs);
}

// Rows of a scan that one item takes: groups of eight for the vector unit, of sixteen for the
// matrix unit. How rows are grouped does not change their results.
std::int64_t block_rows(const Dims& d, Products products, std::int64_t rows) {
  if (products == Products::kRead) return kMostBlockRows;  // blocks share their scratch
  const bool fixed = products == Products::kFixed;
  return even_rows(rows, fixed ? 16 : 8, fixed || d.hidden > 96 ? kMostBlockRows : 16,
                   ceil_div(thread_count(), d.dirs));
}

/// run(block) for all of a scan's rows and directions.
template <class S, class F>
void for_each_block(const Context& ctx, const S& s, const RecurrentVariant& v, bool forward,
                    std::int64_t first, std::int64_t rows, std::int64_t size, double work,
                    const F& run) {
  const std::int64_t blocks = ceil_div(rows, size);
  for_each(ctx, blocks * s.dims.dirs, work, [&](std::int64_t i) {
    RowBlock b = block_of(s, v, forward, i / blocks);
    b.begin = first + i % blocks * size;
    b.end = std::min(b.begin + size, first + rows);
    const FlushSubnormals flush;
    run(b);
  });
}

}  // namespace

Plan plan(const Dims& d, const Spec& spec) {
  const recurrent::Cut& cut = d.cut;
  Plan p;
  const std::int64_t row_bytes =
      d.hidden * std::max(spec.saved, spec.dgates) * static_cast<std::int64_t>(size_of(d.compute));
  const std::int64_t rows = std::clamp(kChunkBytes / row_bytes, kFewestChunkRows, kMostChunkRows);
  const std::int64_t batch = std::max<std::int64_t>(1, cut.batch);
  const std::int64_t steps = std::max<std::int64_t>(1, cut.steps);
  p.parts =
      std::clamp<std::int64_t>(rows / (steps * batch), 1, std::max<std::int64_t>(1, cut.parts));
  p.steps = steps;
  const std::int64_t parallel =
      std::min(std::max<std::int64_t>(1, cut.parts), ceil_div(kParallelRows, batch));
  if (p.parts < parallel) {
    p.parts = parallel;
    p.steps = std::clamp<std::int64_t>(rows / (p.parts * batch), 1, steps);
    if (p.steps * 2 > steps) p.steps = steps;
  } else if (p.parts == 1) {
    p.steps = std::clamp<std::int64_t>(rows / batch, 1, steps);
  }
  p.tile_rows = even_rows(p.parts * p.steps * batch, 32, 256, thread_count());
  p.tile_outputs = 256;
  // Each item brings x of the chunk into the form of products anew.
  p.tile_units = d.hidden * spec.gates <= 192 ? 192 : 256;
  p.sum_columns = 128;
  p.pack_weights = !few_rows(d);
  return p;
}

std::size_t scratch_bytes(const Dims& d, const RecurrentVariant& v, bool forward) {
  return dir_bytes(d, v, forward) * static_cast<std::size_t>(d.dirs);
}

void prepare(const Context& ctx, const Scan& s, const RecurrentVariant& v, bool forward) {
  const RecurrentSteps& steps = steps_of(s.dims, v);
  constexpr std::int64_t kShares = 8;
  // Where R is read as it is there are biases alone to bring in order: nothing to wake threads for.
  const double work = products_of(s.dims, forward) == Products::kRead
                          ? 0.0
                          : static_cast<double>(s.dims.hidden * s.dims.hidden * s.dims.dirs * 32);
  for_each(ctx, s.dims.dirs * kShares, work, [&](std::int64_t i) {
    RowBlock b = block_of(s, v, forward, i / kShares);
    b.share = i % kShares;
    b.shares = kShares;
    (forward ? steps.pack_forward : steps.pack_backward)(s, b);
  });
}

namespace {

// With too few rows for all threads and large weights, or with weights that do not stay in a
// second-level cache, each step's units are shared out instead. Results are the same bits either
// way.
constexpr double kSharedStepWork = 4e5;
constexpr std::size_t kSharedWeightBytes = std::size_t{1} << 20;

std::int64_t unit_shares(const Scan& s, const RecurrentVariant& v, bool forward,
                         std::int64_t rows) {
  const std::int64_t threads = thread_count();
  if (rows > kMostBlockRows) return 1;
  const bool rows_suffice = ceil_div(rows, 8) * s.dims.dirs >= threads;
  if (rows_suffice && dir_bytes(s.dims, v, forward) <= kSharedWeightBytes) return 1;
  const double step = static_cast<double>(s.dims.hidden * s.dims.hidden * 3 * s.dims.dirs);
  return step < kSharedStepWork ? 1 : ceil_div(threads, s.dims.dirs);
}

constexpr double kAlwaysShare = 1e9;  // work that is never left to one thread

/// run(block) for each direction's share of units, phase after phase.
template <class F>
void for_each_share(const Context& ctx, const Scan& s, const RecurrentVariant& v, bool forward,
                    std::int64_t shares, int phases, const F& run) {
  const std::int64_t first = s.part_begin * s.dims.cut.batch;
  const std::int64_t rows = (s.part_end - s.part_begin) * s.dims.cut.batch;
  for (int phase = 0; phase < phases; ++phase) {
    for_each(ctx, s.dims.dirs * shares, kAlwaysShare, [&](std::int64_t i) {
      RowBlock b = block_of(s, v, forward, i / shares);
      b.begin = first;
      b.end = first + rows;
      b.share = i % shares;
      b.shares = shares;
      b.phase = phase;
      const FlushSubnormals flush;
      run(b);
    });
  }
}

}  // namespace

void forward(const Context& ctx, const ForwardScan& s, const RecurrentVariant& v) {
  const RecurrentSteps& steps = steps_of(s.dims, v);
  const std::int64_t rows = (s.part_end - s.part_begin) * s.dims.cut.batch;
  if (const std::int64_t shares = unit_shares(s, v, true, rows); shares > 1) {
    for (std::int64_t k = s.step_begin; k < s.step_end; ++k) {
      for_each_share(ctx, s, v, true, shares, steps.forward_phases,
                     [&](const RowBlock& b) { steps.forward_step(s, b, k); });
    }
    for_each_share(ctx, s, v, true, 1, 1, [&](const RowBlock& b) { steps.forward_end(s, b); });
    return;
  }
  for_each_block(ctx, s, v, true, s.part_begin * s.dims.cut.batch, rows,
                 block_rows(s.dims, products_of(s.dims, true), rows), product_work(s, rows, 3),
                 [&](const RowBlock& b) { steps.forward(s, b); });
}

void replay(const Context& ctx, const ForwardScan& s, const RecurrentVariant& v) {
  const RecurrentSteps& steps = steps_of(s.dims, v);
  const std::int64_t rows =
      (s.part_end - s.part_begin) * (s.step_end - s.step_begin) * s.dims.cut.batch;
  for_each_block(ctx, s, v, true, 0, rows, kMostBlockRows, product_work(s, rows, 3),
                 [&](const RowBlock& b) { steps.replay(s, b); });
}

void backward(const Context& ctx, const BackwardScan& s, const RecurrentVariant& v) {
  const RecurrentSteps& steps = steps_of(s.dims, v);
  const std::int64_t rows = (s.part_end - s.part_begin) * s.dims.cut.batch;
  if (const std::int64_t shares = unit_shares(s, v, false, rows); shares > 1) {
    for (std::int64_t k = s.step_end - 1; k >= s.step_begin; --k) {
      for_each_share(ctx, s, v, false, shares, steps.backward_phases,
                     [&](const RowBlock& b) { steps.backward_step(s, b, k); });
    }
    return;
  }
  for_each_block(ctx, s, v, false, s.part_begin * s.dims.cut.batch, rows,
                 block_rows(s.dims, products_of(s.dims, false), rows), product_work(s, rows, 3),
                 [&](const RowBlock& b) { steps.backward(s, b); });
}

}  // namespace penstock::cpu::recurrent_detail
