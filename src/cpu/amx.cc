#include "cpu/amx.h"

#if defined(PENSTOCK_AMX)

#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <new>

#include "cpu/amx_tiles.h"
#include "cpu/blas.h"
#include "cpu/gemm.h"
#include "cpu/threads.h"

namespace penstock::cpu {
namespace {

// TDPBSSD: C (16 x 16 int32) += A (16 rows of 64 bytes along k) times B (16 rows of 4 bytes along k
// for each of 16 columns).
constexpr std::int64_t kTile = 16;
constexpr std::int64_t kDepth = 64;  // k per tile
constexpr std::int64_t kTileBytes = 1024;
constexpr int kParts = 3;
// The largest integer that three signed bytes hold, rounded down to leave room for rounding up.
constexpr float kLargest = 8355000.0f;
// The scale of rows or columns with nothing larger would overflow.
constexpr float kTiny = 1e-30f;

std::int64_t steps_of(std::int64_t k) { return (k + kDepth - 1) / kDepth; }

/// Factors to integers, and back, for numbers of at most this magnitude. `boost` comes before
/// `factor`, where that alone would overflow. NaN for misfits.
struct Scale {
  float factor, boost, inverse;
};
constexpr float kBoost = 1.8446744e19f;  // 2^64

/// Of a row of A; its inverse leaves the boost in. Misfits: infinities and NaN.
Scale row_scale(float largest) {
  if (largest == 0.0f) return {0.0f, 1.0f, 0.0f};
  if (!(largest <= 3.4028234e38f)) return {0.0f, 1.0f, std::nanf("")};
  const float boost = largest < kTiny ? kBoost : 1.0f;
  const float factor = kLargest / (largest * boost);
  return {factor, boost, 1.0f / factor};
}
/// Of a column of B. Misfits: also tiny numbers, unless `tiny_fits`; then they are rounded to
/// multiples of 1e-37.
Scale column_scale(float largest, bool tiny_fits) {
  if (largest == 0.0f) return {0.0f, 1.0f, 0.0f};
  if (tiny_fits && largest < kTiny) largest = kTiny;
  if (!(largest <= 3.4028234e38f) || largest < kTiny) return {0.0f, 1.0f, std::nanf("")};
  const float factor = kLargest / largest;
  return {factor, 1.0f, 1.0f / factor};
}
bool misfit(float inverse) { return inverse != inverse; }

float as_float(std::uint32_t bits) {
  float f = 0.0f;
  std::memcpy(&f, &bits, sizeof f);
  return f;
}

inline __m512i magnitude(__m512 x) {
  return _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7fffffff));
}

// `balance`: factor of each number, or null.
float largest_of(const float* p, std::int64_t n, const float* balance = nullptr) {
  __m512i bits = _mm512_setzero_si512();
  for (std::int64_t i = 0; i < n; i += 16) {
    const __mmask16 mask = first(n - i);
    __m512 x = _mm512_maskz_loadu_ps(mask, p + i);
    if (balance != nullptr) x = _mm512_mul_ps(x, _mm512_maskz_loadu_ps(mask, balance + i));
    bits = _mm512_max_epu32(bits, magnitude(x));
  }
  return as_float(_mm512_reduce_max_epu32(bits));
}

// Largest magnitudes of 16 neighbouring columns (those in `mask`) over n rows; `balance`: factor of
// each row, or null.
void largest_of_columns(const float* p, std::int64_t ld, __mmask16 mask, std::int64_t n,
                        const float* balance, float* out) {
  __m512i bits = _mm512_setzero_si512();
  for (std::int64_t i = 0; i < n; ++i) {
    __m512 x = _mm512_maskz_loadu_ps(mask, p + i * ld);
    if (balance != nullptr) x = _mm512_mul_ps(x, _mm512_set1_ps(balance[i]));
    bits = _mm512_max_epu32(bits, magnitude(x));
  }
  _mm512_storeu_si512(out, bits);
}

// Scaled numbers as integers whose bytes are those of x with 128 added to the lower two: flipping
// their upper bits gives signed bytes.
inline __m512i to_integers(__m512 x) {
  return _mm512_add_epi32(_mm512_cvtps_epi32(x), _mm512_set1_epi32(0x8080));
}

