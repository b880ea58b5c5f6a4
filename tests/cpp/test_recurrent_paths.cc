// How the CUDA backend takes the steps of RNN, GRU and LSTM: the choice itself, and every path
// against the float64 reference, whatever the choice would be.

#include <gtest/gtest.h>

#include <functional>
#include <string>

#include "accuracy.h"
#include "backends.h"
#include "cells/recurrent_cuda_plan.h"
#include "penstock/config.h"
#include "recurrent_problem.h"
#include "setting.h"

namespace penstock::tests {
namespace {

using cuda::mixing::group_tiles;
using cuda::mixing::GroupTiles;
using cuda::mixing::recurrent_plan;
using cuda::mixing::recurrent_wish;
using cuda::mixing::RecurrentPath;
using cuda::mixing::RecurrentPlan;
using cuda::mixing::RecurrentProblem;

// ---- the choice --------------------------------------------------------------------------------

/// A GRU on an H200.
RecurrentProblem problem(std::int64_t rows, std::int64_t hidden, int value_bytes = 4) {
  RecurrentProblem p;
  p.rows = rows;
  p.steps = 512;
  p.hidden = hidden;
  p.gates = 3;
  p.value_bytes = value_bytes;
  p.multiprocessors = 132;
  p.shared_bytes = 227 << 10;
  p.most_cluster = 16;
  return p;
}

/// Calls f for problems of many kinds.
void each_problem(const std::function<void(const RecurrentProblem&)>& f) {
  for (std::int64_t rows : {1, 3, 16, 128, 1000, 100000}) {
    for (std::int64_t hidden : {1, 5, 50, 64, 128, 129, 200, 256, 512, 768, 1024, 2048, 5000}) {
      for (int value_bytes : {2, 4, 8}) {
        for (int gates : {1, 3, 4}) {
          for (int variant = 0; variant < 8; ++variant) {
            RecurrentProblem p = problem(rows, hidden, value_bytes);
            p.gates = gates;
            p.backward = variant % 2 == 1;
            p.dirs = variant / 2 % 2 + 1;
            p.steps = variant / 2 == 3 ? 1 : 512;
            if (variant >= 4) {
              // An A100.
              p.multiprocessors = 108;
              p.shared_bytes = 163 << 10;
              p.most_cluster = 1;
            }
            f(p);
          }
        }
      }
    }
  }
}

TEST(RecurrentPlan, TakesWhatFits) {
  each_problem([](const RecurrentProblem& p) {
    for (const char* wish : {"", "steps", "tile", "block", "cluster", "grid", "grid:7", "cluster:3",
                             "cluster:16:5", "block:1:64"}) {
      const RecurrentPlan plan = recurrent_plan(p, recurrent_wish(wish));
      EXPECT_LE(plan.shared_bytes, p.shared_bytes);
      EXPECT_GT(plan.nanoseconds, 0.0);
      if (plan.path == RecurrentPath::kTile) {
        EXPECT_GE(plan.tile_groups, 1);
        EXPECT_LE(plan.tile_groups * p.hidden, cuda::mixing::kTileThreads);
      }
      if (plan.path < RecurrentPath::kBlock) continue;
      EXPECT_NE(p.value_bytes, 8);
      EXPECT_GE(plan.rows, 1);
      EXPECT_LE(plan.rows * plan.units, cuda::mixing::kGroupThreads);
      EXPECT_GE(plan.units * plan.blocks, p.hidden);
      if (plan.path == RecurrentPath::kCluster) {
        EXPECT_LE(plan.blocks, p.most_cluster);
      }
      if (plan.path == RecurrentPath::kGrid) {
        EXPECT_LE(plan.groups * plan.blocks * p.dirs, p.multiprocessors);
        EXPECT_LE(plan.groups * plan.rows, cuda::mixing::kMostGridRows);
      }
      const std::int64_t depth = p.backward ? p.gates * p.hidden : p.hidden;
      EXPECT_LE(plan.tiles.pitch, cuda::mixing::most_pitch(depth));
    }
  });
}

TEST(RecurrentPlan, PredictsNoMoreTimeThanForAnyOtherPath) {
  each_problem([](const RecurrentProblem& p) {
    const double best = recurrent_plan(p).nanoseconds;
    for (const char* wish : {"steps", "block", "cluster", "cluster:4", "grid"}) {
      EXPECT_LE(best, recurrent_plan(p, recurrent_wish(wish)).nanoseconds) << wish;
    }
  });
}

TEST(RecurrentPlan, KeepsWeightsOnChipWhereRowsAreFew) {
  for (int value_bytes : {2, 4}) {
    for (const bool backward : {false, true}) {
      const auto path = [&](std::int64_t rows, std::int64_t hidden) {
        RecurrentProblem p = problem(rows, hidden, value_bytes);
        p.backward = backward;
        return recurrent_plan(p).path;
      };
      for (std::int64_t rows : {1, 16}) {
        EXPECT_EQ(path(rows, 64), RecurrentPath::kBlock);
        EXPECT_EQ(path(rows, 256), RecurrentPath::kCluster);
      }
      EXPECT_EQ(path(1, 1024), RecurrentPath::kGrid);
      EXPECT_EQ(path(4096, 1024), RecurrentPath::kSteps);
      EXPECT_EQ(path(1, 8192), RecurrentPath::kSteps);
    }
  }
  EXPECT_EQ(recurrent_plan(problem(100000, 50)).path, RecurrentPath::kTile);
}

TEST(RecurrentPlan, TakesNoGroupWhereItCannot) {
  RecurrentProblem p = problem(16, 64);
  p.whole = false;
  EXPECT_EQ(recurrent_plan(p).path, RecurrentPath::kSteps);
  EXPECT_EQ(recurrent_plan(p, recurrent_wish("block")).path, RecurrentPath::kSteps);
  p = problem(16, 64);
  p.one_product = false;
  EXPECT_EQ(recurrent_plan(p).path, RecurrentPath::kTile);
  p = problem(1, 256);
  p.most_cluster = 1;
  EXPECT_EQ(recurrent_plan(p).path, RecurrentPath::kGrid);
  p.cooperative = false;
  EXPECT_EQ(recurrent_plan(p).path, RecurrentPath::kSteps);
}

// More rows never take less time, nor more steps.
TEST(RecurrentPlan, TimeGrowsWithTheProblem) {
  for (int value_bytes : {2, 4}) {
    for (std::int64_t hidden : {50, 256, 1024}) {
      double before = 0.0;
      for (std::int64_t rows = 1; rows <= 4096; rows *= 4) {
        const double now = recurrent_plan(problem(rows, hidden, value_bytes)).nanoseconds;
        EXPECT_GE(now, before * 0.999) << rows << " rows, H " << hidden;
        before = now;
      }
      RecurrentProblem p = problem(16, hidden, value_bytes);
      const double few = recurrent_plan(p).nanoseconds;
      p.steps *= 2;
      EXPECT_GT(recurrent_plan(p).nanoseconds, few);
    }
  }
}

TEST(RecurrentPlan, DoesAsItIsAsked) {
  const RecurrentProblem p = problem(10, 100);
  EXPECT_EQ(recurrent_plan(p, recurrent_wish("steps")).path, RecurrentPath::kSteps);
  EXPECT_EQ(recurrent_plan(p, recurrent_wish("tile")).path, RecurrentPath::kTile);
  EXPECT_EQ(recurrent_plan(p, recurrent_wish("block")).path, RecurrentPath::kBlock);
  const RecurrentPlan cluster = recurrent_plan(p, recurrent_wish("cluster:3:2"));
  EXPECT_EQ(cluster.path, RecurrentPath::kCluster);
  EXPECT_EQ(cluster.blocks, 3);
  EXPECT_EQ(cluster.rows, 2);
  EXPECT_EQ(cluster.units, 34);
  EXPECT_EQ(recurrent_plan(p, recurrent_wish("grid:50")).blocks, 50);
  // What cannot be is not done, and what nobody understands is no wish.
  const RecurrentPath usual = recurrent_plan(p).path;
  for (const char* wish : {"cluster:17", "grid:133", "tiles", "", "0", "matrix"}) {
    EXPECT_EQ(recurrent_plan(p, recurrent_wish(wish)).path, usual) << wish;
  }
}

// The order of a sum is the number of blocks and the cut of their products.
TEST(RecurrentPlan, SumsDoNotDependOnTheBatchWhereTheyMustNot) {
  each_problem([](RecurrentProblem p) {
    p.independent = true;
    const RecurrentPlan plan = recurrent_plan(p);
    for (std::int64_t rows : {1, 2, 17, 600, 5000}) {
      for (std::int64_t steps : {1, 40, 5000}) {
        p.rows = rows;
        p.steps = steps;
        const RecurrentPlan other = recurrent_plan(p);
        ASSERT_EQ(other.path, plan.path) << rows << " rows, H " << p.hidden;
        EXPECT_LE(other.shared_bytes, p.shared_bytes);
        EXPECT_EQ(other.blocks, plan.blocks);
        EXPECT_EQ(other.tiles.spread, plan.tiles.spread);
        EXPECT_EQ(other.tiles.chunks, plan.tiles.chunks);
        EXPECT_EQ(other.tiles.depth_tiles, plan.tiles.depth_tiles);
      }
    }
  });
}

TEST(RecurrentPlan, TilesCoverTheProducts) {
  for (int value_bytes : {2, 4}) {
    for (int outputs : {1, 3, 8, 24, 33, 150, 384, 768}) {
      for (int depth : {1, 5, 50, 128, 129, 200, 1024, 3072, 8192}) {
        const GroupTiles t = group_tiles(outputs, depth, value_bytes);
        EXPECT_GE(t.output_tiles * t.tile_outputs(), outputs);
        EXPECT_GE(t.depth_tiles * t.tile_depth(), depth);
        EXPECT_LT((t.depth_tiles - 1) * t.tile_depth(), depth);
        EXPECT_LE(t.chunks, cuda::mixing::kGroupChunks);
        EXPECT_GE(t.pitch, t.depth_tiles * t.tile_depth());
        EXPECT_EQ(t.pitch / 32 % 2, 1);
        EXPECT_GE(t.sums_pitch, t.output_tiles * t.tile_outputs());
      }
    }
  }
}

// ---- the paths ---------------------------------------------------------------------------------

constexpr Cell kCells[] = {Cell::kRnn, Cell::kGru, Cell::kLstm};
constexpr DataType kGroupTypes[] = {DataType::kFloat32, DataType::kFloat16, DataType::kBFloat16};

class RecurrentPaths : public BackendTest {
 protected:
  void SetUp() override {
    BackendTest::SetUp();
    if (GetParam() == "cpu") GTEST_SKIP() << "of CUDA alone";
  }

