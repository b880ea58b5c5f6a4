// Calls that come again: with the same arrays in the same places, CUDA scans that take a product
// per step become graphs. Results must be those of a first call, also with new values in the
// arrays.

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "array.h"
#include "backends.h"
#include "penstock/gru.h"

namespace penstock::tests {
namespace {

// So wide that R in float64 fits into no block's shared memory: no tiles, but a product per step.
constexpr std::int64_t kSteps = 6, kBatch = 3, kInput = 5, kHidden = 104;

using Bytes = std::vector<unsigned char>;

/// Everything that one GRU needs, forward and backward.
class Gru {
 public:
  Gru(const Context& ctx, ResetMode reset) : ctx_(ctx) {
    Numbers numbers(3);
    const auto fill = [&](const Shape& shape) {
      return Array(DataType::kFloat64, shape, numbers.take(product(shape), 0.3));
    };
    const auto room = [](const TensorView& like) {
      return Array(DataType::kFloat64, Shape(like.shape, like.shape + like.rank));
    };
    x_ = fill({kSteps, kBatch, kInput});
    weight_ih_ = fill({2, 3 * kHidden, kInput});
    weight_hh_ = fill({2, 3 * kHidden, kHidden});
    bias_ = fill({2, 3 * kHidden});
    lengths_ = Array(DataType::kInt64, {kBatch}, {kSteps, 0, 4});
    dy_ = fill({kSteps, kBatch, 2 * kHidden});
    y_ = room(dy_.view());
    h_last_ = Array(DataType::kFloat64, {kBatch, 2 * kHidden});
    dh0_ = room(h_last_.view());
    dx_ = room(x_.view());
    dweight_ih_ = room(weight_ih_.view());
    dweight_hh_ = room(weight_hh_.view());

    const auto inputs = [&](auto* a) {
      a->x = x_.view();
      a->weight_ih = weight_ih_.view();
      a->weight_hh = weight_hh_.view();
      a->bias_ih = a->bias_hh = bias_.view();
      a->lengths = lengths_.view();
      a->direction = Direction::kBidirectional;
      a->reset = reset;
    };
    inputs(&forward_);
    forward_.y = y_.view();
    forward_.h_last = h_last_.view();
    workspace_ = Array::bytes(gru_forward_workspace_bytes(ctx, forward_));
    reserve_ = Array::bytes(gru_reserve_bytes(ctx, forward_));
    forward_.workspace = workspace_.view();
    forward_.reserve = reserve_.view();
    inputs(&backward_);
    backward_.reserve = reserve_.view();
    backward_.dy = dy_.view();
    backward_.dx = dx_.view();
    backward_.dweight_ih = dweight_ih_.view();
    backward_.dweight_hh = dweight_hh_.view();
    backward_.dh0 = dh0_.view();
    backward_workspace_ = Array::bytes(gru_backward_workspace_bytes(ctx, backward_));
    backward_.workspace = backward_workspace_.view();
  }

  /// All results for an x of this seed.
  std::vector<Bytes> run(std::uint64_t seed) {
    Numbers numbers(seed);
    x_.set(numbers.take(kSteps * kBatch * kInput));
    gru_forward(ctx_, forward_);
    gru_backward(ctx_, backward_);
    return {y_.raw(), h_last_.raw(), dx_.raw(), dweight_ih_.raw(), dweight_hh_.raw(), dh0_.raw()};
  }

 private:
  Context ctx_;
  Array x_, weight_ih_, weight_hh_, bias_, lengths_, y_, h_last_, dy_, dx_, dweight_ih_,
      dweight_hh_, dh0_, workspace_, reserve_, backward_workspace_;
  GruForwardArgs forward_;
  GruBackwardArgs backward_;
};

class Repeats : public testing::TestWithParam<std::string> {};

TEST_P(Repeats, GiveTheResultsOfAFirstCall) {
  const Context ctx = context_of(GetParam());
  for (const ResetMode reset : {ResetMode::kAfter, ResetMode::kBefore}) {
    Gru same(ctx, reset);
    std::vector<Gru> fresh;  // all alive, so that no address comes twice
    for (std::uint64_t seed = 1; seed <= 5; ++seed) {
      fresh.emplace_back(ctx, reset);
      EXPECT_EQ(same.run(seed), fresh.back().run(seed)) << "call " << seed;
    }
    EXPECT_NE(same.run(1), same.run(2));
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, Repeats, testing::ValuesIn(backend_names()),
                         [](const auto& test) { return test.param; });

}  // namespace
}  // namespace penstock::tests