// A tile's bytes along k stand in an order of their own, the same in A and B: byte j of group i is
// number 16 j + i of the tile's 64. So four vectors give a line of each part without moving a byte
// to another group.
//
// `x[j]` holds numbers 16 j … of one row of A, or number 16 j + i of 16 columns of B; `out`: three
// lines, highest part first, `stride` bytes apart.
inline void write_lines(const __m512 x[4], char* out, std::int64_t stride) {
  const __m512i v0 = to_integers(x[0]), v1 = to_integers(x[1]), v2 = to_integers(x[2]),
                v3 = to_integers(x[3]);
  const __m512i even = _mm512_set1_epi32(0x00ff00ff), low = _mm512_set1_epi32(0xffff);
  constexpr int kSelect = 0xca;  // mask ? first : second
  // Bytes 0 and 2, then 1 and 3, of two vectors side by side.
  const __m512i a = _mm512_ternarylogic_epi32(even, v0, _mm512_slli_epi32(v1, 8), kSelect);
  const __m512i b = _mm512_ternarylogic_epi32(even, _mm512_srli_epi32(v0, 8), v1, kSelect);
  const __m512i c = _mm512_ternarylogic_epi32(even, v2, _mm512_slli_epi32(v3, 8), kSelect);
  const __m512i d = _mm512_ternarylogic_epi32(even, _mm512_srli_epi32(v2, 8), v3, kSelect);
  const __m512i flip = _mm512_set1_epi8(static_cast<char>(0x80));
  const __m512i part0 = _mm512_ternarylogic_epi32(low, _mm512_srli_epi32(a, 16), c, kSelect);
  const __m512i part1 = _mm512_ternarylogic_epi32(low, b, _mm512_slli_epi32(d, 16), kSelect);
  const __m512i part2 = _mm512_ternarylogic_epi32(low, a, _mm512_slli_epi32(c, 16), kSelect);
  _mm512_store_si512(out, part0);
  _mm512_store_si512(out + stride, _mm512_xor_si512(part1, flip));
  _mm512_store_si512(out + 2 * stride, _mm512_xor_si512(part2, flip));
}

void transpose_parts(char* tile, std::int64_t stride) {
  for (int part = 0; part < kParts; ++part) {
    transpose(reinterpret_cast<__m512i*>(tile + part * stride));
  }
}

/// Of up to 16 rows of A or columns of B.
struct Scales {
  float factors[kTile], boosts[kTile];
};

// One tile in three parts, `stride` bytes apart, from up to 16 rows of A or columns of B, `depth`
// of k. `along_k`: the source is contiguous along k, rows or columns `ld` apart; else k runs over
// rows `ld` apart. `is_b`: a line holds four numbers along k of each column, else all of a row.
void pack_tile(bool along_k, bool is_b, const float* source, std::int64_t ld, std::int64_t count,
               std::int64_t depth, const Scales& scales, const float* balance, char* out,
               std::int64_t stride) {
  if (along_k) {
    for (std::int64_t i = 0; i < kTile; ++i) {
      char* line = out + i * 64;
      if (i >= count) {
        for (int part = 0; part < kParts; ++part) {
          _mm512_store_si512(line + part * stride, _mm512_setzero_si512());
        }
        continue;
      }
      const float* row = source + i * ld;
      const __m512 f = _mm512_set1_ps(scales.factors[i]);
      const __m512 boost = _mm512_set1_ps(scales.boosts[i]);
      __m512 x[4];
      for (std::int64_t j = 0; j < 4; ++j) {
        const __mmask16 mask = first(depth - 16 * j);
        x[j] = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, row + 16 * j), boost);
        if (balance != nullptr) {
          x[j] = _mm512_mul_ps(x[j], _mm512_maskz_loadu_ps(mask, balance + 16 * j));
        }
        x[j] = _mm512_mul_ps(x[j], f);
      }
      write_lines(x, line, stride);
    }
  } else {
    const __mmask16 mask = first(count);
    const __m512 f = _mm512_loadu_ps(scales.factors);
    const __m512 boost = _mm512_loadu_ps(scales.boosts);
    for (std::int64_t i = 0; i < kTile; ++i) {
      __m512 x[4];
      for (std::int64_t j = 0; j < 4; ++j) {
        const std::int64_t k = 16 * j + i;
        x[j] = _mm512_mul_ps(
            _mm512_maskz_loadu_ps(k < depth ? mask : static_cast<__mmask16>(0), source + k * ld),
            boost);
        if (balance != nullptr && k < depth) {
          x[j] = _mm512_mul_ps(x[j], _mm512_set1_ps(balance[k]));
        }
        x[j] = _mm512_mul_ps(x[j], f);
      }
      write_lines(x, out + i * 64, stride);
    }
  }
  if (along_k == is_b) transpose_parts(out, stride);
}

enum class Side { kRowsOfA, kColumnsOfB, kColumnsTinyToo };

Scales scales_of(Side side, bool along_k, const float* source, std::int64_t ld, std::int64_t count,
                 std::int64_t depth, const float* balance, float* inverses) {
  float largest[kTile] = {};
  if (along_k) {
    for (std::int64_t i = 0; i < count; ++i) {
      largest[i] = largest_of(source + i * ld, depth, balance);
    }
  } else {
    largest_of_columns(source, ld, first(count), depth, balance, largest);
  }
  Scales scales;
  for (std::int64_t i = 0; i < kTile; ++i) {
    const Scale s = side == Side::kRowsOfA
                        ? row_scale(largest[i])
                        : column_scale(largest[i], side == Side::kColumnsTinyToo);
    scales.factors[i] = s.factor;
    scales.boosts[i] = s.boost;
    inverses[i] = s.inverse;
  }
  return scales;
}

