// Float32 matrix products on Intel's matrix unit (AMX), which multiplies bfloat16.
#pragma once

#include <cstddef>
#include <cstdint>

namespace penstock::cpu {

/// Whether this build, this processor and this kernel have AMX with bfloat16 and int8, and
/// PENSTOCK_ISA does not cap it.
bool has_amx();

/// Whether a product of this size runs faster there than in the BLAS.
bool amx_pays(std::int64_t m, std::int64_t n, std::int64_t k);
/// The same of products with a packed B, however many rows they have.
bool amx_pays_packed(std::int64_t n, std::int64_t k);

/// Row-major C = op(A) op(B) + beta C. Blocks in which an operand holds an infinity, a NaN or a
/// number too large for bfloat16, or in which all products are tiny, go to the BLAS; with a packed
/// B, single rows go to the library's own loops instead.
///
/// Each operand is the sum of three bfloat16 numbers to 24 bits, a = a1 + a2 + a3, and
/// a b = a1 b1 + (a1 b2 + a2 b1) + (a2 b2 + a1 b3 + a3 b1) up to terms of 2^-26 of it; sums are
/// float32. Errors are those of a float32 product (Henry, Tang and Heinecke, "Leveraging the
/// bfloat16 Artificial Intelligence Datatype For Higher-Precision Computations", ARITH 2019).
/// `packed_b`: op(B) as amx_pack_b left it, or null; then A must not be transposed.
void amx_gemm(bool trans_a, bool trans_b, std::int64_t m, std::int64_t n, std::int64_t k,
              const float* a, std::int64_t lda, const float* b, std::int64_t ldb, float beta,
              float* c, std::int64_t ldc, const void* packed_b = nullptr);

/// Bytes of op(B) (k, n), split and in the order in which products read it.
std::size_t amx_packed_b_bytes(std::int64_t n, std::int64_t k);
/// `packed` must be aligned to 64 bytes.
void amx_pack_b(bool trans_b, std::int64_t n, std::int64_t k, const float* b, std::int64_t ldb,
                void* packed);

}  // namespace penstock::cpu
