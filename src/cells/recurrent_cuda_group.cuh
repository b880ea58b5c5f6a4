// The path for few rows: a group of blocks takes a tile of rows through all steps, each block with
// the part of R that its units need in its registers and shared memory, so that a step reads no
// weights from anywhere else. A group is one block, a cluster, or a part of a cooperative grid:
// after each step its blocks hand each other what the next step's products multiply, through
// shared memory, the cluster's shared memory, or global memory. recurrent_cuda_plan.h says which,
// and how large everything is.
//
// A block's products, for each row `outputs` sums of `depth` terms, are cut into matrix tiles
// (GroupTiles). float32 tiles take multiply-adds, each lane 8 outputs and every 8th, 16th or 32nd
// four terms; those of 16-bit types the tensor cores, up to 8 rows at a time, with the weights as
// the operand that stays. The order of a sum depends on the cut alone: on H, the number of blocks
// and the type.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <mutex>
#include <tuple>
#include <type_traits>

#include "cells/recurrent_cuda.cuh"
#include "cells/recurrent_cuda_plan.h"
#include "cells/recurrent_cuda_tile.cuh"
#include "cuda/async_copy.h"
#include "cuda/barriers.h"
#include "cuda/matrix.h"

namespace penstock::cuda::mixing {

/// What a launch's groups do, of which there are as many as take rows [first_row, last_row).
struct GroupShape {
  RecurrentPath path = RecurrentPath::kBlock;
  int blocks = 1;  // of a group, neighbours in x
  int units = 0;   // of a block
  int rows = 0;    // of a group
  std::int64_t first_row = 0, last_row = 0;
  GroupTiles tiles;
  unsigned* word = nullptr;  // of the grid's barrier
  void* exchange = nullptr;  // (2, dirs, last_row - first_row, pitch), its padding zeros
};

/// 16 bytes of weights: four float32, or a fragment's registers.
struct alignas(16) Packet {
  std::uint32_t v[4];
};

/// The weights of a block's products: that of output o's term k is data[offset(o) + k * stride],
/// zero where there is none. One direction's R has less than 2^31 of them, as by_group sees to.
template <class T>
struct GroupWeights {
  const T* data = nullptr;
  int stride = 1;
  int depth = 0;
  __device__ __forceinline__ T at(int offset, int k) const {
    return offset < 0 || k >= depth ? narrow<T>(0.0f) : __ldg(data + offset + k * stride);
  }
};

// ---- what a lane does of a matrix tile ---------------------------------------------------------

/// Tensor cores: fragments of 16 outputs · 16 terms. Two of them are a chunk's 32 terms, of which
/// lane i of four has the terms 8i … 8i + 7, so that it reads its part of a row in one piece. The
/// tile's halves are 16 outputs each, or where spread is 2, half of the terms each.
template <class T>
struct TileLane {
  static constexpr int kChunkPackets = 4;  // (half, fragment)
  static constexpr int kOutputs = 4;
  const GroupTiles& t;
  int row, quad;  // lane / 4, lane % 4
  int half;       // terms from the first half to the second

  __device__ __forceinline__ TileLane(const GroupTiles& tiles, int lane)
      : t(tiles), row(lane / 4), quad(lane % 4), half(tiles.spread == 2 ? 32 * tiles.chunks : 0) {}

  /// The lane's outputs of a tile.
  __device__ __forceinline__ int output(int i) const {
    return row + 8 * (i % 2) + (t.spread == 2 ? 0 : 16 * (i / 2));
  }
  /// Packet p of a chunk, of the tile whose terms begin at k.
  __device__ __forceinline__ Packet weights(const GroupWeights<T>& w,
                                            const int (&offsets)[kOutputs], int k, int chunk,
                                            int p) const {
    const int first = k + p / 2 * half + chunk * 32 + 8 * quad + 4 * (p % 2);
    Packet out;
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const int offset = offsets[p / 2 * 2 + r % 2];
      const int at = first + r / 2 * 2;
      out.v[r] = pack(w.at(offset, at), w.at(offset, at + 1));
    }
    return out;
  }
  /// The sums of all rows of the tile: packet p of chunk c is get(c, p), and kUnroll chunks are
  /// taken without a loop.
  template <int kUnroll, class Get>
  __device__ __forceinline__ void multiply(Get&& get, const T* operand, int rows,
                                           float* sums) const {
    for (int first = 0; first < rows; first += 8) {
      const bool there = first + row < rows;
      const T* from = operand + (first + (there ? row : 0)) * t.pitch + 8 * quad;
      float d[2][2][4] = {};
#pragma unroll kUnroll
      for (int c = 0; c < kGroupChunks; ++c) {
        if (c < t.chunks) {
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            Packet x = {};
            if (there) x = *reinterpret_cast<const Packet*>(from + h * half + c * 32);
#pragma unroll
            for (int f = 0; f < 2; ++f) {
              const Packet w = get(c, h * 2 + f);
              const std::uint32_t b[2] = {x.v[2 * f], x.v[2 * f + 1]};
              matrix_multiply<T>(d[h][f], w.v, b);
            }
          }
        }
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float low = d[0][0][i] + d[0][1][i];
        const float high = d[1][0][i] + d[1][1][i];
        if (t.spread == 2) low += high;
        const int at = first + 2 * quad + i % 2;
        if (at < rows) {
          float* to = sums + at * t.sums_pitch + row + i / 2 * 8;
          to[0] = low;
          if (t.spread == 1) to[16] = high;
        }
      }
    }
  }
};