// A results' vector from the three sums, by order: order o has the weight 2^(32 - 8 o). `columns`:
// inverse scales times 2^32.
inline __m512 combine(const std::int32_t* sums, std::int64_t order_stride, float row, float boost,
                      __m512 columns) {
  const __m512 step = _mm512_set1_ps(1.0f / 256.0f);
  const __m512 low = _mm512_cvtepi32_ps(_mm512_load_si512(sums + 2 * order_stride));
  const __m512 middle = _mm512_cvtepi32_ps(_mm512_load_si512(sums + order_stride));
  const __m512 high = _mm512_cvtepi32_ps(_mm512_load_si512(sums));
  const __m512 sum = _mm512_fmadd_ps(_mm512_fmadd_ps(low, step, middle), step, high);
  const __m512 result = _mm512_mul_ps(_mm512_mul_ps(sum, _mm512_set1_ps(row)), columns);
  return boost == 1.0f ? result : _mm512_mul_ps(result, _mm512_set1_ps(1.0f / boost));
}
inline __m512 column_scales(const float* inverses) {
  return _mm512_mul_ps(_mm512_loadu_ps(inverses), _mm512_set1_ps(4294967296.0f));
}

#define PENSTOCK_A(part, half) (a + ((part) * 2 + (half)) * kTileBytes)
#define PENSTOCK_B(part) (b + (part) * kTileBytes)
#define PENSTOCK_ZERO_SUMS() \
  _tile_zero(0);             \
  _tile_zero(1);             \
  _tile_zero(2);             \
  _tile_zero(3);             \
  _tile_zero(4);             \
  _tile_zero(5)
#define PENSTOCK_STORE_SUMS()       \
  _tile_stored(0, sums, 64);        \
  _tile_stored(1, sums + 256, 64);  \
  _tile_stored(2, sums + 512, 64);  \
  _tile_stored(3, sums + 768, 64);  \
  _tile_stored(4, sums + 1024, 64); \
  _tile_stored(5, sums + 1280, 64)

// 32 rows, one vector of columns. Sums of order o and half h of the rows in tile 2 o + h.
// `meanwhile()` is called in each step.
template <class F>
void two_halves(const char* a, const char* b, std::int64_t steps, std::int32_t* sums,
                const F& meanwhile) {
  PENSTOCK_ZERO_SUMS();
  for (std::int64_t s = 0; s < steps; ++s) {
    _tile_loadd(7, PENSTOCK_B(0), 64);
    _tile_loadd(6, PENSTOCK_A(0, 0), 64);
    _tile_dpbssd(0, 6, 7);
    _tile_loadd(7, PENSTOCK_B(1), 64);
    _tile_dpbssd(2, 6, 7);
    _tile_loadd(7, PENSTOCK_B(2), 64);
    _tile_dpbssd(4, 6, 7);
    meanwhile();
    _tile_loadd(6, PENSTOCK_A(0, 1), 64);
    _tile_dpbssd(5, 6, 7);
    _tile_loadd(7, PENSTOCK_B(1), 64);
    _tile_dpbssd(3, 6, 7);
    _tile_loadd(7, PENSTOCK_B(0), 64);
    _tile_dpbssd(1, 6, 7);
    _tile_loadd(6, PENSTOCK_A(1, 0), 64);
    _tile_dpbssd(2, 6, 7);
    _tile_loadd(7, PENSTOCK_B(1), 64);
    _tile_dpbssd(4, 6, 7);
    _tile_loadd(6, PENSTOCK_A(1, 1), 64);
    _tile_dpbssd(5, 6, 7);
    _tile_loadd(7, PENSTOCK_B(0), 64);
    _tile_dpbssd(3, 6, 7);
    _tile_loadd(6, PENSTOCK_A(2, 0), 64);
    _tile_dpbssd(4, 6, 7);
    _tile_loadd(6, PENSTOCK_A(2, 1), 64);
    _tile_dpbssd(5, 6, 7);
    a += kParts * 2 * kTileBytes;
    b += kParts * kTileBytes;
  }
  PENSTOCK_STORE_SUMS();
}

// 16 rows, two vectors of columns, `b_stride` bytes apart. Sums of order o and vector v in tile
// 2 o + v.
void two_vectors(const char* a, const char* b, std::int64_t b_stride, std::int64_t steps,
                 std::int32_t* sums) {
  PENSTOCK_ZERO_SUMS();
  for (std::int64_t s = 0; s < steps; ++s) {
    _tile_loadd(7, PENSTOCK_A(0, 0), 64);
    _tile_loadd(6, PENSTOCK_B(0), 64);
    _tile_dpbssd(0, 7, 6);
    _tile_loadd(6, PENSTOCK_B(1), 64);
    _tile_dpbssd(2, 7, 6);
    _tile_loadd(6, PENSTOCK_B(2), 64);
    _tile_dpbssd(4, 7, 6);
    _tile_loadd(6, PENSTOCK_B(0) + b_stride, 64);
    _tile_dpbssd(1, 7, 6);
    _tile_loadd(6, PENSTOCK_B(2) + b_stride, 64);
    _tile_dpbssd(5, 7, 6);
    _tile_loadd(6, PENSTOCK_B(1) + b_stride, 64);
    _tile_dpbssd(3, 7, 6);
    _tile_loadd(7, PENSTOCK_A(1, 0), 64);
    _tile_dpbssd(5, 7, 6);
    _tile_loadd(6, PENSTOCK_B(1), 64);
    _tile_dpbssd(4, 7, 6);
    _tile_loadd(6, PENSTOCK_B(0) + b_stride, 64);
    _tile_dpbssd(3, 7, 6);
    _tile_loadd(6, PENSTOCK_B(0), 64);
    _tile_dpbssd(2, 7, 6);
    _tile_loadd(7, PENSTOCK_A(2, 0), 64);
    _tile_dpbssd(4, 7, 6);
    _tile_loadd(6, PENSTOCK_B(0) + b_stride, 64);
    _tile_dpbssd(5, 7, 6);
    a += kParts * 2 * kTileBytes;
    b += kParts * kTileBytes;
  }
  PENSTOCK_STORE_SUMS();
}

