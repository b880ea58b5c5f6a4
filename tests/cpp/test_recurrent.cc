// RNN, GRU and LSTM through the public headers, over each backend, against the float64 reference.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>

#include "accuracy.h"
#include "backends.h"
#include "penstock/penstock.h"
#include "recurrent_problem.h"

namespace penstock::tests {
namespace {

constexpr DataType kTypes[] = {DataType::kFloat32, DataType::kFloat64, DataType::kFloat16,
                               DataType::kBFloat16};
constexpr Cell kCells[] = {Cell::kRnn, Cell::kGru, Cell::kLstm};

void expect_close(const RecurrentResults& got, const RecurrentResults& expected, DataType dtype,
                  const std::string& words) {
  for (const NamedResult& r : kRecurrentResults) {
    EXPECT_LE(relative_error(got.*r.values, expected.*r.values), r.factor * tolerance_of(dtype))
        << r.name << " " << name_of(dtype) << " " << words;
  }
}

/// Every cell and every form of it.
std::vector<RecurrentShape> forms() {
  std::vector<RecurrentShape> all;
  const auto add = [&](Cell cell, Activation activation, ResetMode reset) {
    RecurrentShape s;
    s.cell = cell;
    s.activation = activation;
    s.reset = reset;
    all.push_back(s);
  };
  for (Activation activation : {Activation::kTanh, Activation::kIdentity, Activation::kRelu}) {
    add(Cell::kRnn, activation, ResetMode::kAfter);
    add(Cell::kGru, activation, ResetMode::kAfter);
    add(Cell::kGru, activation, ResetMode::kBefore);
  }
  add(Cell::kLstm, Activation::kTanh, ResetMode::kAfter);
  return all;
}

/// The forms with tanh alone: the RNN, both GRUs, the LSTM.
std::vector<RecurrentShape> tanh_forms() {
  std::vector<RecurrentShape> all = forms();
  all.erase(
      std::remove_if(all.begin(), all.end(),
                     [](const RecurrentShape& s) { return s.activation != Activation::kTanh; }),
      all.end());
  return all;
}

std::vector<RecurrentShape> shapes() {
  std::vector<RecurrentShape> all;
  for (const RecurrentShape& form : forms()) {
    for (Direction direction :
         {Direction::kForward, Direction::kReverse, Direction::kBidirectional}) {
      all.push_back(form);
      all.back().direction = direction;
      all.back().lengths = direction != Direction::kForward;
    }
  }
  const std::int64_t sizes[][4] = {{1, 1, 1, 1},  {1, 3, 4, 5},  {7, 1, 3, 50},  {5, 3, 8, 33},
                                   {13, 2, 5, 7}, {4, 70, 2, 3}, {31, 2, 3, 65}, {3, 2, 9, 130}};
  for (const RecurrentShape& form : tanh_forms()) {
    const auto add = [&](const std::function<void(RecurrentShape&)>& change) {
      all.push_back(form);
      change(all.back());
    };
    int turn = 0;
    for (const auto& n : sizes) {
      add([&](RecurrentShape& s) {
        s.steps = n[0], s.batch = n[1], s.input = n[2], s.hidden = n[3];
        s.direction = static_cast<Direction>(turn++ % 3);
        s.lengths = turn % 2 == 0;
        s.recompute = turn % 4 == 0;
        s.lengths_type = turn % 4 == 0 ? DataType::kInt32 : DataType::kInt64;
      });
    }
    for (Layout layout : {Layout::kFortran, Layout::kNegative, Layout::kGaps}) {
      add([&](RecurrentShape& s) {
        s.layout = layout;
        s.lengths = true;
        s.direction = Direction::kBidirectional;
      });
    }
    add([](RecurrentShape& s) { s.recompute = s.lengths = true; });
    add([](RecurrentShape& s) {
      s.recompute = true;
      s.direction = Direction::kBidirectional;
    });
    add([](RecurrentShape& s) { s.bias_ih = s.h0 = s.c0 = false; });
    add([](RecurrentShape& s) { s.bias_hh = s.h0 = s.state_gradients = false; });
    add([](RecurrentShape& s) { s.bias_ih = s.bias_hh = s.state_gradients = false; });
    add([](RecurrentShape& s) { s.dy = false; });
    add([](RecurrentShape& s) { s.dh_last = false; });
    add([](RecurrentShape& s) { s.dc_last = s.dh_last = false; });
    add([](RecurrentShape& s) { s.dy = s.dh_last = s.dc_last = false; });
    add([](RecurrentShape& s) { s.steps = 0; });
    add([](RecurrentShape& s) { s.batch = 0; });
    add([](RecurrentShape& s) { s.input = 0; });
    add([](RecurrentShape& s) { s.steps = s.input = 0; });
  }
  return all;
}

class Recurrent : public BackendTest {};
INSTANTIATE_TEST_SUITE_P(Backends, Recurrent, testing::ValuesIn(backend_names()),
                         [](const auto& test) { return test.param; });

TEST_P(Recurrent, AgreesWithReference) {
  for (const RecurrentShape& s : shapes()) {
    for (DataType dtype : kTypes) {
      // Where sums are rounded to 16 bits, some cross the kink.
      if (s.activation == Activation::kRelu && size_of(dtype) == 2) continue;
      const RecurrentValues v = random_values(s, dtype, 23);
      expect_close(compute(ctx(), s, v, dtype), reference(s, v), dtype, s.words());
    }
  }
}

// What the CPU does otherwise for large problems: several chunks of steps in both directions, the
// matrix unit, and weights that are read as they are.
TEST(RecurrentCpu, LargeShapesAgreeWithReference) {
  const std::int64_t sizes[][4] = {
      {90, 12, 10, 80},   // several chunks
      {3, 40, 130, 128},  // products in fixed point, where the processor has them
      {4, 3, 100, 256},   // few rows of large weights
      {37, 5, 60, 104},
  };
  for (const RecurrentShape& form : tanh_forms()) {
    for (const auto& n : sizes) {
      for (bool recompute : {false, true}) {
        RecurrentShape s = form;
        s.steps = n[0], s.batch = n[1], s.input = n[2], s.hidden = n[3];
        s.direction = Direction::kBidirectional;
        s.lengths = recompute;
        s.recompute = recompute;
        for (DataType dtype : {DataType::kFloat32, DataType::kFloat64, DataType::kBFloat16}) {
          if (dtype != DataType::kFloat32 && recompute) continue;
          const RecurrentValues v = random_values(s, dtype, 3);
          expect_close(compute(Context::cpu(), s, v, dtype), reference(s, v), dtype, s.words());
        }
      }
    }
  }
}

TEST_P(Recurrent, ManyStepsInFloat32) {
  for (const RecurrentShape& form : tanh_forms()) {
    RecurrentShape s = form;
    s.steps = 2048, s.batch = 1, s.input = 3, s.hidden = 5;
    const RecurrentValues v = random_values(s, DataType::kFloat32, 5);
    expect_close(compute(ctx(), s, v, DataType::kFloat32), reference(s, v), DataType::kFloat32,
                 s.words());
  }
}

// The reference's own gradients, so that nothing here rests on one derivation.
TEST(RecurrentReference, GradientsAreFiniteDifferences) {
  for (RecurrentShape s : forms()) {
    if (s.activation == Activation::kRelu) continue;  // has kinks
    s.steps = 4, s.batch = 2, s.input = 2, s.hidden = 3;
    s.direction = Direction::kBidirectional;
    s.lengths = true;
    RecurrentValues v = random_values(s, DataType::kFloat64, 3);
    v.lengths = {4, 2};
    for (Values* values : {&v.x, &v.dy}) {
      for (double& x : *values) x = std::isnan(x) ? 0.0 : x;
    }
    const auto loss = [&] {
      const RecurrentResults r = reference(s, v);
      double sum = 0.0;
      for (const auto& [values, gradient] :
           {std::pair(&r.y, &v.dy), std::pair(&r.h_last, &v.dh_last),
            std::pair(&r.c_last, &v.dc_last)}) {
        for (std::size_t i = 0; i < values->size(); ++i) sum += (*values)[i] * (*gradient)[i];
      }
      return sum;
    };
    const RecurrentResults r = reference(s, v);
    const std::pair<Values*, const Values*> pairs[] = {{&v.x, &r.dx},
                                                       {&v.weight_ih, &r.dweight_ih},
                                                       {&v.weight_hh, &r.dweight_hh},
                                                       {&v.bias_ih, &r.dbias_ih},
                                                       {&v.bias_hh, &r.dbias_hh},
                                                       {&v.h0, &r.dh0},
                                                       {&v.c0, &r.dc0}};
    for (const auto& [values, gradient] : pairs) {
      Values numeric(values->size());
      for (std::size_t i = 0; i < values->size(); ++i) {
        const double before = (*values)[i], h = 1e-5;
        (*values)[i] = before + h;
        const double up = loss();
        (*values)[i] = before - h;
        numeric[i] = (up - loss()) / (2.0 * h);
        (*values)[i] = before;
      }
      EXPECT_LE(relative_error(*gradient, numeric), 1e-8) << s.words();
    }
  }
}

// The emulated backend starts threads in another order at each launch.
TEST_P(Recurrent, SameBitsOnEveryRun) {
  for (RecurrentShape s : tanh_forms()) {
    s.steps = 9, s.batch = 5, s.input = 7, s.hidden = 40;
    s.direction = Direction::kBidirectional;
    s.lengths = true;
    for (DataType dtype : kTypes) {
      const RecurrentValues v = random_values(s, dtype, 1);
      const RecurrentResults first = compute(ctx(), s, v, dtype);
      EXPECT_TRUE(same_bits(compute(ctx(), s, v, dtype), first))
          << name_of(dtype) << " " << s.words();
    }
  }
}

TEST(RecurrentThreads, SameBitsForAnyNumber) {
  const int before = num_threads();
  const std::int64_t sizes[][4] = {{40, 9, 70, 150}, {3, 300, 20, 20}, {300, 2, 20, 33}};
  for (const RecurrentShape& form : tanh_forms()) {
    for (const auto& n : sizes) {
      RecurrentShape s = form;
      s.steps = n[0], s.batch = n[1], s.input = n[2], s.hidden = n[3];
      s.direction = Direction::kBidirectional;
      s.lengths = true;
      for (DataType dtype : {DataType::kFloat32, DataType::kFloat64}) {
        const RecurrentValues v = random_values(s, dtype, 2);
        set_num_threads(1);
        const RecurrentResults one = compute(Context::cpu(), s, v, dtype);
        for (int threads : {2, 3, 7}) {
          set_num_threads(threads);
          EXPECT_TRUE(same_bits(compute(Context::cpu(), s, v, dtype), one))
              << threads << " threads " << name_of(dtype) << " " << s.words();
        }
      }
    }
  }
  set_num_threads(before);
}

TEST_P(Recurrent, BackwardMayRunTwice) {
  for (RecurrentShape s : tanh_forms()) {
    s.lengths = true;
    for (bool recompute : {false, true}) {
      s.recompute = recompute;
      const RecurrentValues v = random_values(s, DataType::kFloat32, 4);
      const RecurrentCall call(ctx(), s, v, DataType::kFloat32);
      call.run_forward();
      call.run_backward();
      const RecurrentResults first = call.results();
      const auto reserve = call.reserve.raw();
      call.run_backward();
      EXPECT_TRUE(same_bits(call.results(), first)) << s.words();
      EXPECT_EQ(call.reserve.raw(), reserve) << s.words();
    }
  }
}

TEST_P(Recurrent, WithoutGradientKeepsNothing) {
  for (RecurrentShape s : tanh_forms()) {
    s.direction = Direction::kBidirectional;
    for (DataType dtype : kTypes) {
      const RecurrentValues v = random_values(s, dtype, 6);
      RecurrentCall call(ctx(), s, v, dtype);
      call.run_forward();
      const RecurrentResults with = call.results();
      call.forward.need_grad = false;
      call.forward.reserve = TensorView();
      EXPECT_EQ(call.reserve_bytes(), 0u);
      for (Array* a : {&call.y, &call.h_last, &call.c_last}) {
        a->set(Values(a->get().size(), NAN));
      }
      const Array workspace = Array::bytes(call.forward_workspace_bytes());
      call.forward.workspace = workspace.view();
      call.run_forward();
      EXPECT_TRUE(same_bits(call.results(), with)) << name_of(dtype) << " " << s.words();
    }
  }
}

TEST_P(Recurrent, RecomputingKeepsLessAndChangesNothingElse) {
  for (RecurrentShape s : tanh_forms()) {
    s.steps = 9, s.lengths = true;
    const RecurrentValues v = random_values(s, DataType::kFloat64, 7);
    const RecurrentCall kept(ctx(), s, v, DataType::kFloat64);
    s.recompute = true;
    const RecurrentCall again(ctx(), s, v, DataType::kFloat64);
    EXPECT_LT(again.reserve.raw().size(), kept.reserve.raw().size()) << s.words();
    for (const RecurrentCall* call : {&kept, &again}) {
      call->run_forward();
      call->run_backward();
    }
    expect_close(again.results(), kept.results(), DataType::kFloat64, s.words());
  }
}

TEST_P(Recurrent, InputsAreNotWritten) {
  for (RecurrentShape s : tanh_forms()) {
    s.lengths = true;
    for (DataType dtype : kTypes) {
      const RecurrentCall call(ctx(), s, random_values(s, dtype, 7), dtype);
      std::vector<std::vector<unsigned char>> before;
      for (const Array* a : call.inputs()) before.push_back(a->raw());
      call.run_forward();
      call.run_backward();
      std::size_t i = 0;
      for (const Array* a : call.inputs()) EXPECT_EQ(a->raw(), before[i++]) << s.words();
    }
  }
}

/// A buffer with room around it in which nothing may be written.
class Fenced {
 public:
  explicit Fenced(TensorView* view) : bytes_(static_cast<std::size_t>(view->nbytes())) {
    memory_ = Array::bytes(bytes_ + 2 * kFence);
    view->data = static_cast<char*>(memory_.view().data) + kFence;
  }
  bool whole() const {
    const auto raw = memory_.raw();
    const auto kept = [](unsigned char byte) { return byte == 0xff; };
    const auto fence = static_cast<std::ptrdiff_t>(kFence);
    return std::all_of(raw.begin(), raw.begin() + fence, kept) &&
           std::all_of(raw.end() - fence, raw.end(), kept);
  }