/// Multiply-adds: 8 · spread lanes share the terms of 8 outputs, four neighbours each in turn.
template <>
struct TileLane<float> {
  static constexpr int kChunkPackets = 8;  // (output)
  static constexpr int kOutputs = 8;
  const GroupTiles& t;
  int lane, slice, first;  // its part of the terms; its outputs' first

  __device__ __forceinline__ TileLane(const GroupTiles& tiles, int of_warp)
      : t(tiles), lane(of_warp), slice(of_warp % (8 * tiles.spread)) {
    first = of_warp / (8 * tiles.spread) * 8;
  }

  __device__ __forceinline__ int output(int i) const { return first + i; }

  __device__ __forceinline__ Packet weights(const GroupWeights<float>& w,
                                            const int (&offsets)[kOutputs], int k, int chunk,
                                            int p) const {
    Packet out;
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int at = k + chunk * 32 * t.spread + slice * 4 + e;
      out.v[e] = __float_as_uint(w.at(offsets[p], at));
    }
    return out;
  }

  /// Of eight lanes' values for eight outputs, the sum for the lane's own.
  __device__ __forceinline__ float exchange(const float (&v)[8]) const {
    float four[4], two[2];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const bool upper = (lane & 4) != 0;
      const float other = __shfl_xor_sync(0xffffffffu, upper ? v[i] : v[i + 4], 4);
      four[i] = (upper ? v[i + 4] : v[i]) + other;
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const bool upper = (lane & 2) != 0;
      const float other = __shfl_xor_sync(0xffffffffu, upper ? four[i] : four[i + 2], 2);
      two[i] = (upper ? four[i + 2] : four[i]) + other;
    }
    const bool upper = (lane & 1) != 0;
    const float other = __shfl_xor_sync(0xffffffffu, upper ? two[0] : two[1], 1);
    float sum = (upper ? two[1] : two[0]) + other;
    if (t.spread >= 2) sum += __shfl_xor_sync(0xffffffffu, sum, 8);
    if (t.spread >= 4) sum += __shfl_xor_sync(0xffffffffu, sum, 16);
    return sum;
  }

  template <int kUnroll, class Get>
  __device__ __forceinline__ void multiply(Get&& get, const float* operand, int rows,
                                           float* sums) const {
    for (int row = 0; row < rows; row += 2) {
      const bool two = row + 1 < rows;
      const float* x0 = operand + row * t.pitch + slice * 4;
      const float* x1 = two ? x0 + t.pitch : x0;
      float sum[2][8] = {};
#pragma unroll kUnroll
      for (int c = 0; c < kGroupChunks; ++c) {
        if (c < t.chunks) {
          float x[2][4];
          load_rows<4>(x0 + c * 32 * t.spread, x[0]);
          load_rows<4>(x1 + c * 32 * t.spread, x[1]);
#pragma unroll
          for (int o = 0; o < 8; ++o) {
            const Packet w = get(c, o);
#pragma unroll
            for (int e = 0; e < 4; ++e) {
              sum[0][o] += __uint_as_float(w.v[e]) * x[0][e];
              sum[1][o] += __uint_as_float(w.v[e]) * x[1][e];
            }
          }
        }
      }
      const float first_row = exchange(sum[0]), second_row = exchange(sum[1]);
      if (slice < 8) {
        float* to = sums + row * t.sums_pitch + first + slice;
        to[0] = first_row;
        if (two) to[t.sums_pitch] = second_row;
      }
    }
  }
};

