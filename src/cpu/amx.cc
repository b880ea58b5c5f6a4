#include "cpu/amx.h"

#if defined(PENSTOCK_AMX)

#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <new>

#include "cpu/amx_tiles.h"
#include "cpu/blas.h"
#include "cpu/gemm.h"
#include "cpu/isa.h"

namespace penstock::cpu {
namespace {

// A tile register is 16 rows of 64 bytes. TDPBF16PS: C (16 x 16 float32) += A (16 rows of m, each
// 16 pairs along k) times B (16 rows of pairs along k, each 16 columns of n).
constexpr std::int64_t kTile = 16;
constexpr std::int64_t kDepth = 32;  // k per tile
constexpr std::int64_t kBlock = 32;  // C is computed in blocks of 2 x 2 tiles
constexpr std::int64_t kParts = 3;
constexpr std::size_t kTileBytes = 1024;
// Per depth of 32 and block of 32 rows or columns: part p's tile t lies at (p * 2 + t) KiB.
constexpr std::size_t kPanelStep = kParts * 2 * kTileBytes;

// C stays in tile registers for this much of k; both packed operands stay in a second-level cache
// of 2 MiB and stream from it (32 bytes a cycle feed the unit).
constexpr std::int64_t kMaxSteps = 16;     // k = 512
constexpr std::int64_t kMaxRows = 64;      // of A, packed: 64 x 512 x 6 bytes = 192 KiB
constexpr std::int64_t kMaxColumns = 384;  // of B, packed: 1152 KiB

// Sixteen float32 as three bfloat16 each, in the high halves of 32-bit lanes (what lies in the low
// halves does not count). Rounding to nearest leaves each part at most 2^-8 of the one before, so
// the third holds the rest exactly.
inline void split(__m512 x, __m512i out[kParts]) {
  const __m512i half = _mm512_set1_epi32(0x8000), high = _mm512_set1_epi32(-0x10000);
  for (int p = 0; p < kParts - 1; ++p) {
    out[p] = _mm512_and_si512(_mm512_add_epi32(_mm512_castps_si512(x), half), high);
    x = _mm512_sub_ps(x, _mm512_castsi512_ps(out[p]));
  }
  out[kParts - 1] = _mm512_castps_si512(x);
}

// The largest magnitude seen, as the bits of a float.
class Magnitude {
 public:
  void see(__m512 x) {
    const __m512i bits = _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7fffffff));
    largest_ = _mm512_max_epu32(largest_, bits);
  }
  std::uint32_t largest() const { return _mm512_reduce_max_epu32(largest_); }
  void join(const Magnitude& other) { largest_ = _mm512_max_epu32(largest_, other.largest_); }

 private:
  __m512i largest_ = _mm512_setzero_si512();
};

// Whether the unit may multiply blocks of these largest magnitudes. From 2^127 on, and for infinity
// and NaN, rounding up would not survive. Where even the largest product is below 2^-70, its
// smaller parts come near the subnormal numbers, which the unit takes for zero.
bool fit(std::uint32_t a, std::uint32_t b) {
  constexpr std::uint32_t kLimit = 0x7f000000u, kBias = 127, kSmallest = 2 * kBias - 70;
  if (a >= kLimit || b >= kLimit) return false;
  return a == 0 || b == 0 || (a >> 23) + (b >> 23) >= kSmallest;
}

// Write one tile's three parts, `kPartLines` lines apart, from a source whose k is contiguous: rows
// (of m or n) `ld` apart, so that line i holds row i's sixteen pairs along k.
constexpr std::int64_t kPartLines = 2 * kTile;