#undef PENSTOCK_A
#undef PENSTOCK_B
#undef PENSTOCK_ZERO_SUMS
#undef PENSTOCK_STORE_SUMS

/// Memory that a thread keeps for its lifetime, as a BLAS does.
class Room {
 public:
  Room() = default;
  ~Room() { std::free(data_); }
  Room(const Room&) = delete;
  Room& operator=(const Room&) = delete;
  char* take(std::size_t bytes) {
    if (bytes > size_) {
      std::free(data_);
      size_ = 0;
      data_ = static_cast<char*>(std::aligned_alloc(4096, (bytes + 4095) / 4096 * 4096));
      if (data_ == nullptr) throw std::bad_alloc();
      size_ = bytes;
    }
    return data_;
  }

 private:
  char* data_ = nullptr;
  std::size_t size_ = 0;
};

void configure() {
  static const TileConfig config;
  _tile_loadconfig(&config);
}

// ---- a few rows -------------------------------------------------------------------------------

// Rows in fixed point. Tile (step, part, half): rows half * 16 …, at ((step * kParts + part) * 2 +
// half) KiB. Behind the last tile:
struct RowNotes {
  float inverses[kFixedRows], boosts[kFixedRows];
  const float* rows[kFixedRows];
  std::int64_t k1, gap;
};

std::int64_t row_bytes(std::int64_t k) { return steps_of(k) * kParts * 2 * kTileBytes; }

// A row whose integers mean nothing, in floating point.
void multiply_slowly(const RowNotes& notes, std::int64_t row, std::int64_t k, const char* vector,
                     const float* column_inverses, float* out) {
  const auto* bytes = reinterpret_cast<const std::int8_t*>(vector);
  for (int c = 0; c < kFixedColumns; ++c) {
    float sum = 0.0f;
    for (std::int64_t p = 0; p < k; ++p) {
      const std::int8_t* w =
          bytes + p / kDepth * kParts * kTileBytes + p % kDepth / 4 * 64 + p % 4 + c * 4;
      const int value = w[0] * 65536 + w[kTileBytes] * 256 + w[2 * kTileBytes];
      const float x = notes.rows[row][p < notes.k1 ? p : p + notes.gap];
      sum += x * (static_cast<float>(value) * column_inverses[c]);
    }
    out[c] = sum;
  }
}

}  // namespace

bool fixed_pays(std::int64_t columns, std::int64_t k) {
  return has_amx() && columns >= 96 && k >= 96 && k <= 16384;
}

std::size_t fixed_vector_bytes(std::int64_t k) {
  return static_cast<std::size_t>(steps_of(k) * kParts * kTileBytes + 64);
}

void fixed_pack(const float* source, std::int64_t k_stride, std::int64_t column_stride, int count,
                std::int64_t k, void* packed) {
  auto* out = static_cast<char*>(packed);
  const bool along_k = k_stride == 1;
  const std::int64_t ld = along_k ? column_stride : k_stride;
  auto* inverses = reinterpret_cast<float*>(out + steps_of(k) * kParts * kTileBytes);
  const Scales scales =
      scales_of(Side::kColumnsTinyToo, along_k, source, ld, count, k, nullptr, inverses);
  for (std::int64_t p = 0; p < k; p += kDepth) {
    pack_tile(along_k, true, source + (along_k ? p : p * ld), ld, count, k - p, scales, nullptr,
              out, kTileBytes);
    out += kParts * kTileBytes;
  }
}