/// A block's products: what a thread holds of their weights, and what it does with them.
template <class T>
class GroupProduct {
 public:
  /// `offset(o)` is what GroupWeights wants of output o, -1 where there is none.
  template <class Offset>
  __device__ __forceinline__ void load(const GroupTiles& t, const GroupWeights<T>& w,
                                       Packet* shared, Offset&& offset) {
    const TileLane<T> lane(t, static_cast<int>(threadIdx.x) % 32);
    const int warp = static_cast<int>(threadIdx.x) / 32;
    int offsets[Lane::kOutputs];
    first_.depth = warp / t.output_tiles;
    first_.output = warp - first_.depth * t.output_tiles;
    Place at = first_;
    const auto find = [&] {
#pragma unroll
      for (int i = 0; i < Lane::kOutputs; ++i) {
        offsets[i] = offset(at.output * t.tile_outputs() + lane.output(i));
      }
      const int k = at.depth * t.tile_depth();
      at.next(t);
      return k;
    };
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      if (warp + i * kGroupWarps >= t.count()) continue;
      const int k = find();
#pragma unroll
      for (int p = 0; p < kPackets; ++p) {
        const int c = p / Lane::kChunkPackets;
        if (c < t.chunks) kept_[i][p] = lane.weights(w, offsets, k, c, p % Lane::kChunkPackets);
      }
    }
    for (int tile = warp + kTiles * kGroupWarps; tile < t.count(); tile += kGroupWarps) {
      const int k = find();
      Packet* to = own(t, shared, tile);
      for (int c = 0; c < t.chunks; ++c) {
#pragma unroll
        for (int p = 0; p < Lane::kChunkPackets; ++p) {
          to[(c * Lane::kChunkPackets + p) * 32] = lane.weights(w, offsets, k, c, p);
        }
      }
    }
  }

  /// sums (depth tiles, rows, sums_pitch) of `rows` rows of the operand. A barrier must follow.
  __device__ __forceinline__ void run(const GroupTiles& t, Packet* shared, const T* operand,
                                      int rows, float* sums) const {
    const TileLane<T> lane(t, static_cast<int>(threadIdx.x) % 32);
    const int warp = static_cast<int>(threadIdx.x) / 32;
    Place at = first_;
    const auto multiply = [&](auto unroll, auto&& get) {
      lane.template multiply<decltype(unroll)::value>(
          get, operand + at.depth * t.tile_depth(), rows,
          sums + at.depth * rows * t.sums_pitch + at.output * t.tile_outputs());
      at.next(t);
    };
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      if (warp + i * kGroupWarps >= t.count()) continue;
      // Registers are named by constants alone.
      multiply(std::integral_constant<int, kGroupChunks>{},
               [&](int c, int p) { return kept_[i][c * Lane::kChunkPackets + p]; });
    }
    for (int tile = warp + kTiles * kGroupWarps; tile < t.count(); tile += kGroupWarps) {
      const Packet* from = own(t, shared, tile);
      // What is read ahead needs registers, which weights take.
      multiply(std::integral_constant<int, 1>{},
               [&](int c, int p) { return from[(c * Lane::kChunkPackets + p) * 32]; });
    }
  }

 private:
  using Lane = TileLane<T>;
  static constexpr int kTiles = register_tiles(sizeof(T));
  static constexpr int kPackets = kGroupChunks * Lane::kChunkPackets;

  /// Where a tile is; a warp's next one is kGroupWarps tiles on.
  struct Place {
    int output, depth;
    __device__ __forceinline__ void next(const GroupTiles& t) {
      output += t.step_outputs;
      depth += t.step_depths;
      if (output < t.output_tiles) return;
      output -= t.output_tiles;
      ++depth;
    }
  };

  /// The lane's first packet of a tile in shared memory, which the same lane wrote.
  static __device__ __forceinline__ Packet* own(const GroupTiles& t, Packet* shared, int tile) {
    const int slot = tile - kTiles * kGroupWarps;
    return shared + slot * t.chunks * Lane::kChunkPackets * 32 + threadIdx.x % 32;
  }

  Packet kept_[kTiles][kPackets];
  Place first_;
};

/// Sum of output o of a row over the depth tiles, in their order.
__device__ __forceinline__ float total(const GroupTiles& t, const float* sums, int rows, int row,
                                       int o) {
  const float* from = sums + row * t.sums_pitch + o;
  float sum = from[0];
#pragma unroll 4
  for (int i = 1; i < t.depth_tiles; ++i) sum += from[i * rows * t.sums_pitch];
  return sum;
}

// ---- a block and its group ---------------------------------------------------------------------

/// What a block takes, and its pieces of shared memory.
template <class T>
struct GroupBlock {
  int rank = 0;                   // in its group
  int first_unit = 0, units = 0;  // perhaps none
  int m = 0;                      // rows
  std::int64_t first = 0;         // its first row
  std::int64_t dir = 0;
  Packet* weights = nullptr;
  TileRow* rows = nullptr;
  T* operand = nullptr;
  float* sums = nullptr;

  __device__ __forceinline__ GroupBlock(const Dims& d, const GroupShape& s, unsigned char* shared) {
    const int block = static_cast<int>(blockIdx.x), group = block / s.blocks;
    rank = block - group * s.blocks;
    first_unit = rank * s.units;
    const int hidden = static_cast<int>(d.hidden);
    units = max(0, min(s.units, hidden - first_unit));
    first = s.first_row + static_cast<std::int64_t>(group) * s.rows;
    const std::int64_t left = s.last_row - first;
    m = left < s.rows ? static_cast<int>(left) : s.rows;
    dir = blockIdx.y;
    weights = reinterpret_cast<Packet*>(shared);
    // A tile has 1024 weights in each chunk.
    rows = reinterpret_cast<TileRow*>(weights + s.tiles.in_shared * s.tiles.chunks * 64 *
                                                    static_cast<int>(sizeof(T)));
    operand = reinterpret_cast<T*>(rows + s.rows);
    const int buffers = s.path == RecurrentPath::kGrid ? 1 : 2;
    sums = reinterpret_cast<float*>(operand + buffers * s.rows * s.tiles.pitch);
  }
};