// `magnitude` has an entry per row.
inline void lines_from_rows(const float* source, std::int64_t ld, std::int64_t rows,
                            std::int64_t depth, __m512i* out, Magnitude* magnitude) {
  const __mmask16 low = first(depth), high = first(depth - 16);
  // The high 16 bits of each of 32 consecutive floats.
  alignas(64) static constexpr std::uint16_t kHighHalves[32] = {
      1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31,
      33, 35, 37, 39, 41, 43, 45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
  const __m512i halves = _mm512_load_si512(kHighHalves);
  for (int i = 0; i < 16; ++i) {
    if (i >= rows) {
      for (int p = 0; p < kParts; ++p) {
        _mm512_store_si512(out + p * kPartLines + i, _mm512_setzero_si512());
      }
      continue;
    }
    const float* row = source + i * ld;
    // Packing takes a short run from each of many rows, which no hardware prefetcher follows, so
    // the next tile's are asked for. Past the end that is harmless: a prefetch cannot fault.
    _mm_prefetch(row + kTile * ld, _MM_HINT_T1);
    _mm_prefetch(row + kTile * ld + 16, _MM_HINT_T1);
    const __m512 x = _mm512_maskz_loadu_ps(low, row);
    const __m512 y = _mm512_maskz_loadu_ps(high, row + 16);
    magnitude[i].see(x);
    magnitude[i].see(y);
    __m512i a[kParts], b[kParts];
    split(x, a);
    split(y, b);
    for (int p = 0; p < kParts; ++p) {
      _mm512_store_si512(out + p * kPartLines + i, _mm512_permutex2var_epi16(a[p], halves, b[p]));
    }
  }
}

// The same from a source whose k runs over rows: line i holds pair i along k for sixteen columns.
inline void lines_from_pairs(const float* source, std::int64_t ld, std::int64_t columns,
                             std::int64_t depth, __m512i* out, Magnitude* magnitude) {
  constexpr __mmask32 kOddHalves = 0xaaaaaaaau;
  const __mmask16 mask = first(columns);
  for (int i = 0; i < 16; ++i) {
    const std::int64_t k = 2 * i;
    _mm_prefetch(source + (k + kDepth) * ld, _MM_HINT_T0);
    _mm_prefetch(source + (k + 1 + kDepth) * ld, _MM_HINT_T0);
    const __m512 x =
        _mm512_maskz_loadu_ps(k < depth ? mask : static_cast<__mmask16>(0), source + k * ld);
    const __m512 y = _mm512_maskz_loadu_ps(k + 1 < depth ? mask : static_cast<__mmask16>(0),
                                           source + (k + 1) * ld);
    magnitude->see(x);
    magnitude->see(y);
    __m512i a[kParts], b[kParts];
    split(x, a);
    split(y, b);
    for (int p = 0; p < kParts; ++p) {
      _mm512_store_si512(out + p * kPartLines + i,
                         _mm512_mask_blend_epi16(kOddHalves, _mm512_srli_epi32(a[p], 16), b[p]));
    }
  }
}

// Pack `count` rows of op(A), or columns of op(B), over `depth` of k into panels of 32. `along_k`:
// the source is contiguous along k. `is_b`: lines run over pairs along k, else over rows. Returns
// the largest magnitude; `rows`, if given and `along_k`, receives those of each row.
std::uint32_t pack(bool along_k, bool is_b, const float* source, std::int64_t ld,
                   std::int64_t count, std::int64_t depth, char* out,
                   std::uint32_t* rows = nullptr) {
  Magnitude magnitude;
  const std::int64_t steps = (depth + kDepth - 1) / kDepth;
  for (std::int64_t i = 0; i < count; i += kBlock) {
    Magnitude each[kBlock];
    for (std::int64_t s = 0; s < steps; ++s) {
      for (std::int64_t t = 0; t < 2; ++t) {
        auto* lines = reinterpret_cast<__m512i*>(out + static_cast<std::size_t>(t) * kTileBytes);
        const std::int64_t at = i + t * kTile;
        const std::int64_t k = s * kDepth;
        if (at >= count) {
          for (int p = 0; p < kParts; ++p) {
            std::memset(static_cast<void*>(lines + p * kPartLines), 0, kTileBytes);
          }
          continue;
        }
        if (along_k) {
          lines_from_rows(source + at * ld + k, ld, count - at, depth - k, lines, each + t * kTile);
        } else {
          lines_from_pairs(source + k * ld + at, ld, count - at, depth - k, lines, &magnitude);
        }
        if (along_k == is_b) {
          for (int p = 0; p < kParts; ++p) transpose(lines + p * kPartLines);
        }
      }
      out += kPanelStep;
    }
    if (!along_k) continue;
    for (std::int64_t r = 0; r < kBlock && i + r < count; ++r) {
      if (rows != nullptr) rows[i + r] = each[r].largest();
      magnitude.join(each[r]);
    }
  }
  return magnitude.largest();
}

// Zero row `row` of packed rows, over all of k.
void clear_row(char* panels, std::int64_t row, std::int64_t steps) {
  char* panel = panels + static_cast<std::size_t>(row / kBlock * steps) * kPanelStep;
  const auto line = static_cast<std::size_t>(row % kTile) * 64;
  for (std::int64_t s = 0; s < steps; ++s) {
    for (std::int64_t p = 0; p < kParts; ++p) {
      const auto tile = static_cast<std::size_t>(p * 2 + row % kBlock / kTile);
      std::memset(panel + tile * kTileBytes + line, 0, 64);
    }
    panel += kPanelStep;
  }
}

// C block (32 x 32) += panel of A times panel of B. `fresh`: C starts from zero.
void block(const char* a, const char* b, std::int64_t steps, bool fresh, float* c,
           std::int64_t ldc) {
  const std::int64_t row = ldc * static_cast<std::int64_t>(sizeof(float));
  if (fresh) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  } else {
    _tile_loadd(0, c, row);
    _tile_loadd(1, c + kTile, row);
    _tile_loadd(2, c + kTile * ldc, row);
    _tile_loadd(3, c + kTile * ldc + kTile, row);
  }
#define PENSTOCK_LOAD_A(p)                        \
  _tile_loadd(4, a + ((p) * 2) * kTileBytes, 64); \
  _tile_loadd(5, a + ((p) * 2 + 1) * kTileBytes, 64)
#define PENSTOCK_LOAD_B(p)                        \
  _tile_loadd(6, b + ((p) * 2) * kTileBytes, 64); \
  _tile_loadd(7, b + ((p) * 2 + 1) * kTileBytes, 64)
#define PENSTOCK_MULTIPLY  \
  _tile_dpbf16ps(0, 4, 6); \
  _tile_dpbf16ps(1, 4, 7); \
  _tile_dpbf16ps(2, 5, 6); \
  _tile_dpbf16ps(3, 5, 7)
  for (std::int64_t s = 0; s < steps; ++s) {
    // Small terms first, as far as the reuse of loaded tiles allows.
    PENSTOCK_LOAD_B(0);
    PENSTOCK_LOAD_A(2);
    PENSTOCK_MULTIPLY;
    PENSTOCK_LOAD_A(0);
    PENSTOCK_MULTIPLY;
    PENSTOCK_LOAD_A(1);
    PENSTOCK_MULTIPLY;
    PENSTOCK_LOAD_B(1);
    PENSTOCK_MULTIPLY;
    PENSTOCK_LOAD_A(0);
    PENSTOCK_MULTIPLY;
    PENSTOCK_LOAD_B(2);
    PENSTOCK_MULTIPLY;
    a += kPanelStep;
    b += kPanelStep;
  }
#undef PENSTOCK_LOAD_A
#undef PENSTOCK_LOAD_B
#undef PENSTOCK_MULTIPLY
  _tile_stored(0, c, row);
  _tile_stored(1, c + kTile, row);
  _tile_stored(2, c + kTile * ldc, row);
  _tile_stored(3, c + kTile * ldc + kTile, row);
}

