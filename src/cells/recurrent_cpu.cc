// How the CPU cuts the work of the state-mixing cells, and how it spreads it over threads.

#include "cells/recurrent_cpu.h"

#include <algorithm>

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
constexpr std::int64_t kChunkBytes = std::int64_t{3} << 20;
constexpr std::int64_t kFewestChunkRows = 256, kMostChunkRows = 8192;
// With fewer rows at a time, threads would go without work.
constexpr std::int64_t kParallelRows = 128;

// With so few steps in all, bringing large weights into another order costs more than it saves.
constexpr std::int64_t kFewRows = 16;
constexpr std::int64_t kLargeWeights = std::int64_t{1} << 16;

bool few_rows(const Dims& d) {
  return d.cut.entries() * d.cut.batch < kFewRows &&
         d.hidden * std::max(d.hidden, d.input) >= kLargeWeights / 3;
}

const RecurrentSteps& steps_of(const Dims& d, const RecurrentVariant& v) {
  return d.compute == DataType::kFloat64 ? v.f64 : v.f32;
}

std::size_t dir_bytes(const Dims& d, const RecurrentVariant& v, bool forward) {
  const RecurrentSteps& steps = steps_of(d, v);
  const std::int64_t elements = (forward ? steps.forward_scratch : steps.backward_scratch)(
      d, few_rows(d));
  const std::size_t bytes = static_cast<std::size_t>(elements) * size_of(d.compute);
  return (bytes + 63) / 64 * 64;
}

void* dir_scratch(const Scan& s, const RecurrentVariant& v, bool forward, std::int64_t dir) {
  return static_cast<char*>(s.scratch) +
         static_cast<std::size_t>(dir) * dir_bytes(s.dims, v, forward);
}

double product_work(const Scan& s, std::int64_t rows, int gates) {
  return static_cast<double>(rows * (s.step_end - s.step_begin)) *
         static_cast<double>(s.dims.hidden * s.dims.hidden * gates * s.dims.dirs);
}

// Rows that one item takes: few enough for at least two items where there are two groups of eight,
// and all of about the same size.
std::int64_t block_rows(const Dims& d, std::int64_t rows) {
  if (few_rows(d)) return kMostBlockRows;  // blocks share their scratch
  const std::int64_t most = d.hidden <= 96 ? 16 : kMostBlockRows;
  std::int64_t groups = ceil_div(rows, 8);
  std::int64_t blocks = std::max(std::min<std::int64_t>(groups, 2), ceil_div(rows, most));
  blocks += blocks % 2 != 0 && blocks < groups ? 1 : 0;
  return std::min(kMostBlockRows, ceil_div(groups, blocks) * 8);
}

}  // namespace

Plan plan(const Dims& d, const Spec& spec) {
  const recurrent::Cut& cut = d.cut;
  Plan p;
  const std::int64_t row_bytes =
      d.hidden * std::max(spec.saved, spec.dgates) * static_cast<std::int64_t>(size_of(d.compute));
  const std::int64_t rows =
      std::clamp(kChunkBytes / row_bytes, kFewestChunkRows, kMostChunkRows);
  const std::int64_t batch = std::max<std::int64_t>(1, cut.batch);
  const std::int64_t steps = std::max<std::int64_t>(1, cut.steps);
  p.parts = std::clamp<std::int64_t>(rows / (steps * batch), 1, std::max<std::int64_t>(1, cut.parts));
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
  p.tile_rows = 256;
  p.tile_outputs = 256;
  p.tile_units = d.hidden * spec.gates <= 256 ? std::max<std::int64_t>(32, ceil_div(d.hidden * spec.gates, 64) * 32) : 256;
  p.sum_columns = 128;
  p.pack_weights = !few_rows(d);
  return p;
}

std::size_t scratch_bytes(const Dims& d, const RecurrentVariant& v, bool forward) {
  return dir_bytes(d, v, forward) * static_cast<std::size_t>(d.dirs);
}

void prepare(const Context& ctx, const Scan& s, const RecurrentVariant& v, bool forward) {
  const RecurrentSteps& steps = steps_of(s.dims, v);
  const double work = static_cast<double>(s.dims.hidden * s.dims.hidden * s.dims.dirs * 16);
  for_each(ctx, s.dims.dirs, work, [&](std::int64_t dir) {
    (forward ? steps.pack_forward : steps.pack_backward)(s, dir, dir_scratch(s, v, forward, dir),
                                                         few_rows(s.dims));
  });
}

void forward(const Context& ctx, const ForwardScan& s, const RecurrentVariant& v) {
  const RecurrentSteps& steps = steps_of(s.dims, v);
  const std::int64_t first = s.part_begin * s.dims.cut.batch;
  const std::int64_t rows = (s.part_end - s.part_begin) * s.dims.cut.batch;
  const std::int64_t size = block_rows(s.dims, rows);
  const std::int64_t blocks = ceil_div(rows, size);
  for_each(ctx, blocks * s.dims.dirs, product_work(s, rows, 3), [&](std::int64_t i) {
    const std::int64_t dir = i / blocks, begin = i % blocks * size;
    steps.forward(s, dir, first + begin, first + std::min(begin + size, rows),
                  dir_scratch(s, v, true, dir), few_rows(s.dims));
  });
}

void replay(const Context& ctx, const ForwardScan& s, const RecurrentVariant& v) {
  const RecurrentSteps& steps = steps_of(s.dims, v);
  const std::int64_t rows =
      (s.part_end - s.part_begin) * (s.step_end - s.step_begin) * s.dims.cut.batch;
  const std::int64_t blocks = ceil_div(rows, kMostBlockRows);
  for_each(ctx, blocks * s.dims.dirs, product_work(s, rows, 3), [&](std::int64_t i) {
    const std::int64_t dir = i / blocks, begin = i % blocks * kMostBlockRows;
    steps.replay(s, dir, begin, std::min(begin + kMostBlockRows, rows),
                 dir_scratch(s, v, true, dir), few_rows(s.dims));
  });
}

void backward(const Context& ctx, const BackwardScan& s, const RecurrentVariant& v) {
  const RecurrentSteps& steps = steps_of(s.dims, v);
  const std::int64_t first = s.part_begin * s.dims.cut.batch;
  const std::int64_t rows = (s.part_end - s.part_begin) * s.dims.cut.batch;
  const std::int64_t size = block_rows(s.dims, rows);
  const std::int64_t blocks = ceil_div(rows, size);
  for_each(ctx, blocks * s.dims.dirs, product_work(s, rows, 3), [&](std::int64_t i) {
    const std::int64_t dir = i / blocks, begin = i % blocks * size;
    steps.backward(s, dir, first + begin, first + std::min(begin + size, rows),
                   dir_scratch(s, v, false, dir), few_rows(s.dims));
  });
}

}  // namespace penstock::cpu::recurrent_detail