/// The (row, unit) whose state a thread keeps.
struct GroupPair {
  int row = 0;       // in the group's tile
  int in_block = 0;  // its unit among the block's
  int unit = 0;      // of the direction
  bool exists = false;

  template <class T>
  __device__ __forceinline__ GroupPair(const GroupShape& s, const GroupBlock<T>& b) {
    const auto thread = static_cast<int>(threadIdx.x);
    row = thread / s.units;
    in_block = thread - row * s.units;
    unit = b.first_unit + in_block;
    exists = row < b.m && in_block < b.units;
  }
  template <class T>
  __device__ __forceinline__ bool counts(const GroupBlock<T>& b, std::int64_t time) const {
    return exists && b.rows[row].begin <= time && time < b.rows[row].end;
  }
  /// Its index in (rows, dirs·H).
  template <class T>
  __device__ __forceinline__ std::int64_t state(const Dims& d, const GroupBlock<T>& b) const {
    return (b.first + row) * d.width() + b.dir * d.hidden + unit;
  }
  /// Its element of the first block.
  template <class Element, class T>
  __device__ __forceinline__ Element* at_row(const Rows& r, const Dims& d, const GroupBlock<T>& b,
                                             std::int64_t time) const {
    void* data = b.dir == 0 ? r.data[0] : r.data[1];
    const std::int64_t at = b.rows[row].first + time * d.cut.batch;
    return static_cast<Element*>(data) + at * r.row_stride + unit;
  }
  /// Its index in (time, B, dirs·H); -1 outside.
  template <class T>
  __device__ __forceinline__ std::int64_t y_index(const Dims& d, const GroupBlock<T>& b,
                                                  std::int64_t time) const {
    const std::int64_t at = b.rows[row].first + (time - d.cut.shift) * d.cut.batch;
    if (at < 0 || at >= d.cut.time * d.cut.batch) return -1;
    return at * d.width() + b.dir * d.hidden + unit;
  }
};

/// How the blocks of a group hand each other the operand of the next products. What is put for a
/// parity is there after `wait` for it, which all threads call after `arrive`; the products that
/// read it must be over before anything is put for the other parity's next turn, which the barrier
/// between makes sure of.
template <class T>
class GroupLink {
 public:
  __device__ __forceinline__ GroupLink(const Dims& d, const GroupShape& s, const GroupBlock<T>& b)
      : path_(s.path),
        blocks_(s.blocks),
        rank_(b.rank),
        size_(b.m * s.tiles.pitch),
        buffer_(s.rows * s.tiles.pitch),
        operand_(b.operand),
        word_(s.word) {
    if (path_ != RecurrentPath::kGrid) return;
    const std::int64_t launch_rows = s.last_row - s.first_row;
    half_ = d.dirs * launch_rows * s.tiles.pitch;
    exchange_ =
        static_cast<T*>(s.exchange) + (b.dir * launch_rows + b.first - s.first_row) * s.tiles.pitch;
  }

  /// What products of this parity multiply: the group's rows, `pitch` elements apart.
  __device__ __forceinline__ T* operand(int parity) const {
    return path_ == RecurrentPath::kGrid ? operand_ : operand_ + parity * buffer_;
  }
  /// Padding must be zeros, since weights of zero meet it. A barrier must follow.
  __device__ __forceinline__ void clear() const {
    const int count = path_ == RecurrentPath::kGrid ? buffer_ : 2 * buffer_;
    for (int i = static_cast<int>(threadIdx.x); i < count; i += kGroupThreads) {
      operand_[i] = narrow<T>(0.0f);
    }
  }
  /// Once the operand of the first products is there.
  __device__ __forceinline__ void begin() const {
    if (path_ == RecurrentPath::kCluster) {
      cluster_barrier();
    } else if (path_ == RecurrentPath::kGrid) {
      grid_wait(word_, grid_arrive(word_));
    } else {
      __syncthreads();
    }
  }
  __device__ __forceinline__ void put(int parity, int at, T value) const {
    if (path_ == RecurrentPath::kCluster) {
      T* own = operand_ + parity * buffer_ + at;
      for (int i = 0; i < blocks_; ++i) {
        // Not all to the same block at once.
        const int to = rank_ + i < blocks_ ? rank_ + i : rank_ + i - blocks_;
        *cluster_shared(own, static_cast<unsigned>(to)) = value;
      }
    } else if (path_ == RecurrentPath::kGrid) {
      exchange_[parity * half_ + at] = value;
    } else {
      operand_[parity * buffer_ + at] = value;
    }
  }
  __device__ __forceinline__ void arrive() {
    if (path_ == RecurrentPath::kCluster) {
      cluster_arrive();
    } else if (path_ == RecurrentPath::kGrid) {
      ticket_ = grid_arrive(word_);
    }
  }
  __device__ __forceinline__ void wait(int parity) const {
    if (path_ == RecurrentPath::kCluster) {
      cluster_wait();
    } else if (path_ == RecurrentPath::kGrid) {
      grid_wait(word_, ticket_);
      // Past the first-level cache, which may hold what was there two steps ago.
      const auto* from = reinterpret_cast<const uint4*>(exchange_ + parity * half_);
      auto* to = reinterpret_cast<uint4*>(operand_);
      const int count = size_ * static_cast<int>(sizeof(T)) / 16;
      for (int i = static_cast<int>(threadIdx.x); i < count; i += kGroupThreads) {
        to[i] = __ldcg(from + i);
      }
      __syncthreads();
    } else {
      __syncthreads();
    }
  }

