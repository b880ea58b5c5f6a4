// The path for many rows and weights R that fit into a block's shared memory: as the tiles of
// recurrent_cuda_tile.cuh a block takes a tile of rows through all steps, but the products go to
// the tensor cores. float16 and bfloat16 multiply as such; float32 as 3xTF32: each number is the
// sum of a big and a small one of 11 significant bits, and of the four products all but that of the
// small ones are taken.
//
// A warp takes 16 or 32 rows and 8 units at a time, an item, and of these all gates: so the sums of
// a (row, unit) come together in one thread, which does the cell for 4 or 8 of them. What is
// multiplied, h or the gates' gradients, lies in shared memory in the order in which a product's
// lanes hold it, a fragment: a thread leaves its values where the others read them with one load of
// 16 bytes, without bank conflicts. R lies there likewise.
//
// A sum runs over the units in an order that depends on H alone, so a row's result depends on
// nothing but the row.
#pragma once

#include <cstdio>
#include <cstdlib>

#include "cells/recurrent_cuda_matrix_plan.h"
#include "cells/recurrent_cuda_tile.cuh"
#include "cuda/async_copy.h"
#include "cuda/device.h"
#include "cuda/fast_float.h"
#include "cuda/matrix.h"
#include "cuda/settings.h"
#include "penstock/config.h"

namespace penstock::cuda::mixing {

static_assert(sizeof(TileRow) == kMatrixRowBytes, "as the plan counts");

/// A lane's part of 16 rows by one chunk of units, and of one chunk by 8 units. The chunk of
/// float32 has its units in an order of its own, in which the values that a lane computes are those
/// that it holds: column i is unit 2i, column i + 4 is unit 2i + 1.
using MatrixOperand = Packed<std::uint32_t, 4>;
template <class T>
using MatrixWeight = Packed<std::uint32_t, sizeof(T) == 4 ? 4 : 2>;
/// A lane's values of one row block and unit block, (row, unit): (g, 2i), (g+8, 2i), (g, 2i+1),
/// (g+8, 2i+1) with g = lane / 4, i = lane % 4. Of float32 these are the bits of a MatrixOperand.
using MatrixValues = Packed<float, 4>;

template <class Shape, class T>
constexpr int kMatrixThreads = 32 * matrix_warps(Shape::kGates, sizeof(T));
template <class T>
constexpr int kMatrixChunk = sizeof(T) == 4 ? 8 : 16;

// ---- products ----------------------------------------------------------------------------------

/// v as big + small: the product reads no more than the first 11 bits of either.
__device__ __forceinline__ void split_float(std::uint32_t bits, std::uint32_t* big,
                                            std::uint32_t* small) {
  *big = bits & 0xffffe000u;
  *small = __float_as_uint(__uint_as_float(bits) - __uint_as_float(*big));
}

/// sum[j][g] += row block j times gate g's units, over `depth` chunks. `load(j, n)`: the lane's
/// operand of row block j, chunk n; `w`: the lane's weights, chunk by chunk, in each gate by gate.
/// Several gates' products go on side by side; that of a single one is two or three sums, of every
/// other chunk (16-bit types) or of the big and the small terms, added at the end.
template <class T, int kBlocks, int kGates, class Load>
__device__ __forceinline__ void multiply_blocks(Load&& load, const MatrixWeight<T>* w, int depth,
                                                float (&sum)[2][kGates][4]) {
  constexpr bool kWide = sizeof(T) == 4;
  constexpr int kMore = kGates > 1 ? 0 : kWide ? 2 : 1;  // sums besides `sum`
  constexpr int kTogether = kMore == 1 ? 2 : 1;          // chunks
  float more[kMore + 1][kBlocks][kGates][4] = {};
  // As far as registers go.
#pragma unroll(kGates > 1 || kTogether == 2 ? 1 : 2)
  for (int c = 0; c < depth; c += kTogether) {
#pragma unroll
    for (int n = 0; n < kTogether; ++n) {
      if (kTogether > 1 && c + n >= depth) continue;
      MatrixOperand values[kBlocks];
      MatrixWeight<T> weights[kGates];
#pragma unroll
      for (int j = 0; j < kBlocks; ++j) values[j] = load(j, c + n);
#pragma unroll
      for (int g = 0; g < kGates; ++g) weights[g] = w[((c + n) * kGates + g) * 32];
      if constexpr (kWide) {
        std::uint32_t big[kBlocks][4], small[kBlocks][4];
#pragma unroll
        for (int j = 0; j < kBlocks; ++j) {
#pragma unroll
          for (int i = 0; i < 4; ++i) split_float(values[j].v[i], &big[j][i], &small[j][i]);
        }
        // The small terms first.
#pragma unroll
        for (int pass = 0; pass < 3; ++pass) {
#pragma unroll
          for (int g = 0; g < kGates; ++g) {
            const int first = pass == 1 ? 2 : 0;  // of the weight's big or small pair
            const std::uint32_t pair[2] = {weights[g].v[first], weights[g].v[first + 1]};
#pragma unroll
            for (int j = 0; j < kBlocks; ++j) {
              matrix_multiply_tf32(pass < kMore ? more[pass][j][g] : sum[j][g],
                                   pass == 0 ? small[j] : big[j], pair);
            }
          }
        }
      } else {
#pragma unroll
        for (int g = 0; g < kGates; ++g) {
#pragma unroll
          for (int j = 0; j < kBlocks; ++j) {
            matrix_multiply<T>(n < kMore ? more[n][j][g] : sum[j][g], values[j].v, weights[g].v);
          }
        }
      }
    }
  }
  if constexpr (kMore > 0) {
#pragma unroll
    for (int j = 0; j < kBlocks; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        sum[j][0][i] += kMore == 1 ? more[0][j][0][i] : more[0][j][0][i] + more[1][j][0][i];
      }
    }
  }
}

