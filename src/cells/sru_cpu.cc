// The SRU's kernel table for the CPU: how work is cut, and the choice of instruction set.

#include "cells/sru_cpu.h"

#include <algorithm>

#include "cpu/batch_invariance.h"
#include "cpu/half.h"
#include "cpu/isa.h"
#include "cpu/threads.h"

namespace penstock::cpu {
namespace {

using sru::Dims;
using sru::Plan;

// Groups of about this many channels: 192 columns of u are enough for the matrix product to run
// within a few percent of its best, and few enough for the groups to outnumber the processors. The
// matrix unit takes x in a form of its own, which each group makes anew, so there groups are wider.
constexpr std::int64_t kGroupChannels = 64;
constexpr std::int64_t kGroupChannelsAmx = 128;
// Rows of u per matrix product and group: with 64 channels and K = 3, 384 kB, which leaves room in
// a second-level cache of 1 MB for the operands.
constexpr std::int64_t kChunkRows = 512;
// Fewer groups than this are fewer than many a machine's processors; then products and scans of
// windows of so many chunks overlap, if there are several windows.
constexpr std::int64_t kFewGroups = 8;
constexpr std::int64_t kWindowChunks = 4;
// Copying the weight costs as much as a few rows of the product.
constexpr std::int64_t kPackRows = 64;

Plan plan(const Dims& d) {
  Plan p;
  if (d.hidden < 32) {
    p.channels = d.hidden;
  } else {
    // An even number of groups, each a multiple of 8 channels.
    const std::int64_t wish =
        has_amx() && d.compute == DataType::kFloat32 ? kGroupChannelsAmx : kGroupChannels;
    std::int64_t groups = std::max<std::int64_t>(2, (d.hidden + wish - 1) / wish);
    groups += groups % 2;
    p.channels = ((d.hidden + groups - 1) / groups + 7) / 8 * 8;
  }
  p.dirs_per_group = 1;
  const std::int64_t part_rows = std::max<std::int64_t>(1, d.steps * d.batch);
  p.chunk_parts = std::max<std::int64_t>(1, kChunkRows / part_rows);
  p.chunk_steps = std::max<std::int64_t>(
      1, p.chunk_parts > 1 ? d.steps : kChunkRows / std::max<std::int64_t>(1, d.batch));
  const bool independent = d.independent_rows || batch_invariant();
  p.pack_weight = p.channels < d.hidden && (d.rows() >= kPackRows || independent);
  p.pack_operand = p.pack_weight || independent;
  p.dx_rows = kChunkRows;
  const std::int64_t groups = d.dirs * ((d.hidden + p.channels - 1) / p.channels);
  const std::int64_t chunks = (d.parts + p.chunk_parts - 1) / p.chunk_parts *
                              ((d.steps + p.chunk_steps - 1) / p.chunk_steps);
  if (groups < kFewGroups && chunks >= 2 * kWindowChunks) {
    p.window = kWindowChunks;
    p.overlap = thread_count() > groups;
  }
  return p;
}

std::int64_t keep(const Context&, const Dims&) { return 1; }

void forward(const Context&, const sru::ForwardScan& a) {
  (a.dims.compute == DataType::kFloat64 ? sru_scans().forward_f64 : sru_scans().forward_f32)(a);
}

void backward(const Context&, const sru::BackwardScan& a) {
  (a.dims.compute == DataType::kFloat64 ? sru_scans().backward_f64 : sru_scans().backward_f32)(a);
}

std::size_t scratch_bytes(const Context&, const Dims&, bool) { return 0; }

// (4, dirs, H) double: dv_f, dv_r, db_f, db_r.
std::size_t param_partial_bytes(const Context&, const Dims& d) {
  return static_cast<std::size_t>(4 * d.width()) * sizeof(double);
}

template <class T>
T narrow(double v) {
  return static_cast<T>(v);
}
template <>
Float16 narrow(double v) {
  return Float16::from(static_cast<float>(v));
}
template <>
BFloat16 narrow(double v) {
  return BFloat16::from(static_cast<float>(v));
}

template <class T>
void write_params(const Dims& d, const double* partial, void* out) {
  // (2, dirs, H) to (dirs, 2, H)
  if (out == nullptr) return;
  for (std::int64_t gate = 0; gate < 2; ++gate) {
    for (std::int64_t dir = 0; dir < d.dirs; ++dir) {
      for (std::int64_t h = 0; h < d.hidden; ++h) {
        static_cast<T*>(out)[(dir * 2 + gate) * d.hidden + h] =
            narrow<T>(partial[(gate * d.dirs + dir) * d.hidden + h]);
      }
    }
  }
}

template <class T>
void reduce_as(const Dims& d, const void* dparams, void* dweight_c, void* dbias) {
  const auto* partial = static_cast<const double*>(dparams);
  write_params<T>(d, partial, dweight_c);
  write_params<T>(d, partial + 2 * d.width(), dbias);
}

void reduce_params(const Context&, const Dims& d, const void* dparams, void* dweight_c,
                   void* dbias) {
  switch (d.dtype) {
    case DataType::kFloat64: return reduce_as<double>(d, dparams, dweight_c, dbias);
    case DataType::kFloat16: return reduce_as<Float16>(d, dparams, dweight_c, dbias);
    case DataType::kBFloat16: return reduce_as<BFloat16>(d, dparams, dweight_c, dbias);
    default: return reduce_as<float>(d, dparams, dweight_c, dbias);
  }
}

}  // namespace

const sru::Kernels& sru_kernels() {
  static constexpr sru::Kernels table = {
      &plan, &keep, &forward, &backward, &scratch_bytes, &param_partial_bytes, &reduce_params};
  return table;
}

}  // namespace penstock::cpu
