// Tiles on tensor cores, by which the CUDA backend takes scans of many rows: the choice itself, and
// their results against the float64 reference whatever the choice would be. The CPU passes through
// the same tests. (Slices, layouts and recomputing: the test cpp.cuda_emulated.matrix.)

#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "accuracy.h"
#include "backends.h"
#include "cells/recurrent_cuda_matrix_plan.h"
#include "penstock/config.h"
#include "recurrent_problem.h"
#include "setting.h"

namespace penstock::tests {
namespace {

using cuda::matrix_tile_plan;
using cuda::MatrixTile;
using cuda::MatrixTilePlan;
using cuda::MatrixTileProblem;

constexpr DataType kTypes[] = {DataType::kFloat32, DataType::kFloat16, DataType::kBFloat16};

// ---- the choice --------------------------------------------------------------------------------

/// A GRU on a device like the H200.
MatrixTileProblem problem(std::int64_t hidden, std::int64_t rows, int value_bytes,
                          bool backward = false) {
  MatrixTileProblem p;
  p.backward = backward;
  p.gates = 3;
  p.biases = 4;
  p.value_bytes = value_bytes;
  p.hidden = hidden;
  p.rows = rows;
  p.steps = 8;
  p.moved = 9.0 * value_bytes;
  p.multiprocessors = 132;
  p.block_shared = 227 << 10;
  p.total_shared = 228 << 10;
  return p;
}

TEST(MatrixPlan, IsForManyRows) {
  for (const int bytes : {2, 4}) {
    EXPECT_TRUE(matrix_tile_plan(problem(50, 8192, bytes)).take);
    EXPECT_FALSE(matrix_tile_plan(problem(50, 128, bytes)).take);
    EXPECT_TRUE(matrix_tile_plan(problem(50, 128, bytes), 1).take);
    EXPECT_FALSE(matrix_tile_plan(problem(50, 8192, bytes), 0).take);
  }
}

TEST(MatrixPlan, IsNotForDoublesOrNothing) {
  EXPECT_FALSE(matrix_tile_plan(problem(50, 8192, 8), 1).take);
  EXPECT_FALSE(matrix_tile_plan(problem(0, 8192, 4), 1).take);
  EXPECT_FALSE(matrix_tile_plan(problem(50, 0, 4), 1).take);
}

TEST(MatrixPlan, IsTheSameForAnyRowsWhereThatIsAsked) {
  for (const std::int64_t hidden : {20, 50, 90, 150, 300}) {
    for (const int bytes : {2, 4}) {
      MatrixTileProblem many = problem(hidden, 100000, bytes), one = problem(hidden, 1, bytes);
      many.independent = one.independent = true;
      EXPECT_EQ(matrix_tile_plan(many).take, matrix_tile_plan(one).take) << hidden;
    }
  }
}

// What docs/cuda_recurrent.md says, and never what has no room.
TEST(MatrixPlan, TakesWhatFits) {
  const auto largest = [](int value_bytes, bool backward) {
    std::int64_t hidden = 1;
    while (matrix_tile_plan(problem(hidden + 1, 8192, value_bytes, backward), 1).take) ++hidden;
    EXPECT_FALSE(matrix_tile_plan(problem(hidden + 100, 8192, value_bytes, backward), 1).take);
    return hidden;
  };
  EXPECT_GE(largest(4, false), 80);
  EXPECT_GE(largest(4, true), 80);
  EXPECT_GE(largest(2, false), 160);
  EXPECT_GE(largest(2, true), 160);
  for (std::int64_t hidden = 1; hidden < 400; hidden += 7) {
    for (const std::int64_t rows : {1, 17, 500, 5000, 100000}) {
      for (const int bytes : {2, 4}) {
        for (const bool backward : {false, true}) {
          for (const std::int64_t shared : {48 << 10, 163 << 10, 227 << 10}) {
            MatrixTileProblem p = problem(hidden, rows, bytes, backward);
            p.block_shared = p.total_shared = shared;
            const MatrixTilePlan plan = matrix_tile_plan(p, 1);
            if (!plan.take) continue;
            const MatrixTile& t = plan.tile;
            EXPECT_LE(t.shared_bytes, shared);
            EXPECT_GE(t.unit_blocks * cuda::kMatrixUnits, hidden);
            EXPECT_GE(t.chunks * (bytes == 4 ? 8 : 16), hidden);
            EXPECT_GE(t.warps, 1);
            EXPECT_LE(t.warps, cuda::matrix_warps(p.gates, bytes));
            EXPECT_LE(t.operand + t.buffers * t.operand_bytes, t.state);
            EXPECT_LE(t.state, t.c);
            EXPECT_LE(t.c, t.bias);
            EXPECT_LE(t.bias, t.rows);
            EXPECT_GT(plan.nanoseconds, 0.0);
          }
        }
      }
    }
  }
}

TEST(MatrixPlan, PredictsMoreTimeForMoreWork) {
  for (const int bytes : {2, 4}) {
    for (const std::int64_t hidden : {8, 50, 64, 80}) {
      double before = 0.0;
      for (const std::int64_t rows : {1000, 10000, 100000, 1000000}) {
        const double now = matrix_tile_plan(problem(hidden, rows, bytes), 1).nanoseconds;
        EXPECT_GT(now, before) << rows << " rows, H " << hidden;
        before = now;
      }
    }
  }
}

TEST(MatrixPlan, TakesShortInputsItself) {
  for (const int bytes : {2, 4}) {
    MatrixTileProblem p = problem(50, 8192, bytes);
    p.input = 50;
    // In float32 the products alone take as long as cuBLAS's.
    EXPECT_EQ(cuda::matrix_input_plan(p).take, bytes == 2);
    EXPECT_TRUE(cuda::matrix_input_plan(p, -1, 1).take);
    EXPECT_FALSE(cuda::matrix_input_plan(p, 0).take);
    EXPECT_FALSE(cuda::matrix_input_plan(p, -1, 0).take);
    p.rows = 100;
    EXPECT_FALSE(cuda::matrix_input_plan(p).take);
    EXPECT_TRUE(cuda::matrix_input_plan(p, 1, 1).take);
    p.rows = 8192;
    p.input = 200;
    EXPECT_FALSE(cuda::matrix_input_plan(p).take);
    p.input = 100000;  // no room
    EXPECT_FALSE(cuda::matrix_input_plan(p, 1, 1).take);
  }
}

// ---- the scans ---------------------------------------------------------------------------------

/// The cells that such tiles are for, with each activation.
std::vector<RecurrentShape> forms() {
  std::vector<RecurrentShape> all;
  const auto add = [&](Cell cell, Activation activation) {
    RecurrentShape s;
    s.cell = cell;
    s.activation = activation;
    all.push_back(s);
  };
  for (Cell cell : {Cell::kRnn, Cell::kGru, Cell::kLstm}) add(cell, Activation::kTanh);
  for (Cell cell : {Cell::kRnn, Cell::kGru}) add(cell, Activation::kIdentity);
  add(Cell::kGru, Activation::kRelu);
  return all;
}

class RecurrentMatrix : public BackendTest {
 protected:
  void expect_reference(const RecurrentShape& s, DataType dtype, std::uint64_t seed) {
    const RecurrentValues v = random_values(s, dtype, seed);
    const RecurrentResults got = compute(ctx(), s, v, dtype), expected = reference(s, v);
    for (const NamedResult& r : kRecurrentResults) {
      EXPECT_LE(relative_error(got.*r.values, expected.*r.values), r.factor * tolerance_of(dtype))
          << r.name << " " << name_of(dtype) << " " << s.words();
    }
  }
  const Setting forced_{"PENSTOCK_CUDA_RECURRENT", "matrix"};
};
INSTANTIATE_TEST_SUITE_P(Backends, RecurrentMatrix, testing::ValuesIn(backend_names()),
                         [](const auto& test) { return test.param; });

TEST_P(RecurrentMatrix, AgreesWithReference) {
  // H, rows, steps.
  const std::int64_t sizes[][3] = {{1, 40, 3},  {8, 16, 1},  {20, 33, 4}, {50, 21, 5},
                                   {64, 40, 2}, {100, 5, 3}, {33, 17, 3}, {80, 18, 2}};
  int turn = 0;
  for (RecurrentShape s : forms()) {
    for (const auto& n : sizes) {
      s.hidden = n[0], s.batch = n[1], s.steps = n[2];
      s.direction = static_cast<Direction>(turn++ % 3);
      s.lengths = turn % 2 == 0;
      s.h0 = s.c0 = turn % 5 != 0;
      s.state_gradients = turn % 4 != 0;
      s.dy = turn % 7 != 0;
      for (DataType dtype : kTypes) {
        // Where sums are rounded to 16 bits, some cross the kink.
        if (s.activation == Activation::kRelu && size_of(dtype) == 2) continue;
        expect_reference(s, dtype, 41);
      }
    }
  }
}

// More row blocks than a warp takes together, and more items than warps.
TEST_P(RecurrentMatrix, ManyRowsAgreeWithReference) {
  for (Cell cell : {Cell::kRnn, Cell::kGru, Cell::kLstm}) {
    RecurrentShape s;
    s.cell = cell;
    s.batch = 333, s.steps = 3, s.hidden = 20, s.lengths = true;
    for (DataType dtype : kTypes) expect_reference(s, dtype, 42);
    s.direction = Direction::kBidirectional;
    s.batch = 700, s.hidden = 9, s.lengths = false;
    expect_reference(s, DataType::kFloat32, 43);
  }
}

TEST_P(RecurrentMatrix, ManyStepsInFloat32) {
  for (Cell cell : {Cell::kGru, Cell::kLstm}) {
    RecurrentShape s;
    s.cell = cell;
    s.steps = 300, s.batch = 3, s.hidden = 24;
    expect_reference(s, DataType::kFloat32, 44);
  }
}

// The emulated backend starts threads in another order at each launch.
TEST_P(RecurrentMatrix, HasTheSameBitsOnEveryRun) {
  for (RecurrentShape s : forms()) {
    s.batch = 37, s.hidden = 50, s.steps = 3, s.lengths = true;
    for (DataType dtype : {DataType::kFloat32, DataType::kBFloat16}) {
      const RecurrentValues v = random_values(s, dtype, 45);
      const RecurrentResults first = compute(ctx(), s, v, dtype);
      for (int i = 0; i < 2; ++i) {
        EXPECT_TRUE(same_bits(compute(ctx(), s, v, dtype), first)) << s.words();
      }
    }
  }
}

TEST_P(RecurrentMatrix, IsTakenForManyRowsByItself) {
  if (GetParam() == "cpu") GTEST_SKIP() << "of CUDA alone";
  RecurrentShape s;
  s.batch = 16 * 132, s.hidden = 12, s.steps = 2;  // enough for any device's multiprocessors
  const RecurrentValues v = random_values(s, DataType::kFloat32, 46);
  const RecurrentResults forced = compute(ctx(), s, v, DataType::kFloat32);
  RecurrentResults by_choice, never;
  {
    const Setting choose("PENSTOCK_CUDA_RECURRENT", "");
    by_choice = compute(ctx(), s, v, DataType::kFloat32);
  }
  {
    const Setting off("PENSTOCK_CUDA_RECURRENT", "tile");
    never = compute(ctx(), s, v, DataType::kFloat32);
  }
  EXPECT_TRUE(same_bits(by_choice, forced));
  EXPECT_FALSE(same_bits(never, forced));
}

// A row's bits are those that it has alone, whatever tile it is in.
TEST_P(RecurrentMatrix, RowsDoNotDependOnTheBatch) {
  if (GetParam() != "cuda_emulated") GTEST_SKIP() << "W x of other shapes may round in other ways";
  for (Cell cell : {Cell::kRnn, Cell::kGru, Cell::kLstm}) {
    for (DataType dtype : {DataType::kFloat32, DataType::kFloat16}) {
      RecurrentShape s;
      s.cell = cell;
      s.steps = 4, s.batch = 300, s.hidden = 21, s.input = 6;
      const RecurrentValues all = random_values(s, dtype, 47);
      const RecurrentResults together = compute(ctx(), s, all, dtype);
      for (const std::int64_t row : {0, 7, 129, 299}) {
        RecurrentShape one = s;
        one.batch = 1;
        RecurrentValues v = all;
        const auto only = [&](const Values& x, std::int64_t rows, std::int64_t columns) {
          Values out;
          for (std::int64_t i = 0; i < rows && !x.empty(); ++i) {
            const auto from = x.begin() + (i * s.batch + row) * columns;
            out.insert(out.end(), from, from + columns);
          }
          return out;
        };
        v.x = only(all.x, s.steps, s.input);
        v.h0 = only(all.h0, 1, s.hidden);
        v.c0 = only(all.c0, 1, s.hidden);
        v.dy = only(all.dy, s.steps, s.hidden);
        v.dh_last = only(all.dh_last, 1, s.hidden);
        v.dc_last = only(all.dc_last, 1, s.hidden);
        const RecurrentResults alone = compute(ctx(), one, v, dtype);
        EXPECT_EQ(alone.y, only(together.y, s.steps, s.hidden)) << s.words();
        EXPECT_EQ(alone.h_last, only(together.h_last, 1, s.hidden)) << s.words();
        EXPECT_EQ(alone.c_last, only(together.c_last, 1, s.hidden)) << s.words();
        EXPECT_EQ(alone.dh0, only(together.dh0, 1, s.hidden)) << s.words();
        EXPECT_EQ(alone.dc0, only(together.dc0, 1, s.hidden)) << s.words();
      }
    }
  }
}

// Scans that take x themselves.
class RecurrentMatrixInput : public RecurrentMatrix {
 protected:
  const Setting forced_input_{"PENSTOCK_CUDA_MATRIX_INPUT", "1"};
};
INSTANTIATE_TEST_SUITE_P(Backends, RecurrentMatrixInput, testing::ValuesIn(backend_names()),
                         [](const auto& test) { return test.param; });

TEST_P(RecurrentMatrixInput, AgreesWithReference) {
  // D, H, rows, steps.
  const std::int64_t sizes[][4] = {{1, 8, 16, 1},  {4, 20, 33, 4}, {50, 50, 21, 3}, {16, 33, 17, 2},
                                   {33, 9, 40, 5}, {8, 1, 5, 3},   {72, 24, 18, 2}, {6, 64, 3, 2}};
  int turn = 0;
  for (RecurrentShape s : forms()) {
    for (const auto& n : sizes) {
      s.input = n[0], s.hidden = n[1], s.batch = n[2], s.steps = n[3];
      s.direction = static_cast<Direction>(turn++ % 3);
      s.lengths = turn % 2 == 0;
      s.h0 = s.c0 = turn % 5 != 0;
      s.recompute = turn % 4 == 0;
      for (DataType dtype : kTypes) {
        if (s.activation == Activation::kRelu && size_of(dtype) == 2) continue;
        expect_reference(s, dtype, 49);
      }
    }
  }
}

TEST_P(RecurrentMatrixInput, HasTheSameBitsOnEveryRun) {
  for (RecurrentShape s : forms()) {
    s.batch = 300, s.hidden = 20, s.input = 30, s.steps = 4;
    for (DataType dtype : {DataType::kFloat32, DataType::kFloat16}) {
      const RecurrentValues v = random_values(s, dtype, 50);
      const RecurrentResults first = compute(ctx(), s, v, dtype);
      EXPECT_TRUE(same_bits(compute(ctx(), s, v, dtype), first)) << s.words();
    }
  }
}

TEST_P(RecurrentMatrixInput, NeedsNoRoomForProducts) {
  if (GetParam() == "cpu") GTEST_SKIP() << "of CUDA alone";
  RecurrentShape s;
  s.batch = 40, s.hidden = 24, s.steps = 5, s.input = 8;
  const RecurrentValues v = random_values(s, DataType::kFloat32, 51);
  RecurrentCall call(ctx(), s, v, DataType::kFloat32);
  call.run_forward();
  const RecurrentResults with = call.results();
  call.forward.need_grad = false;
  call.forward.reserve = TensorView();
  const std::size_t bytes = call.forward_workspace_bytes();
  {
    const Setting apart("PENSTOCK_CUDA_MATRIX_INPUT", "0");
    EXPECT_GT(call.forward_workspace_bytes(), bytes);
  }
  for (Array* a : {&call.y, &call.h_last}) a->set(Values(a->get().size(), NAN));
  const Array workspace = Array::bytes(bytes);
  call.forward.workspace = workspace.view();
  call.run_forward();
  EXPECT_TRUE(same_bits(call.results(), with));
}

// In the middle of an array, rows of x can be copied by no more than an element.
TEST_P(RecurrentMatrixInput, MayBeginAnywhere) {
  for (DataType dtype : kTypes) {
    RecurrentShape s;
    s.batch = 18, s.hidden = 10, s.input = 8, s.steps = 3;
    const RecurrentValues v = random_values(s, dtype, 52);
    RecurrentCall call(ctx(), s, v, dtype);
    call.run_forward();
    const Values expected = call.y.get();
    Values shifted = {0.0};
    shifted.insert(shifted.end(), v.x.begin(), v.x.end());
    const Array longer(dtype, {static_cast<std::int64_t>(shifted.size())}, shifted);
    call.forward_inputs.x.data = static_cast<char*>(longer.view().data) + size_of(dtype);
    call.run_forward();
    EXPECT_EQ(call.y.get(), expected) << name_of(dtype);
  }
}

// In the middle of an array, units are no aligned pairs.
TEST_P(RecurrentMatrix, OutputsMayBeginAnywhere) {
  for (DataType dtype : kTypes) {
    RecurrentShape s;
    s.batch = 18, s.hidden = 10, s.steps = 3;
    const RecurrentValues v = random_values(s, dtype, 48);
    RecurrentCall call(ctx(), s, v, dtype);
    call.run_forward();
    const RecurrentResults expected = call.results();
    const std::int64_t n = s.steps * s.batch * s.width();
    Array longer(dtype, {n + 1});
    TensorView y = call.y.view();
    y.data = static_cast<char*>(longer.view().data) + size_of(dtype);
    call.forward.y = y;
    call.run_forward();
    const Values shifted = longer.get();
    EXPECT_EQ(Values(shifted.begin() + 1, shifted.end()), expected.y) << name_of(dtype);
  }
}

}  // namespace
}  // namespace penstock::tests