/// The same for one or two row blocks.
template <class T, int kGates, class Load>
__device__ __forceinline__ void multiply_items(Load&& load, const MatrixWeight<T>* w, int depth,
                                               int blocks, float (&sum)[2][kGates][4]) {
  if (blocks == 2) {
    multiply_blocks<T, 2, kGates>(load, w, depth, sum);
  } else {
    multiply_blocks<T, 1, kGates>(load, w, depth, sum);
  }
}

/// Fill the fragments of a direction's weights (gates·H, columns): those of unit block n follow
/// each other, forward (chunk, gate), backward (gate, chunk), which is the order of the products'
/// sums. Backward, R is transposed.
template <class T, bool kBackward>
__device__ __forceinline__ void load_fragments(const T* from, int gates, int hidden, int columns,
                                               int unit_blocks, int chunks, MatrixWeight<T>* out) {
  const int count = unit_blocks * chunks * gates * 32;
  for (int at = static_cast<int>(threadIdx.x); at < count; at += static_cast<int>(blockDim.x)) {
    const int lane = at % 32, rest = at / 32;
    int gate = 0, chunk = 0;
    if constexpr (kBackward) {
      chunk = rest % chunks;
      gate = rest / chunks % gates;
    } else {
      gate = rest % gates;
      chunk = rest / gates % chunks;
    }
    const int n = rest / (gates * chunks) * kMatrixUnits + lane / 4;
    const int k = chunk * kMatrixChunk<T> + lane % 4 * 2;
    // The weight by which summand k counts for unit n.
    const auto weight = [&](int summand) {
      if (n >= hidden || summand >= columns) return narrow<T>(0.0f);
      const int row = kBackward ? summand : n, column = kBackward ? n : summand;
      return __ldg(from + static_cast<std::int64_t>(gate * hidden + row) * columns + column);
    };
    MatrixWeight<T> w;
    if constexpr (sizeof(T) == 4) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float v = weight(k + i);
        w.v[i] = to_tf32(v);
        w.v[2 + i] = to_tf32(v - __uint_as_float(w.v[i]));
      }
    } else {
#pragma unroll
      for (int i = 0; i < 2; ++i) w.v[i] = pack(weight(k + 8 * i), weight(k + 8 * i + 1));
    }
    out[at] = w;
  }
}

// ---- a thread's place --------------------------------------------------------------------------

/// Two neighbouring units' elements; where they are no aligned pair, or the second is none, one by
/// one.
template <class S>
__device__ __forceinline__ Packed<S, 2> load_two(const S* from, bool pairs, bool second) {
  if (pairs) return *reinterpret_cast<const Packed<S, 2>*>(from);
  Packed<S, 2> p = {};
  p.v[0] = from[0];
  if (second) p.v[1] = from[1];
  return p;
}
template <class S>
__device__ __forceinline__ void store_two(S first, S next, bool pairs, bool second, S* to) {
  if (pairs) {
    Packed<S, 2> p;
    p.v[0] = first;
    p.v[1] = next;
    *reinterpret_cast<Packed<S, 2>*>(to) = p;
    return;
  }
  to[0] = first;
  if (second) to[1] = next;
}

/// A warp's item: 16 or 32 rows, 8 units; and what a thread has of it.
struct MatrixItem {
  int unit_block, block, blocks;  // row blocks [block, block + blocks)
  int unit;                       // the first of two
  bool active, second;            // whether they are units of the cell

  __device__ __forceinline__ MatrixItem(const MatrixTile& tile, int index, int hidden) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    unit_block = index % tile.unit_blocks;
    block = index / tile.unit_blocks * tile.span;
    blocks = tile.row_blocks - block < tile.span ? tile.row_blocks - block : tile.span;
    unit = unit_block * kMatrixUnits + lane % 4 * 2;
    active = unit < hidden;
    second = unit + 1 < hidden;
  }
  /// Row of the tile: of row block j, the first or the second half.
  __device__ __forceinline__ int row(int j, int half) const {
    return (block + j) * kMatrixRows + half * 8 + static_cast<int>(threadIdx.x) % 32 / 4;
  }
};

/// The pieces of a tile in shared memory.
template <class T>
struct MatrixShared {
  MatrixWeight<T>* weights;
  char *operand, *input;
  MatrixWeight<T>* input_weights;
  MatrixValues *state, *c;
  float* bias;
  TileRow* rows;
  int lane;

