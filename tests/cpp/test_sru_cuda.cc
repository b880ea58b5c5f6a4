// How the CUDA backend takes the SRU's scans: the choice itself, and every way it can go against
// the float64 reference, whatever the choice would be. The CPU passes through the same tests.

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>

#include "accuracy.h"
#include "backends.h"
#include "cells/sru_cuda_plan.h"
#include "penstock/config.h"
#include "sru_problem.h"

namespace penstock::tests {
namespace {

using cuda::sru_scan_plan;
using cuda::SruScanPlan;
using cuda::SruScanProblem;

/// An environment variable for the length of a scope.
class Setting {
 public:
  Setting(const char* name, const std::string& value) : name_(name) {
    setenv(name, value.c_str(), 1);
  }
  ~Setting() { unsetenv(name_); }
  Setting(const Setting&) = delete;
  Setting& operator=(const Setting&) = delete;

 private:
  const char* name_;
};

bool same_bits(const SruResults& a, const SruResults& b) {
  for (const SruResult& r : kSruResults) {
    const Values &x = a.*r.values, &y = b.*r.values;
    if (x.size() != y.size()) return false;
    if (!x.empty() && std::memcmp(x.data(), y.data(), x.size() * sizeof(double)) != 0) return false;
  }
  return true;
}

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