  /// Results with PENSTOCK_CUDA_RECURRENT=wish, and that it was so, forward and backward.
  RecurrentResults compute_by(const std::string& wish, const RecurrentShape& s,
                              const RecurrentValues& v, DataType dtype) {
    const Setting forced("PENSTOCK_CUDA_RECURRENT", wish);
    const Setting told("PENSTOCK_CUDA_PLAN", "1");
    testing::internal::CaptureStderr();
    RecurrentResults results = compute(ctx(), s, v, dtype);
    const std::string words = testing::internal::GetCapturedStderr();
    // Not every device has clusters.
    if (GetParam() != "cuda_emulated") return results;
    const std::string path = ": " + wish.substr(0, wish.find(':'));
    for (const char* pass : {"recurrent forward", "recurrent backward"}) {
      const std::size_t line = words.find(pass);
      EXPECT_NE(line, std::string::npos) << words;
      const std::string rest = words.substr(line, words.find('\n', line) - line);
      EXPECT_NE(rest.find(path), std::string::npos) << rest << ", " << wish << " " << s.words();
    }
    return results;
  }

  void expect_close_by(const std::string& wish, const RecurrentShape& s, DataType dtype,
                       std::uint64_t seed) {
    const RecurrentValues v = random_values(s, dtype, seed);
    const RecurrentResults got = compute_by(wish, s, v, dtype), expected = reference(s, v);
    for (const NamedResult& r : kRecurrentResults) {
      EXPECT_LE(relative_error(got.*r.values, expected.*r.values), r.factor * tolerance_of(dtype))
          << r.name << " " << name_of(dtype) << " " << wish << " " << s.words();
    }
  }
};
INSTANTIATE_TEST_SUITE_P(Backends, RecurrentPaths, testing::ValuesIn(backend_names()),
                         [](const auto& test) { return test.param; });

RecurrentShape shape(Cell cell, std::int64_t steps, std::int64_t batch, std::int64_t hidden) {
  RecurrentShape s;
  s.cell = cell;
  s.steps = steps;
  s.batch = batch;
  s.hidden = hidden;
  return s;
}

TEST_P(RecurrentPaths, AgreeWithReference) {
  const char* wishes[] = {"block",     "cluster:2", "cluster:4:1", "cluster:16", "grid:2:2",
                          "block:1:1", "grid:4",    "cluster:3:2", "tile",       "steps"};
  int turn = 0;
  for (const Cell cell : kCells) {
    for (const DataType dtype : kGroupTypes) {
      for (const std::int64_t hidden : {1, 5, 50}) {
        ++turn;
        for (const char* wish : wishes) {
          // Each path with half of the sizes, other ones for other types.
          if (++turn % 2 == 0) continue;
          RecurrentShape s = shape(cell, 4 + turn % 3, 3 + turn % 4, hidden);
          s.direction = static_cast<Direction>(turn % 3);
          s.lengths = turn / 2 % 2 == 1;
          s.h0 = s.c0 = turn % 5 != 0;
          s.state_gradients = turn % 7 != 0;
          s.recompute = turn % 11 == 3;
          s.activation =
              turn % 8 == 3 && cell != Cell::kLstm ? Activation::kIdentity : Activation::kTanh;
          expect_close_by(wish, s, dtype, static_cast<std::uint64_t>(turn));
        }
      }
    }
  }
}

// So large that products have several depth tiles, and weights do not all fit into registers.
TEST_P(RecurrentPaths, OfLargeStatesAgreeWithReference) {
  int turn = 0;
  for (const Cell cell : kCells) {
    for (const DataType dtype : kGroupTypes) {
      for (const char* wish : {"block", "cluster:2", "cluster:4", "grid:3"}) {
        for (const std::int64_t hidden : {129, 200}) {
          // What one block cannot hold.
          const std::int64_t weights = gates_of(cell) * hidden * (size_of(dtype) == 2 ? 1 : 2);
          if (std::string(wish) == "block" && weights > 600) continue;
          RecurrentShape s = shape(cell, 3, 3, hidden);
          s.direction = static_cast<Direction>(turn % 3);
          s.lengths = turn % 2 == 1;
          expect_close_by(wish, s, dtype, static_cast<std::uint64_t>(++turn));
        }
      }
    }
  }
}

TEST_P(RecurrentPaths, OfOneStepAndOfManyRowsAgreeWithReference) {
  for (const Cell cell : kCells) {
    for (const DataType dtype : kGroupTypes) {
      for (const char* wish : {"block", "cluster:2", "grid:2"}) {
        RecurrentShape s = shape(cell, 1, 5, 20);
        s.direction = Direction::kBidirectional;
        expect_close_by(wish, s, dtype, 3);
        s = shape(cell, 3, 43, 12);
        s.direction = Direction::kReverse;
        s.lengths = true;
        expect_close_by(wish, s, dtype, 4);
      }
      // Several launches, each with as many groups as run at the same time.
      expect_close_by("grid:3:2", shape(cell, 2, 21, 9), dtype, 5);
    }
  }
}

TEST_P(RecurrentPaths, WithoutSomeGradientsAgreeWithReference) {
  for (const Cell cell : kCells) {
    for (const char* wish : {"block", "cluster:2", "grid:2"}) {
      RecurrentShape s = shape(cell, 4, 3, 10);
      s.dy = false;
      expect_close_by(wish, s, DataType::kFloat32, 6);
      s.dy = true;
      s.dh_last = s.dc_last = s.state_gradients = false;
      s.bias_ih = s.bias_hh = s.h0 = s.c0 = false;
      expect_close_by(wish, s, DataType::kBFloat16, 7);
    }
  }
}

// The emulated backend starts threads in another order at each launch.
TEST_P(RecurrentPaths, HaveTheSameBitsOnEveryRun) {
  for (const Cell cell : kCells) {
    for (const DataType dtype : {DataType::kFloat32, DataType::kBFloat16}) {
      for (const char* wish : {"block", "cluster:4", "grid:2"}) {
        RecurrentShape s = shape(cell, 5, 5, 40);
        s.direction = Direction::kBidirectional;
        s.lengths = true;
        const RecurrentValues v = random_values(s, dtype, 8);
        const RecurrentResults first = compute_by(wish, s, v, dtype);
        for (int i = 0; i < 2; ++i) {
          EXPECT_TRUE(same_bits(compute_by(wish, s, v, dtype), first)) << wish << " " << s.words();
        }
      }
    }
  }
}

/// Of (n, rows, width), or (rows, width), the row b.
Values row_of(const Values& v, std::int64_t rows, std::int64_t width, std::int64_t b) {
  Values out;
  for (std::size_t at = 0; at < v.size(); at += static_cast<std::size_t>(rows * width)) {
    const auto from = v.begin() + static_cast<std::ptrdiff_t>(at) + b * width;
    out.insert(out.end(), from, from + width);
  }
  return out;
}

TEST_P(RecurrentPaths, GiveEachRowTheBitsThatItGetsAlone) {
  const bool before = batch_invariant();
  set_batch_invariant(true);
  for (const Cell cell : kCells) {
    for (const DataType dtype : {DataType::kFloat32, DataType::kFloat16}) {
      for (const std::int64_t hidden : {20, 150}) {
        RecurrentShape s = shape(cell, 4, 11, hidden);
        const RecurrentValues v = random_values(s, dtype, 9);
        const RecurrentResults all = compute(ctx(), s, v, dtype);
        for (const std::int64_t b : {0, 4, 10}) {
          RecurrentShape one = s;
          one.batch = 1;
          RecurrentValues own = v;
          own.x = row_of(v.x, s.batch, s.input, b);
          own.dy = row_of(v.dy, s.batch, s.width(), b);
          for (Values RecurrentValues::* state :
               {&RecurrentValues::h0, &RecurrentValues::c0, &RecurrentValues::dh_last,
                &RecurrentValues::dc_last}) {
            own.*state = row_of(v.*state, s.batch, s.width(), b);
          }
          const RecurrentResults alone = compute(ctx(), one, own, dtype);
          EXPECT_EQ(row_of(all.y, s.batch, s.width(), b), alone.y) << s.words();
          EXPECT_EQ(row_of(all.h_last, s.batch, s.width(), b), alone.h_last) << s.words();
          EXPECT_EQ(row_of(all.c_last, s.batch, s.width(), b), alone.c_last) << s.words();
          EXPECT_EQ(row_of(all.dh0, s.batch, s.width(), b), alone.dh0) << s.words();
          EXPECT_EQ(row_of(all.dc0, s.batch, s.width(), b), alone.dc0) << s.words();
        }
      }
    }
  }
  set_batch_invariant(before);
}

}  // namespace
}  // namespace penstock::tests
