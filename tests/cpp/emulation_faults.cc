// That the stand-in finds mistakes: kernels are run as they should be and with one fault each, over
// a list of seeds. The sound ones give the right result under every seed; every fault is found, as
// a wrong result or as an error, under at least one.

#include <gtest/gtest.h>

#include <cuda_emulation/control.h>

#include <functional>
#include <numeric>
#include <string>
#include <vector>

#include "emulation_device.h"
#include "emulation_kernels.h"

namespace penstock::tests {
namespace {

using cuda::launch;
using cuda::LaunchShape;

constexpr std::uint64_t kSeeds[] = {0, 1, 2, 3, 4, 5, 6, 7};

/// Whether a run gave the right result; errors of the launch are thrown.
using Trial = std::function<bool()>;

class EmulationFaults : public ::testing::Test {
 protected:
  void TearDown() override { cuda_emulation::set_seed(before_); }

  void sound(const char* name, const Trial& run) {
    for (const std::uint64_t seed : kSeeds) {
      cuda_emulation::set_seed(seed);
      // Twice: each launch has an order of its own.
      EXPECT_TRUE(run()) << name << ", seed " << seed;
      EXPECT_TRUE(run()) << name << ", seed " << seed;
    }
  }

  /// `how`: a part of the report or of the error by which it is found; empty for a wrong result.
  void found(const char* name, const std::string& how, const Trial& run) {
    int wrong = 0;
    std::string words;
    ::testing::internal::CaptureStderr();
    for (const std::uint64_t seed : kSeeds) {
      cuda_emulation::set_seed(seed);
      try {
        if (!run()) ++wrong;
      } catch (const Error& e) {
        words += e.what() + std::string("\n");
      }
      cudaGetLastError();
    }
    words += ::testing::internal::GetCapturedStderr();
    if (how.empty()) {
      EXPECT_GT(wrong, 0) << name << " is not found\n" << words;
    } else {
      EXPECT_NE(words.find(how), std::string::npos) << name << ": " << words;
    }
  }

  /// What touches memory outside an array: the address sanitizer ends the process.
  void found_outside(const char* name, const std::string& how, const Trial& run) {
#if defined(__SANITIZE_ADDRESS__)
    (void)how;
    EXPECT_DEATH(run(), "AddressSanitizer") << name;
#else
    found(name, how, run);
#endif
  }