const void* fixed_begin(const float* const* rows, std::int64_t count, std::int64_t k1,
                        std::int64_t gap, std::int64_t k2) {
  thread_local Room room;
  const std::int64_t k = k1 + k2, steps = steps_of(k);
  char* out = room.take(static_cast<std::size_t>(row_bytes(k)) + sizeof(RowNotes));
  auto* notes = reinterpret_cast<RowNotes*>(out + row_bytes(k));
  notes->k1 = k1;
  notes->gap = gap;
  constexpr std::int64_t kStride = 2 * kTileBytes;
  for (std::int64_t i = 0; i < (count > kTile ? 2 : 1) * kTile; ++i) {
    char* line = out + i / kTile * kTileBytes + i % kTile * 64;
    if (i >= count) {
      for (std::int64_t s = 0; s < steps * kParts; ++s) {
        _mm512_store_si512(line + s * kStride, _mm512_setzero_si512());
      }
      continue;
    }
    const float a = largest_of(rows[i], k1), b = largest_of(rows[i] + k1 + gap, k2);
    const Scale scale = row_scale(a > b || a != a ? a : b);
    notes->boosts[i] = scale.boost;
    notes->inverses[i] = scale.inverse;
    notes->rows[i] = rows[i];
    const __m512 factor = _mm512_set1_ps(scale.factor), boost = _mm512_set1_ps(scale.boost);
    const auto get = [&](std::int64_t p) {
      __m512 x;
      if (p + 16 <= k1 || k2 == 0) {
        x = _mm512_maskz_loadu_ps(first(k1 - p), rows[i] + p);
      } else if (p >= k1) {
        x = _mm512_maskz_loadu_ps(first(k - p), rows[i] + gap + p);
      } else {
        // The seam of the two runs.
        const __mmask16 low = first(k1 - p);
        x = _mm512_maskz_loadu_ps(low, rows[i] + p);
        x = _mm512_mask_loadu_ps(x, static_cast<__mmask16>(first(k - p) & ~low), rows[i] + gap + p);
      }
      return _mm512_mul_ps(_mm512_mul_ps(x, boost), factor);
    };
    for (std::int64_t p = 0; p < k; p += kDepth) {
      const __m512 x[4] = {get(p), get(p + 16), get(p + 32), get(p + 48)};
      write_lines(x, line, kStride);
      line += kParts * kStride;
    }
  }
  configure();
  return out;
}

void fixed_multiply(const void* rows, std::int64_t count, std::int64_t k, const void* packed,
                    int vectors, float* out) {
  const std::int64_t steps = steps_of(k);
  const auto* a = static_cast<const char*>(rows);
  const auto* b = static_cast<const char*>(packed);
  const auto vector_bytes = static_cast<std::int64_t>(fixed_vector_bytes(k));
  const RowNotes& notes = *reinterpret_cast<const RowNotes*>(a + row_bytes(k));
  const std::int64_t stride = vectors * kFixedColumns;
  const auto inverses_of = [&](const char* vector) {
    return reinterpret_cast<const float*>(vector + steps * kParts * kTileBytes);
  };
  alignas(64) std::int32_t sums[6 * 256];
  const auto write = [&](std::int64_t tile, std::int64_t row, std::int64_t end, const char* vector,
                         float* to) {
    const __m512 columns = column_scales(inverses_of(vector));
    const std::int32_t* from = sums + tile * 256;
    for (; row < end; ++row, from += 16) {
      _mm512_storeu_ps(to + row * stride,
                       combine(from, 512, notes.inverses[row], notes.boosts[row], columns));
    }
  };
  if (count > kTile) {
    for (int v = 0; v < vectors; ++v) {
      two_halves(a, b, steps, sums, [] {});
      write(0, 0, kTile, b, out + v * kFixedColumns);
      write(1, kTile, count, b, out + v * kFixedColumns);
      b += vector_bytes;
    }
  } else {
    for (int v = 0; v < vectors; v += 2) {
      // An odd last vector is multiplied twice.
      const std::int64_t next = v + 1 < vectors ? vector_bytes : 0;
      two_vectors(a, b, next, steps, sums);
      write(0, 0, count, b, out + v * kFixedColumns);
      if (next != 0) write(1, 0, count, b + next, out + (v + 1) * kFixedColumns);
      b += 2 * vector_bytes;
    }
  }
  for (std::int64_t i = 0; i < count; ++i) {
    if (!misfit(notes.inverses[i])) continue;
    for (int v = 0; v < vectors; ++v) {
      const char* vector = static_cast<const char*>(packed) + v * vector_bytes;
      multiply_slowly(notes, i, k, vector, inverses_of(vector),
                      out + i * stride + v * kFixedColumns);
    }
  }
}

void fixed_end() { _tile_release(); }

// ---- whole products ---------------------------------------------------------------------------