 private:
  RecurrentPath path_;
  int blocks_, rank_;
  int size_, buffer_;  // elements: of the rows that are there; of one parity in shared memory
  T* operand_;
  T* exchange_ = nullptr;  // of parity 0, of the group's first row
  std::int64_t half_ = 0;  // from parity 0 to 1
  unsigned* word_;
  unsigned ticket_ = 0;
};

// Steps between asking for what lies in memory and reading it.
constexpr int kGroupAhead = 4;

// All steps of a group's tile of rows.
// Work split: a group of s.blocks blocks (neighbours in x) per tile and direction (blockIdx.y); a
// block owns s.units units of all rows. Each warp of it takes matrix tiles of the products; then,
// after a barrier, a thread takes one (row, unit), whose state stays in its registers. Its new h
// goes to all blocks of the group; while the barrier that ends the step is under way, the step's
// results are written, and W x of the next one is fetched. Traffic per (row, unit) and step, in
// elements: G of W x in, asked for kGroupAhead steps ahead; y, h_prev (c_prev) and the saved gates
// out where asked for; h to every block of the group. Shared memory: matrix tiles beyond those in
// registers, the operand twice (a grid: once), sums. Limits: as by_group counts; 64-bit offsets.
// Invariants: saved gates take the place of W x, each thread its own elements; a padded step's W x
// may be NaN and is not used; no block ends while others may write to its shared memory, as nothing
// is put after the last step. Launch: forward_by_group.
template <class Family, class T>
__global__ void __launch_bounds__(kGroupThreads, 1)
    group_forward_kernel(ForwardScan a, GroupShape s, const float* bias) {
  using Shape = typename Family::Shape;
  constexpr int kGates = Shape::kGates, kSaved = Shape::kSaved, kBiases = Shape::kBiases;
  PENSTOCK_SHARED_MEMORY(unsigned char, shared);
  const Dims& d = a.dims;
  const int hidden = static_cast<int>(d.hidden);
  const GroupBlock<T> b(d, s, shared);
  GroupProduct<T> product;
  GroupWeights<T> weights;
  weights.data = static_cast<const T*>(a.weight_hh) + b.dir * kGates * d.hidden * d.hidden;
  weights.depth = hidden;
  product.load(s.tiles, weights, b.weights, [&](int o) {
    const int gate = o / s.units, unit = o - gate * s.units;
    return gate < kGates && unit < b.units ? (gate * hidden + b.first_unit + unit) * hidden : -1;
  });
  GroupLink<T> link(d, s, b);
  link.clear();
  fill_rows(a, b.first, b.m, b.rows);
  __syncthreads();

  const GroupPair own(s, b);
  T wx[kGates] = {};
  const auto fetch = [&](std::int64_t k) {
    if (!own.exists) return;
    if (k + kGroupAhead < d.cut.steps) {
      const std::int64_t then = time_of(a, b.dir, k + kGroupAhead);
      const T* from = own.at_row<T>(a.gates, d, b, then);
#pragma unroll
      for (int g = 0; g < kGates; ++g) prefetch(from + g * d.hidden);
    }
    const std::int64_t time = time_of(a, b.dir, k);
    if (!own.counts(b, time)) return;
    const T* from = own.at_row<T>(a.gates, d, b, time);
#pragma unroll
    for (int g = 0; g < kGates; ++g) wx[g] = from[g * d.hidden];
  };
  fetch(0);
  float h = 0.0f, c = 0.0f;
  if (own.exists) {
    h = static_cast<const float*>(a.h)[own.state(d, b)];
    if constexpr (Shape::kHasC) c = static_cast<const float*>(a.c)[own.state(d, b)];
  }
  if (!a.zero_state) {
    for (int i = static_cast<int>(threadIdx.x); i < b.m * hidden; i += kGroupThreads) {
      const int row = i / hidden, unit = i - row * hidden;
      const auto* from = static_cast<const float*>(a.h) + (b.first + row) * d.width();
      link.operand(0)[row * s.tiles.pitch + unit] = narrow<T>(from[b.dir * d.hidden + unit]);
    }
  }
  // Also before any block leaves its last state where others find the first one.
  link.begin();

  for (std::int64_t k = 0; k < d.cut.steps; ++k) {
    const std::int64_t time = time_of(a, b.dir, k);
    const int parity = static_cast<int>(k % 2);
    const bool multiplied = k > 0 || !a.zero_state, last = k + 1 == d.cut.steps;
    if (multiplied) product.run(s.tiles, b.weights, link.operand(parity), b.m, b.sums);
    __syncthreads();
    const float h_prev = h, c_prev = c;
    float saved[kSaved] = {}, y = 0.0f;
    if (own.counts(b, time)) {
      float x[kGates], r[kGates], biases[kBiases];
      // Read at each step, out of a cache: registers are for weights.
#pragma unroll
      for (int g = 0; g < kBiases; ++g) {
        biases[g] = __ldg(bias + (b.dir * kBiases + g) * d.hidden + own.unit);
      }
#pragma unroll
      for (int g = 0; g < kGates; ++g) {
        x[g] = widen(wx[g]);
        r[g] = multiplied ? total(s.tiles, b.sums, b.m, own.row, g * s.units + own.in_block) : 0.0f;
      }
      Family::with_cell(
          d.options, [&](auto cell) { cell.forward(x, r, biases, h_prev, c_prev, saved, &h, &c); });
      y = h;
    }
    if (!last) {
      if (own.exists) {
        link.put(1 - parity, own.row * s.tiles.pitch + own.unit, narrow<T>(h));
      }
      link.arrive();
    }
    if (own.exists) {
      if (a.h_kept.data[0] != nullptr) {
        *own.at_row<T>(a.h_kept, d, b, time) = narrow<T>(h_prev);
        if constexpr (Shape::kHasC) *own.at_row<float>(a.c_kept, d, b, time) = c_prev;
      }
      if (a.save) write_blocks<kSaved>(own.at_row<T>(a.gates, d, b, time), d.hidden, saved);
      if (a.y != nullptr) {
        const std::int64_t i = own.y_index(d, b, time);
        if (i >= 0) static_cast<T*>(a.y)[i] = narrow<T>(y);
      }
    }
    if (last) break;
    fetch(k + 1);
    link.wait(1 - parity);
  }
  if (!own.exists) return;
  static_cast<float*>(a.h)[own.state(d, b)] = h;
  if constexpr (Shape::kHasC) static_cast<float*>(a.c)[own.state(d, b)] = c;
}

