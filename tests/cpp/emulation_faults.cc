// That the stand-in finds mistakes: kernels are run as they should be and with one fault each, over
// a list of seeds. The sound ones give the right result under every seed; every fault is found, as
// a wrong result or as an error, under at least one.

#include <gtest/gtest.h>

#include <cuda_emulation/control.h>

#include <functional>
#include <string>

#include "emulation_trials.h"

namespace penstock::tests {
namespace {

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

TEST_F(EmulationFaults, Tails) {
  sound("increment", increment<Fault::kNone>);
  found_outside("an element past the end", "cudaErrorIllegalAddress",
                increment<Fault::kBrokenTail>);
}

TEST_F(EmulationFaults, Shuffles) {
  sound("warp_sum", warp_sum<Fault::kNone>);
  found("a mask that leaves the caller out", "which leaves it out", warp_sum<Fault::kWrongMask>);
  found("a source lane that has returned", "which takes no part", warp_sum<Fault::kBrokenTail>);
  found("a shuffle in one branch only", "while other lanes of its mask",
        warp_sum<Fault::kDivergentShuffle>);
  sound("warp_reverse", warp_reverse<Fault::kNone>);
  found("a missing __syncwarp", "", warp_reverse<Fault::kMissingBarrier>);
  found("too narrow a shuffle", "", warp_sum<Fault::kWrongWidth>);
}

TEST_F(EmulationFaults, AsynchronousCopies) {
  sound("ring_sum", ring_sum<Fault::kNone>);
  found("a dropped wait", "", ring_sum<Fault::kDroppedWait>);
  found("a wait that leaves one too many under way", "", ring_sum<Fault::kWaitForTooFew>);
  found("copies that are not committed", "", ring_sum<Fault::kNotCommitted>);
  found("a missing barrier after the wait", "", ring_sum<Fault::kMissingBarrier>);
  found("a buffer filled while it is read", "", ring_sum<Fault::kMissingSecondBarrier>);
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

TEST_F(EmulationFaults, NamedBarriers) {
  sound("hand_over", hand_over<Fault::kNone>);
  found("a row read before it is there", "comes to barrier 2 twice",
        hand_over<Fault::kMissingBarrier>);
  found("a row overwritten before it is read", "comes to barrier 1 twice",
        hand_over<Fault::kMissingSecondBarrier>);
  found("a barrier for more threads than come", "deadlock", hand_over<Fault::kWrongCount>);
}

TEST_F(EmulationFaults, GridBarriers) {
  sound("neighbour", neighbour<Fault::kNone>);
  found("a missing grid barrier after writing", "", neighbour<Fault::kMissingBarrier>);
  found("a missing grid barrier before writing again", "", neighbour<Fault::kMissingSecondBarrier>);
  found("a barrier's word that is not zero", "expected 0", neighbour<Fault::kBarrierNotZeroed>);
}

TEST_F(EmulationFaults, Clusters) {
  sound("cluster_neighbour", cluster_neighbour<Fault::kNone>);
  found("a missing cluster barrier after writing", "", cluster_neighbour<Fault::kMissingBarrier>);
  found("a block that ends while others read from it", "",
        cluster_neighbour<Fault::kMissingSecondBarrier>);
  found("a rank past the cluster's end", "rank 4 in a cluster of 4",
        cluster_neighbour<Fault::kShiftedIndex>);
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
