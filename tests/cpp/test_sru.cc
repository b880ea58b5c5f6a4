// The SRU through the public headers, over each backend, against the float64 reference.

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <functional>

#include "accuracy.h"
#include "backends.h"
#include "penstock/penstock.h"
#include "sru_problem.h"

namespace penstock::tests {
namespace {

constexpr DataType kTypes[] = {DataType::kFloat32, DataType::kFloat64, DataType::kFloat16,
                               DataType::kBFloat16};

void expect_close(const SruResults& got, const SruResults& expected, DataType dtype,
                  const std::string& words) {
  for (const SruResult& r : kSruResults) {
    EXPECT_LE(relative_error(got.*r.values, expected.*r.values), r.factor * tolerance_of(dtype))
        << r.name << " " << name_of(dtype) << " " << words;
  }
}

std::vector<SruShape> shapes() {
  std::vector<SruShape> all;
  const auto add = [&](const std::function<void(SruShape&)>& change) {
    SruShape s;
    change(s);
    all.push_back(s);
  };
  const std::int64_t sizes[][4] = {{1, 1, 1, 1},  {1, 3, 4, 5},  {7, 1, 3, 50},  {5, 3, 8, 33},
                                   {13, 2, 5, 7}, {4, 70, 2, 3}, {31, 2, 3, 65}, {3, 2, 9, 130}};
  for (const auto& n : sizes) {
    for (Direction direction :
         {Direction::kForward, Direction::kReverse, Direction::kBidirectional}) {
      add([&](SruShape& s) {
        s.steps = n[0], s.batch = n[1], s.input = n[2], s.hidden = n[3];
        s.direction = direction;
      });
      add([&](SruShape& s) {
        s.steps = n[0], s.batch = n[1], s.hidden = n[3];
        s.direction = direction;
        s.input = s.width();
        s.blocks = 3;
        s.scale_x = 1.3;
        s.mask_c = s.lengths = true;
      });
      add([&](SruShape& s) {
        s.steps = n[0], s.batch = n[1], s.input = n[2], s.hidden = n[3];
        s.direction = direction;
        s.blocks = 3;
        s.x_skip = s.mask_pad = true;
        s.scale_x = -0.6;
      });
    }
  }
  for (Activation activation : {Activation::kIdentity, Activation::kTanh, Activation::kRelu}) {
    for (MaskSite site : {MaskSite::kOutput, MaskSite::kState}) {
      for (int k = 0; k < 3; ++k) {
        add([&](SruShape& s) {
          s.steps = 9;
          s.direction = Direction::kBidirectional;
          s.activation = activation;
          s.mask_site = site;
          s.mask_c = s.mask_pad = true;
          s.lengths = site == MaskSite::kState;
          s.blocks = k == 0 ? 4 : 3;
          s.skip = k != 2;
          if (k == 1) s.input = s.width();
        });
      }
    }
  }
  for (Layout layout : {Layout::kFortran, Layout::kNegative, Layout::kGaps}) {
    add([&](SruShape& s) {
      s.layout = layout;
      s.mask_c = s.mask_pad = s.lengths = true;
    });
    add([&](SruShape& s) {
      s.layout = layout;
      s.blocks = 3;
      s.x_skip = s.lengths = true;
    });
  }
  add([](SruShape& s) { s.weight_c = s.c0 = false; });
  add([](SruShape& s) { s.dy = false; });
  add([](SruShape& s) { s.dc_last = false; });
  add([](SruShape& s) { s.dy = s.dc_last = false; });
  add([](SruShape& s) { s.steps = 0; });
  add([](SruShape& s) { s.batch = 0; });
  add([](SruShape& s) { s.input = 0; });
  // More rows than one chunk of the CPU's, more channels than one group.
  add([](SruShape& s) {
    s.steps = 90, s.batch = 12, s.input = 10, s.hidden = 80;
    s.mask_pad = s.mask_c = true;
    s.direction = Direction::kBidirectional;
  });
  return all;
}

class Sru : public BackendTest {};
INSTANTIATE_TEST_SUITE_P(Backends, Sru, testing::ValuesIn(backend_names()),
                         [](const auto& test) { return test.param; });

TEST_P(Sru, AgreesWithReference) {
  for (const SruShape& s : shapes()) {
    for (DataType dtype : kTypes) {
      const SruValues v = random_values(s, dtype, 17);
      expect_close(compute(ctx(), s, v, dtype), reference(s, v), dtype, s.words());
    }
  }
}

TEST_P(Sru, LongSequenceInFloat32) {
  SruShape s;
  s.steps = 4096, s.batch = 1, s.input = 3, s.hidden = 5;
  const SruValues v = random_values(s, DataType::kFloat32, 5);
  expect_close(compute(ctx(), s, v, DataType::kFloat32), reference(s, v), DataType::kFloat32,
               s.words());
}

// The reference's own gradients, so that nothing here rests on one derivation.
TEST(SruReference, GradientsAreFiniteDifferences) {
  for (Activation activation : {Activation::kIdentity, Activation::kTanh}) {
    for (int form = 0; form < 3; ++form) {
      const int blocks = form == 0 ? 4 : 3;
      SruShape s;
      s.steps = 4, s.batch = 2, s.hidden = 3;
      s.direction = Direction::kBidirectional;
      s.input = form == 1 ? s.width() : 2;
      s.blocks = blocks;
      s.x_skip = form == 2;
      s.activation = activation;
      s.scale_x = 0.7;
      s.mask_c = s.lengths = true;
      s.mask_site = blocks == 3 ? MaskSite::kState : MaskSite::kOutput;
      SruValues v = random_values(s, DataType::kFloat64, 3);
      v.lengths = {4, 2};
      for (Values* values : {&v.x, &v.x_skip}) {
        for (double& x : *values) x = std::isnan(x) ? 0.0 : x;
      }
      const auto loss = [&] {
        const SruResults r = reference(s, v);
        double sum = 0.0;
        for (std::size_t i = 0; i < r.y.size(); ++i) sum += r.y[i] * v.dy[i];
        for (std::size_t i = 0; i < r.c_last.size(); ++i) sum += r.c_last[i] * v.dc_last[i];
        return sum;
      };
      const SruResults r = reference(s, v);
      const std::pair<Values*, const Values*> pairs[] = {
          {&v.x, &r.dx},          {&v.weight, &r.dweight}, {&v.weight_c, &r.dweight_c},
          {&v.bias, &r.dbias},    {&v.c0, &r.dc0},         {&v.mask_c, &r.dmask_c},
          {&v.x_skip, &r.dx_skip}};
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
}

SruShape large() {
  SruShape s;
  s.steps = 40, s.batch = 9, s.input = 70, s.hidden = 150;
  s.direction = Direction::kBidirectional;
  s.lengths = s.mask_c = true;
  return s;
}

// The emulated backend starts threads in another order at each launch.
TEST_P(Sru, SameBitsOnEveryRun) {
  for (DataType dtype : kTypes) {
    const SruValues v = random_values(large(), dtype, 1);
    const SruResults first = compute(ctx(), large(), v, dtype);
    EXPECT_TRUE(same_bits(compute(ctx(), large(), v, dtype), first)) << name_of(dtype);
  }
}

// So few channels and so many steps that products and scans run at the same time, from two threads
// on.
SruShape long_and_narrow(Direction direction) {
  SruShape s;
  s.steps = 4700, s.batch = 1, s.input = 40, s.hidden = 20;
  s.direction = direction;
  s.mask_pad = s.mask_c = true;
  return s;
}

TEST(SruThreads, SameBitsForAnyNumber) {
  const int before = num_threads();
  for (const SruShape& s : {large(), long_and_narrow(Direction::kReverse),
                            long_and_narrow(Direction::kBidirectional)}) {
    for (DataType dtype : {DataType::kFloat32, DataType::kFloat64, DataType::kBFloat16}) {
      const SruValues v = random_values(s, dtype, 2);
      set_num_threads(1);
      const SruResults one = compute(Context::cpu(), s, v, dtype);
      for (int n : {2, 3, 7}) {
        set_num_threads(n);
        EXPECT_TRUE(same_bits(compute(Context::cpu(), s, v, dtype), one))
            << n << " threads " << name_of(dtype) << " " << s.words();
      }
    }
  }
  set_num_threads(before);
  EXPECT_THROW(set_num_threads(0), Error);
}

TEST(SruThreads, WorksInAForkedChild) {
  const int before = num_threads();
  set_num_threads(3);
  const SruValues v = random_values(large(), DataType::kFloat32, 3);
  const SruResults parent = compute(Context::cpu(), large(), v, DataType::kFloat32);
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    alarm(60);  // a child that hangs must not hang the tests
    _exit(same_bits(compute(Context::cpu(), large(), v, DataType::kFloat32), parent) ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status)) << "ended by signal " << WTERMSIG(status);
  EXPECT_EQ(WEXITSTATUS(status), 0);
  EXPECT_TRUE(same_bits(compute(Context::cpu(), large(), v, DataType::kFloat32), parent));
  set_num_threads(before);
}

TEST_P(Sru, BackwardMayRunTwice) {
  SruShape s;
  s.lengths = s.mask_c = true;
  const SruValues v = random_values(s, DataType::kFloat32, 4);
  SruCall call(ctx(), s, v, DataType::kFloat32);
  sru_forward(ctx(), call.forward);
  sru_backward(ctx(), call.backward);
  const SruResults first = call.results();
  const auto reserve = call.reserve.raw();
  sru_backward(ctx(), call.backward);
  EXPECT_TRUE(same_bits(call.results(), first));
  EXPECT_EQ(call.reserve.raw(), reserve);
}

TEST_P(Sru, WithoutGradientKeepsNothing) {
  SruShape both;
  both.direction = Direction::kBidirectional;
  const int before = num_threads();
  set_num_threads(4);
  for (const SruShape& s : {both, long_and_narrow(Direction::kReverse)}) {
    const SruValues v = random_values(s, DataType::kFloat32, 6);
    SruCall call(ctx(), s, v, DataType::kFloat32);
    sru_forward(ctx(), call.forward);
    const SruResults with = call.results();
    call.forward.need_grad = false;
    call.forward.reserve = TensorView();
    EXPECT_EQ(sru_reserve_bytes(ctx(), call.forward), 0u);
    const Array workspace = Array::bytes(sru_forward_workspace_bytes(ctx(), call.forward));
    call.forward.workspace = workspace.view();
    sru_forward(ctx(), call.forward);
    EXPECT_TRUE(same_bits(call.results(), with)) << s.words();
  }
  set_num_threads(before);
}

TEST_P(Sru, InputsAreNotWritten) {
  SruShape s;
  s.lengths = s.mask_c = s.mask_pad = true;
  for (DataType dtype : kTypes) {
    const SruValues v = random_values(s, dtype, 7);
    SruCall call(ctx(), s, v, dtype);
    const Array* inputs[] = {&call.x,  &call.weight,   &call.weight_c, &call.bias,
                             &call.c0, &call.mask_pad, &call.lengths,  &call.mask_c,
                             &call.dy, &call.dc_last};
    std::vector<std::vector<unsigned char>> before;
    for (const Array* a : inputs) before.push_back(a->raw());
    sru_forward(ctx(), call.forward);
    sru_backward(ctx(), call.backward);
    std::size_t i = 0;
    for (const Array* a : inputs) EXPECT_EQ(a->raw(), before[i++]);
  }
}

// ---- arguments that are wrong
// ----------------------------------------------------------------------

struct Wrong {
  const char* argument;
  ErrorCode code;
  std::function<void(SruCall&)> change;
};

/// Expect an error that names the argument, and every output as it was.
template <class Run>
void expect_refused(const Wrong& wrong, const SruCall& call, Run&& run) {
  std::vector<std::vector<unsigned char>> before;
  for (const Array* a : call.outputs()) before.push_back(a->raw());
  try {
    run();
    ADD_FAILURE() << wrong.argument << ": no error";
  } catch (const Error& e) {
    EXPECT_EQ(static_cast<int>(e.code()), static_cast<int>(wrong.code)) << e.what();
    EXPECT_NE(std::string(e.what()).find(std::string(": ") + wrong.argument + ": "),
              std::string::npos)
        << e.what();
  }
  std::size_t i = 0;
  for (const Array* a : call.outputs()) EXPECT_EQ(a->raw(), before[i++]) << wrong.argument;
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
TensorView read_only(TensorView v) {
  v.read_only = true;
  return v;
}

TEST_P(Sru, WrongForwardArgumentsAreRefused) {
  const Wrong cases[] = {
      {"x", ErrorCode::kValue, [](SruCall& c) { c.forward.x = TensorView(); }},
      {"x", ErrorCode::kType, [](SruCall& c) { c.forward.x.dtype = DataType::kInt32; }},
      {"x", ErrorCode::kValue, [](SruCall& c) { c.forward.x.rank = 2; }},
      {"x", ErrorCode::kBuffer, [](SruCall& c) { c.forward.x.device.type = DeviceType::kCuda; }},
      {"x", ErrorCode::kBuffer, [](SruCall& c) { c.forward.x.data = nullptr; }},
      {"weight", ErrorCode::kType, [](SruCall& c) { c.forward.weight.dtype = DataType::kFloat64; }},
      {"weight", ErrorCode::kValue, [](SruCall& c) { --c.forward.weight.shape[1]; }},
      {"bias", ErrorCode::kValue, [](SruCall& c) { --c.forward.bias.shape[1]; }},
      {"weight_c", ErrorCode::kValue, [](SruCall& c) { --c.forward.weight_c.shape[2]; }},
      {"c0", ErrorCode::kValue, [](SruCall& c) { c.forward.c0 = shorter(c.forward.c0); }},
      {"mask_c", ErrorCode::kValue,
       [](SruCall& c) { c.forward.mask_c = shorter(c.forward.mask_c); }},
      {"mask_pad", ErrorCode::kType,
       [](SruCall& c) { c.forward.mask_pad.dtype = DataType::kFloat32; }},
      {"lengths", ErrorCode::kType,
       [](SruCall& c) { c.forward.lengths.dtype = DataType::kFloat32; }},
      {"lengths", ErrorCode::kValue, [](SruCall& c) { c.lengths.set({1, 6, 2}); }},
      {"lengths", ErrorCode::kValue, [](SruCall& c) { c.lengths.set({1, -1, 2}); }},
      {"y", ErrorCode::kValue, [](SruCall& c) { c.forward.y = TensorView(); }},
      {"y", ErrorCode::kValue, [](SruCall& c) { c.forward.y = shorter(c.forward.y); }},
      {"y", ErrorCode::kBuffer, [](SruCall& c) { c.forward.y.strides[0] *= 2; }},
      {"y", ErrorCode::kBuffer, [](SruCall& c) { c.forward.y = read_only(c.forward.y); }},
      {"y", ErrorCode::kBuffer, [](SruCall& c) { c.forward.y.data = c.forward.x.data; }},
      {"c_last", ErrorCode::kBuffer, [](SruCall& c) { c.forward.c_last.data = c.forward.y.data; }},
      {"c_last", ErrorCode::kType, [](SruCall& c) { c.forward.c_last.dtype = DataType::kFloat16; }},
      {"workspace", ErrorCode::kValue, [](SruCall& c) { c.forward.workspace = TensorView(); }},
      {"workspace", ErrorCode::kValue,
       [](SruCall& c) { c.forward.workspace = shorter(c.forward.workspace); }},
      {"reserve", ErrorCode::kValue,
       [](SruCall& c) { c.forward.reserve = shorter(c.forward.reserve); }},
      {"reserve", ErrorCode::kBuffer,
       [](SruCall& c) { c.forward.reserve = read_only(c.forward.reserve); }},
      {"reserve", ErrorCode::kBuffer,
       [](SruCall& c) {
         static Array big;
         big = Array::bytes(1 << 20);
         c.forward.workspace = c.forward.reserve = big.view();
       }},
      {"workspace", ErrorCode::kBuffer,
       [](SruCall& c) {
         static Array big;
         big = Array::bytes(1 << 20);
         c.forward.workspace = moved(big.view());
       }},
  };
  SruShape s;
  s.lengths = s.mask_c = s.mask_pad = true;
  const SruValues v = random_values(s, DataType::kFloat32, 8);
  for (const Wrong& wrong : cases) {
    SruCall call(ctx(), s, v, DataType::kFloat32);
    wrong.change(call);
    expect_refused(wrong, call, [&] { sru_forward(ctx(), call.forward); });
  }
}

TEST_P(Sru, WrongBackwardArgumentsAreRefused) {
  const Wrong cases[] = {
      {"reserve", ErrorCode::kValue, [](SruCall& c) { c.backward.reserve = TensorView(); }},
      {"dy", ErrorCode::kValue, [](SruCall& c) { c.backward.dy = shorter(c.backward.dy); }},
      {"dc_last", ErrorCode::kType,
       [](SruCall& c) { c.backward.dc_last.dtype = DataType::kFloat64; }},
      {"dx", ErrorCode::kValue, [](SruCall& c) { c.backward.dx = TensorView(); }},
      {"dweight", ErrorCode::kBuffer,
       [](SruCall& c) { c.backward.dweight.data = c.backward.dx.data; }},
      {"dbias", ErrorCode::kBuffer,
       [](SruCall& c) { c.backward.dbias.data = c.backward.dweight_c.data; }},
      {"dc0", ErrorCode::kValue, [](SruCall& c) { c.backward.dc0 = shorter(c.backward.dc0); }},
      {"dmask_c", ErrorCode::kValue, [](SruCall& c) { c.backward.mask_c = TensorView(); }},
      {"workspace", ErrorCode::kValue,
       [](SruCall& c) { c.backward.workspace = shorter(c.backward.workspace); }},
      {"workspace", ErrorCode::kBuffer,
       [](SruCall& c) {
         static Array big;
         big = Array::bytes(1 << 20);
         c.backward.workspace = moved(big.view());
       }},
  };
  SruShape s;
  s.lengths = s.mask_c = s.mask_pad = true;
  const SruValues v = random_values(s, DataType::kFloat32, 9);
  for (const Wrong& wrong : cases) {
    SruCall call(ctx(), s, v, DataType::kFloat32);
    sru_forward(ctx(), call.forward);
    wrong.change(call);
    expect_refused(wrong, call, [&] { sru_backward(ctx(), call.backward); });
  }
}

}  // namespace
}  // namespace penstock::tests