namespace {

// A block of 32 rows over this much of k, packed, leaves room in a first-level cache of 48 KiB.
constexpr std::int64_t kRoundSteps = 5;
constexpr std::int64_t kBlockRows = 2 * kTile;
// What each thread keeps for a B that is not packed: 4 MiB with so many columns.
constexpr std::int64_t kMostColumns = 4096;

/// How k is cut into rounds of whole steps.
struct Rounds {
  std::int64_t k, steps, count;
  explicit Rounds(std::int64_t k_) : k(k_), steps(steps_of(k_)) {
    count = (steps + kRoundSteps - 1) / kRoundSteps;
  }
  std::int64_t first_step(std::int64_t round) const { return steps * round / count; }
  std::int64_t round_steps(std::int64_t round) const {
    return first_step(round + 1) - first_step(round);
  }
  std::int64_t depth(std::int64_t round) const {
    const std::int64_t end = first_step(round + 1) * kDepth;
    return (end < k ? end : k) - first_step(round) * kDepth;
  }
};

// B in rounds: vectors of 16 columns, each its tiles and then its inverse scales; in front of all a
// note whether there are misfits. A whole packed B begins with its balance: row j of B is divided
// by balance[j], a power of two near the row's largest magnitude, and column j of A multiplied with
// it. So numbers count by what they can contribute, whatever the scales of A's columns are.
constexpr std::int64_t kNoteBytes = 64;
std::int64_t vectors_of(std::int64_t n) { return (n + kTile - 1) / kTile; }
std::int64_t vector_bytes(std::int64_t steps) { return steps * kParts * kTileBytes + 64; }
std::int64_t round_bytes(std::int64_t n, std::int64_t steps) {
  return kNoteBytes + vectors_of(n) * vector_bytes(steps);
}
std::int64_t balance_bytes(std::int64_t k) {
  return (k * static_cast<std::int64_t>(sizeof(float)) + 63) / 64 * 64;
}
std::int64_t round_offset(const Rounds& r, std::int64_t n, std::int64_t round) {
  return balance_bytes(r.k) + round * kNoteBytes +
         vectors_of(n) * (r.first_step(round) * kParts * kTileBytes + round * 64);
}

// `inverse_balance`: factor of each row of B, or null.
// Columns [begin, end), begin a multiple of 16. Returns whether there are misfits.
std::int32_t pack_columns_of_round(bool trans_b, std::int64_t begin, std::int64_t end,
                                   std::int64_t depth, const float* b, std::int64_t ldb,
                                   const float* inverse_balance, char* out) {
  const std::int64_t steps = steps_of(depth);
  std::int32_t misfits = 0;
  char* vector = out + kNoteBytes + begin / kTile * vector_bytes(steps);
  for (std::int64_t j = begin; j < end; j += kTile) {
    const std::int64_t count = end - j < kTile ? end - j : kTile;
    const float* source = b + (trans_b ? j * ldb : j);
    auto* inverses = reinterpret_cast<float*>(vector + steps * kParts * kTileBytes);
    const Scales scales =
        scales_of(Side::kColumnsOfB, trans_b, source, ldb, count, depth, inverse_balance, inverses);
    for (std::int64_t i = 0; i < count; ++i) misfits |= misfit(inverses[i]) ? 1 : 0;
    for (std::int64_t s = 0; s < steps; ++s) {
      const std::int64_t k = s * kDepth;
      pack_tile(trans_b, true, source + (trans_b ? k : k * ldb), ldb, count, depth - k, scales,
                inverse_balance == nullptr ? nullptr : inverse_balance + k,
                vector + s * kParts * kTileBytes, kTileBytes);
    }
    vector += vector_bytes(steps);
  }
  return misfits;
}

// The power of two at or below x, and its inverse, within what is safe to multiply by. 0 for 0, so
// that what meets only zeros does not count; 1 for infinity and NaN.
void power_of_two(float x, float* power, float* inverse) {
  *power = *inverse = x == 0.0f ? 0.0f : 1.0f;
  if (x == 0.0f || !(x <= 3.4028234e38f)) return;
  constexpr float kSmallest = 1.1754944e-38f, kMost = 1e30f;
  x = x < kSmallest ? kSmallest : x > kMost ? kMost : x;
  std::uint32_t bits = 0;
  std::memcpy(&bits, &x, sizeof bits);
  *power = as_float(bits & 0x7f800000u);
  *inverse = 1.0f / *power;
}

}  // namespace

bool fixed_gemm_pays(std::int64_t m, std::int64_t n, std::int64_t k) {
  return has_amx() && m >= 32 && n >= 32 && k >= 64 && m * n * k >= (std::int64_t{1} << 20);
}

bool fixed_gemm_pays_packed(std::int64_t n, std::int64_t k) {
  return has_amx() && n >= 48 && k >= 48;
}

std::size_t fixed_gemm_packed_b_bytes(std::int64_t n, std::int64_t k) {
  const Rounds r(k);
  return static_cast<std::size_t>(round_offset(r, n, r.count));
}

namespace {

template <class F>
void for_each_share(bool many, std::int64_t n, const F& run) {
  const auto call = [](void* user, std::int64_t i) { (*static_cast<const F*>(user))(i); };
  void* user = const_cast<void*>(static_cast<const void*>(&run));
  if (many) {
    parallel_for(n, call, user);
  } else {
    for (std::int64_t i = 0; i < n; ++i) call(user, i);
  }
}

// Magnitudes by which rows [begin, end) of B count.
void balance_of(bool trans_b, std::int64_t n, std::int64_t begin, std::int64_t end, const float* b,
                std::int64_t ldb, float* balance, float* inverse) {
  if (trans_b) {
    for (std::int64_t p = begin; p < end; p += kTile) {
      largest_of_columns(b + p, ldb, first(end - p), n, nullptr, inverse + p);
    }
  } else {
    for (std::int64_t p = begin; p < end; ++p) inverse[p] = largest_of(b + p * ldb, n);
  }
  for (std::int64_t p = begin; p < end; ++p) power_of_two(inverse[p], balance + p, inverse + p);
}

}  // namespace