  __device__ __forceinline__ MatrixShared(unsigned char* shared, const MatrixTile& tile) {
    weights = reinterpret_cast<MatrixWeight<T>*>(shared);
    operand = reinterpret_cast<char*>(shared + tile.operand);
    input = reinterpret_cast<char*>(shared + tile.input);
    input_weights = reinterpret_cast<MatrixWeight<T>*>(shared + tile.input_weights);
    state = reinterpret_cast<MatrixValues*>(shared + tile.state);
    c = reinterpret_cast<MatrixValues*>(shared + tile.c);
    bias = reinterpret_cast<float*>(shared + tile.bias);
    rows = reinterpret_cast<TileRow*>(shared + tile.rows);
    lane = static_cast<int>(threadIdx.x) % 32;
  }
  /// This lane's fragment of a row block's first chunk, in a buffer.
  __device__ __forceinline__ MatrixOperand* fragment(const MatrixTile& tile, int buffer,
                                                     int block) const {
    return reinterpret_cast<MatrixOperand*>(operand + buffer * tile.operand_bytes) +
           block * tile.depth * 32 + lane;
  }
  __device__ __forceinline__ int values_at(const MatrixTile& tile, const MatrixItem& item,
                                           int j) const {
    return ((item.block + j) * tile.unit_blocks + item.unit_block) * 32 + lane;
  }
  /// This lane's weights for an item's units.
  __device__ __forceinline__ const MatrixWeight<T>* weights_of(const MatrixTile& tile, int gates,
                                                               int unit_block) const {
    return weights + unit_block * tile.chunks * gates * 32 + lane;
  }
  /// Leave this lane's values for the products; `chunks`: where the first chunk of their units'
  /// sum is.
  __device__ __forceinline__ void leave(const MatrixValues& v, int unit_block,
                                        MatrixOperand* chunks) const {
    if constexpr (sizeof(T) == 4) {
      MatrixOperand bits;
#pragma unroll
      for (int i = 0; i < 4; ++i) bits.v[i] = __float_as_uint(v.v[i]);
      chunks[unit_block * 32] = bits;
    } else {
      // A chunk has two unit blocks.
      Packed<std::uint32_t, 2> bits;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        bits.v[half] = pack(narrow<T>(v.v[half]), narrow<T>(v.v[half + 2]));
      }
      reinterpret_cast<Packed<std::uint32_t, 2>*>(chunks + unit_block / 2 * 32)[unit_block % 2] =
          bits;
    }
  }
  /// Products of an item with what is in a buffer of the operand.
  template <int kGates>
  __device__ __forceinline__ void multiply(const MatrixTile& tile, const MatrixItem& item,
                                           int buffer, int depth, const MatrixWeight<T>* w,
                                           float (&sum)[2][kGates][4]) const {
    const MatrixOperand* x = fragment(tile, buffer, item.block);
    const int stride = tile.depth * 32;
    multiply_items<T, kGates>([&](int j, int n) { return x[j * stride + n * 32]; }, w, depth,
                              item.blocks, sum);
  }
  /// Products of an item with the rows of x in a buffer.
  template <int kGates>
  __device__ __forceinline__ void multiply_input(const MatrixTile& tile, const MatrixItem& item,
                                                 int buffer, float (&sum)[2][kGates][4]) const {
    const int pitch = tile.input_pitch;
    const char* from = input + buffer * tile.input_bytes + item.block * kMatrixRows * pitch;
    const auto load = [&](int j, int n) {
      MatrixOperand v;
      if constexpr (sizeof(T) == 4) {
        const char* at = from + (j * kMatrixRows + lane / 4) * pitch + (n * 4 + lane % 4) * 8;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const auto two = *reinterpret_cast<const Packed<float, 2>*>(at + half * 8 * pitch);
          v.v[half] = __float_as_uint(two.v[0]);
          v.v[half + 2] = __float_as_uint(two.v[1]);
        }
      } else {
        load_matrices<4>(v.v,
                         from + (j * kMatrixRows + lane % 16) * pitch + (n * 2 + lane / 16) * 16);
      }
      return v;
    };
    multiply_items<T, kGates>(
        load, input_weights + item.unit_block * tile.input_chunks * kGates * 32 + lane,
        tile.input_chunks, item.blocks, sum);
  }
  /// Zeros, where no thread writes: the units that the cell and the elements that x does not have.
  __device__ __forceinline__ void clear(const MatrixTile& tile) const {
    const auto zero = [](char* from, int bytes) {
      auto* words = reinterpret_cast<MatrixOperand*>(from);
      for (int i = static_cast<int>(threadIdx.x); i < bytes / 16;
           i += static_cast<int>(blockDim.x)) {
        words[i] = MatrixOperand{};
      }
    };
    zero(operand, tile.buffers * tile.operand_bytes);
    zero(input, 2 * tile.input_bytes);
  }
};

/// Begin to copy the tile's rows of x at a step into a buffer, in pieces of 16 or 4 bytes; with 0,
/// element by element, at once. Zeros for rows that x does not have.
template <class T>
__device__ __forceinline__ void copy_input(const ForwardScan& a, const MatrixTile& tile,
                                           const TileRow* rows, std::int64_t time, int piece,
                                           char* buffer) {
  const recurrent::Cut& cut = a.dims.cut;
  const int bytes = static_cast<int>(a.dims.input) * static_cast<int>(sizeof(T));
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (int r = static_cast<int>(threadIdx.x) / 32; r < tile.row_blocks * kMatrixRows;
       r += tile.warps) {
    const TileRow row = rows[r];
    const std::int64_t at = row.first + (time - cut.shift) * cut.batch;
    const bool present = row.first >= 0 && at >= 0 && at < cut.time * cut.batch;
    const char* from = static_cast<const char*>(a.x) + (present ? at * bytes : 0);
    char* to = buffer + r * tile.input_pitch;
    if (piece == 16) {
      for (int i = lane * 16; i < bytes; i += 32 * 16) {
        async_copy<16>(to + i, from + i, present ? 16 : 0);
      }
    } else if (piece == 4) {
      for (int i = lane * 4; i < bytes; i += 32 * 4) {
        async_copy<4>(to + i, from + i, present ? 4 : 0);
      }
    } else {
      for (int i = lane * static_cast<int>(sizeof(T)); i < bytes;
           i += 32 * static_cast<int>(sizeof(T))) {
        *reinterpret_cast<T*>(to + i) =
            present ? __ldg(reinterpret_cast<const T*>(from + i)) : narrow<T>(0.0f);
      }
    }
  }
  commit_copies();
}