 private:
  static constexpr std::size_t kFence = 512;
  std::size_t bytes_;
  Array memory_;
};

TEST_P(Recurrent, NothingBeyondTheOutputsAndBuffersIsWritten) {
  const std::int64_t sizes[][4] = {{5, 3, 4, 6}, {3, 20, 17, 33}, {2, 5, 70, 130}};
  for (const RecurrentShape& form : tanh_forms()) {
    for (const auto& n : sizes) {
      for (DataType dtype : kTypes) {
        RecurrentShape s = form;
        s.steps = n[0], s.batch = n[1], s.input = n[2], s.hidden = n[3];
        s.recompute = n[1] == 20;
        s.direction = Direction::kBidirectional;
        RecurrentCall call(ctx(), s, random_values(s, dtype, 8), dtype);
        TensorView* views[] = {&call.forward.y,
                               &call.forward.h_last,
                               &call.forward.workspace,
                               &call.forward.reserve,
                               &call.backward.dx,
                               &call.backward.dweight_ih,
                               &call.backward.dweight_hh,
                               &call.backward.dbias_ih,
                               &call.backward.dbias_hh,
                               &call.backward.dh0,
                               &call.backward.workspace,
                               &call.c_last_view,
                               &call.dc0_view};
        std::vector<Fenced> fenced;
        for (TensorView* view : views) {
          if (view->given()) fenced.emplace_back(view);
        }
        call.backward.reserve = call.forward.reserve;
        call.run_forward();
        call.run_backward();
        for (const Fenced& f : fenced) {
          EXPECT_TRUE(f.whole()) << &f - fenced.data() << " " << name_of(dtype) << " " << s.words();
        }
      }
    }
  }
}

// A row's states are its own: what another holds, NaN included, does not reach them.
TEST_P(Recurrent, SequencesDoNotMeet) {
  for (RecurrentShape s : tanh_forms()) {
    s.batch = 20, s.hidden = 130, s.steps = 3;
    RecurrentValues v = random_values(s, DataType::kFloat32, 9);
    const RecurrentResults before = compute(ctx(), s, v, DataType::kFloat32);
    v.x[static_cast<std::size_t>(7 * s.input)] = NAN;
    v.x[static_cast<std::size_t>(8 * s.input)] = INFINITY;
    v.h0[static_cast<std::size_t>(9 * s.hidden)] = NAN;
    v.h0[static_cast<std::size_t>(10 * s.hidden)] = 1e30;
    const RecurrentResults after = compute(ctx(), s, v, DataType::kFloat32);
    for (std::int64_t i = 0; i < s.steps * s.batch * s.hidden; ++i) {
      const std::int64_t b = i / s.hidden % s.batch;
      const auto at = static_cast<std::size_t>(i);
      if (b < 7 || b > 10) {
        ASSERT_EQ(before.y[at], after.y[at]) << s.words() << " at " << i;
      } else if (b == 7 || b == 9) {
        // The first step has seen the NaN, in every unit that it reaches.
        if (i / (s.hidden * s.batch) > 0) {
          ASSERT_TRUE(std::isnan(after.y[at])) << s.words() << " at " << i;
        }
      }
    }
  }
}

// Weights that have decayed to nearly nothing are nearly nothing, not NaN.
TEST_P(Recurrent, TinyWeightsCountForLittle) {
  for (RecurrentShape s : tanh_forms()) {
    s.batch = 20, s.hidden = 130, s.steps = 3;
    RecurrentValues v = random_values(s, DataType::kFloat32, 10);
    for (std::int64_t row : {3, 70, 129}) {
      for (std::int64_t i = 0; i < s.hidden; ++i) {
        v.weight_hh[static_cast<std::size_t>(row * s.hidden + i)] *= 1e-35;
      }
      for (std::int64_t i = 0; i < s.input; ++i) {
        v.weight_ih[static_cast<std::size_t>(row * s.input + i)] *= 1e-35;
      }
    }
    // Columns of R, which the backward pass multiplies.
    for (std::int64_t row = 0; row < s.rows(); ++row) {
      v.weight_hh[static_cast<std::size_t>(row * s.hidden + 5)] *= 1e-35;
    }
    round_values(DataType::kFloat32, &v.weight_hh);
    round_values(DataType::kFloat32, &v.weight_ih);
    expect_close(compute(ctx(), s, v, DataType::kFloat32), reference(s, v), DataType::kFloat32,
                 s.words());
  }
}

// ---- arguments that are wrong
// ----------------------------------------------------------------------

struct Wrong {
  const char* argument;
  ErrorCode code;
  std::function<void(RecurrentCall&)> change;
};

/// Expect an error that names the argument, and every output and buffer as it was.
template <class Run>
void expect_refused(const Wrong& wrong, const RecurrentCall& call, Run&& run) {
  std::vector<const Array*> arrays = call.outputs();
  for (const Array* a : {&call.reserve, &call.forward_workspace, &call.backward_workspace}) {
    arrays.push_back(a);
  }
  std::vector<std::vector<unsigned char>> before;
  for (const Array* a : arrays) before.push_back(a->raw());
  try {
    run();
    ADD_FAILURE() << wrong.argument << ": no error, " << call.shape.words();
  } catch (const Error& e) {
    EXPECT_EQ(static_cast<int>(e.code()), static_cast<int>(wrong.code)) << e.what();
    const std::string what = e.what(), op = cell_name(call.shape.cell);
    EXPECT_EQ(what.rfind(op, 0), 0u) << what;
    EXPECT_NE(what.find(std::string(": ") + wrong.argument + ": "), std::string::npos) << what;
  }
  std::size_t i = 0;
  for (const Array* a : arrays) EXPECT_EQ(a->raw(), before[i++]) << wrong.argument;
}

TensorView shorter(TensorView v) {
  --v.shape[0];
  return v;
}
TensorView moved(TensorView v) {
  v.data = static_cast<char*>(v.data) + 4;
  --v.shape[0];
  return v;
}
Array larger(const TensorView& buffer) {
  return Array::bytes(static_cast<std::size_t>(buffer.numel()) + 64);
}
TensorView read_only(TensorView v) {
  v.read_only = true;
  return v;
}

RecurrentShape checked_shape(Cell cell) {
  RecurrentShape s;
  s.cell = cell;
  s.lengths = true;
  return s;
}

std::vector<Wrong> wrong_inputs(RecurrentInputs RecurrentCall::* in) {
  return {
      {"x", ErrorCode::kValue, [=](RecurrentCall& c) { (c.*in).x = TensorView(); }},
      {"x", ErrorCode::kType, [=](RecurrentCall& c) { (c.*in).x.dtype = DataType::kInt32; }},
      {"x", ErrorCode::kValue, [=](RecurrentCall& c) { (c.*in).x.rank = 2; }},
      {"x", ErrorCode::kBuffer,
       [=](RecurrentCall& c) { (c.*in).x.device.type = DeviceType::kCuda; }},
      {"x", ErrorCode::kBuffer, [=](RecurrentCall& c) { (c.*in).x.data = nullptr; }},
      {"weight_ih", ErrorCode::kValue, [=](RecurrentCall& c) { (c.*in).weight_ih = TensorView(); }},
      {"weight_hh", ErrorCode::kValue, [=](RecurrentCall& c) { (c.*in).weight_hh = TensorView(); }},
      {"weight_ih", ErrorCode::kType,
       [=](RecurrentCall& c) { (c.*in).weight_ih.dtype = DataType::kFloat64; }},
      {"weight_ih", ErrorCode::kValue, [=](RecurrentCall& c) { --(c.*in).weight_ih.shape[1]; }},
      {"weight_ih", ErrorCode::kValue, [=](RecurrentCall& c) { --(c.*in).weight_ih.shape[2]; }},
      {"weight_ih", ErrorCode::kValue, [=](RecurrentCall& c) { (c.*in).weight_ih.rank = 2; }},
      {"weight_hh", ErrorCode::kValue, [=](RecurrentCall& c) { --(c.*in).weight_hh.shape[1]; }},
      {"weight_hh", ErrorCode::kValue, [=](RecurrentCall& c) { (c.*in).weight_hh.shape[2] = 0; }},
      {"weight_hh", ErrorCode::kValue,
       [=](RecurrentCall& c) { (c.*in).direction = Direction::kBidirectional; }},
      {"direction", ErrorCode::kValue,
       [=](RecurrentCall& c) { (c.*in).direction = static_cast<Direction>(3); }},
      {"bias_ih", ErrorCode::kValue, [=](RecurrentCall& c) { --(c.*in).bias_ih.shape[1]; }},
      {"bias_hh", ErrorCode::kType,
       [=](RecurrentCall& c) { (c.*in).bias_hh.dtype = DataType::kFloat16; }},
      {"h0", ErrorCode::kValue, [=](RecurrentCall& c) { (c.*in).h0 = shorter((c.*in).h0); }},
      {"h0", ErrorCode::kBuffer, [=](RecurrentCall& c) { (c.*in).h0.data = nullptr; }},
      {"lengths", ErrorCode::kType,
       [=](RecurrentCall& c) { (c.*in).lengths.dtype = DataType::kFloat32; }},
      {"lengths", ErrorCode::kValue,
       [=](RecurrentCall& c) { (c.*in).lengths = shorter((c.*in).lengths); }},
      {"lengths", ErrorCode::kValue, [=](RecurrentCall& c) { c.lengths.set({1, 6, 2}); }},
      {"lengths", ErrorCode::kValue, [=](RecurrentCall& c) { c.lengths.set({1, 2, -1}); }},
  };
}

TEST_P(Recurrent, WrongForwardArgumentsAreRefused) {
  std::vector<Wrong> cases = wrong_inputs(&RecurrentCall::forward_inputs);
  const Wrong outputs[] = {
      {"y", ErrorCode::kValue, [](RecurrentCall& c) { c.forward.y = TensorView(); }},
      {"y", ErrorCode::kValue, [](RecurrentCall& c) { c.forward.y = shorter(c.forward.y); }},
      {"y", ErrorCode::kBuffer, [](RecurrentCall& c) { c.forward.y.strides[0] *= 2; }},
      {"y", ErrorCode::kBuffer, [](RecurrentCall& c) { c.forward.y = read_only(c.forward.y); }},
      {"y", ErrorCode::kBuffer,
       [](RecurrentCall& c) { c.forward.y.data = c.forward_inputs.x.data; }},
      {"y", ErrorCode::kBuffer,
       [](RecurrentCall& c) { c.forward.y.data = c.forward_inputs.weight_hh.data; }},
      {"h_last", ErrorCode::kValue, [](RecurrentCall& c) { c.forward.h_last = TensorView(); }},
      {"h_last", ErrorCode::kBuffer,
       [](RecurrentCall& c) { c.forward.h_last.data = c.forward.y.data; }},
      {"h_last", ErrorCode::kBuffer,
       [](RecurrentCall& c) { c.forward.h_last.data = c.forward_inputs.h0.data; }},
      {"h_last", ErrorCode::kType,
       [](RecurrentCall& c) { c.forward.h_last.dtype = DataType::kFloat16; }},
      {"workspace", ErrorCode::kValue,
       [](RecurrentCall& c) { c.forward.workspace = TensorView(); }},
      {"workspace", ErrorCode::kValue,
       [](RecurrentCall& c) { c.forward.workspace = shorter(c.forward.workspace); }},
      {"workspace", ErrorCode::kBuffer,
       [](RecurrentCall& c) {
         static Array big;
         big = larger(c.forward.workspace);
         c.forward.workspace = moved(big.view());
       }},
      {"reserve", ErrorCode::kValue,
       [](RecurrentCall& c) { c.forward.reserve = shorter(c.forward.reserve); }},
      {"reserve", ErrorCode::kBuffer,
       [](RecurrentCall& c) { c.forward.reserve = read_only(c.forward.reserve); }},
      {"reserve", ErrorCode::kBuffer,
       [](RecurrentCall& c) {
         static Array big;
         big =
             larger(c.forward.workspace.numel() < c.forward.reserve.numel() ? c.forward.reserve
                                                                            : c.forward.workspace);
         c.forward.workspace = c.forward.reserve = big.view();
       }},
  };
  const Wrong of_lstm[] = {
      {"c0", ErrorCode::kValue, [](RecurrentCall& c) { c.c0_view = shorter(c.c0_view); }},
      {"c_last", ErrorCode::kValue, [](RecurrentCall& c) { c.c_last_view = TensorView(); }},
      {"c_last", ErrorCode::kBuffer,
       [](RecurrentCall& c) { c.c_last_view.data = c.forward.h_last.data; }},
  };
  cases.insert(cases.end(), std::begin(outputs), std::end(outputs));
  for (Cell cell : kCells) {
    std::vector<Wrong> own = cases;
    if (cell == Cell::kLstm) own.insert(own.end(), std::begin(of_lstm), std::end(of_lstm));
    const RecurrentShape s = checked_shape(cell);
    const RecurrentValues v = random_values(s, DataType::kFloat32, 8);
    for (const Wrong& wrong : own) {
      RecurrentCall call(ctx(), s, v, DataType::kFloat32);
      wrong.change(call);
      expect_refused(wrong, call, [&] { call.run_forward(); });
    }
  }
}

TEST_P(Recurrent, WrongBackwardArgumentsAreRefused) {
  std::vector<Wrong> cases = wrong_inputs(&RecurrentCall::backward_inputs);
  const Wrong gradients[] = {
      {"reserve", ErrorCode::kValue, [](RecurrentCall& c) { c.backward.reserve = TensorView(); }},
      {"reserve", ErrorCode::kValue,
       [](RecurrentCall& c) { c.backward.reserve = shorter(c.backward.reserve); }},
      {"dy", ErrorCode::kValue, [](RecurrentCall& c) { c.backward.dy = shorter(c.backward.dy); }},
      {"dh_last", ErrorCode::kType,
       [](RecurrentCall& c) { c.backward.dh_last.dtype = DataType::kFloat64; }},
      {"dx", ErrorCode::kValue, [](RecurrentCall& c) { c.backward.dx = TensorView(); }},
      {"dx", ErrorCode::kBuffer, [](RecurrentCall& c) { c.backward.dx.data = c.backward.dy.data; }},
      {"dweight_ih", ErrorCode::kValue,
       [](RecurrentCall& c) { c.backward.dweight_ih = TensorView(); }},
      {"dweight_hh", ErrorCode::kValue,
       [](RecurrentCall& c) { c.backward.dweight_hh = TensorView(); }},
      {"dweight_ih", ErrorCode::kBuffer,
       [](RecurrentCall& c) { c.backward.dweight_ih.data = c.backward.dx.data; }},
      {"dweight_hh", ErrorCode::kBuffer,
       [](RecurrentCall& c) { c.backward.dweight_hh = read_only(c.backward.dweight_hh); }},
      {"dbias_ih", ErrorCode::kValue,
       [](RecurrentCall& c) { c.backward_inputs.bias_ih = TensorView(); }},
      {"dbias_hh", ErrorCode::kBuffer,
       [](RecurrentCall& c) { c.backward.dbias_hh.data = c.backward.dbias_ih.data; }},
      {"dh0", ErrorCode::kValue,
       [](RecurrentCall& c) { c.backward.dh0 = shorter(c.backward.dh0); }},
      {"workspace", ErrorCode::kValue,
       [](RecurrentCall& c) { c.backward.workspace = shorter(c.backward.workspace); }},
      {"workspace", ErrorCode::kBuffer,
       [](RecurrentCall& c) {
         static Array big;
         big = larger(c.backward.workspace);
         c.backward.workspace = moved(big.view());
       }},
  };
  const Wrong of_lstm[] = {
      {"c0", ErrorCode::kValue, [](RecurrentCall& c) { c.c0_view = shorter(c.c0_view); }},
      {"dc_last", ErrorCode::kValue,
       [](RecurrentCall& c) { c.dc_last_view = shorter(c.dc_last_view); }},
      {"dc0", ErrorCode::kBuffer, [](RecurrentCall& c) { c.dc0_view.data = c.backward.dh0.data; }},
  };
  cases.insert(cases.end(), std::begin(gradients), std::end(gradients));
  for (Cell cell : kCells) {
    std::vector<Wrong> own = cases;
    if (cell == Cell::kLstm) own.insert(own.end(), std::begin(of_lstm), std::end(of_lstm));
    const RecurrentShape s = checked_shape(cell);
    const RecurrentValues v = random_values(s, DataType::kFloat32, 9);
    for (const Wrong& wrong : own) {
      RecurrentCall call(ctx(), s, v, DataType::kFloat32);
      call.run_forward();
      wrong.change(call);
      expect_refused(wrong, call, [&] { call.run_backward(); });
    }
  }
}

TEST_P(Recurrent, OptionsOutOfRangeAreRefused) {
  for (Cell cell : {Cell::kRnn, Cell::kGru}) {
    const RecurrentShape s = checked_shape(cell);
    RecurrentCall call(ctx(), s, random_values(s, DataType::kFloat32, 8), DataType::kFloat32);
    call.shape.activation = static_cast<Activation>(3);
    expect_refused({"activation", ErrorCode::kValue, {}}, call, [&] { call.run_forward(); });
    call.shape.activation = Activation::kTanh;
    if (cell == Cell::kRnn) continue;
    call.shape.reset = static_cast<ResetMode>(2);
    expect_refused({"reset", ErrorCode::kValue, {}}, call, [&] { call.run_forward(); });
  }
}

}  // namespace
}  // namespace penstock::tests