void fixed_gemm_pack_b(bool trans_b, std::int64_t n, std::int64_t k, const float* b,
                       std::int64_t ldb, void* packed) {
  constexpr std::int64_t kShareColumns = 8 * kTile;
  const bool many = n * k >= (std::int64_t{1} << 16);
  const Rounds r(k);
  auto* balance = static_cast<float*>(packed);
  thread_local Room room;
  auto* inverse = reinterpret_cast<float*>(room.take(static_cast<std::size_t>(balance_bytes(k))));
  for_each_share(many, r.steps, [&](std::int64_t step) {
    const std::int64_t begin = step * kDepth;
    balance_of(trans_b, n, begin, begin + kDepth < k ? begin + kDepth : k, b, ldb, balance,
               inverse);
  });
  for (std::int64_t round = 0; round < r.count; ++round) {
    const std::int64_t k0 = r.first_step(round) * kDepth;
    char* out = static_cast<char*>(packed) + round_offset(r, n, round);
    std::atomic<std::int32_t> misfits{0};
    for_each_share(many, (n + kShareColumns - 1) / kShareColumns, [&](std::int64_t share) {
      const std::int64_t begin = share * kShareColumns;
      misfits.fetch_or(pack_columns_of_round(
          trans_b, begin, begin + kShareColumns < n ? begin + kShareColumns : n, r.depth(round),
          b + (trans_b ? k0 : k0 * ldb), ldb, inverse + k0, out));
    });
    const std::int32_t all = misfits.load();
    std::memcpy(out, &all, sizeof all);
  }
}

namespace {

/// Rows that will be packed or written soon. Packing leaves memory idle while tiles are multiplied,
/// and the processor's own prefetching starts anew with each row.
class Upcoming {
 public:
  Upcoming() = default;
  /// To be fetched in `calls` calls.
  Upcoming(const float* rows, std::int64_t ld, std::int64_t count, std::int64_t columns,
           std::int64_t calls)
      : row_(rows), ld_(ld), rows_(count), columns_(columns) {
    lines_ = (count * ((columns + kTile - 1) / kTile) + calls - 1) / calls;
  }
  void fetch() {
    for (std::int64_t i = 0; i < lines_ && rows_ > 0; ++i) {
      _mm_prefetch(row_ + column_, _MM_HINT_T1);
      column_ += kTile;
      if (column_ < columns_) continue;
      column_ = 0;
      row_ += ld_;
      --rows_;
    }
  }

 private:
  const float* row_ = nullptr;
  std::int64_t ld_ = 0, rows_ = 0, columns_ = 0, column_ = 0, lines_ = 0;
};

}  // namespace

