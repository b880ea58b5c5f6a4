// Levels of a sliced network in one launch, as the CUDA backend takes them: the choice itself, and
// every way it can go against the float64 reference and against launches of each level's own.

#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "backends.h"
#include "cells/recurrent_cuda_levels_plan.h"
#include "penstock/config.h"
#include "setting.h"
#include "sliced_problem.h"

namespace penstock::tests {
namespace {

using cuda::LevelShape;
using cuda::LevelsPlan;
using cuda::LevelsProblem;
using cuda::LevelsWish;

constexpr const char* kVariable = "PENSTOCK_CUDA_LEVELS";
constexpr const char* kWays[] = {"grid", "blocks"};

// ---- the choice
// ----------------------------------------------------------------------------------

/// A GRU over (8, …, 8) on an H200, D = 200.
struct Network {
  Network(std::int64_t steps, int slices, std::int64_t batch, std::int64_t hidden = 50,
          std::int64_t dirs = 1) {
    std::int64_t parts = 1;
    for (int i = 0; i < slices; ++i) parts *= 8;
    for (int i = 0; i <= slices; ++i) {
      LevelShape s;
      s.input = i == 0 ? 200 : dirs * hidden;
      s.hidden = hidden;
      s.parts = parts;
      s.steps = i == 0 ? (steps + parts - 1) / parts : 8;
      shapes.push_back(s);
      parts /= 8;
    }
    p.levels = shapes.data();
    p.count = slices + 1;
    p.batch = batch;
    p.dirs = dirs;
    p.gates = 3;
    p.shared_bytes = 227 * 1024;
    p.multiprocessors = 132;
  }
  Network(const Network&) = delete;
  std::vector<LevelShape> shapes;
  LevelsProblem p;
};

TEST(LevelsPlan, TakesAllLevelsAtOnceWhereSequencesAreFew) {
  for (const bool backward : {false, true}) {
    for (const std::int64_t batch : {1, 16}) {
      Network n(512, 2, batch);
      n.p.backward = backward;
      const LevelsPlan plan = levels_plan(n.p);
      EXPECT_LT(plan.first, backward ? 2 : 1) << batch;
      EXPECT_LT(plan.nanoseconds, 0.8 * plan.apart) << batch << " " << backward;
    }
  }
}

TEST(LevelsPlan, LeavesLowerLevelsOfManyRowsToThemselves) {
  Network n(512, 2, 2048);
  const LevelsPlan plan = levels_plan(n.p);
  EXPECT_GT(plan.first, 0);
}

TEST(LevelsPlan, NeverTakesMoreThanThereIs) {
  for (const bool backward : {false, true}) {
    for (const int value_bytes : {2, 4}) {
      for (const std::int64_t hidden : {1, 7, 50, 100, 130, 160, 300, 600}) {
        for (const std::int64_t batch : {1, 3, 16, 131, 133, 500, 5000}) {
          for (const std::int64_t dirs : {1, 2}) {
            for (const int slices : {1, 2, 4}) {
              Network n(4096, slices, batch, hidden, dirs);
              n.p.backward = backward;
              n.p.value_bytes = value_bytes;
              for (const LevelsWish wish : {LevelsWish::kNone, LevelsWish::kJoint,
                                            LevelsWish::kGrid, LevelsWish::kBlocks}) {
                const LevelsPlan plan = levels_plan(n.p, wish);
                ASSERT_LE(plan.first, n.p.count);
                if (plan.first == n.p.count) continue;
                EXPECT_LE(plan.shared_bytes, n.p.shared_bytes);
                EXPECT_LE(plan.threads, cuda::kLevelThreads);
                EXPECT_GE(plan.blocks, 1);
                if (plan.grid) {
                  EXPECT_LE(plan.blocks, n.p.multiprocessors);
                } else {
                  EXPECT_GE(plan.blocks * plan.sequences, batch);
                  EXPECT_LT((plan.blocks - 1) * plan.sequences, batch);
                }
                for (int i = plan.first; i < n.p.count; ++i) {
                  const LevelShape& s = n.shapes[static_cast<std::size_t>(i)];
                  const cuda::LevelSplit& split = plan.split[i - plan.first];
                  EXPECT_GE(split.groups, 1);
                  EXPECT_LE(split.groups * s.hidden, plan.threads);
                  // What is in shared memory at the same time does not overlap.
                  EXPECT_GE(split.step_values, split.state_weights + level_state_weights(n.p, s));
                  EXPECT_LE(split.step_values + level_step_values(n.p, s, split.groups),
                            plan.shared_bytes);
                  if (split.wide == 0) continue;
                  EXPECT_LE(split.wide * level_columns(n.p, s), plan.threads);
                  const std::int64_t weights = level_input_weights(n.p, s);
                  EXPECT_TRUE(split.state_weights == 0 || split.state_weights >= weights);
                  EXPECT_GE(split.product_values, weights);
                  EXPECT_TRUE(split.state_weights == 0 ||
                              split.product_values >=
                                  split.state_weights + level_state_weights(n.p, s));
                  EXPECT_LE(split.product_values + level_product_values(n.p, s, split.wide),
                            plan.shared_bytes);
                }
              }
            }
          }
        }
      }
    }
  }
}

TEST(LevelsPlan, HasWhatALaunchOfTheChosenLevelsHas) {
  for (const bool backward : {false, true}) {
    for (const std::int64_t batch : {1, 40}) {
      Network n(4096, 3, batch);
      n.p.backward = backward;
      const LevelsPlan plan = levels_plan(n.p);
      ASSERT_LT(plan.first, n.p.count);
      LevelsProblem upper = n.p;
      upper.levels += plan.first;
      upper.count -= plan.first;
      upper.from_input = plan.first == 0;
      const LevelsPlan again = levels_launch(upper, 0, LevelsWish::kNone);
      EXPECT_EQ(again.grid, plan.grid);
      EXPECT_EQ(again.blocks, plan.blocks);
      EXPECT_EQ(again.shared_bytes, plan.shared_bytes);
      for (int i = 0; i < upper.count; ++i) {
        EXPECT_EQ(again.split[i].groups, plan.split[i].groups);
        EXPECT_EQ(again.split[i].wide, plan.split[i].wide);
      }
    }
  }
}

TEST(LevelsPlan, FollowsAWish) {
  const Network n(512, 2, 16);
  EXPECT_EQ(levels_plan(n.p, LevelsWish::kApart).first, n.p.count);
  EXPECT_EQ(levels_plan(n.p, LevelsWish::kJoint).first, 0);
  EXPECT_TRUE(levels_plan(n.p, LevelsWish::kGrid).grid);
  EXPECT_FALSE(levels_plan(n.p, LevelsWish::kBlocks).grid);
}

TEST(LevelsPlan, LeavesOutWhatDoesNotFit) {
  Network n(512, 2, 16);
  n.shapes[0].hidden = 200;
  EXPECT_EQ(levels_plan(n.p, LevelsWish::kJoint).first, 1);
  n.shapes[2].hidden = 200;
  EXPECT_EQ(levels_plan(n.p, LevelsWish::kJoint).first, n.p.count);
  Network wide(512, 2, 16);
  wide.p.value_bytes = 8;
  EXPECT_EQ(levels_plan(wide.p, LevelsWish::kJoint).first, wide.p.count);
}

TEST(LevelsPlan, TakesNoMoreLevelsThanALaunchHasRoomFor) {
  std::vector<LevelShape> shapes(14);
  for (LevelShape& s : shapes) s = {8, 8, 1, 1};
  Network n(8, 0, 4);
  n.p.levels = shapes.data();
  n.p.count = static_cast<int>(shapes.size());
  EXPECT_EQ(levels_plan(n.p, LevelsWish::kJoint).first, n.p.count - cuda::kLevelsAtOnce);
}

TEST(LevelsPlan, DoesNotDependOnTheBatchWhereResultsMustNot) {
  for (const std::int64_t batch : {1, 16, 2048, 30000}) {
    Network n(512, 2, batch);
    n.p.independent = true;
    EXPECT_EQ(levels_plan(n.p).first, 0) << batch;
  }
}

// ---- the launches
// --------------------------------------------------------------------------------

class SlicedLevels : public BackendTest {
 protected:
  void SetUp() override {
    BackendTest::SetUp();
    if (GetParam() == "cpu") GTEST_SKIP() << "of CUDA alone";
  }
};
INSTANTIATE_TEST_SUITE_P(Backends, SlicedLevels, testing::ValuesIn(backend_names()),
                         [](const auto& test) { return test.param; });

TEST_P(SlicedLevels, AgreeWithReference) {
  for (const SlicedShape& s : sliced_shapes()) {
    if (s.steps > 1000) continue;
    for (DataType dtype : {DataType::kFloat32, DataType::kFloat16, DataType::kBFloat16}) {
      // Where sums are rounded to 16 bits, some cross the kink.
      if (s.activation == Activation::kRelu && size_of(dtype) == 2) continue;
      const SlicedValues v = random_values(s, dtype, 31);
      const SlicedResults expected = reference(s, v);
      for (const char* way : kWays) {
        if (dtype == DataType::kFloat16 && way == kWays[0]) continue;
        if (dtype == DataType::kBFloat16 && way == kWays[1]) continue;
        const Setting forced(kVariable, way);
        SCOPED_TRACE(way);
        expect_close(compute(ctx(), s, v, dtype), expected, dtype, s);
      }
    }
  }
}

/// Shapes that a launch has more to do with: more sequences than multiprocessors, more rows than a
/// block takes at a time, levels that do not fit.
std::vector<SlicedShape> level_shapes() {
  std::vector<SlicedShape> all;
  for (Cell cell : {Cell::kRnn, Cell::kGru, Cell::kLstm}) {
    for (Direction direction : {Direction::kReverse, Direction::kBidirectional}) {
      SlicedShape s;
      s.cell = cell;
      s.direction = direction;
      s.slices = {2, 2, 2};
      s.hidden = {17, 9, 50, 3};
      s.steps = 27, s.batch = 19, s.input = 5;
      s.lengths = true;
      s.doutputs = {true, false, true, true};
      all.push_back(s);
      s.slices = {3, 2};
      s.hidden = {50, 50, 50};
      s.steps = 20, s.batch = 2;
      s.lengths = false;
      s.pad = PadSide::kRight;
      s.doutputs = {false, false, true};
      all.push_back(s);
    }
  }
  SlicedShape before;
  before.reset = ResetMode::kBefore;
  before.activation = Activation::kIdentity;
  before.mask = SliceMask::kNone;
  before.slices = {2, 3};
  before.hidden = {20, 50, 6};
  before.steps = 31, before.batch = 11;
  all.push_back(before);
  SlicedShape large;  // R of the lowest level fits into no block's shared memory
  large.hidden = {200, 6, 20};
  large.steps = 12, large.batch = 2;
  large.lengths = true;
  large.doutputs = {true, true, true};
  all.push_back(large);
  SlicedShape apart = large;  // W and R fit one after the other
  apart.slices = {2};
  apart.hidden = {110, 110};
  apart.steps = 6;
  apart.doutputs = {true, true};
  all.push_back(apart);
  apart.hidden = {60, 70};
  apart.cell = Cell::kLstm;
  apart.direction = Direction::kBidirectional;
  all.push_back(apart);
  SlicedShape tiles;  // several tiles of rows in a block, the last one not full
  tiles.cell = Cell::kRnn;
  tiles.slices = {4};
  tiles.hidden = {150, 150};
  tiles.doutputs = {true, true};
  tiles.steps = 10, tiles.batch = 21;
  tiles.lengths = true;
  all.push_back(tiles);
  SlicedShape many;
  many.slices = {1, 2, 1, 1, 2, 1, 1, 2, 1, 1};
  many.hidden = {4, 5, 4, 3, 4, 6, 4, 3, 4, 2, 4};
  many.doutputs.assign(many.hidden.size(), false);
  many.doutputs.back() = true;
  many.steps = 15, many.batch = 3;
  many.lengths = true;
  all.push_back(many);
  SlicedShape one;
  one.slices = {4, 4};
  one.hidden = {30, 30, 30};
  one.steps = 64, one.batch = 1;
  all.push_back(one);
  return all;
}

TEST_P(SlicedLevels, OfManyShapesAgreeWithReference) {
  for (const SlicedShape& s : level_shapes()) {
    const SlicedValues v = random_values(s, DataType::kFloat32, 32);
    const SlicedResults expected = reference(s, v);
    for (const char* way : kWays) {
      const Setting forced(kVariable, way);
      SCOPED_TRACE(way);
      expect_close(compute(ctx(), s, v, DataType::kFloat32), expected, DataType::kFloat32, s);
    }
  }
}

/// Forward in one way, backward in another.
SlicedResults compute(const Context& ctx, const SlicedShape& s, const SlicedValues& v,
                      DataType dtype, const char* forward, const char* backward) {
  SlicedCall call(ctx, s, v, dtype);
  {
    const Setting forced(kVariable, forward);
    const Array workspace = Array::bytes(sliced_forward_workspace_bytes(ctx, call.forward));
    call.forward.workspace = workspace.view();
    sliced_forward(ctx, call.forward);
  }
  const Setting forced(kVariable, backward);
  const Array workspace = Array::bytes(sliced_backward_workspace_bytes(ctx, call.backward));
  call.backward.workspace = workspace.view();
  sliced_backward(ctx, call.backward);
  return call.results();
}

// The products of the stand-in for cuBLAS sum in the order of the launch's own. What 16-bit types
// round between levels backward, the launch does not.
TEST_P(SlicedLevels, HaveTheBitsOfLevelsApart) {
  const Setting steps("PENSTOCK_CUDA_RECURRENT", "tile");  // as in the launch
  const bool exact = GetParam() == "cuda_emulated";
  for (const SlicedShape& s : level_shapes()) {
    for (DataType dtype : {DataType::kFloat32, DataType::kBFloat16}) {
      const SlicedValues v = random_values(s, dtype, 33);
      const SlicedResults apart = compute(ctx(), s, v, dtype, "0", "0");
      for (const char* way : kWays) {
        const SlicedResults forward = compute(ctx(), s, v, dtype, way, "0");
        const SlicedResults backward = compute(ctx(), s, v, dtype, "0", way);
        if (!exact) {
          expect_close(forward, apart, dtype, s);
          expect_close(backward, apart, dtype, s);
          continue;
        }
        EXPECT_TRUE(same_bits(forward, apart)) << way << " " << name_of(dtype) << " " << s.words();
        if (size_of(dtype) == 2) {
          expect_close(backward, apart, dtype, s);
        } else {
          EXPECT_TRUE(same_bits(backward, apart)) << way << " " << s.words();
        }
      }
    }
  }
}

// The emulated backend starts threads in another order at each launch.
TEST_P(SlicedLevels, HaveTheSameBitsOnEveryRun) {
  for (const char* way : kWays) {
    const Setting forced(kVariable, way);
    for (const SlicedShape& s : level_shapes()) {
      const SlicedValues v = random_values(s, DataType::kFloat32, 34);
      const SlicedResults first = compute(ctx(), s, v, DataType::kFloat32);
      EXPECT_TRUE(same_bits(compute(ctx(), s, v, DataType::kFloat32), first)) << s.words();
    }
  }
}

TEST_P(SlicedLevels, KeepNothingWithoutGradient) {
  for (const char* way : kWays) {
    const Setting forced(kVariable, way);
    for (const SlicedShape& s : level_shapes()) {
      SlicedCall call(ctx(), s, random_values(s, DataType::kFloat16, 35), DataType::kFloat16);
      sliced_forward(ctx(), call.forward);
      const SlicedResults with = call.results();
      call.forward.need_grad = false;
      call.forward.reserve = TensorView();
      for (Array& a : call.outputs) a.set(Values(a.get().size(), NAN));
      const Array workspace = Array::bytes(sliced_forward_workspace_bytes(ctx(), call.forward));
      call.forward.workspace = workspace.view();
      sliced_forward(ctx(), call.forward);
      EXPECT_TRUE(same_bits(call.results(), with)) << s.words();
    }
  }
}

TEST_P(SlicedLevels, DoNotReadOutputsBackward) {
  for (const char* way : kWays) {
    const Setting forced(kVariable, way);
    SlicedShape s;
    s.steps = 14, s.lengths = true;
    SlicedCall call(ctx(), s, random_values(s, DataType::kFloat32, 36), DataType::kFloat32);
    sliced_forward(ctx(), call.forward);
    sliced_backward(ctx(), call.backward);
    const SlicedResults first = call.results();
    for (Array& a : call.outputs) a.set(Values(a.get().size(), NAN));
    sliced_backward(ctx(), call.backward);
    SlicedResults second = call.results();
    second.outputs = first.outputs;
    EXPECT_TRUE(same_bits(second, first)) << way;
  }
}

TEST_P(SlicedLevels, DoNotDependOnTheBatchWhereThatIsAsked) {
  if (GetParam() == "cuda") GTEST_SKIP() << "the lowest level's W x is cuBLAS's";
  const bool before = batch_invariant();
  set_batch_invariant(true);
  SlicedShape s;
  s.steps = 40, s.batch = 60, s.input = 6;
  s.slices = {2, 2};
  s.hidden = {20, 20, 20};
  const SlicedValues all = random_values(s, DataType::kFloat32, 37);
  const SlicedResults together = compute(ctx(), s, all, DataType::kFloat32);
  // The last sequence alone.
  SlicedShape one = s;
  one.batch = 1;
  SlicedValues v = all;
  const auto last = [&](const Values& x, std::int64_t columns) {
    Values out;
    const auto rows = static_cast<std::int64_t>(x.size()) / (s.batch * columns);
    for (std::int64_t i = 0; i < rows; ++i) {
      const auto from = x.begin() + (i * s.batch + s.batch - 1) * columns;
      out.insert(out.end(), from, from + columns);
    }
    return out;
  };
  v.x = last(all.x, s.input);
  v.doutputs[2] = last(all.doutputs[2], s.width(2));
  const SlicedResults alone = compute(ctx(), one, v, DataType::kFloat32);
  set_batch_invariant(before);
  for (int i = 0; i < s.count(); ++i) {
    EXPECT_EQ(alone.outputs[at(i)], last(together.outputs[at(i)], s.width(i)));
  }
  EXPECT_EQ(alone.dx, last(together.dx, s.input));
}

// One workspace for all products over time, however many levels there are.
TEST_P(SlicedLevels, ShareTheWorkspaceOfProducts) {
  const SlicedShape s = level_shapes()[0];
  const SlicedValues v = random_values(s, DataType::kFloat32, 38);
  const Setting forced(kVariable, "1");
  const SlicedCall call(ctx(), s, v, DataType::kFloat32);
  const auto product = static_cast<std::int64_t>(48) << 20;
  EXPECT_LT(call.forward.workspace.nbytes(), product);
  EXPECT_LT(call.backward.workspace.nbytes(), product);
}

}  // namespace
}  // namespace penstock::tests