// All steps of a group's tile of rows, backward.
// Work split, shared memory, limits: as forward; a block's products are those that its units' dh
// gets through R, from the gradients of all units' gates, which go through the group as h does
// forward. Traffic per (row, unit) and step, in elements: saved gates, h_prev (c_prev) and dy in,
// fetched while the barrier is under way; the gates' gradients out, once; G values to every block.
// Invariants: gradients of padded steps are zeros, whatever dy holds; nothing is put after the last
// products' operand. Launch: backward_by_group.
template <class Family, class T>
__global__ void __launch_bounds__(kGroupThreads, 1)
    group_backward_kernel(BackwardScan a, GroupShape s) {
  using Shape = typename Family::Shape;
  constexpr int kGates = Shape::kGates, kSaved = Shape::kSaved, kGradients = Shape::kGradients;
  PENSTOCK_SHARED_MEMORY(unsigned char, shared);
  const Dims& d = a.dims;
  const int hidden = static_cast<int>(d.hidden);
  const GroupBlock<T> b(d, s, shared);
  GroupProduct<T> product;
  GroupWeights<T> weights;
  weights.data = static_cast<const T*>(a.weight_hh) + b.dir * kGates * d.hidden * d.hidden;
  weights.stride = hidden;
  weights.depth = kGates * hidden;
  product.load(s.tiles, weights, b.weights,
               [&](int o) { return o < b.units ? b.first_unit + o : -1; });
  GroupLink<T> link(d, s, b);
  link.clear();
  fill_rows(a, b.first, b.m, b.rows);
  __syncthreads();

  const GroupPair own(s, b);
  T saved[kSaved] = {}, h_prev = {}, dy = {};
  float c_prev = 0.0f;
  const auto fetch = [&](std::int64_t k) {
    if (!own.exists) return;
    if (k >= kGroupAhead) {
      const std::int64_t then = time_of(a, b.dir, k - kGroupAhead);
      const T* from = own.at_row<T>(a.gates, d, b, then);
#pragma unroll
      for (int g = 0; g < kSaved; ++g) prefetch(from + g * d.hidden);
      prefetch(own.at_row<T>(a.h_kept, d, b, then));
      if constexpr (Shape::kHasC) prefetch(own.at_row<float>(a.c_kept, d, b, then));
    }
    const std::int64_t time = time_of(a, b.dir, k);
    if (!own.counts(b, time)) return;
    const T* from = own.at_row<T>(a.gates, d, b, time);
#pragma unroll
    for (int g = 0; g < kSaved; ++g) saved[g] = from[g * d.hidden];
    h_prev = *own.at_row<T>(a.h_kept, d, b, time);
    if constexpr (Shape::kHasC) c_prev = *own.at_row<float>(a.c_kept, d, b, time);
    const std::int64_t i = a.dy == nullptr ? -1 : own.y_index(d, b, time);
    dy = i < 0 ? narrow<T>(0.0f) : static_cast<const T*>(a.dy)[i];
  };
  fetch(d.cut.steps - 1);
  float dh = 0.0f, dc = 0.0f;
  if (own.exists) {
    dh = static_cast<const float*>(a.dh)[own.state(d, b)];
    if constexpr (Shape::kHasC) dc = static_cast<const float*>(a.dc)[own.state(d, b)];
  }
  link.begin();

  for (std::int64_t k = d.cut.steps - 1; k >= 0; --k) {
    const std::int64_t time = time_of(a, b.dir, k);
    const int parity = static_cast<int>(k % 2);
    const bool last = k == 0 && !a.want_first;
    float gradients[kGradients] = {};
    if (own.counts(b, time)) {
      float now[kSaved], dh_prev = 0.0f, dc_prev = 0.0f;
#pragma unroll
      for (int g = 0; g < kSaved; ++g) now[g] = widen(saved[g]);
      Family::with_cell(d.options, [&](auto cell) {
        cell.backward(now, widen(h_prev), c_prev, dh + widen(dy), dc, gradients, &dh_prev,
                      &dc_prev);
      });
      dh = dh_prev;
      dc = dc_prev;
    }
    if (!last) {
      if (own.exists) {
        const int at = own.row * s.tiles.pitch + own.unit;
#pragma unroll
        for (int g = 0; g < kGates; ++g) {
          const int from = g < Family::kSplit ? g : g + kGradients - kGates;
          link.put(parity, at + g * hidden, narrow<T>(gradients[from]));
        }
      }
      link.arrive();
    }
    if (own.exists) {
      write_blocks<kGradients>(own.at_row<T>(a.dgates, d, b, time), d.hidden, gradients);
    }
    if (last) break;
    if (k > 0) fetch(k - 1);
    link.wait(parity);
    product.run(s.tiles, b.weights, link.operand(parity), b.m, b.sums);
    __syncthreads();
    if (own.exists) dh += total(s.tiles, b.sums, b.m, own.row, own.in_block);
  }
  if (!own.exists) return;
  static_cast<float*>(a.dh)[own.state(d, b)] = dh;
  if constexpr (Shape::kHasC) static_cast<float*>(a.dc)[own.state(d, b)] = dc;
}