template <class S>
__device__ __forceinline__ S* data_of(const Rows& r) {
  return static_cast<S*>(blockIdx.y == 0 ? r.data[0] : r.data[1]);
}
/// The rows of an array at one step. Their numbers have 32 bits (fits_matrix), so that an address
/// costs one multiplication.
template <class S>
struct StepRows {
  S* first;
  std::uint32_t stride;
  __device__ __forceinline__ StepRows(const Rows& r, const Dims& d, std::int64_t time) {
    first = data_of<S>(r);
    if (first != nullptr) first += time * d.cut.batch * r.row_stride;
    stride = static_cast<std::uint32_t>(r.row_stride);
  }
  __device__ __forceinline__ S* at(const TileRow& row, int unit) const {
    return first + std::uint64_t{static_cast<std::uint32_t>(row.first)} * stride + unit;
  }
};
/// Likewise of an array (time, B, dirs·H), or of null.
template <class S>
struct StepOutput {
  S* first;
  int before, rows;
  std::uint32_t width;
  __device__ __forceinline__ StepOutput(S* data, const Dims& d, std::int64_t time) {
    first = data;
    before = static_cast<int>((time - d.cut.shift) * d.cut.batch);
    rows = static_cast<int>(d.cut.time * d.cut.batch);
    width = static_cast<std::uint32_t>(d.width());
  }
  /// Null outside of the array.
  __device__ __forceinline__ S* at(const TileRow& row, int hidden, int unit) const {
    const int i = static_cast<int>(row.first) + before;
    if (first == nullptr || i < 0 || i >= rows) return nullptr;
    return first + std::uint64_t{static_cast<std::uint32_t>(i)} * width +
           static_cast<int>(blockIdx.y) * hidden + unit;
  }
};

/// An item's states from or to (rows, dirs·H) in memory.
__device__ __forceinline__ std::int64_t matrix_state_at(const Dims& d, const MatrixTile& tile,
                                                        const MatrixItem& item, int j, int half) {
  const std::int64_t row =
      static_cast<std::int64_t>(blockIdx.x) * tile.row_blocks * kMatrixRows + item.row(j, half);
  return row * d.width() + static_cast<std::int64_t>(blockIdx.y) * d.hidden + item.unit;
}
__device__ __forceinline__ MatrixValues load_matrix_states(const Dims& d, const MatrixTile& tile,
                                                           const MatrixItem& item,
                                                           const TileRow* rows, int j,
                                                           const void* from) {
  MatrixValues v = {};
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    if (!item.active || rows[item.row(j, half)].first < 0) continue;
    const float* at = static_cast<const float*>(from) + matrix_state_at(d, tile, item, j, half);
    v.v[half] = at[0];
    if (item.second) v.v[half + 2] = at[1];
  }
  return v;
}
__device__ __forceinline__ void store_matrix_states(const Dims& d, const MatrixTile& tile,
                                                    const MatrixItem& item, const TileRow* rows,
                                                    int j, const MatrixValues& v, void* to) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    if (!item.active || rows[item.row(j, half)].first < 0) continue;
    float* at = static_cast<float*>(to) + matrix_state_at(d, tile, item, j, half);
    at[0] = v.v[half];
    if (item.second) at[1] = v.v[half + 2];
  }
}

// ---- forward -----------------------------------------------------------------------------------