void copy_block(const float* from, std::int64_t from_ld, float* to, std::int64_t to_ld,
                std::int64_t rows, std::int64_t columns) {
  const __mmask16 low = first(columns), high = first(columns - 16);
  for (std::int64_t i = 0; i < rows; ++i) {
    _mm512_mask_storeu_ps(to + i * to_ld, low, _mm512_maskz_loadu_ps(low, from + i * from_ld));
    _mm512_mask_storeu_ps(to + i * to_ld + 16, high,
                          _mm512_maskz_loadu_ps(high, from + i * from_ld + 16));
  }
}

// Packing buffers, one set per thread for its lifetime, as a BLAS has them.
struct Buffers {
  char* a;
  char* b;
  Buffers() {
    constexpr std::size_t kABytes = kMaxRows / kBlock * kMaxSteps * kPanelStep;
    constexpr std::size_t kBBytes = kMaxColumns / kBlock * kMaxSteps * kPanelStep;
    a = static_cast<char*>(std::aligned_alloc(4096, kABytes + kBBytes));
    if (a == nullptr) throw std::bad_alloc();
    b = a + kABytes;
  }
  ~Buffers() { std::free(a); }
  Buffers(const Buffers&) = delete;
  Buffers& operator=(const Buffers&) = delete;
};

// Scale C by beta, before sums are added; beta = 0 is handled by starting from zero.
void scale(float beta, std::int64_t m, std::int64_t n, float* c, std::int64_t ldc) {
  for (std::int64_t i = 0; i < m; ++i) {
    for (std::int64_t j = 0; j < n; ++j) c[i * ldc + j] *= beta;
  }
}