// ---- launches ----------------------------------------------------------------------------------

/// Shape of a launch whose groups take `rows` rows.
inline LaunchShape group_launch(const Dims& d, const RecurrentPlan& plan, std::int64_t rows) {
  LaunchShape shape = one_thread_each(rows, plan.rows);
  shape.grid.x *= static_cast<unsigned>(plan.blocks);
  shape.grid.y = static_cast<unsigned>(d.dirs);
  shape.block = dim3(kGroupThreads);
  shape.shared_bytes = static_cast<std::size_t>(plan.shared_bytes);
  if (plan.path == RecurrentPath::kCluster) {
    shape.cluster = dim3(static_cast<unsigned>(plan.blocks));
  }
  shape.cooperative = plan.path == RecurrentPath::kGrid;
  return shape;
}

/// How many groups of each direction the device runs at the same time, as far as they must; 0: it
/// cannot take the plan.
template <class... Parameters>
int resident_groups(const Context& ctx, const Dims& d, const char* name,
                    void (*kernel)(Parameters...), const RecurrentPlan& plan) {
  if (plan.path == RecurrentPath::kBlock) return 1;
  // The runtime takes some microseconds to answer, and always says the same.
  using Key = std::tuple<int, const void*, int, int, std::int64_t>;
  static std::mutex mutex;
  static auto* known = new std::map<Key, int>();
  const Key key(ctx.device().index, reinterpret_cast<const void*>(kernel),
                static_cast<int>(plan.path), plan.blocks, plan.shared_bytes);
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = known->find(key);
  int groups = found == known->end() ? 0 : found->second;
  if (found == known->end()) {
    const LaunchShape shape = group_launch(d, plan, plan.rows);
    groups = plan.path == RecurrentPath::kCluster
                 ? resident_clusters(name, kernel, shape)
                 : resident_blocks(name, kernel, kGroupThreads, shape.shared_bytes) / plan.blocks;
    known->emplace(key, groups);
  }
  // Clusters wait for their turn; the blocks of a grid cannot.
  return plan.path == RecurrentPath::kCluster ? groups : groups / static_cast<int>(d.dirs);
}

