// The SRU as the cell of a sliced network, through the public headers, over each backend: every
// part of every sequence against the float64 reference of the plain SRU over its valid steps alone.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "accuracy.h"
#include "backends.h"
#include "penstock/penstock.h"
#include "penstock/sliced.h"
#include "setting.h"
#include "sru_problem.h"

namespace penstock::tests {
namespace {

constexpr DataType kTypes[] = {DataType::kFloat32, DataType::kFloat64, DataType::kFloat16,
                               DataType::kBFloat16};

double tolerance(DataType dtype) {
  switch (dtype) {
    case DataType::kFloat64: return 1e-12;
    case DataType::kFloat16: return 1e-2;
    case DataType::kBFloat16: return 6e-2;
    default: return 2e-5;
  }
}

std::size_t at(std::int64_t i) { return static_cast<std::size_t>(i); }

/// A network of two levels: `parts` parts below, one above.
struct Problem {
  std::int64_t time = 10, parts = 3;
  PadSide pad = PadSide::kLeft;
  SliceMask mask = SliceMask::kSkip;
  std::vector<double> lengths;  // one for each sequence, or none
  SruShape below, above;        // `steps` of a part
  SruValues values[2];

  std::int64_t entries() const { return parts * below.steps; }
  std::int64_t front() const { return pad == PadSide::kLeft ? entries() - time : 0; }
  bool valid(std::int64_t entry, std::int64_t b) const {
    if (mask == SliceMask::kNone) return true;
    const std::int64_t t = entry - front();
    if (t < 0 || t >= time) return false;
    const auto n = lengths.empty() ? time : static_cast<std::int64_t>(lengths[at(b)]);
    return pad == PadSide::kLeft ? t >= time - n : t < n;
  }
  std::string words() const {
    return below.words() + " time=" + std::to_string(time) + " parts=" + std::to_string(parts) +
           (pad == PadSide::kLeft ? " left" : " right") +
           (mask == SliceMask::kSkip ? " skip" : " none") + (lengths.empty() ? "" : " lengths");
  }
};

Problem make_problem(std::int64_t time, std::int64_t parts, const SruShape& shape, DataType dtype) {
  Problem p;
  p.time = time;
  p.parts = parts;
  p.below = p.above = shape;
  p.below.c0 = p.below.dy = p.below.dc_last = false;
  p.below.steps = (time + parts - 1) / parts;
  p.above = p.below;
  p.above.steps = parts;
  p.above.input = p.above.width();
  SruShape all = p.below;
  all.steps = time;
  p.values[0] = random_values(all, dtype, 1);
  p.values[1] = random_values(p.above, dtype, 2);
  return p;
}

/// One level of the reference: `out` (parts, B, dirs·H), which of them had a step, and, for a
/// gradient of `out`, those of its x (entries, B, D) and its parameters.
struct Level {
  Values out, dx, dweight, dweight_c, dbias;
  std::vector<bool> alive;
};

Level run_level(SruShape shape, SruValues values, const Values& x, const std::vector<bool>& valid,
                std::int64_t parts, const Values& dout) {
  const std::int64_t steps = shape.steps, batch = shape.batch, input = shape.input;
  const std::int64_t width = shape.width(), hidden = shape.hidden;
  Level level;
  level.out.resize(at(parts * batch * width));
  level.alive.resize(at(parts * batch));
  level.dx.resize(x.size());
  level.dweight.resize(values.weight.size());
  level.dweight_c.resize(values.bias.size());
  level.dbias.resize(values.bias.size());
  shape.batch = 1;
  shape.dy = true;
  for (std::int64_t row = 0; row < parts * batch; ++row) {
    std::vector<std::int64_t> rows;
    for (std::int64_t i = 0; i < steps; ++i) {
      const std::int64_t entry = (row / batch * steps + i) * batch + row % batch;
      if (valid[at(entry)]) rows.push_back(entry);
    }
    if (rows.empty()) continue;
    level.alive[at(row)] = true;
    shape.steps = static_cast<std::int64_t>(rows.size());
    values.x.clear();
    for (const std::int64_t r : rows) {
      values.x.insert(values.x.end(), x.begin() + r * input, x.begin() + (r + 1) * input);
    }
    // What each direction reads last: its place in y.
    const auto place = [&](std::int64_t j) {
      const bool reversed = shape.direction == Direction::kReverse || j >= hidden;
      return at((reversed ? 0 : shape.steps - 1) * width + j);
    };
    values.dy.assign(at(shape.steps * width), 0.0);
    for (std::int64_t j = 0; j < width; ++j) values.dy[place(j)] = dout[at(row * width + j)];
    const SruResults r = reference(shape, values);
    for (std::int64_t j = 0; j < width; ++j) level.out[at(row * width + j)] = r.y[place(j)];
    for (std::size_t i = 0; i < rows.size(); ++i) {
      std::copy_n(r.dx.begin() + static_cast<std::int64_t>(i) * input, input,
                  level.dx.begin() + rows[i] * input);
    }
    const auto add = [](const Values& more, Values* sum) {
      for (std::size_t i = 0; i < more.size(); ++i) (*sum)[i] += more[i];
    };
    add(r.dweight, &level.dweight);
    add(r.dweight_c, &level.dweight_c);
    add(r.dbias, &level.dbias);
  }
  return level;
}

void check(const std::string& backend, const Problem& p, DataType dtype) {
  const Context ctx = context_of(backend);
  const std::int64_t batch = p.below.batch, input = p.below.input, width = p.below.width();
  const SruShape* shapes[2] = {&p.below, &p.above};

  // The reference.
  Values x(at(p.entries() * batch * input));
  std::copy(p.values[0].x.begin(), p.values[0].x.end(), x.begin() + p.front() * batch * input);
  std::vector<bool> valid;
  for (std::int64_t entry = 0; entry < p.entries(); ++entry) {
    for (std::int64_t b = 0; b < batch; ++b) valid.push_back(p.valid(entry, b));
  }
  const Values zeros(at(p.parts * batch * width));
  const Values from_outside = Numbers(3).take(p.parts * batch * width);
  const Values dy = Numbers(4).take(batch * width);
  Level below = run_level(p.below, p.values[0], x, valid, p.parts, zeros);
  const Level above = run_level(p.above, p.values[1], below.out, below.alive, 1, dy);
  Values dout = above.dx;
  for (std::size_t i = 0; i < dout.size(); ++i) dout[i] += from_outside[i];
  below = run_level(p.below, p.values[0], x, valid, p.parts, dout);
  const Level* const expected[2] = {&below, &above};

  // The library.
  struct Arrays {
    Array weight, weight_c, bias, out, dout, dweight, dweight_c, dbias;
  } arrays[2];
  SlicedLevel levels[2], dlevels[2];
  TensorView outputs[2], doutputs[2];
  for (int i = 0; i < 2; ++i) {
    const SruShape& s = *shapes[i];
    const SruValues& v = p.values[i];
    Arrays& a = arrays[i];
    const Shape weight = {s.dirs(), s.blocks * s.hidden, s.input}, pair = {s.dirs(), 2, s.hidden};
    const Shape out = {i == 0 ? p.parts : 1, batch, width};
    a.weight = Array(dtype, weight, v.weight, s.layout);
    if (s.weight_c) a.weight_c = Array(dtype, pair, v.weight_c, s.layout);
    a.bias = Array(dtype, pair, v.bias, s.layout);
    a.out = Array(dtype, out);
    a.dout = Array(dtype, out, i == 0 ? from_outside : dy, s.layout);
    a.dweight = Array(dtype, weight);
    if (s.weight_c) a.dweight_c = Array(dtype, pair);
    a.dbias = Array(dtype, pair);
    levels[i] = {a.weight.view(), a.weight_c.view(), a.bias.view(), TensorView()};
    dlevels[i] = {a.dweight.view(), a.dweight_c.view(), a.dbias.view(), TensorView()};
    outputs[i] = a.out.view();
    doutputs[i] = a.dout.view();
  }
  const Shape x_shape = {p.time, batch, input};
  const Array x_array(dtype, x_shape, p.values[0].x, p.below.layout);
  const Array dx(dtype, x_shape);
  Array lengths;
  if (!p.lengths.empty()) lengths = Array(DataType::kInt32, {batch}, p.lengths);

  const auto fill = [&](SlicedInputs& in) {
    in.cell = "sru";
    in.x = x_array.view();
    in.levels = levels;
    in.slices = &p.parts;
    in.slice_count = 1;
    in.lengths = lengths.view();
    in.pad = p.pad;
    in.mask = p.mask;
    in.direction = p.below.direction;
    in.activation = p.below.activation;
    in.skip = p.below.skip;
    in.scale_x = p.below.scale_x;
  };
  SlicedForwardArgs forward;
  fill(forward);
  forward.outputs = outputs;
  const Array reserve = Array::bytes(sliced_reserve_bytes(ctx, forward));
  forward.reserve = reserve.view();
  const Array workspace = Array::bytes(sliced_forward_workspace_bytes(ctx, forward));
  forward.workspace = workspace.view();
  sliced_forward(ctx, forward);
  SlicedBackwardArgs backward;
  fill(backward);
  backward.reserve = reserve.view();
  backward.doutputs = doutputs;
  backward.dx = dx.view();
  backward.dlevels = dlevels;
  const Array scratch = Array::bytes(sliced_backward_workspace_bytes(ctx, backward));
  backward.workspace = scratch.view();
  sliced_backward(ctx, backward);

  const std::string words = std::string(name_of(dtype)) + " " + p.words();
  const double limit = tolerance(dtype);
  for (int i = 0; i < 2; ++i) {
    const std::string level = "level " + std::to_string(i) + " " + words;
    EXPECT_LE(relative_error(arrays[i].out.get(), expected[i]->out), limit) << level;
    EXPECT_LE(relative_error(arrays[i].dweight.get(), expected[i]->dweight), 10 * limit) << level;
    EXPECT_LE(relative_error(arrays[i].dbias.get(), expected[i]->dbias), 10 * limit) << level;
    if (shapes[i]->weight_c) {
      EXPECT_LE(relative_error(arrays[i].dweight_c.get(), expected[i]->dweight_c), 10 * limit)
          << level;
    }
  }
  const auto first = below.dx.begin() + p.front() * batch * input;
  EXPECT_LE(relative_error(dx.get(), Values(first, first + p.time * batch * input)), 10 * limit)
      << words;

  // Nothing is kept, and nothing else changes.
  const Values kept = arrays[1].out.get();
  forward.need_grad = false;
  forward.reserve = TensorView();
  const Array less = Array::bytes(sliced_forward_workspace_bytes(ctx, forward));
  forward.workspace = less.view();
  sliced_forward(ctx, forward);
  EXPECT_EQ(arrays[1].out.get(), kept) << words;
}

class SruLevel : public ::testing::TestWithParam<std::string> {};

TEST_P(SruLevel, EveryPadding) {
  for (Direction direction :
       {Direction::kForward, Direction::kReverse, Direction::kBidirectional}) {
    for (DataType dtype : kTypes) {
      for (int option = 0; option < 8; ++option) {
        SruShape s;
        s.batch = 4;
        s.direction = direction;
        s.input = s.width();
        s.blocks = option % 2 == 0 ? 3 : 4;  // the skip term from x, or from the weight
        s.scale_x = 1.2;
        Problem p = make_problem(option < 4 ? 10 : 12, 3, s, dtype);
        p.pad = option % 4 < 2 ? PadSide::kLeft : PadSide::kRight;
        p.lengths = {10, 0, 1, 6};
        check(GetParam(), p, dtype);
        p.lengths.clear();
        check(GetParam(), p, dtype);
        p.mask = SliceMask::kNone;
        check(GetParam(), p, dtype);
      }
    }
  }
}

TEST_P(SruLevel, EveryOption) {
  for (Activation activation : {Activation::kIdentity, Activation::kTanh, Activation::kRelu}) {
    for (Layout layout :
         {Layout::kContiguous, Layout::kFortran, Layout::kNegative, Layout::kGaps}) {
      SruShape s;
      s.activation = activation;
      s.layout = layout;
      s.blocks = 3;
      s.skip = false;
      s.weight_c = layout != Layout::kFortran;
      s.direction = Direction::kBidirectional;
      Problem p = make_problem(11, 4, s, DataType::kFloat64);
      p.lengths = {11, 3, 5};
      check(GetParam(), p, DataType::kFloat64);
    }
  }
}

// More parts than fit into a chunk of the CPU's, parts longer than one, more channels than a group,
// and more sums than the smaller reduction on CUDA takes.
TEST_P(SruLevel, Sizes) {
  const std::int64_t sizes[][5] = {{1, 1, 1, 1, 1},   {2, 5, 2, 3, 4},    {150, 50, 12, 5, 8},
                                   {540, 2, 3, 4, 9}, {40, 8, 3, 17, 80}, {90, 30, 4, 3, 33}};
  for (const auto& n : sizes) {
    for (DataType dtype : {DataType::kFloat32, DataType::kFloat64}) {
      SruShape s;
      s.batch = n[2], s.input = n[3], s.hidden = n[4];
      s.direction = Direction::kBidirectional;
      check(GetParam(), make_problem(n[0], n[1], s, dtype), dtype);
    }
  }
}

// On CUDA with states kept here and there only.
TEST_P(SruLevel, FromFewStates) {
  for (const char* keep : {"2", "4", "8"}) {
    const Setting kept("PENSTOCK_CUDA_SRU_KEEP", keep);
    for (const std::int64_t hidden : {64, 9}) {
      for (DataType dtype : kTypes) {
        for (const std::int64_t time : {10, 61}) {
          SruShape s;
          s.batch = 4, s.hidden = hidden;
          s.direction = hidden == 9 ? Direction::kBidirectional : Direction::kReverse;
          Problem p = make_problem(time, 3, s, dtype);
          p.pad = time == 10 ? PadSide::kLeft : PadSide::kRight;
          p.lengths = {static_cast<double>(time), 0, 1, 6};
          check(GetParam(), p, dtype);
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, SruLevel, ::testing::ValuesIn(backend_names()),
                         [](const auto& p) { return p.param; });

}  // namespace
}  // namespace penstock::tests
