// Warp matrix products, with the fragment layouts of the PTX manual. Each lane offers pointers to
// its registers; the last one to come computes for all.

#include <cmath>
#include <cstring>

#include "cpu/half.h"
#include "grid.h"

namespace cuda_emulation {
namespace {

constexpr unsigned kRows = 16, kColumns = 8;
constexpr unsigned kAllLanes = 0xffffffffu;

float as_float(std::uint32_t bits) {
  float v;
  std::memcpy(&v, &bits, sizeof v);
  return v;
}

float element(MatrixType type, const std::uint32_t* registers, unsigned i) {
  // Two 16-bit elements a register, the first in the low half.
  const auto half = static_cast<std::uint16_t>(registers[i / 2] >> i % 2 * 16);
  switch (type) {
    case MatrixType::kFloat16: return penstock::cpu::Float16{half};
    case MatrixType::kBFloat16: return penstock::cpu::BFloat16{half};
    case MatrixType::kTf32: break;
  }
  // The device does not look at the last 13 bits.
  return as_float(registers[i] & 0xffffe000u);
}

/// Row and column of element i of this lane's part of a fragment.
struct At {
  unsigned row, column;
};

At at_a(MatrixType type, unsigned lane, unsigned i) {
  const unsigned group = lane / 4, within = lane % 4;
  if (type == MatrixType::kTf32) return {group + i % 2 * 8, within + i / 2 * 4};
  return {group + i / 2 % 2 * 8, within * 2 + i % 2 + i / 4 * 8};
}
At at_b(MatrixType type, unsigned lane, unsigned i) {
  const unsigned group = lane / 4, within = lane % 4;
  if (type == MatrixType::kTf32) return {within + i * 4, group};
  return {within * 2 + i % 2 + i / 2 * 8, group};
}
At at_d(unsigned lane, unsigned i) { return {lane / 4 + i / 2 * 8, lane % 4 * 2 + i % 2}; }

/// A lane may also return while the others wait.
void check_lanes(void* const* lanes, const char* name) {
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    if (lanes[lane] == nullptr) fault("%s needs all 32 lanes, lane %u has returned", name, lane);
  }
}

struct Product {
  MatrixType type;
  float* d;
  const std::uint32_t *a, *b;
};

void multiply(void* const* lanes) {
  check_lanes(lanes, "mma");
  float a[kRows][16], b[16][kColumns];
  const MatrixType type = static_cast<const Product*>(lanes[0])->type;
  const unsigned depth = type == MatrixType::kTf32 ? 8 : 16;
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    const auto& own = *static_cast<const Product*>(lanes[lane]);
    for (unsigned i = 0; i < depth / 2; ++i) {
      const At at = at_a(type, lane, i);
      a[at.row][at.column] = element(type, own.a, i);
    }
    for (unsigned i = 0; i < depth / 4; ++i) {
      const At at = at_b(type, lane, i);
      b[at.row][at.column] = element(type, own.b, i);
    }
  }
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    float* d = static_cast<const Product*>(lanes[lane])->d;
    for (unsigned i = 0; i < 4; ++i) {
      const At at = at_d(lane, i);
      // Products of 11-bit significands are exact in float; their sum is rounded as it goes.
      float sum = d[i];
      for (unsigned k = 0; k < depth; ++k) sum += a[at.row][k] * b[k][at.column];
      d[i] = sum;
    }
  }
}

struct Load {
  std::uint32_t* registers;
  const void* row;
  int count;
  bool transposed;
};

void load_rows(void* const* lanes) {
  check_lanes(lanes, "ldmatrix");
  const auto& shape = *static_cast<const Load*>(lanes[0]);
  for (int m = 0; m < shape.count; ++m) {
    std::uint16_t matrix[8][8];
    for (int row = 0; row < 8; ++row) {
      std::memcpy(matrix[row], static_cast<const Load*>(lanes[m * 8 + row])->row,
                  sizeof matrix[row]);
    }
    for (unsigned lane = 0; lane < kWarp; ++lane) {
      const unsigned i = lane / 4, j = lane % 4 * 2;
      const std::uint32_t low = shape.transposed ? matrix[j][i] : matrix[i][j];
      const std::uint32_t high = shape.transposed ? matrix[j + 1][i] : matrix[i][j + 1];
      static_cast<const Load*>(lanes[lane])->registers[m] = low | high << 16;
    }
  }
}

void check_whole_warp(const char* name, Place at) {
  Executor& executor = Executor::current();
  const Warp& warp = executor.warp_of(executor.self());
  if (warp.present != kAllLanes || warp.ended != 0) {
    fault("%s:%d: %s needs all 32 lanes, of this warp there are %08x", at.file, at.line, name,
          warp.present & ~warp.ended);
  }
}

}  // namespace

void matrix_multiply(MatrixType type, float* d, const std::uint32_t* a, const std::uint32_t* b,
                     Place at) {
  static constexpr const char* kNames[] = {"mma (float16)", "mma (bfloat16)", "mma (tf32)"};
  const char* name = kNames[static_cast<int>(type)];
  check_whole_warp(name, at);
  Product own = {type, d, a, b};
  warp_together(name, kAllLanes, &own, &multiply, at);
}

void load_matrices(std::uint32_t* registers, int count, bool transposed, const void* row,
                   Place at) {
  static constexpr const char* kNames[2][3] = {
      {"ldmatrix.x1", "ldmatrix.x2", "ldmatrix.x4"},
      {"ldmatrix.x1.trans", "ldmatrix.x2.trans", "ldmatrix.x4.trans"}};
  const char* name = kNames[transposed ? 1 : 0][count / 2];
  check_whole_warp(name, at);
  Executor& executor = Executor::current();
  if (static_cast<int>(lane()) < 8 * count) {
    if (!executor.self().block->holds(row, 16)) {
      fault("%s:%d: %s from outside this block's shared memory", at.file, at.line, name);
    }
    if (reinterpret_cast<std::uintptr_t>(row) % 16 != 0) {
      executor.report("%s:%d: %s from a row that is not aligned to 16 bytes", at.file, at.line,
                      name);
      executor.fail(cudaErrorMisalignedAddress);
    }
  }
  Load own = {registers, row, count, transposed};
  warp_together(name, kAllLanes, &own, &load_rows, at);
}

}  // namespace cuda_emulation