// All steps of a tile of rows, the products on tensor cores.
// Work split: a block per tile and direction (blockIdx.y), a warp per item, in turns where there
// are more items than warps. h_prev of the tile lies in two buffers that steps read and write in
// turn, so one barrier per step is enough. Traffic per (row, unit) and step, in elements: G of W x
// in, asked for an item ahead, so that the barrier and the product hide their latency, or where the
// scan is given x, D of x per row and step instead, copied a step ahead in pieces of `piece` bytes;
// y, h_prev (c_prev) and the saved gates out where asked for; two units at an access where they are
// aligned (`pairs`). Shared memory: MatrixTile. Limits: what matrix_tile_plan finds room for, and
// fits_matrix; 64-bit offsets. Invariants: as tile_forward_kernel; fragments of units that the cell
// does not have are zeros, in R as in h. An infinite h or weight is NaN in the products of float32.
// Launch: matrix_shape.
template <class Family, class T>
__global__ void __launch_bounds__(kMatrixThreads<typename Family::Shape, T>, 1)
    matrix_forward_kernel(ForwardScan a, const float* bias, MatrixTile tile, bool pairs,
                          int piece) {
  using Shape = typename Family::Shape;
  constexpr int kGates = Shape::kGates, kSaved = Shape::kSaved, kBiases = Shape::kBiases;
  constexpr int kApart = kGates - Family::kSplit;
  constexpr bool kOwnState = sizeof(T) != 4;  // h is not what the operand holds
  PENSTOCK_SHARED_MEMORY(unsigned char, shared);
  const MatrixShared<T> s(shared, tile);
  const Dims& d = a.dims;
  const int hidden = static_cast<int>(d.hidden), padded = tile.unit_blocks * kMatrixUnits;
  const int warp = static_cast<int>(threadIdx.x) / 32, items = tile.items();
  const std::int64_t dir = blockIdx.y, steps = d.cut.steps;
  const bool takes_input = a.x != nullptr;

  fill_tile_rows(a, tile.row_blocks * kMatrixRows, s.rows);
  load_fragments<T, false>(static_cast<const T*>(a.weight_hh) + dir * kGates * hidden * hidden,
                           kGates, hidden, hidden, tile.unit_blocks, tile.chunks, s.weights);
  if (takes_input) {
    const int input = static_cast<int>(d.input);
    load_fragments<T, false>(static_cast<const T*>(a.weight_ih) + dir * kGates * hidden * input,
                             kGates, hidden, input, tile.unit_blocks, tile.input_chunks,
                             s.input_weights);
  }
  for (int i = static_cast<int>(threadIdx.x); i < kBiases * padded;
       i += static_cast<int>(blockDim.x)) {
    const int unit = i % padded;
    s.bias[i] = unit < hidden ? __ldg(bias + (dir * kBiases + i / padded) * d.hidden + unit) : 0.0f;
  }
  s.clear(tile);
  __syncthreads();

  // W x of the item that comes next.
  Packed<T, 2> wx[2][2][kGates] = {};
  const auto fetch = [&](int index, std::int64_t k) {
    if (takes_input || k >= steps) return;
    const MatrixItem item(tile, index, hidden);
    const StepRows<const T> gates(a.gates, d, time_of(a, dir, k));
#pragma unroll
    for (int j = 0; j < 2; ++j) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (j >= item.blocks || !item.active) continue;
        const TileRow row = s.rows[item.row(j, half)];
        // Of a step that does not count, too: nobody looks at it.
        if (row.first < 0) continue;
        const T* from = gates.at(row, item.unit);
#pragma unroll
        for (int g = 0; g < kGates; ++g) {
          wx[j][half][g] = load_two(from + g * hidden, pairs, item.second);
        }
      }
    }
  };
  const auto keep = [&](const MatrixValues& h, const MatrixItem& item, int j, int buffer) {
    s.leave(h, item.unit_block, s.fragment(tile, buffer, item.block + j));
    if constexpr (kOwnState) s.state[s.values_at(tile, item, j)] = h;
  };
  const auto kept = [&](const MatrixItem& item, int j, int buffer) {
    MatrixValues h;
    if constexpr (kOwnState) {
      h = s.state[s.values_at(tile, item, j)];
    } else {
      const MatrixOperand bits = s.fragment(tile, buffer, item.block + j)[item.unit_block * 32];
#pragma unroll
      for (int i = 0; i < 4; ++i) h.v[i] = __uint_as_float(bits.v[i]);
    }
    return h;
  };

  for (int index = warp; index < items; index += tile.warps) {
    const MatrixItem item(tile, index, hidden);
    for (int j = 0; j < item.blocks; ++j) {
      keep(load_matrix_states(d, tile, item, s.rows, j, a.h), item, j, 0);
      if constexpr (Shape::kHasC) {
        s.c[s.values_at(tile, item, j)] = load_matrix_states(d, tile, item, s.rows, j, a.c);
      }
    }
  }
  fetch(warp, 0);
  const auto copy = [&](std::int64_t k) {
    if (!takes_input || k >= steps) return;
    copy_input<T>(a, tile, s.rows, time_of(a, dir, k), piece, s.input + k % 2 * tile.input_bytes);
  };
  copy(0);
  wait_copies<0>();
  __syncthreads();

  for (std::int64_t k = 0; k < steps; ++k) {
    const std::int64_t time = time_of(a, dir, k);
    const int now = static_cast<int>(k % 2);
    const StepRows<T> gates(a.gates, d, time), h_kept(a.h_kept, d, time);
    const StepRows<float> c_kept(a.c_kept, d, time);
    const StepOutput<T> y(static_cast<T*>(a.y), d, time);
    copy(k + 1);
    for (int index = warp; index < items; index += tile.warps) {
      const MatrixItem item(tile, index, hidden);
      // W x of the gates from kSplit on, which the cell does not add to R h; that of the others
      // begins their sums.
      float sum[2][kGates][4] = {}, apart[2][kApart + 1][4] = {};
      if (takes_input) {
        s.multiply_input(tile, item, now, sum);
#pragma unroll
        for (int j = 0; j < 2; ++j) {
#pragma unroll
          for (int g = 0; g < kApart; ++g) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
              apart[j][g][i] = sum[j][Family::kSplit + g][i];
              sum[j][Family::kSplit + g][i] = 0.0f;
            }
          }
        }
      }
      if (k > 0 || !a.zero_state) {
        s.multiply(tile, item, now, tile.chunks, s.weights_of(tile, kGates, item.unit_block), sum);
      }
      Family::with_cell(d.options, [&](auto cell) {
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          if (j >= item.blocks) continue;
          MatrixValues h = kept(item, j, now), c = {};
          if constexpr (Shape::kHasC) c = s.c[s.values_at(tile, item, j)];
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const TileRow row = s.rows[item.row(j, half)];
            if (!item.active || row.first < 0) continue;
            if (h_kept.first != nullptr) {
              store_two(narrow<T>(h.v[half]), narrow<T>(h.v[half + 2]), pairs, item.second,
                        h_kept.at(row, item.unit));
              if constexpr (Shape::kHasC) {
                store_two(c.v[half], c.v[half + 2], pairs, item.second, c_kept.at(row, item.unit));
              }
            }
            FastFloat saved[2][kSaved] = {};
            float out[2] = {};
            if (row.begin <= static_cast<int>(time) && static_cast<int>(time) < row.end) {
              Packed<float, 2> biases[kBiases];
#pragma unroll
              for (int g = 0; g < kBiases; ++g) {
                biases[g] =
                    *reinterpret_cast<const Packed<float, 2>*>(s.bias + g * padded + item.unit);
              }
#pragma unroll
              for (int e = 0; e < 2; ++e) {
                FastFloat x[kGates], r[kGates], b[kBiases], h_next, c_next;
#pragma unroll
                for (int g = 0; g < kGates; ++g) {
                  // Where the tile takes x itself, this is zero.
                  x[g] = widen(wx[j][half][g].v[e]);
                  if (g >= Family::kSplit && takes_input) {
                    x[g] = apart[j][g - Family::kSplit][half * 2 + e];
                  }
                  r[g] = sum[j][g][half * 2 + e];
                }
#pragma unroll
                for (int g = 0; g < kBiases; ++g) b[g] = biases[g].v[e];
                c_next = 0.0f;
                cell.forward(x, r, b, FastFloat(h.v[half + 2 * e]), FastFloat(c.v[half + 2 * e]),
                             saved[e], &h_next, &c_next);
                // A unit that the cell does not have stays zero.
                const bool exists = e == 0 || item.second;
                h.v[half + 2 * e] = exists ? h_next.v : 0.0f;
                c.v[half + 2 * e] = exists ? c_next.v : 0.0f;
                out[e] = h_next;
              }
            }
            if (a.save) {
              T* to = gates.at(row, item.unit);
#pragma unroll
              for (int g = 0; g < kSaved; ++g) {
                store_two(narrow<T>(saved[0][g]), narrow<T>(saved[1][g]), pairs, item.second,
                          to + g * hidden);
              }
            }
            if (T* to = y.at(row, hidden, item.unit)) {
              store_two(narrow<T>(out[0]), narrow<T>(out[1]), pairs, item.second, to);
            }
          }
          keep(h, item, j, 1 - now);
          if constexpr (Shape::kHasC) s.c[s.values_at(tile, item, j)] = c;
        }
      });
      if (index + tile.warps < items) {
        fetch(index + tile.warps, k);
      } else {
        fetch(warp, k + 1);
      }
    }
    wait_copies<0>();
    __syncthreads();
  }
  for (int index = warp; index < items; index += tile.warps) {
    const MatrixItem item(tile, index, hidden);
    for (int j = 0; j < item.blocks; ++j) {
      store_matrix_states(d, tile, item, s.rows, j, kept(item, j, static_cast<int>(steps % 2)),
                          a.h);
      if constexpr (Shape::kHasC) {
        store_matrix_states(d, tile, item, s.rows, j, s.c[s.values_at(tile, item, j)], a.c);
      }
    }
  }
}