 private:
  const std::uint64_t before_ = cuda_emulation::seed();
};

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

TEST_F(EmulationFaults, BarriersOfABlock) {
  sound("block_sum", block_sum<Fault::kNone>);
  found("a missing barrier after writing", "", block_sum<Fault::kMissingBarrier>);
  found("a missing barrier before writing again", "", block_sum<Fault::kMissingSecondBarrier>);
  found("shared memory that nobody wrote", "", block_sum<Fault::kUninitialised>);
}

TEST_F(EmulationFaults, IndicesOutside) {
  found_outside("an index shifted past the end", "", block_sum<Fault::kShiftedIndex>);
  found_outside("shared memory that is too small", "past the end of its 508 bytes",
                block_sum<Fault::kSharedTooSmall>);
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

TEST_F(EmulationFaults, Tails) {
  sound("increment", increment<Fault::kNone>);
  found_outside("an element past the end", "cudaErrorIllegalAddress",
                increment<Fault::kBrokenTail>);
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

TEST_F(EmulationFaults, Shuffles) {
  sound("warp_sum", warp_sum<Fault::kNone>);
  found("a mask that leaves the caller out", "which leaves it out", warp_sum<Fault::kWrongMask>);
  found("a source lane that has returned", "which takes no part", warp_sum<Fault::kBrokenTail>);
  found("a shuffle in one branch only", "while other lanes of its mask",
        warp_sum<Fault::kDivergentShuffle>);
  found("too narrow a shuffle", "", warp_sum<Fault::kWrongWidth>);
}

// ---- asynchronous copies -----------------------------------------------------------------------

constexpr int kRows = 7;

std::vector<float> reversed_sums(int threads) {
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

TEST_F(EmulationFaults, AsynchronousCopies) {
  sound("ring_sum", ring_sum<Fault::kNone>);
  found("a dropped wait", "", ring_sum<Fault::kDroppedWait>);
  found("a wait that leaves one too many under way", "", ring_sum<Fault::kWaitForTooFew>);
  found("copies that are not committed", "", ring_sum<Fault::kNotCommitted>);
  found("a missing barrier after the wait", "", ring_sum<Fault::kMissingBarrier>);
  found("a buffer filled while it is read", "", ring_sum<Fault::kMissingSecondBarrier>);
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

TEST_F(EmulationFaults, CopiesOfABlock) {
  using cuda::BulkWay;
  using cuda::ThreadWay;
  sound("block_copy_sum, in bulk", block_copy_sum<Fault::kNone, BulkWay>);
  sound("block_copy_sum, by thread", block_copy_sum<Fault::kNone, ThreadWay>);
  found("a dropped wait, in bulk", "more arrivals", block_copy_sum<Fault::kDroppedWait, BulkWay>);
  found("a dropped wait, by thread", "", block_copy_sum<Fault::kDroppedWait, ThreadWay>);
  found("a wait for the wrong phase", "more arrivals",
        block_copy_sum<Fault::kWrongParity, BulkWay>);
  found("a buffer filled while it is read", "",
        block_copy_sum<Fault::kMissingSecondBarrier, BulkWay>);
  found("a misaligned copy", "cudaErrorMisalignedAddress",
        block_copy_sum<Fault::kMisaligned, BulkWay>);
  sound("bulk_copy", bulk_copy<Fault::kNone>);
  found("bytes that nobody announced", "while a bulk copy", bulk_copy<Fault::kBytesNotAnnounced>);
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

TEST_F(EmulationFaults, NamedBarriers) {
  sound("hand_over", hand_over<Fault::kNone>);
  found("a row read before it is there", "comes to barrier 2 twice",
        hand_over<Fault::kMissingBarrier>);
  found("a row overwritten before it is read", "comes to barrier 1 twice",
        hand_over<Fault::kMissingSecondBarrier>);
  found("a barrier for more threads than come", "deadlock", hand_over<Fault::kWrongCount>);
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

TEST_F(EmulationFaults, GridBarriers) {
  sound("neighbour", neighbour<Fault::kNone>);
  found("a missing grid barrier after writing", "", neighbour<Fault::kMissingBarrier>);
  found("a missing grid barrier before writing again", "", neighbour<Fault::kMissingSecondBarrier>);
  found("a barrier's word that is not zero", "expected 0", neighbour<Fault::kBarrierNotZeroed>);
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

TEST_F(EmulationFaults, Clusters) {
  sound("cluster_neighbour", cluster_neighbour<Fault::kNone>);
  found("a missing cluster barrier after writing", "", cluster_neighbour<Fault::kMissingBarrier>);
  found("a block that ends while others read from it", "",
        cluster_neighbour<Fault::kMissingSecondBarrier>);
  found("a rank past the cluster's end", "rank 4 in a cluster of 4",
        cluster_neighbour<Fault::kShiftedIndex>);
}

// ---- matrix products ---------------------------------------------------------------------------

template <class T>
T narrow_to(float v);
template <>
__half narrow_to(float v) {
  return __float2half_rn(v);
}
template <>
__nv_bfloat16 narrow_to(float v) {
  return __float2bfloat16_rn(v);
}

/// Small whole numbers: exact in every type, products and sums too.
float element(std::size_t i) { return static_cast<float>(i * 7 % 13) - 6.0f; }

std::vector<float> product_of(int depth) {
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

TEST_F(EmulationFaults, MatrixProducts) {
  sound("product of float16", product<__half, Fault::kNone>);
  sound("product of bfloat16", product<__nv_bfloat16, Fault::kNone>);
  sound("product of tf32", product_tf32<Fault::kNone>);
  found("fragment registers in the wrong order", "", product<__half, Fault::kSwappedRegisters>);
  found("b loaded without transposing", "", product<__nv_bfloat16, Fault::kNotTransposed>);
  found("d's registers in the wrong order", "", product_tf32<Fault::kSwappedRegisters>);
  found("a product with lanes missing", "needs all 32 lanes", product_tf32<Fault::kBrokenTail>);
}

}  // namespace
}  // namespace penstock::tests
