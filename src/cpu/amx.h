// Float32 matrix products in fixed point on Intel's matrix unit (AMX with int8).
//
// Each row of A and each column of B is scaled so that its largest magnitude becomes about 2^23,
// and rounded to integers of three signed bytes, x = x0 2^16 + x1 2^8 + x2. A product sums xi yj
// over i + j <= 2 exactly in 32-bit integers. So a result is off by at most about 2^-23 of (largest
// of the row of A) * (sum of magnitudes of the column of B): no more than a float32 sum over terms
// of that size may be, but small terms beside large ones count for less. That suits states and
// gradients; for inputs, whose features may have any scales, the rows of a packed B are balanced.
// The splitting follows Ootomo, Ozaki and Yokota, "DGEMM on integer matrix multiplication unit"
// (IJHPCA 2024).
#pragma once

#include <cstddef>
#include <cstdint>

namespace penstock::cpu {

/// Columns of B that are packed together.
constexpr int kFixedColumns = 16;
/// Rows of A that fixed_multiply takes.
constexpr std::int64_t kFixedRows = 32;

// ---- a few rows with the same B over and over -------------------------------------------------

/// Whether this processor has what these products need and they pay for a B of this size.
bool fixed_pays(std::int64_t columns, std::int64_t k);

/// Bytes of one vector of packed columns.
std::size_t fixed_vector_bytes(std::int64_t k);
/// Pack up to kFixedColumns columns, `k` long; elements k_stride apart, columns column_stride
/// apart; one of the two is 1. `packed` is aligned to 64 bytes. Columns of tiny numbers alone are
/// rounded to multiples of 1e-37; columns with infinities or NaN give NaN.
void fixed_pack(const float* source, std::int64_t k_stride, std::int64_t column_stride, int count,
                std::int64_t k, void* packed);

/// Rows in fixed point, kept until the thread's next call. Row i's elements are k1 from rows[i] on
/// and, `gap` further on, k2 more; count <= kFixedRows. Ends with fixed_end.
const void* fixed_begin(const float* const* rows, std::int64_t count, std::int64_t k1,
                        std::int64_t gap, std::int64_t k2);
/// out[row][vector][kFixedColumns] = rows · `vectors` neighbouring packed vectors.
void fixed_multiply(const void* rows, std::int64_t count, std::int64_t k, const void* packed,
                    int vectors, float* out);
void fixed_end();

// ---- whole products ---------------------------------------------------------------------------

/// Whether a product of this size runs faster here than elsewhere.
bool fixed_gemm_pays(std::int64_t m, std::int64_t n, std::int64_t k);
/// The same of products with a packed B, however many rows they have.
bool fixed_gemm_pays_packed(std::int64_t n, std::int64_t k);

/// Row-major C = op(A) op(B) + beta C, beta 0 or 1. Rows of A with infinities or NaN go to the
/// library's own loops; all rows do if B has such columns, or columns of nothing but tiny numbers.
/// `packed_b`: op(B) as fixed_gemm_pack_b left it, or null; then A must not be transposed, and a
/// row's result does not depend on other rows.
void fixed_gemm(bool trans_a, bool trans_b, std::int64_t m, std::int64_t n, std::int64_t k,
                const float* a, std::int64_t lda, const float* b, std::int64_t ldb, float beta,
                float* c, std::int64_t ldc, const void* packed_b = nullptr);

std::size_t fixed_gemm_packed_b_bytes(std::int64_t n, std::int64_t k);
/// `packed` must be aligned to 64 bytes.
void fixed_gemm_pack_b(bool trans_b, std::int64_t n, std::int64_t k, const float* b,
                       std::int64_t ldb, void* packed);

}  // namespace penstock::cpu