// ---- backward ----------------------------------------------------------------------------------

// All steps of a tile of rows, backward, the products on tensor cores.
// Work split: as forward; the sum of a product runs over all gates' units. dh (and dc) lie in
// shared memory, each value read and written by one thread; the gradients of R's products go
// through two buffers in turn, one barrier per step, or through one with two barriers where two
// have no room. Traffic per (row, unit) and step, in elements: saved gates, h_prev (c_prev) and dy
// in, asked for an item ahead; the gates' gradients out, once. Limits, launch: as forward.
// Invariants: gradients of padded steps are zeros, whatever dy holds, and so are the fragments of
// units that the cell does not have.
template <class Family, class T>
__global__ void __launch_bounds__(kMatrixThreads<typename Family::Shape, T>, 1)
    matrix_backward_kernel(BackwardScan a, MatrixTile tile, bool pairs) {
  using Shape = typename Family::Shape;
  constexpr int kGates = Shape::kGates, kSaved = Shape::kSaved, kGradients = Shape::kGradients;
  PENSTOCK_SHARED_MEMORY(unsigned char, shared);
  const MatrixShared<T> s(shared, tile);
  const Dims& d = a.dims;
  const int hidden = static_cast<int>(d.hidden);
  const int warp = static_cast<int>(threadIdx.x) / 32, items = tile.items();
  const std::int64_t dir = blockIdx.y, steps = d.cut.steps;

  fill_tile_rows(a, tile.row_blocks * kMatrixRows, s.rows);
  load_fragments<T, true>(static_cast<const T*>(a.weight_hh) + dir * kGates * hidden * hidden,
                          kGates, hidden, hidden, tile.unit_blocks, tile.chunks, s.weights);
  s.clear(tile);
  __syncthreads();

  // What the item that comes next reads.
  Packed<T, 2> saved[2][2][kSaved] = {}, h_prev[2][2] = {}, dy[2][2] = {};
  Packed<float, 2> c_prev[2][2] = {};
  const auto fetch = [&](int index, std::int64_t k) {
    if (k < 0) return;
    const MatrixItem item(tile, index, hidden);
    const std::int64_t time = time_of(a, dir, k);
    const StepRows<const T> gates(a.gates, d, time), kept(a.h_kept, d, time);
    const StepRows<const float> c_kept(a.c_kept, d, time);
    const StepOutput<const T> gradient(static_cast<const T*>(a.dy), d, time);
#pragma unroll
    for (int j = 0; j < 2; ++j) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (j >= item.blocks || !item.active) continue;
        const TileRow row = s.rows[item.row(j, half)];
        // Of a step that does not count, too: nobody looks at it.
        if (row.first < 0) continue;
        const T* from = gates.at(row, item.unit);
#pragma unroll
        for (int g = 0; g < kSaved; ++g) {
          saved[j][half][g] = load_two(from + g * hidden, pairs, item.second);
        }
        h_prev[j][half] = load_two(kept.at(row, item.unit), pairs, item.second);
        if constexpr (Shape::kHasC) {
          c_prev[j][half] = load_two(c_kept.at(row, item.unit), pairs, item.second);
        }
        const T* of_y = gradient.at(row, hidden, item.unit);
        dy[j][half] = of_y == nullptr ? Packed<T, 2>{} : load_two(of_y, pairs, item.second);
      }
    }
  };
  for (int index = warp; index < items; index += tile.warps) {
    const MatrixItem item(tile, index, hidden);
    for (int j = 0; j < item.blocks; ++j) {
      const int at = s.values_at(tile, item, j);
      s.state[at] = load_matrix_states(d, tile, item, s.rows, j, a.dh);
      if constexpr (Shape::kHasC) {
        s.c[at] = load_matrix_states(d, tile, item, s.rows, j, a.dc);
      }
    }
  }
  fetch(warp, steps - 1);

  for (std::int64_t k = steps - 1; k >= 0; --k) {
    const std::int64_t time = time_of(a, dir, k);
    const StepRows<T> dgates(a.dgates, d, time);
    const int buffer = tile.buffers == 2 ? static_cast<int>(k % 2) : 0;
    for (int index = warp; index < items; index += tile.warps) {
      const MatrixItem item(tile, index, hidden);
      Family::with_cell(d.options, [&](auto cell) {
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          if (j >= item.blocks) continue;
          const int values_at = s.values_at(tile, item, j);
          MatrixValues dh = s.state[values_at], dc = {}, through[kGates] = {};
          if constexpr (Shape::kHasC) dc = s.c[values_at];
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const TileRow row = s.rows[item.row(j, half)];
            if (!item.active || row.first < 0) continue;
            FastFloat gradients[2][kGradients] = {};
            if (row.begin <= static_cast<int>(time) && static_cast<int>(time) < row.end) {
#pragma unroll
              for (int e = 0; e < 2; ++e) {
                if (e == 1 && !item.second) continue;
                FastFloat now[kSaved], dh_prev = 0.0f, dc_prev = 0.0f;
#pragma unroll
                for (int g = 0; g < kSaved; ++g) now[g] = widen(saved[j][half][g].v[e]);
                cell.backward(now, FastFloat(widen(h_prev[j][half].v[e])),
                              FastFloat(c_prev[j][half].v[e]),
                              FastFloat(dh.v[half + 2 * e] + widen(dy[j][half].v[e])),
                              FastFloat(dc.v[half + 2 * e]), gradients[e], &dh_prev, &dc_prev);
                dh.v[half + 2 * e] = dh_prev;
                dc.v[half + 2 * e] = dc_prev;
              }
            }
            T* to = dgates.at(row, item.unit);
#pragma unroll
            for (int g = 0; g < kGradients; ++g) {
              store_two(narrow<T>(gradients[0][g]), narrow<T>(gradients[1][g]), pairs, item.second,
                        to + g * hidden);
            }
#pragma unroll
            for (int g = 0; g < kGates; ++g) {
#pragma unroll
              for (int e = 0; e < 2; ++e) {
                through[g].v[half + 2 * e] =
                    gradients[e][g < Family::kSplit ? g : g + kGradients - kGates];
              }
            }
          }
          s.state[values_at] = dh;
          if constexpr (Shape::kHasC) s.c[values_at] = dc;
          MatrixOperand* chunks = s.fragment(tile, buffer, item.block + j);
#pragma unroll
          for (int g = 0; g < kGates; ++g) {
            s.leave(through[g], item.unit_block, chunks + g * tile.chunks * 32);
          }
        }
      });
      if (index + tile.warps < items) {
        fetch(index + tile.warps, k);
      } else {
        fetch(warp, k - 1);
      }
    }
    if (k == 0 && !a.want_first) break;
    __syncthreads();
    for (int index = warp; index < items; index += tile.warps) {
      const MatrixItem item(tile, index, hidden);
      float sum[2][1][4] = {};
      s.multiply(tile, item, buffer, tile.depth, s.weights_of(tile, kGates, item.unit_block), sum);
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        if (j >= item.blocks) continue;
        const int at = s.values_at(tile, item, j);
        MatrixValues dh = s.state[at];
#pragma unroll
        for (int i = 0; i < 4; ++i) dh.v[i] += sum[j][0][i % 2 * 2 + i / 2];
        s.state[at] = dh;
      }
    }
    if (tile.buffers == 1) __syncthreads();
  }
  for (int index = warp; index < items; index += tile.warps) {
    const MatrixItem item(tile, index, hidden);
    for (int j = 0; j < item.blocks; ++j) {
      const int at = s.values_at(tile, item, j);
      store_matrix_states(d, tile, item, s.rows, j, s.state[at], a.dh);
      if constexpr (Shape::kHasC) store_matrix_states(d, tile, item, s.rows, j, s.c[at], a.dc);
    }
  }
}