void fixed_gemm(bool trans_a, bool trans_b, std::int64_t m, std::int64_t n, std::int64_t k,
                const float* a, std::int64_t lda, const float* b, std::int64_t ldb, float beta,
                float* c, std::int64_t ldc, const void* packed_b) {
  if (packed_b == nullptr && n > kMostColumns) {
    for (std::int64_t j = 0; j < n; j += kMostColumns) {
      fixed_gemm(trans_a, trans_b, m, n - j < kMostColumns ? n - j : kMostColumns, k, a, lda,
                 b + (trans_b ? j * ldb : j), ldb, beta, c + j, ldc);
    }
    return;
  }
  thread_local Room room;
  const Rounds r(k);
  constexpr std::int64_t kABytes = kRoundSteps * kParts * 2 * kTileBytes;
  const std::int64_t b_bytes = packed_b == nullptr ? round_bytes(n, kRoundSteps) : 0;
  char* const a_panel = room.take(static_cast<std::size_t>(kABytes + b_bytes));
  alignas(64) std::int32_t sums[6 * 256];
  for (std::int64_t round = 0; round < r.count; ++round) {
    const std::int64_t k0 = r.first_step(round) * kDepth;
    const std::int64_t depth = r.depth(round), steps = r.round_steps(round);
    const float* b_piece = b + (trans_b ? k0 : k0 * ldb);
    const char* b_panel = a_panel + kABytes;
    if (packed_b == nullptr) {
      const std::int32_t misfits =
          pack_columns_of_round(trans_b, 0, n, depth, b_piece, ldb, nullptr, a_panel + kABytes);
      std::memcpy(a_panel + kABytes, &misfits, sizeof misfits);
    } else {
      b_panel = static_cast<const char*>(packed_b) + round_offset(r, n, round);
    }
    const float* balance = packed_b == nullptr ? nullptr : static_cast<const float*>(packed_b) + k0;
    std::int32_t b_misfits = 0;
    std::memcpy(&b_misfits, b_panel, sizeof b_misfits);
    const bool fresh = round == 0 && beta == 0.0f;
    const std::int64_t blocks = (m + kBlockRows - 1) / kBlockRows;
    const std::int64_t block_calls = vectors_of(n) * steps;
    Upcoming next_b;
    if (packed_b == nullptr && !trans_b && round + 1 < r.count) {
      next_b = Upcoming(b_piece + depth * ldb, ldb, r.depth(round + 1), n, blocks * block_calls);
    }
    configure();
    for (std::int64_t i0 = 0; i0 < m; i0 += kBlockRows) {
      const std::int64_t rows = m - i0 < kBlockRows ? m - i0 : kBlockRows;
      const float* a_piece = a + (trans_a ? k0 * lda + i0 : i0 * lda + k0);
      float inverses[kBlockRows];
      Scales scales[2];
      std::int64_t misfits = 0;
      for (std::int64_t half = 0; half < 2; ++half) {
        const std::int64_t left = rows - half * kTile;
        const std::int64_t count = left < 0 ? 0 : left < kTile ? left : kTile;
        const float* source = a_piece + half * kTile * (trans_a ? 1 : lda);
        scales[half] = scales_of(Side::kRowsOfA, !trans_a, source, lda, count, depth, balance,
                                 inverses + half * kTile);
        for (std::int64_t i = 0; i < count; ++i) misfits += misfit(inverses[half * kTile + i]);
        for (std::int64_t s = 0; s < steps; ++s) {
          const std::int64_t p = s * kDepth;
          pack_tile(!trans_a, false, source + (trans_a ? p * lda : p), lda, count, depth - p,
                    scales[half], balance == nullptr ? nullptr : balance + p,
                    a_panel + (s * kParts * 2 + half) * kTileBytes, 2 * kTileBytes);
        }
      }
      const auto slowly = [&](std::int64_t row, std::int64_t count) {
        gemm_kernels().f32(trans_a, trans_b, count, n, depth, a_piece + row * (trans_a ? 1 : lda),
                           lda, b_piece, ldb, fresh ? 0.0f : 1.0f, c + (i0 + row) * ldc, ldc);
      };
      if (b_misfits != 0) {
        for (std::int64_t i = 0; i < rows; ++i) slowly(i, 1);
        continue;
      }
      const std::int64_t after = m - i0 - kBlockRows;
      const std::int64_t next = after < kBlockRows ? after : kBlockRows;  // block's rows
      Upcoming next_a, next_c;
      if (next > 0) {
        next_c = Upcoming(c + (i0 + kBlockRows) * ldc, ldc, next, n, block_calls);
        if (!trans_a) next_a = Upcoming(a_piece + kBlockRows * lda, lda, next, depth, block_calls);
      }
      const char* vector = b_panel + kNoteBytes;
      for (std::int64_t j = 0; j < n; j += kTile) {
        two_halves(a_panel, vector, steps, sums, [&] {
          next_a.fetch();
          next_b.fetch();
          next_c.fetch();
        });
        const __m512 columns =
            column_scales(reinterpret_cast<const float*>(vector + steps * kParts * kTileBytes));
        const __mmask16 mask = first(n - j);
        for (std::int64_t i = 0; i < rows; ++i) {
          if (misfits != 0 && misfit(inverses[i])) continue;
          float* out = c + (i0 + i) * ldc + j;
          __m512 v = combine(sums + i / kTile * 256 + i % kTile * 16, 512, inverses[i],
                             scales[i / kTile].boosts[i % kTile], columns);
          if (!fresh) v = _mm512_add_ps(v, _mm512_maskz_loadu_ps(mask, out));
          _mm512_mask_storeu_ps(out, mask, v);
        }
        vector += vector_bytes(steps);
      }
      for (std::int64_t i = 0; i < rows && misfits > 0; ++i) {
        if (misfit(inverses[i])) slowly(i, 1);
      }
    }
    _tile_release();
  }
}

}  // namespace penstock::cpu

#else

namespace penstock::cpu {

bool fixed_pays(std::int64_t, std::int64_t) { return false; }
std::size_t fixed_vector_bytes(std::int64_t) { return 0; }
void fixed_pack(const float*, std::int64_t, std::int64_t, int, std::int64_t, void*) {}
const void* fixed_begin(const float* const*, std::int64_t, std::int64_t, std::int64_t,
                        std::int64_t) {
  return nullptr;
}
void fixed_multiply(const void*, std::int64_t, std::int64_t, const void*, int, float*) {}
void fixed_end() {}
bool fixed_gemm_pays(std::int64_t, std::int64_t, std::int64_t) { return false; }
bool fixed_gemm_pays_packed(std::int64_t, std::int64_t) { return false; }
void fixed_gemm(bool, bool, std::int64_t, std::int64_t, std::int64_t, const float*, std::int64_t,
                const float*, std::int64_t, float, float*, std::int64_t, const void*) {}
std::size_t fixed_gemm_packed_b_bytes(std::int64_t, std::int64_t) { return 0; }
void fixed_gemm_pack_b(bool, std::int64_t, std::int64_t, const float*, std::int64_t, void*) {}

}  // namespace penstock::cpu

#endif
