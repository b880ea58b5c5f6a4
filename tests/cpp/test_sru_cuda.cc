// How the CUDA backend takes the SRU's scans: the choice itself, and every way it can go against
// the float64 reference, whatever the choice would be. The CPU passes through the same tests.

#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "accuracy.h"
#include "backends.h"
#include "cells/sru_cuda_plan.h"
#include "penstock/config.h"
#include "setting.h"
#include "sru_problem.h"

namespace penstock::tests {
namespace {

using cuda::sru_scan_plan;
using cuda::SruScanPlan;
using cuda::SruScanProblem;

// ---- the choice
// ----------------------------------------------------------------------------------

SruScanProblem problem(bool backward, bool linear, std::int64_t steps, std::int64_t walks) {
  SruScanProblem p;
  p.backward = backward;
  p.linear = linear;
  p.steps = steps;
  p.walks = walks;
  p.multiprocessors = 132;
  return p;
}

TEST(SruPlan, CutsWhereChannelsAreFew) {
  EXPECT_GT(sru_scan_plan(problem(false, true, 32768, 512)).chunks, 16);
  EXPECT_GT(sru_scan_plan(problem(true, false, 32768, 512)).chunks, 16);
  EXPECT_EQ(sru_scan_plan(problem(false, true, 2048, 32 * 4096)).chunks, 1);
  EXPECT_EQ(sru_scan_plan(problem(true, true, 2048, 32 * 4096)).chunks, 1);
  EXPECT_EQ(sru_scan_plan(problem(true, true, 8, 512)).chunks, 1);
}

TEST(SruPlan, NeverCutsWhatMustNotDependOnTheBatch) {
  SruScanProblem p = problem(true, true, 32768, 512);
  p.independent = true;
  EXPECT_EQ(sru_scan_plan(p).chunks, 1);
  EXPECT_EQ(sru_scan_plan(p, 8).chunks, 1);
}

TEST(SruPlan, ChunksCoverAllStepsAndNoneIsEmpty) {
  for (std::int64_t steps : {0, 1, 2, 5, 31, 100, 513, 32768, 1 << 20}) {
    for (std::int64_t walks : {1, 50, 512, 5000}) {
      for (std::int64_t forced : {0, 1, 2, 3, 7, 64, 1000}) {
        const SruScanPlan plan = sru_scan_plan(problem(true, false, steps, walks), forced);
        EXPECT_LE(plan.chunks, cuda::kSruMostChunks);
        EXPECT_GE(plan.chunks * plan.chunk_steps, steps);
        EXPECT_TRUE(plan.chunks == 1 || (plan.chunks - 1) * plan.chunk_steps < steps);
      }
    }
  }
}

TEST(SruPlan, PredictsNoMoreTimeThanForOneChunk) {
  for (std::int64_t steps : {64, 1024, 32768}) {
    for (std::int64_t walks : {64, 512, 4096, 16384, 1 << 20}) {
      const SruScanProblem p = problem(true, false, steps, walks);
      EXPECT_LE(sru_scan_plan(p).nanoseconds, sru_scan_plan(p, 1).nanoseconds);
    }
  }
}

TEST(SruPlan, KeepsFewStatesWhereChannelsAreMany) {
  EXPECT_EQ(cuda::sru_keep_steps(true, 32 * 512), cuda::kSruKeepSteps);
  EXPECT_EQ(cuda::sru_keep_steps(true, cuda::kSruKeepChannels), cuda::kSruKeepSteps);
  EXPECT_EQ(cuda::sru_keep_steps(true, cuda::kSruKeepChannels - 1), 1);
  EXPECT_EQ(cuda::sru_keep_steps(false, 1 << 20), 1);
  EXPECT_EQ(cuda::sru_keep_steps(false, 1, 4), 4);
  EXPECT_EQ(cuda::sru_keep_steps(true, 1 << 20, 1), 1);
  EXPECT_EQ(cuda::sru_keep_steps(true, 1 << 20, 3), cuda::kSruKeepSteps);
}

// By the planner's own times, what it does with few states is no slower than with all of them where
// it keeps few, and where it keeps all, that is what lets it cut long scans.
TEST(SruPlan, KeepsFewStatesWhereThatIsPredictedToPay) {
  const auto both = [](SruScanProblem p, int keep) {
    p.keep = keep;
    p.backward = false;
    const double forward = sru_scan_plan(p, 1).nanoseconds;
    p.backward = true;
    return forward + sru_scan_plan(p).nanoseconds;
  };
  for (const int bytes : {2, 4}) {
    for (const std::int64_t steps : {8, 512, 2048, 32768}) {
      for (const std::int64_t walks : {8192, 16384, 32768, 1 << 20}) {
        SruScanProblem p = problem(true, false, steps, walks);
        p.ring = true, p.value_bytes = bytes;
        EXPECT_LT(both(p, cuda::kSruKeepSteps), both(p, 1)) << steps << " " << walks;
      }
    }
    SruScanProblem p = problem(true, false, 32768, 2048);
    p.ring = true, p.value_bytes = bytes;
    EXPECT_GT(both(p, cuda::kSruKeepSteps), both(p, 1));
  }
}

TEST(SruPlan, TakesOneChannelAThreadWhereChannelsAreFew) {
  EXPECT_EQ(cuda::sru_ring_width(4, 1 << 20, 132), 1);
  EXPECT_EQ(cuda::sru_ring_width(2, 32 * 512, 132), 1);
  EXPECT_EQ(cuda::sru_ring_width(2, 32 * 2048, 132), 2);
}

TEST(SruPlan, ChunksBeginWithAStateThatIsKept) {
  for (const int keep : {2, 4, 8}) {
    for (const std::int64_t steps : {1, 5, 8, 37, 513, 32768}) {
      for (const std::int64_t forced : {1, 2, 3, 7, 64}) {
        SruScanProblem p = problem(false, true, steps, 512);
        p.keep = keep;
        const SruScanPlan plan = sru_scan_plan(p, forced);
        EXPECT_TRUE(plan.chunks == 1 || plan.chunk_steps % keep == 0);
        EXPECT_LE(plan.chunk_steps, steps);
        EXPECT_GE(plan.chunks * plan.chunk_steps, steps);
        EXPECT_TRUE(plan.chunks == 1 || (plan.chunks - 1) * plan.chunk_steps < steps);
        p.backward = true;
        EXPECT_EQ(sru_scan_plan(p, forced).chunks, 1);
      }
    }
  }
}

// ---- the scans
// -----------------------------------------------------------------------------------

std::vector<SruShape> shapes() {
  std::vector<SruShape> all;
  const auto add = [&](const std::function<void(SruShape&)>& change) {
    SruShape s;
    s.steps = 37;
    change(s);
    all.push_back(s);
  };
  for (const bool weight_c : {false, true}) {
    for (Direction direction :
         {Direction::kForward, Direction::kReverse, Direction::kBidirectional}) {
      add([&](SruShape& s) {
        s.weight_c = weight_c, s.direction = direction;
        s.hidden = 50, s.mask_c = true;
      });
      add([&](SruShape& s) {
        s.weight_c = weight_c, s.direction = direction;
        s.batch = 2, s.hidden = 33, s.blocks = 3, s.input = s.width();
        s.lengths = s.mask_c = true, s.scale_x = 1.3;
      });
      add([&](SruShape& s) {
        s.weight_c = weight_c, s.direction = direction;
        s.blocks = 3, s.x_skip = s.mask_pad = s.lengths = true;
        s.activation = Activation::kTanh, s.mask_site = MaskSite::kState, s.mask_c = true;
      });
    }
    add([&](SruShape& s) {
      s.weight_c = weight_c, s.batch = 1, s.hidden = 130, s.steps = 25;
      s.activation = Activation::kRelu, s.mask_pad = true, s.c0 = false;
    });
    add([&](SruShape& s) { s.weight_c = weight_c, s.dy = false, s.steps = 7; });
    add([&](SruShape& s) {
      s.weight_c = weight_c, s.dc_last = false, s.skip = false, s.blocks = 3;
    });
    add([&](SruShape& s) { s.weight_c = weight_c, s.steps = 1; });
  }
  return all;
}

class SruScans : public BackendTest {};
INSTANTIATE_TEST_SUITE_P(Backends, SruScans, testing::ValuesIn(backend_names()),
                         [](const auto& test) { return test.param; });

TEST_P(SruScans, InChunksAgreeWithReference) {
  for (const SruShape& s : shapes()) {
    for (DataType dtype :
         {DataType::kFloat32, DataType::kFloat64, DataType::kFloat16, DataType::kBFloat16}) {
      const SruValues v = random_values(s, dtype, 21);
      const SruResults expected = reference(s, v);
      for (const char* chunks : {"2", "5", "37"}) {
        const Setting forced("PENSTOCK_CUDA_SRU_CHUNKS", chunks);
        const SruResults got = compute(ctx(), s, v, dtype);
        for (const SruResult& r : kSruResults) {
          EXPECT_LE(relative_error(got.*r.values, expected.*r.values),
                    r.factor * tolerance_of(dtype))
              << r.name << " " << name_of(dtype) << " " << chunks << " chunks " << s.words();
        }
      }
    }
  }
}

/// Shapes whose rows a ring can hold, and others, for which it must not be taken.
std::vector<SruShape> ring_shapes() {
  std::vector<SruShape> all;
  for (const std::int64_t hidden : {64, 128, 184, 50, 66}) {
    for (Direction direction : {Direction::kReverse, Direction::kBidirectional}) {
      for (int form = 0; form < 3; ++form) {
        SruShape s;
        s.steps = form == 0 ? 43 : 9, s.batch = 2, s.hidden = hidden, s.direction = direction;
        s.input = form == 1 ? s.width() : 5;
        s.blocks = form == 0 ? 4 : 3;
        s.skip = form != 2 || direction == Direction::kReverse;
        s.x_skip = s.skip && form == 2;
        s.mask_c = form != 2, s.lengths = form == 1, s.mask_pad = form == 0;
        s.activation = form == 1 ? Activation::kTanh : Activation::kIdentity;
        s.mask_site = form == 0 ? MaskSite::kState : MaskSite::kOutput;
        s.weight_c = form != 1;
        s.dy = form != 2;
        all.push_back(s);
      }
    }
  }
  return all;
}

TEST_P(SruScans, ThroughRingsAgreeWithReference) {
  for (const SruShape& s : ring_shapes()) {
    for (DataType dtype : {DataType::kFloat32, DataType::kFloat16, DataType::kBFloat16}) {
      const SruValues v = random_values(s, dtype, 25);
      const SruResults expected = reference(s, v);
      for (const char* steps : {"2", "8"}) {
        for (const char* chunks : {"1", "3"}) {
          for (const char* bulk : {"0", "1"}) {
            const Setting ring("PENSTOCK_CUDA_SRU_RING", steps);
            const Setting forced("PENSTOCK_CUDA_SRU_CHUNKS", chunks);
            const Setting way("PENSTOCK_CUDA_BULK_COPY", bulk);
            const SruResults got = compute(ctx(), s, v, dtype);
            for (const SruResult& r : kSruResults) {
              EXPECT_LE(relative_error(got.*r.values, expected.*r.values),
                        r.factor * tolerance_of(dtype))
                  << r.name << " " << name_of(dtype) << " " << steps << " steps, " << chunks
                  << " chunks, bulk " << bulk << " " << s.words();
            }
          }
        }
      }
    }
  }
}

// A ring changes how inputs come, not what is computed with them.
TEST_P(SruScans, HaveTheSameBitsWithAndWithoutARing) {
  for (DataType dtype : {DataType::kFloat32, DataType::kBFloat16}) {
    SruShape s;
    s.steps = 70, s.batch = 3, s.hidden = 128, s.mask_c = s.lengths = true;
    const SruValues v = random_values(s, dtype, 26);
    SruResults without;
    {
      const Setting off("PENSTOCK_CUDA_SRU_RING", "0");
      without = compute(ctx(), s, v, dtype);
    }
    EXPECT_TRUE(same_bits(compute(ctx(), s, v, dtype), without)) << name_of(dtype);
  }
}

// The emulated backend starts threads in another order at each launch.
TEST_P(SruScans, InChunksHaveTheSameBitsOnEveryRun) {
  const Setting forced("PENSTOCK_CUDA_SRU_CHUNKS", "6");
  for (const bool weight_c : {false, true}) {
    SruShape s;
    s.steps = 50, s.hidden = 70, s.weight_c = weight_c, s.mask_c = s.lengths = true;
    const SruValues v = random_values(s, DataType::kFloat32, 22);
    const SruResults first = compute(ctx(), s, v, DataType::kFloat32);
    for (int i = 0; i < 3; ++i) {
      EXPECT_TRUE(same_bits(compute(ctx(), s, v, DataType::kFloat32), first));
    }
  }
}

// States that forget slowly, or not at all, are not found in a few turns.
TEST_P(SruScans, FallBackWhereNewtonsMethodDoesNotSucceed) {
  for (const double v : {0.0, 1.0, 6.0, 40.0}) {
    for (const double b : {0.0, 8.0}) {
      for (const std::int64_t hidden : {64, 10}) {
        SruShape s;
        s.steps = 160, s.hidden = hidden, s.batch = 2;
        s.mask_pad = hidden == 10;
        for (const DataType dtype : {DataType::kFloat64, DataType::kFloat32}) {
          // There, errors of float32 grow from step to step.
          if (dtype == DataType::kFloat32 && v > 1.0) continue;
          SruValues values = random_values(s, dtype, 27);
          for (double& x : values.weight_c) x *= v;
          for (double& x : values.bias) x += b;
          const Setting forced("PENSTOCK_CUDA_SRU_CHUNKS", "20");
          const SruResults expected = reference(s, values);
          const SruResults got = compute(ctx(), s, values, dtype);
          for (const SruResult& r : kSruResults) {
            EXPECT_LE(relative_error(got.*r.values, expected.*r.values),
                      r.factor * (dtype == DataType::kFloat64 ? 1e-11 : 2e-5))
                << r.name << " v " << v << " b " << b << " H " << hidden << " " << name_of(dtype);
          }
        }
      }
    }
  }
}

// The word that says so is the last of the workspace, which ends with a scan's scratch.
TEST_P(SruScans, NewtonsMethodSucceedsWhereChunksForget) {
  if (GetParam() == "cpu") GTEST_SKIP() << "of CUDA alone";
  constexpr std::int64_t kChunks = 8;
  const Setting forced("PENSTOCK_CUDA_SRU_CHUNKS", std::to_string(kChunks));
  for (const DataType dtype : {DataType::kFloat32, DataType::kFloat64, DataType::kBFloat16}) {
    for (const bool forgetful : {true, false}) {
      SruShape s;
      s.steps = forgetful ? 1024 : 32, s.hidden = 64;
      SruValues v = random_values(s, dtype, 28);
      // Gates near 1, and states that grow for as long as steps go on.
      for (double& x : v.bias) x += forgetful ? 0.0 : 8.0;
      for (double& x : v.weight_c) x *= forgetful ? 1.0 : 8.0;
      SruCall call(ctx(), s, v, dtype);
      sru_forward(ctx(), call.forward);
      const std::size_t folds = 5 * kChunks * static_cast<std::size_t>(s.batch * s.hidden) *
                                (dtype == DataType::kFloat64 ? 8 : 4);
      const std::size_t scratch = (folds + 4 + 255) / 256 * 256;
      const auto workspace = call.forward_workspace.raw();
      ASSERT_GE(workspace.size(), scratch);
      unsigned failed = 2;
      std::memcpy(&failed, workspace.data() + workspace.size() - scratch + folds, sizeof failed);
      EXPECT_EQ(failed, forgetful ? 0u : 1u) << name_of(dtype);
    }
  }
}

// ---- few states kept
// -----------------------------------------------------------------------------

/// Shapes for a ring and others, of several lengths and with every option somewhere.
std::vector<SruShape> kept_shapes() {
  std::vector<SruShape> all = ring_shapes();
  int i = 0;
  for (SruShape& s : all) {
    if (!s.dy) continue;  // over more steps than a few, dc0 vanishes
    const std::int64_t steps[] = {1, 7, 8, 9, 16, 43};
    s.steps = steps[i++ % 6];
    s.weight_c = i % 4 != 0;
  }
  for (SruShape& s : shapes()) {
    if (s.hidden == 50 || s.steps < 37) all.push_back(s);
  }
  // Enough channels for two of 16 bits a thread, on the emulated device.
  SruShape s;
  s.steps = 11, s.batch = 18, s.hidden = 128, s.mask_c = s.lengths = true;
  all.push_back(s);
  return all;
}

TEST_P(SruScans, FromFewStatesAgreeWithReference) {
  for (const SruShape& s : kept_shapes()) {
    for (DataType dtype :
         {DataType::kFloat32, DataType::kFloat64, DataType::kFloat16, DataType::kBFloat16}) {
      const SruValues v = random_values(s, dtype, 29);
      const SruResults expected = reference(s, v);
      for (const char* keep : {"2", "4", "8"}) {
        for (const char* chunks : {"1", "3"}) {  // forward
          const Setting kept("PENSTOCK_CUDA_SRU_KEEP", keep);
          const Setting forced("PENSTOCK_CUDA_SRU_CHUNKS", chunks);
          const SruResults got = compute(ctx(), s, v, dtype);
          for (const SruResult& r : kSruResults) {
            EXPECT_LE(relative_error(got.*r.values, expected.*r.values),
                      r.factor * tolerance_of(dtype))
                << r.name << " " << name_of(dtype) << " keep " << keep << ", " << chunks
                << " chunks " << s.words();
          }
        }
      }
    }
  }
}

// States that are found again are forward's own, to the bit.
TEST_P(SruScans, FromFewStatesHaveTheBitsOfAll) {
  const Setting whole("PENSTOCK_CUDA_SRU_CHUNKS", "1");
  for (const SruShape& s : kept_shapes()) {
    for (DataType dtype : {DataType::kFloat32, DataType::kFloat64, DataType::kBFloat16}) {
      const SruValues v = random_values(s, dtype, 30);
      const auto keeping = [&](const char* keep) {
        const Setting kept("PENSTOCK_CUDA_SRU_KEEP", keep);
        return compute(ctx(), s, v, dtype);
      };
      const SruResults all = keeping("1");
      for (const char* keep : {"2", "4", "8"}) {
        for (const char* bulk : {"0", "1"}) {
          const Setting way("PENSTOCK_CUDA_BULK_COPY", bulk);
          EXPECT_TRUE(same_bits(keeping(keep), all))
              << keep << " " << name_of(dtype) << " bulk " << bulk << " " << s.words();
        }
        const Setting off("PENSTOCK_CUDA_SRU_RING", "0");
        EXPECT_TRUE(same_bits(keeping(keep), all))
            << keep << " " << name_of(dtype) << " without a ring " << s.words();
      }
    }
  }
}

// By Newton's method and in chunks of a linear scan, too, with or without a ring.
TEST_P(SruScans, FromFewStatesHaveTheSameBitsOnEveryRun) {
  const Setting kept("PENSTOCK_CUDA_SRU_KEEP", "4");
  const Setting forced("PENSTOCK_CUDA_SRU_CHUNKS", "5");
  for (const bool weight_c : {false, true}) {
    SruShape s;
    s.steps = 50, s.hidden = 64, s.weight_c = weight_c, s.mask_c = s.lengths = true;
    const SruValues v = random_values(s, DataType::kFloat32, 31);
    const SruResults first = compute(ctx(), s, v, DataType::kFloat32);
    for (int i = 0; i < 3; ++i) {
      EXPECT_TRUE(same_bits(compute(ctx(), s, v, DataType::kFloat32), first));
    }
    const Setting off("PENSTOCK_CUDA_SRU_RING", "0");
    EXPECT_TRUE(same_bits(compute(ctx(), s, v, DataType::kFloat32), first));
  }
}

// Arrays that begin at odd addresses, which a ring cannot take: the same bits again.
TEST_P(SruScans, FromFewStatesTakeArraysAtOddAddresses) {
  const Setting kept("PENSTOCK_CUDA_SRU_KEEP", "8");
  for (DataType dtype : {DataType::kFloat32, DataType::kFloat16}) {
    SruShape s;
    s.steps = 21, s.hidden = 128;
    const SruValues v = random_values(s, dtype, 32);
    SruCall call(ctx(), s, v, dtype);
    sru_forward(ctx(), call.forward);
    sru_backward(ctx(), call.backward);
    const SruResults expected = call.results();
    // dy, one element on in an array of its own.
    Values later = {0.0};
    later.insert(later.end(), v.dy.begin(), v.dy.end());
    const Array odd(dtype, {static_cast<std::int64_t>(later.size())}, later);
    call.backward.dy.data = static_cast<char*>(odd.view().data) + size_of(dtype);
    sru_backward(ctx(), call.backward);
    EXPECT_TRUE(same_bits(call.results(), expected)) << name_of(dtype);
  }
}

TEST_P(SruScans, KeepLessWhereChannelsAreMany) {
  if (GetParam() == "cpu") GTEST_SKIP() << "of CUDA alone";
  for (const DataType dtype : {DataType::kFloat32, DataType::kBFloat16}) {
    SruShape s;
    s.steps = 20, s.batch = 48, s.hidden = 128, s.input = 3, s.lengths = true;
    const SruValues v = random_values(s, dtype, 33);
    SruCall few(ctx(), s, v, dtype);
    const auto bytes = [](const SruCall& call) { return call.reserve.view().nbytes(); };
    const std::int64_t states = s.batch * s.hidden * 4;
    {
      const Setting every("PENSTOCK_CUDA_SRU_KEEP", "1");
      const SruCall all(ctx(), s, v, dtype);
      EXPECT_EQ(bytes(all) - bytes(few), 18 * states);  // those before steps 8 and 16 are kept
    }
    sru_forward(ctx(), few.forward);
    // What is kept does not depend on what may change until it is used.
    const bool before = batch_invariant();
    set_batch_invariant(!before);
    sru_backward(ctx(), few.backward);
    set_batch_invariant(before);
    const SruResults got = few.results(), expected = reference(s, v);
    for (const SruResult& r : kSruResults) {
      EXPECT_LE(relative_error(got.*r.values, expected.*r.values), r.factor * tolerance_of(dtype))
          << r.name << " " << name_of(dtype);
    }
  }
}

TEST_P(SruScans, AreCutByThemselvesWhereChannelsAreFew) {
  if (GetParam() == "cpu") GTEST_SKIP() << "of CUDA alone";
  SruShape s;
  s.steps = 4096, s.batch = 1, s.hidden = 5, s.input = 3, s.weight_c = false;
  const SruValues v = random_values(s, DataType::kFloat32, 23);
  const SruCall cut(ctx(), s, v, DataType::kFloat32);
  {
    const Setting whole("PENSTOCK_CUDA_SRU_CHUNKS", "1");
    const SruCall one(ctx(), s, v, DataType::kFloat32);
    EXPECT_LT(one.forward_workspace.view().nbytes(), cut.forward_workspace.view().nbytes());
    EXPECT_LT(one.backward_workspace.view().nbytes(), cut.backward_workspace.view().nbytes());
  }
  const SruResults got = compute(ctx(), s, v, DataType::kFloat32), expected = reference(s, v);
  for (const SruResult& r : kSruResults) {
    EXPECT_LE(relative_error(got.*r.values, expected.*r.values), r.factor * 1e-5) << r.name;
  }
}

TEST_P(SruScans, DoNotDependOnTheBatchWhereThatIsAsked) {
  const bool before = batch_invariant();
  set_batch_invariant(true);
  SruShape s;
  s.steps = 300, s.batch = 40, s.hidden = 20, s.input = 6, s.weight_c = false;
  const SruValues all = random_values(s, DataType::kFloat32, 24);
  const SruResults together = compute(ctx(), s, all, DataType::kFloat32);
  // The last sequence alone.
  SruShape one = s;
  one.batch = 1;
  SruValues v = all;
  const auto last = [&](const Values& x, std::int64_t rows, std::int64_t columns) {
    Values out;
    for (std::int64_t i = 0; i < rows; ++i) {
      for (std::int64_t j = 0; j < columns; ++j) {
        out.push_back(x[static_cast<std::size_t>((i * s.batch + s.batch - 1) * columns + j)]);
      }
    }
    return out;
  };
  v.x = last(all.x, s.steps, s.input);
  v.c0 = last(all.c0, 1, s.hidden);
  v.dy = last(all.dy, s.steps, s.hidden);
  v.dc_last = last(all.dc_last, 1, s.hidden);
  const SruResults alone = compute(ctx(), one, v, DataType::kFloat32);
  set_batch_invariant(before);
  EXPECT_EQ(alone.y, last(together.y, s.steps, s.hidden));
  EXPECT_EQ(alone.c_last, last(together.c_last, 1, s.hidden));
  EXPECT_EQ(alone.dc0, last(together.dc0, 1, s.hidden));
}

}  // namespace
}  // namespace penstock::tests