// ---- launches ----------------------------------------------------------------------------------

/// Whether rows over all steps have numbers of 32 bits.
inline bool fits_matrix(const Dims& d) {
  return d.cut.entries() * d.cut.batch <= INT32_MAX && d.cut.time * d.cut.batch <= INT32_MAX;
}

/// Whether two neighbouring units of these arrays of T are always an aligned pair.
template <class T>
bool pairs_of(const Scan& a, const Rows& dgates, const void* y) {
  const auto aligned = [](const void* p, std::size_t size) {
    return reinterpret_cast<std::uintptr_t>(p) % (2 * size) == 0;
  };
  bool all = a.dims.hidden % 2 == 0 && aligned(y, sizeof(T));
  for (const Rows* r : {&a.gates, &a.h_kept, &dgates}) {
    for (const void* p : r->data) all = all && aligned(p, sizeof(T));
  }
  for (const void* p : a.c_kept.data) all = all && aligned(p, sizeof(float));
  return all;
}

/// Whether these tiles are asked for (1), others are (0), or neither (-1).
inline int matrix_wish() {
  const RecurrentWish wish = recurrent_wish(std::getenv("PENSTOCK_CUDA_RECURRENT"));
  return !wish.given ? -1 : wish.path == RecurrentPath::kMatrix ? 1 : 0;
}

/// `elements`: per step and unit of a row, through device memory.
template <class Shape>
MatrixTileProblem matrix_problem(const Context& ctx, const Dims& d, bool backward, int elements) {
  MatrixTileProblem p;
  p.backward = backward;
  p.independent = batch_invariant();
  p.gates = Shape::kGates;
  p.biases = Shape::kBiases;
  p.has_c = Shape::kHasC;
  p.value_bytes = static_cast<int>(size_of(d.compute));
  p.hidden = d.hidden;
  p.dirs = d.dirs;
  p.rows = d.cut.rows();
  p.steps = d.cut.steps;
  p.moved = elements * p.value_bytes;
  p.multiprocessors = attribute(ctx, cudaDevAttrMultiProcessorCount);
  p.block_shared = attribute(ctx, cudaDevAttrMaxSharedMemoryPerBlockOptin);
  p.total_shared = attribute(ctx, cudaDevAttrMaxSharedMemoryPerMultiprocessor);
  return p;
}