bool detect() {
  if (isa() != Isa::kAvx512) return false;
  if (const char* cap = std::getenv("PENSTOCK_ISA");
      cap != nullptr && std::strcmp(cap, "avx512") == 0) {
    return false;
  }
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return false;
  constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24, kAmxInt8 = 1u << 25;
  if ((d & kAmxBf16) == 0 || (d & kAmxTile) == 0 || (d & kAmxInt8) == 0) return false;
  if (__get_cpuid_count(7, 1, &a, &b, &c, &d) == 0) return false;
  constexpr unsigned kAvx512Bf16 = 1u << 5;
  if ((a & kAvx512Bf16) == 0) return false;
  // The kernel hands the tile registers out on request, to the whole process.
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

}  // namespace

bool has_amx() {
  static const bool has = detect();
  return has;
}

bool amx_pays(std::int64_t m, std::int64_t n, std::int64_t k) {
  // Packing costs what a BLAS saves on small products.
  return m >= 32 && n >= 32 && k >= 64 && m * n * k >= (std::int64_t{1} << 22);
}

bool amx_pays_packed(std::int64_t n, std::int64_t k) { return n >= 48 && k >= 48; }

namespace {

// How op(B) is cut: ranges of columns of about equal size, in whole panels, and rounds of k.
struct Cut {
  std::int64_t n, k, steps, rounds, range;

  Cut(std::int64_t n_, std::int64_t k_) : n(n_), k(k_) {
    steps = (k + kDepth - 1) / kDepth;
    rounds = (steps + kMaxSteps - 1) / kMaxSteps;
    const std::int64_t ranges = n > 0 ? (n + kMaxColumns - 1) / kMaxColumns : 1;
    range = ((n + ranges - 1) / ranges + kBlock - 1) / kBlock * kBlock;
  }
  std::int64_t first_step(std::int64_t round) const { return steps * round / rounds; }
  std::int64_t depth(std::int64_t round) const {
    const std::int64_t end = first_step(round + 1) * kDepth;
    return (end < k ? end : k) - first_step(round) * kDepth;
  }
  std::int64_t columns(std::int64_t j0) const { return n - j0 < range ? n - j0 : range; }
  // Bytes that come before a piece in a packed B.
  std::size_t offset(std::int64_t j0, std::int64_t round) const {
    const std::int64_t panels = (columns(j0) + kBlock - 1) / kBlock;
    return static_cast<std::size_t>(j0 / kBlock * steps + panels * first_step(round)) * kPanelStep;
  }
  std::size_t bytes() const {
    return static_cast<std::size_t>((n + kBlock - 1) / kBlock * steps) * kPanelStep;
  }
};

// In front of a packed B: its largest magnitude.
constexpr std::size_t kPackedHeader = 64;

}  // namespace

std::size_t amx_packed_b_bytes(std::int64_t n, std::int64_t k) {
  return kPackedHeader + Cut(n, k).bytes();
}

void amx_pack_b(bool trans_b, std::int64_t n, std::int64_t k, const float* b, std::int64_t ldb,
                void* packed) {
  const Cut cut(n, k);
  auto* out = static_cast<char*>(packed) + kPackedHeader;
  std::uint32_t largest = 0;
  for (std::int64_t j0 = 0; j0 < n; j0 += cut.range) {
    for (std::int64_t round = 0; round < cut.rounds; ++round) {
      const std::int64_t k0 = cut.first_step(round) * kDepth;
      const std::uint32_t here =
          pack(trans_b, true, b + (trans_b ? j0 * ldb + k0 : k0 * ldb + j0), ldb, cut.columns(j0),
               cut.depth(round), out + cut.offset(j0, round));
      largest = here > largest ? here : largest;
    }
  }
  *static_cast<std::uint32_t*>(packed) = largest;
}

