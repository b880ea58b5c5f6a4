// Slicing through the public headers, over each backend, against a float64 reference that gathers
// each part's steps into a sequence of its own. (The SRU's levels: test_sru_level.cc.)

#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "backends.h"
#include "penstock/penstock.h"
#include "sliced_problem.h"

namespace penstock::tests {
namespace {

constexpr DataType kTypes[] = {DataType::kFloat32, DataType::kFloat64, DataType::kFloat16,
                               DataType::kBFloat16};

class Sliced : public BackendTest {};
INSTANTIATE_TEST_SUITE_P(Backends, Sliced, testing::ValuesIn(backend_names()),
                         [](const auto& test) { return test.param; });

TEST_P(Sliced, AgreesWithReference) {
  for (const SlicedShape& s : sliced_shapes()) {
    for (DataType dtype : kTypes) {
      // Sums over so many steps exceed what 16 bits are expected to hold.
      if (s.steps > 1000 && size_of(dtype) == 2) continue;
      // Where sums are rounded to 16 bits, some cross the kink.
      if (s.activation == Activation::kRelu && size_of(dtype) == 2) continue;
      const SlicedValues v = random_values(s, dtype, 29);
      expect_close(compute(ctx(), s, v, dtype), reference(s, v), dtype, s);
    }
  }
}

TEST_P(Sliced, LengthsDoNotCountWherePaddingIsData) {
  SlicedShape s;
  s.steps = 14;
  s.mask = SliceMask::kNone;
  const SlicedValues without = random_values(s, DataType::kFloat32, 2);
  SlicedValues with = without;
  s.lengths = true;
  with.lengths = {0, 3, 14};
  SlicedShape none = s;
  none.lengths = false;
  EXPECT_TRUE(same_bits(compute(ctx(), s, with, DataType::kFloat32),
                        compute(ctx(), none, without, DataType::kFloat32)));
}

TEST(SlicedThreads, SameBitsForAnyNumber) {
  const int before = num_threads();
  SlicedShape s;
  s.steps = 203, s.batch = 11, s.input = 60;
  s.slices = {4, 5};
  s.hidden = {50, 40, 70};
  s.lengths = true;
  s.direction = Direction::kBidirectional;
  for (DataType dtype : {DataType::kFloat32, DataType::kFloat64}) {
    const SlicedValues v = random_values(s, dtype, 2);
    set_num_threads(1);
    const SlicedResults one = compute(Context::cpu(), s, v, dtype);
    for (int threads : {2, 3, 7}) {
      set_num_threads(threads);
      EXPECT_TRUE(same_bits(compute(Context::cpu(), s, v, dtype), one))
          << threads << " threads " << name_of(dtype);
    }
  }
  set_num_threads(before);
}

TEST_P(Sliced, BackwardMayRunTwiceAndDoesNotReadOutputs) {
  SlicedShape s;
  s.steps = 14, s.lengths = true;
  s.doutputs = {true, true, true};
  SlicedCall call(ctx(), s, random_values(s, DataType::kFloat32, 4), DataType::kFloat32);
  sliced_forward(ctx(), call.forward);
  sliced_backward(ctx(), call.backward);
  const SlicedResults first = call.results();
  const auto reserve = call.reserve.raw();
  for (std::size_t i = 0; i < call.outputs.size(); ++i) {
    call.outputs[i].set(Values(call.outputs[i].get().size(), NAN));
  }
  sliced_backward(ctx(), call.backward);
  SlicedResults second = call.results();
  second.outputs = first.outputs;
  EXPECT_TRUE(same_bits(second, first));
  EXPECT_EQ(call.reserve.raw(), reserve);
}

TEST_P(Sliced, WithoutGradientKeepsNothing) {
  SlicedShape s;
  s.steps = 14, s.lengths = true;
  s.direction = Direction::kBidirectional;
  for (DataType dtype : kTypes) {
    SlicedCall call(ctx(), s, random_values(s, dtype, 6), dtype);
    sliced_forward(ctx(), call.forward);
    const SlicedResults with = call.results();
    call.forward.need_grad = false;
    call.forward.reserve = TensorView();
    EXPECT_EQ(sliced_reserve_bytes(ctx(), call.forward), 0u);
    for (Array& a : call.outputs) a.set(Values(a.get().size(), NAN));
    const Array workspace = Array::bytes(sliced_forward_workspace_bytes(ctx(), call.forward));
    call.forward.workspace = workspace.view();
    sliced_forward(ctx(), call.forward);
    EXPECT_TRUE(same_bits(call.results(), with)) << name_of(dtype);
  }
}

TEST_P(Sliced, InputsAreNotWritten) {
  SlicedShape s;
  s.steps = 14, s.lengths = true;
  s.doutputs = {true, true, true};
  for (DataType dtype : kTypes) {
    const SlicedCall call(ctx(), s, random_values(s, dtype, 7), dtype);
    std::vector<std::vector<unsigned char>> before;
    for (const Array* a : call.read()) before.push_back(a->raw());
    sliced_forward(ctx(), call.forward);
    sliced_backward(ctx(), call.backward);
    std::size_t i = 0;
    for (const Array* a : call.read()) EXPECT_EQ(a->raw(), before[i++]) << name_of(dtype);
  }
}

TEST(SlicedShapes, AreArithmetic) {
  const std::int64_t slices[] = {4, 3, 2};
  std::int64_t steps[4], parts[4];
  sliced_shape(50, slices, 3, steps, parts);
  EXPECT_EQ(std::vector<std::int64_t>(steps, steps + 4), (std::vector<std::int64_t>{3, 2, 3, 4}));
  EXPECT_EQ(std::vector<std::int64_t>(parts, parts + 4), (std::vector<std::int64_t>{24, 12, 4, 1}));
  sliced_shape(7, nullptr, 0, steps, parts);
  EXPECT_EQ(steps[0], 7);
  EXPECT_EQ(parts[0], 1);
  const std::int64_t zero[] = {4, 0}, huge[] = {1 << 30, 1 << 30};
  EXPECT_THROW(sliced_shape(5, zero, 2, steps, parts), Error);
  EXPECT_THROW(sliced_shape(5, huge, 2, steps, parts), Error);
}

// ---- arguments that are wrong
// ----------------------------------------------------------------------

struct Wrong {
  const char* argument;
  ErrorCode code;
  std::function<void(SlicedCall&)> change;
};

/// Expect an error that names the argument, and every output and buffer as it was.
template <class Run>
void expect_refused(const Wrong& wrong, const SlicedCall& call, Run&& run) {
  std::vector<std::vector<unsigned char>> before;
  for (const Array* a : call.written()) before.push_back(a->raw());
  try {
    run();
    ADD_FAILURE() << wrong.argument << ": no error";
  } catch (const Error& e) {
    EXPECT_EQ(static_cast<int>(e.code()), static_cast<int>(wrong.code)) << e.what();
    const std::string what = e.what();
    EXPECT_EQ(what.rfind("sliced", 0), 0u) << what;
    EXPECT_NE(what.find(std::string(": ") + wrong.argument + ": "), std::string::npos) << what;
  }
  std::size_t i = 0;
  for (const Array* a : call.written()) EXPECT_EQ(a->raw(), before[i++]) << wrong.argument;
}

TensorView shorter(TensorView v) {
  --v.shape[0];
  return v;
}

template <class Args>
std::vector<Wrong> wrong_inputs(Args SlicedCall::* args) {
  return {
      {"cell", ErrorCode::kValue, [=](SlicedCall& c) { (c.*args).cell = "grue"; }},
      {"cell", ErrorCode::kValue, [=](SlicedCall& c) { (c.*args).cell = nullptr; }},
      {"x", ErrorCode::kValue, [=](SlicedCall& c) { (c.*args).x = TensorView(); }},
      {"x", ErrorCode::kValue, [=](SlicedCall& c) { (c.*args).x.rank = 2; }},
      {"x", ErrorCode::kType, [=](SlicedCall& c) { (c.*args).x.dtype = DataType::kUInt8; }},
      {"x", ErrorCode::kBuffer, [=](SlicedCall& c) { (c.*args).x.data = nullptr; }},
      {"slices", ErrorCode::kValue, [=](SlicedCall& c) { (c.*args).slice_count = -1; }},
      {"slices", ErrorCode::kValue, [=](SlicedCall& c) { (c.*args).slice_count = 16; }},
      {"slices", ErrorCode::kValue, [=](SlicedCall& c) { (c.*args).slices = nullptr; }},
      {"slices", ErrorCode::kValue, [=](SlicedCall& c) { c.shape.slices[1] = 0; }},
      {"levels", ErrorCode::kValue, [=](SlicedCall& c) { (c.*args).levels = nullptr; }},
      {"pad", ErrorCode::kValue, [=](SlicedCall& c) { (c.*args).pad = static_cast<PadSide>(2); }},
      {"mask", ErrorCode::kValue,
       [=](SlicedCall& c) { (c.*args).mask = static_cast<SliceMask>(2); }},
      {"direction", ErrorCode::kValue,
       [=](SlicedCall& c) { (c.*args).direction = static_cast<Direction>(-1); }},
      {"activation", ErrorCode::kValue,
       [=](SlicedCall& c) { (c.*args).activation = static_cast<Activation>(3); }},
      {"reset", ErrorCode::kValue,
       [=](SlicedCall& c) { (c.*args).reset = static_cast<ResetMode>(2); }},
      {"lengths", ErrorCode::kType, [=](SlicedCall& c) { (c.*args).lengths = c.x.view(); }},
      {"lengths", ErrorCode::kValue, [=](SlicedCall& c) { c.lengths.set({1, 15, 2}); }},
      {"lengths", ErrorCode::kValue, [=](SlicedCall& c) { c.lengths.set({1, 2, -1}); }},
      {"levels[0].weight_ih", ErrorCode::kValue,
       [=](SlicedCall& c) { --c.level_views[0].weight_ih.shape[2]; }},
      {"levels[1].weight_ih", ErrorCode::kValue,
       [=](SlicedCall& c) { c.level_views[1].weight_ih = c.level_views[0].weight_ih; }},
      {"levels[1].weight_hh", ErrorCode::kValue,
       [=](SlicedCall& c) { c.level_views[1].weight_hh = TensorView(); }},
      {"levels[2].weight_hh", ErrorCode::kType,
       [=](SlicedCall& c) { c.level_views[2].weight_hh.dtype = DataType::kFloat16; }},
      {"levels[2].bias_ih", ErrorCode::kValue,
       [=](SlicedCall& c) { --c.level_views[2].bias_ih.shape[1]; }},
      {"levels[0].bias_hh", ErrorCode::kBuffer,
       [=](SlicedCall& c) { c.level_views[0].bias_hh.data = nullptr; }},
  };
}

SlicedShape checked_shape() {
  SlicedShape s;
  s.steps = 14, s.lengths = true;
  s.doutputs = {true, true, true};
  return s;
}

TEST_P(Sliced, WrongForwardArgumentsAreRefused) {
  std::vector<Wrong> cases = wrong_inputs(&SlicedCall::forward);
  const Wrong outputs[] = {
      {"outputs", ErrorCode::kValue, [](SlicedCall& c) { c.forward.outputs = nullptr; }},
      {"outputs", ErrorCode::kValue, [](SlicedCall& c) { c.output_views[1] = TensorView(); }},
      {"outputs", ErrorCode::kValue,
       [](SlicedCall& c) { c.output_views[0] = shorter(c.output_views[0]); }},
      {"outputs", ErrorCode::kBuffer, [](SlicedCall& c) { c.output_views[2].read_only = true; }},
      {"outputs", ErrorCode::kBuffer,
       [](SlicedCall& c) { c.output_views[1].data = c.output_views[0].data; }},
      {"outputs", ErrorCode::kBuffer,
       [](SlicedCall& c) { c.output_views[1].data = c.x.view().data; }},
      {"outputs", ErrorCode::kBuffer,
       [](SlicedCall& c) { c.output_views[0].data = c.level_views[2].weight_hh.data; }},
      {"outputs", ErrorCode::kBuffer, [](SlicedCall& c) { c.output_views[0].strides[0] *= 2; }},
      {"workspace", ErrorCode::kValue, [](SlicedCall& c) { c.forward.workspace = TensorView(); }},
      {"workspace", ErrorCode::kValue,
       [](SlicedCall& c) { c.forward.workspace = shorter(c.forward.workspace); }},
      {"reserve", ErrorCode::kValue,
       [](SlicedCall& c) { c.forward.reserve = shorter(c.forward.reserve); }},
      {"reserve", ErrorCode::kBuffer, [](SlicedCall& c) { c.forward.reserve.read_only = true; }},
  };
  cases.insert(cases.end(), std::begin(outputs), std::end(outputs));
  const SlicedShape s = checked_shape();
  const SlicedValues v = random_values(s, DataType::kFloat32, 8);
  for (const Wrong& wrong : cases) {
    SlicedCall call(ctx(), s, v, DataType::kFloat32);
    wrong.change(call);
    expect_refused(wrong, call, [&] { sliced_forward(ctx(), call.forward); });
  }
}

TEST_P(Sliced, WrongBackwardArgumentsAreRefused) {
  std::vector<Wrong> cases = wrong_inputs(&SlicedCall::backward);
  const Wrong gradients[] = {
      {"reserve", ErrorCode::kValue, [](SlicedCall& c) { c.backward.reserve = TensorView(); }},
      {"doutputs", ErrorCode::kValue,
       [](SlicedCall& c) { c.doutput_views[0] = shorter(c.doutput_views[0]); }},
      {"doutputs", ErrorCode::kType,
       [](SlicedCall& c) { c.doutput_views[2].dtype = DataType::kFloat64; }},
      {"dx", ErrorCode::kValue, [](SlicedCall& c) { c.backward.dx = TensorView(); }},
      {"dx", ErrorCode::kBuffer, [](SlicedCall& c) { c.backward.dx.data = c.x.view().data; }},
      {"dlevels", ErrorCode::kValue, [](SlicedCall& c) { c.backward.dlevels = nullptr; }},
      {"dlevels.weight_ih", ErrorCode::kValue,
       [](SlicedCall& c) { c.dlevel_views[1].weight_ih = TensorView(); }},
      {"dlevels.weight_hh", ErrorCode::kBuffer,
       [](SlicedCall& c) { c.dlevel_views[2].weight_hh.data = c.dlevel_views[0].weight_hh.data; }},
      {"dlevels.bias_ih", ErrorCode::kValue,
       [](SlicedCall& c) { c.level_views[0].bias_ih = TensorView(); }},
      {"dlevels.bias_hh", ErrorCode::kValue,
       [](SlicedCall& c) { --c.dlevel_views[0].bias_hh.shape[1]; }},
      {"workspace", ErrorCode::kValue,
       [](SlicedCall& c) { c.backward.workspace = shorter(c.backward.workspace); }},
  };
  cases.insert(cases.end(), std::begin(gradients), std::end(gradients));
  const SlicedShape s = checked_shape();
  const SlicedValues v = random_values(s, DataType::kFloat32, 9);
  for (const Wrong& wrong : cases) {
    SlicedCall call(ctx(), s, v, DataType::kFloat32);
    sliced_forward(ctx(), call.forward);
    wrong.change(call);
    expect_refused(wrong, call, [&] { sliced_backward(ctx(), call.backward); });
  }
}

}  // namespace
}  // namespace penstock::tests