/// As `report`, of a scan that these tiles take.
inline void report_matrix(const MatrixTileProblem& p, const MatrixTilePlan& plan) {
  if (!plan.take || setting("PENSTOCK_CUDA_PLAN") == 0) return;
  std::fprintf(stderr,
               "penstock: recurrent %s, %d gates, %d bytes: %lld rows, %lld steps, H %lld, %d "
               "multiprocessors: matrix of %d rows%s, %d warps, %lld bytes of shared memory, "
               "predicted %.1f us\n",
               p.backward ? "backward" : "forward", p.gates, p.value_bytes,
               static_cast<long long>(p.rows * p.dirs), static_cast<long long>(p.steps),
               static_cast<long long>(p.hidden), p.multiprocessors,
               plan.tile.row_blocks * kMatrixRows, p.input > 0 ? " that takes x" : "",
               plan.tile.warps, static_cast<long long>(plan.tile.shared_bytes),
               plan.nanoseconds * 1e-3);
}

/// Whether the forward scan of these dimensions takes x itself (Kernels::takes_input).
template <class Family>
bool takes_input(const Context& ctx, const Dims& d) {
  using Shape = typename Family::Shape;
  if (d.input < 1 || d.cut.rows() == 0 || d.cut.steps == 0 || !fits_matrix(d)) return false;
  MatrixTileProblem p = matrix_problem<Shape>(ctx, d, /*backward=*/false, Shape::kGates + 1);
  p.input = d.input;
  return matrix_input_plan(p, matrix_wish(), setting("PENSTOCK_CUDA_MATRIX_INPUT", -1)).take;
}

/// Bytes that rows of x can be copied by.
template <class T>
int input_piece(const void* x, std::int64_t input) {
  const std::int64_t bytes = input * static_cast<std::int64_t>(sizeof(T));
  for (const int piece : {16, 4}) {
    if (bytes % piece == 0 && reinterpret_cast<std::uintptr_t>(x) % piece == 0) return piece;
  }
  return 0;
}

inline LaunchShape matrix_shape(const Dims& d, const MatrixTile& tile) {
  LaunchShape shape = one_thread_each(d.cut.rows(), tile.row_blocks * kMatrixRows);
  shape.grid.y = static_cast<unsigned>(d.dirs);
  shape.block = dim3(static_cast<unsigned>(tile.warps * 32));
  shape.shared_bytes = static_cast<std::size_t>(tile.shared_bytes);
  return shape;
}

/// f(TypeTag<T>) for the types of these tiles.
template <class F>
void with_matrix_type(DataType dtype, F&& f) {
  with_type(dtype, [&](auto tag) {
    if constexpr (sizeof(typename decltype(tag)::type) <= 4) f(tag);
  });
}

template <class Family>
bool forward_by_matrix(const Context& ctx, const ForwardScan& a) {
  using Shape = typename Family::Shape;
  const Dims& d = a.dims;
  if (!is_whole(a) || !fits_matrix(d)) return false;
  const bool keeps = a.h_kept.data[0] != nullptr;
  const int elements = (a.x == nullptr ? Shape::kGates : 0) + (a.y != nullptr ? 1 : 0) +
                       (a.save ? Shape::kSaved : 0) + (keeps ? 1 : 0);
  MatrixTileProblem p = matrix_problem<Shape>(ctx, d, /*backward=*/false, elements);
  if (keeps && Shape::kHasC) p.moved += 4.0;
  int forced = matrix_wish();
  if (a.x != nullptr) {
    // takes_input has said so.
    p.input = d.input;
    p.moved += static_cast<double>(p.value_bytes) * static_cast<double>(d.input) /
               static_cast<double>(d.hidden);
    forced = 1;
  }
  const MatrixTilePlan plan = matrix_tile_plan(p, forced);
  report_matrix(p, plan);
  if (!plan.take) return false;
  with_matrix_type(d.compute, [&](auto tag) {
    using T = typename decltype(tag)::type;
    launch(ctx, "matrix_forward", matrix_forward_kernel<Family, T>, matrix_shape(d, plan.tile), a,
           static_cast<const float*>(a.scratch), plan.tile, pairs_of<T>(a, Rows(), a.y),
           input_piece<T>(a.x, d.input));
  });
  return true;
}

template <class Family>
bool backward_by_matrix(const Context& ctx, const BackwardScan& a) {
  using Shape = typename Family::Shape;
  const Dims& d = a.dims;
  if (!is_whole(a) || !fits_matrix(d)) return false;
  const int elements = Shape::kSaved + 1 + (a.dy != nullptr ? 1 : 0) + Shape::kGradients;
  MatrixTileProblem p = matrix_problem<Shape>(ctx, d, /*backward=*/true, elements);
  if (Shape::kHasC) p.moved += 4.0;
  const MatrixTilePlan plan = matrix_tile_plan(p, matrix_wish());
  report_matrix(p, plan);
  if (!plan.take) return false;
  with_matrix_type(d.compute, [&](auto tag) {
    using T = typename decltype(tag)::type;
    launch(ctx, "matrix_backward", matrix_backward_kernel<Family, T>, matrix_shape(d, plan.tile), a,
           plan.tile, pairs_of<T>(a, a.dgates, a.dy));
  });
  return true;
}

}  // namespace penstock::cuda::mixing