void amx_gemm(bool trans_a, bool trans_b, std::int64_t m, std::int64_t n, std::int64_t k,
              const float* a, std::int64_t lda, const float* b, std::int64_t ldb, float beta,
              float* c, std::int64_t ldc, const void* packed_b) {
  thread_local Buffers buffers;
  static const TileConfig config;
  const Cut cut(n, k);
  if (beta != 0.0f && beta != 1.0f) scale(beta, m, n, c, ldc);
  _tile_loadconfig(&config);
  for (std::int64_t j0 = 0; j0 < n; j0 += cut.range) {
    const std::int64_t columns = cut.columns(j0);
    for (std::int64_t round = 0; round < cut.rounds; ++round) {
      const std::int64_t k0 = cut.first_step(round) * kDepth;
      const std::int64_t depth = cut.depth(round);
      const std::int64_t steps = (depth + kDepth - 1) / kDepth;
      const float* b_piece = b + (trans_b ? j0 * ldb + k0 : k0 * ldb + j0);
      const char* b_panels = buffers.b;
      std::uint32_t largest_b = 0;
      if (packed_b != nullptr) {
        b_panels = static_cast<const char*>(packed_b) + kPackedHeader + cut.offset(j0, round);
        largest_b = *static_cast<const std::uint32_t*>(packed_b);
      } else {
        largest_b = pack(trans_b, true, b_piece, ldb, columns, depth, buffers.b);
      }
      for (std::int64_t i0 = 0; i0 < m; i0 += kMaxRows) {
        const std::int64_t rows = m - i0 < kMaxRows ? m - i0 : kMaxRows;
        const float* a_piece = a + (trans_a ? k0 * lda + i0 : i0 * lda + k0);
        const bool fresh = round == 0 && beta == 0.0f;
        std::uint32_t largest[kMaxRows];
        const std::uint32_t largest_a =
            pack(!trans_a, false, a_piece, lda, rows, depth, buffers.a, largest);
        if (packed_b == nullptr) {
          if (!fit(largest_a, largest_b)) {
            blas_gemm(trans_a, trans_b, rows, columns, depth, a_piece, lda, b_piece, ldb,
                      fresh ? 0.0f : 1.0f, c + i0 * ldc + j0, ldc);
            continue;
          }
        }
        // With a packed B each row goes its own way, whatever its neighbours hold.
        std::int64_t misfits = 0;
        if (packed_b != nullptr) {
          for (std::int64_t i = 0; i < rows; ++i) {
            if (fit(largest[i], largest_b)) continue;
            clear_row(buffers.a, i, steps);
            ++misfits;
          }
        }
        const auto misfit_rows = [&] {
          for (std::int64_t i = 0; i < rows && misfits > 0; ++i) {
            if (fit(largest[i], largest_b)) continue;
            gemm_kernels().f32(false, trans_b, 1, columns, depth, a_piece + i * lda, lda, b_piece,
                               ldb, fresh ? 0.0f : 1.0f, c + (i0 + i) * ldc + j0, ldc);
          }
        };
        if (misfits == rows) {
          misfit_rows();
          continue;
        }
        const auto panel = static_cast<std::size_t>(steps) * kPanelStep;
        for (std::int64_t j = 0; j < columns; j += kBlock) {
          const char* b_panel = b_panels + static_cast<std::size_t>(j / kBlock) * panel;
          for (std::int64_t i = 0; i < rows; i += kBlock) {
            const char* a_panel = buffers.a + static_cast<std::size_t>(i / kBlock) * panel;
            float* out = c + (i0 + i) * ldc + j0 + j;
            const std::int64_t h = rows - i, w = columns - j;
            if (h >= kBlock && w >= kBlock) {
              block(a_panel, b_panel, steps, fresh, out, ldc);
              continue;
            }
            // An edge: a whole block aside, in the same order of sums.
            alignas(64) float edge[kBlock * kBlock] = {};
            const std::int64_t height = h < kBlock ? h : kBlock, width = w < kBlock ? w : kBlock;
            if (!fresh) copy_block(out, ldc, edge, kBlock, height, width);
            block(a_panel, b_panel, steps, fresh, edge, kBlock);
            copy_block(edge, kBlock, out, ldc, height, width);
          }
        }
        misfit_rows();
      }
    }
  }
  _tile_release();
}

}  // namespace penstock::cpu

#else

namespace penstock::cpu {

bool has_amx() { return false; }
bool amx_pays(std::int64_t, std::int64_t, std::int64_t) { return false; }
bool amx_pays_packed(std::int64_t, std::int64_t) { return false; }
void amx_gemm(bool, bool, std::int64_t, std::int64_t, std::int64_t, const float*, std::int64_t,
              const float*, std::int64_t, float, float*, std::int64_t, const void*) {}
std::size_t amx_packed_b_bytes(std::int64_t, std::int64_t) { return 0; }
void amx_pack_b(bool, std::int64_t, std::int64_t, const float*, std::int64_t, void*) {}

}  // namespace penstock::cpu

#endif