/// The planner's choice, of what the device can run.
template <class... Parameters>
RecurrentPlan choose_for(const Context& ctx, const Dims& d, RecurrentProblem p, const char* name,
                         void (*kernel)(Parameters...)) {
  for (;;) {
    RecurrentPlan plan = choose(p);
    if (plan.path < RecurrentPath::kBlock) return plan;
    RecurrentPlan asked = plan;
    // What is possible must not depend on the number of rows either.
    if (p.independent) asked.shared_bytes = p.shared_bytes;
    const int groups = resident_groups(ctx, d, name, kernel, asked);
    if (groups > 0) {
      if (plan.path == RecurrentPath::kGrid) plan.groups = std::min(plan.groups, groups);
      return plan;
    }
    if (plan.path == RecurrentPath::kCluster) {
      p.most_cluster = plan.blocks - 1;
    } else {
      p.cooperative = false;
    }
  }
}

/// Call f(LaunchShape, GroupShape) for each launch: one, but for grids, whose groups must all run
/// at the same time. `exchange` is what exchange_bytes counts.
template <class F>
void each_group_launch(const Context& ctx, const Dims& d, const RecurrentPlan& plan, void* exchange,
                       F&& f) {
  GroupShape s;
  s.path = plan.path;
  s.blocks = plan.blocks;
  s.units = plan.units;
  s.rows = plan.rows;
  s.tiles = plan.tiles;
  const std::int64_t rows = d.cut.rows();
  std::int64_t at_once = rows;
  if (plan.path == RecurrentPath::kGrid) {
    at_once = std::min<std::int64_t>(rows, std::int64_t{plan.groups} * plan.rows);
    s.word = static_cast<unsigned*>(exchange);
    s.exchange = static_cast<char*>(exchange) + kExchangeHead;
    ctx.backend().fill_zero(
        ctx, exchange,
        kExchangeHead +
            static_cast<std::size_t>(2 * d.dirs * at_once * plan.tiles.pitch) * size_of(d.compute));
  }
  for (; s.first_row < rows; s.first_row = s.last_row) {
    s.last_row = std::min(rows, s.first_row + at_once);
    f(group_launch(d, plan, s.last_row - s.first_row), s);
  }
}

/// Call f(TypeTag<T>) with a type that groups compute in; false if there is none.
template <class F>
bool with_group_type(DataType dtype, F&& f) {
  if (dtype == DataType::kFloat64) return false;
  with_type(dtype, [&](auto tag) {
    if constexpr (sizeof(typename decltype(tag)::type) <= 4) f(tag);
  });
  return true;
}

/// `kernel`: from a TypeTag<T>, the kernel that groups would run.
template <class Kernel>
RecurrentPlan plan_of(const Context& ctx, const Scan& a, int gates, bool backward, Kernel kernel) {
  const RecurrentProblem p = problem_of(ctx, a, gates, backward);
  RecurrentPlan plan;
  const bool possible = with_group_type(a.dims.compute, [&](auto tag) {
    plan = choose_for(ctx, a.dims, p, backward ? "group_backward" : "group_forward", kernel(tag));
  });
  if (!possible) plan = choose(p);
  report(p, plan);
  return plan;
}

template <class Family>
RecurrentPlan plan_of(const Context& ctx, const ForwardScan& a) {
  return plan_of(ctx, a, Family::Shape::kGates, /*backward=*/false, [](auto tag) {
    return &group_forward_kernel<Family, typename decltype(tag)::type>;
  });
}

template <class Family>
RecurrentPlan plan_of(const Context& ctx, const BackwardScan& a) {
  return plan_of(ctx, a, Family::Shape::kGates, /*backward=*/true, [](auto tag) {
    return &group_backward_kernel<Family, typename decltype(tag)::type>;
  });
}

template <class Family>
void forward_by_group(const Context& ctx, const ForwardScan& a, const RecurrentPlan& plan) {
  using Shape = typename Family::Shape;
  const ForwardScratch scratch(a.dims, Shape::kGates, Shape::kBiases, /*resets=*/false, a.scratch);
  with_group_type(a.dims.compute, [&](auto tag) {
    using T = typename decltype(tag)::type;
    each_group_launch(ctx, a.dims, plan, scratch.exchange,
                      [&](const LaunchShape& shape, const GroupShape& s) {
                        launch(ctx, "group_forward", group_forward_kernel<Family, T>, shape, a, s,
                               static_cast<const float*>(scratch.bias));
                      });
  });
}

template <class Family>
void backward_by_group(const Context& ctx, const BackwardScan& a, const RecurrentPlan& plan) {
  const BackwardScratch scratch(a.dims, Family::Shape::kGates, /*resets=*/false, a.scratch);
  with_group_type(a.dims.compute, [&](auto tag) {
    using T = typename decltype(tag)::type;
    each_group_launch(
        ctx, a.dims, plan, scratch.exchange, [&](const LaunchShape& shape, const GroupShape& s) {
          launch(ctx, "group_backward", group_backward_kernel<Family, T>, shape, a, s);
        });
  });
}

}  // namespace penstock::cuda::mixing
