// Runs of the kernels in emulation_kernels.h: each gives its kernel input, and tells whether what
// came out is right. Errors of the launch are thrown.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "emulation_device.h"
#include "emulation_kernels.h"

namespace penstock::tests {

using cuda::launch;
using cuda::LaunchShape;

// ---- barriers of a block -----------------------------------------------------------------------

template <Fault F>
bool block_sum() {
  constexpr int kBlocks = 3, kThreads = 128, kCount = kBlocks * kThreads;
  // All elements, so that the shifted index leaves the array; else the array ends inside a block.
  constexpr int kUsed = F == Fault::kShiftedIndex ? kCount : kCount - 5;
  const auto values = counting(kUsed);
  const DeviceArray<float> in(values), out(kBlocks);
  const std::size_t shared = kThreads * sizeof(float) - (F == Fault::kSharedTooSmall ? 4 : 0);
  launch(Context::cpu(), "block_sum", block_sum_kernel<F>,
         shape_of(dim3(kBlocks), dim3(kThreads), shared), in.data(), std::int64_t{kUsed},
         out.data());
  const auto sums = out.values();
  for (int b = 0; b < kBlocks; ++b) {
    float expected = 0.0f;
    for (int i = b * kThreads; i < std::min((b + 1) * kThreads, kUsed); ++i) {
      expected += values[static_cast<std::size_t>(i)];
    }
    if (sums[static_cast<std::size_t>(b)] != 2.0f * expected) return false;
  }
  return true;
}

template <Fault F>
bool increment() {
  constexpr int kCount = 100;
  const DeviceArray<float> in(counting(kCount)), out(kCount);
  launch(Context::cpu(), "increment", increment_kernel<F>, shape_of(dim3(2), dim3(64)), in.data(),
         std::int64_t{kCount}, out.data());
  auto expected = counting(kCount);
  for (float& v : expected) v += 1.0f;
  return out.values() == expected;
}

// ---- the warp ----------------------------------------------------------------------------------

template <Fault F>
bool warp_sum() {
  constexpr int kCount = 64 + 7;
  const auto values = counting(kCount);
  const DeviceArray<float> in(values), out(3);
  launch(Context::cpu(), "warp_sum", warp_sum_kernel<F>, shape_of(dim3(1), dim3(96)), in.data(),
         kCount, out.data());
  std::vector<float> expected(3, 0.0f);
  for (std::size_t i = 0; i < values.size(); ++i) expected[i / 32] += values[i];
  return out.values() == expected;
}

template <Fault F>
bool warp_reverse() {
  constexpr unsigned kCount = 64;
  const DeviceArray<float> in(counting(kCount)), out(kCount);
  launch(Context::cpu(), "warp_reverse", warp_reverse_kernel<F>,
         shape_of(dim3(1), dim3(kCount), kCount * sizeof(float)), in.data(), out.data());
  auto expected = counting(kCount);
  std::reverse(expected.begin(), expected.begin() + 32);
  std::reverse(expected.begin() + 32, expected.end());
  return out.values() == expected;
}

// ---- asynchronous copies -----------------------------------------------------------------------

constexpr int kRows = 7;

inline std::vector<float> reversed_sums(int threads) {
  const auto values = counting(static_cast<std::size_t>(kRows * threads));
  std::vector<float> sums(static_cast<std::size_t>(threads), 0.0f);
  for (int t = 0; t < threads; ++t) {
    for (int k = 0; k < kRows; ++k) {
      sums[static_cast<std::size_t>(t)] +=
          values[static_cast<std::size_t>(k * threads + threads - 1 - t)];
    }
  }
  return sums;
}

template <Fault F>
bool ring_sum() {
  constexpr int kThreads = 64;
  const DeviceArray<float> in(counting(kRows * kThreads)), out(kThreads);
  launch(Context::cpu(), "ring_sum", ring_sum_kernel<F>,
         shape_of(dim3(1), dim3(kThreads), 2 * kThreads * sizeof(float)), in.data(), kRows,
         out.data());
  return out.values() == reversed_sums(kThreads);
}

template <Fault F, class Way>
bool block_copy_sum() {
  constexpr int kThreads = 64;
  auto values = counting(kRows * kThreads);
  values.resize(values.size() + 4);
  const DeviceArray<float> in(values), out(kThreads);
  launch(Context::cpu(), "block_copy_sum", block_copy_sum_kernel<F, Way>,
         shape_of(dim3(1), dim3(kThreads),
                  2 * kThreads * sizeof(float) + 2 * sizeof(cuda::CopyBarrier)),
         in.data(), kRows, out.data());
  return out.values() == reversed_sums(kThreads);
}

template <Fault F>
bool bulk_copy() {
  constexpr unsigned kThreads = 64;
  const DeviceArray<float> in(counting(kThreads)), out(kThreads);
  launch(Context::cpu(), "bulk_copy", bulk_copy_kernel<F>,
         shape_of(dim3(1), dim3(kThreads), kThreads * sizeof(float) + 8), in.data(), kThreads,
         out.data());
  return out.values() == counting(kThreads);
}

// ---- named barriers ----------------------------------------------------------------------------

template <Fault F>
bool hand_over() {
  const DeviceArray<float> in(counting(kRows * 32)), out(32);
  launch(Context::cpu(), "hand_over", hand_over_kernel<F>,
         shape_of(dim3(1), dim3(64), 32 * sizeof(float)), in.data(), kRows, out.data());
  std::vector<float> expected(32, 0.0f);
  for (std::size_t lane = 0; lane < 32; ++lane) {
    for (std::size_t k = 0; k < kRows; ++k) {
      expected[lane] = expected[lane] * 2.0f + static_cast<float>(k * 32 + 31 - lane + 1);
    }
  }
  return out.values() == expected;
}

// ---- the grid and the cluster ------------------------------------------------------------------

template <Fault F>
bool neighbour() {
  constexpr unsigned kBlocks = 6;
  const DeviceArray<float> in(counting(kBlocks)), part(kBlocks), out(kBlocks);
  const DeviceArray<unsigned> word(std::vector<unsigned>{F == Fault::kBarrierNotZeroed ? 3u : 0u});
  LaunchShape shape = shape_of(dim3(kBlocks), dim3(40));
  shape.cooperative = true;
  launch(Context::cpu(), "neighbour", neighbour_kernel<F>, shape, in.data(), part.data(),
         out.data(), word.data());
  std::vector<float> expected(kBlocks);
  for (unsigned b = 0; b < kBlocks; ++b)
    expected[b] = 3.0f * static_cast<float>((b + 1) % kBlocks + 1);
  return out.values() == expected;
}

template <Fault F>
bool cluster_neighbour() {
  constexpr unsigned kClusters = 3, kSize = 4, kThreads = 40;
  const auto values = counting(kClusters * kSize * kThreads);
  const DeviceArray<float> in(values), out(values.size());
  LaunchShape shape = shape_of(dim3(kClusters * kSize), dim3(kThreads), kThreads * sizeof(float));
  shape.cluster = dim3(kSize);
  launch(Context::cpu(), "cluster_neighbour", cluster_neighbour_kernel<F>, shape, in.data(),
         out.data());
  std::vector<float> expected(values.size());
  for (unsigned b = 0; b < kClusters * kSize; ++b) {
    const unsigned other = b / kSize * kSize + (b + 1) % kSize;
    for (unsigned t = 0; t < kThreads; ++t) {
      expected[b * kThreads + t] = values[other * kThreads + kThreads - 1 - t];
    }
  }
  return out.values() == expected;
}

// ---- matrix products ---------------------------------------------------------------------------

template <class T>
T narrow_to(float v);
template <>
inline __half narrow_to(float v) {
  return __float2half_rn(v);
}
template <>
inline __nv_bfloat16 narrow_to(float v) {
  return __float2bfloat16_rn(v);
}

/// Small whole numbers: exact in every type, products and sums too.
inline float element(std::size_t i) { return static_cast<float>(i * 7 % 13) - 6.0f; }

inline std::vector<float> product_of(int depth) {
  std::vector<float> c(16 * 8, 0.0f);
  for (int row = 0; row < 16; ++row) {
    for (int column = 0; column < 8; ++column) {
      for (int k = 0; k < depth; ++k) {
        c[static_cast<std::size_t>(row * 8 + column)] +=
            element(static_cast<std::size_t>(row * depth + k)) *
            element(static_cast<std::size_t>(k * 8 + column + 5));
      }
    }
  }
  return c;
}

template <class T, Fault F>
bool product() {
  constexpr int kDepth = 48;
  std::vector<T> a, b;
  for (std::size_t i = 0; i < 16 * kDepth; ++i) a.push_back(narrow_to<T>(element(i)));
  for (std::size_t i = 0; i < kDepth * 8; ++i) b.push_back(narrow_to<T>(element(i + 5)));
  const DeviceArray<T> device_a(a), device_b(b);
  const DeviceArray<float> c(16 * 8);
  launch(Context::cpu(), "product", product_kernel<T, F>,
         shape_of(dim3(1), dim3(32), (16 + 8) * kDepth * sizeof(T)), device_a.data(),
         device_b.data(), kDepth, c.data());
  return c.values() == product_of(kDepth);
}

template <Fault F>
bool product_tf32() {
  std::vector<float> a, b;
  for (std::size_t i = 0; i < 16 * 8; ++i) a.push_back(element(i));
  for (std::size_t i = 0; i < 8 * 8; ++i) b.push_back(element(i + 5));
  const DeviceArray<float> device_a(a), device_b(b), c(16 * 8);
  launch(Context::cpu(), "product_tf32", product_tf32_kernel<F>, shape_of(dim3(1), dim3(32)),
         device_a.data(), device_b.data(), c.data());
  return c.values() == product_of(8);
}

}  // namespace penstock::tests
