// Trains a sliced GRU to tell whether a long sequence of numbers adds up to more than zero, by
// gradient descent with momentum, on nothing but penstock's public headers. Ends with status 1 if
// it does not learn.
#include <penstock/penstock.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <utility>
#include <vector>

namespace {

using penstock::DataType;
using penstock::TensorView;

// 64 steps in 4 parts of 4 parts of 4 steps: no state passes through more than 12 of them.
constexpr int kLevels = 3;
constexpr std::int64_t kSlices[kLevels - 1] = {4, 4};
constexpr std::int64_t kSteps = 64, kBatch = 128, kInput = 2, kHidden = 16;

std::mt19937 generator(0);

std::vector<float> uniform(std::int64_t n, float limit) {
  std::uniform_real_distribution<float> distribution(-limit, limit);
  std::vector<float> values(static_cast<std::size_t>(n));
  for (float& value : values) value = distribution(generator);
  return values;
}

/// Scratch memory. The library never allocates: it says how much it needs, and gets it.
class Bytes {
 public:
  TensorView view(std::size_t bytes) {
    if (bytes > size_) {
      data_.reset(std::aligned_alloc(64, (bytes + 63) / 64 * 64));
      size_ = bytes;
    }
    return {data_.get(), DataType::kUInt8, {static_cast<std::int64_t>(bytes)}};
  }

 private:
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  std::unique_ptr<void, Free> data_;
  std::size_t size_ = 0;
};

/// An array with its gradient and momentum.
struct Parameter {
  std::vector<float> value, gradient, velocity;

  explicit Parameter(std::vector<float> v)
      : value(std::move(v)), gradient(value.size()), velocity(value.size()) {}

  void step(float rate) {
    for (std::size_t i = 0; i < value.size(); ++i) {
      velocity[i] = 0.9F * velocity[i] + gradient[i];
      value[i] -= rate * velocity[i];
    }
  }
};

/// A GRU's parameters: three gates, one direction.
struct Gru {
  explicit Gru(std::int64_t inputs)
      : input(inputs),
        weight_ih(uniform(3 * kHidden * inputs, 1.0F / std::sqrt(static_cast<float>(inputs)))),
        weight_hh(uniform(3 * kHidden * kHidden, 0.25F)),
        bias(std::vector<float>(3 * kHidden)) {}

  penstock::SlicedLevel level(std::vector<float> Parameter::* which) {
    penstock::SlicedLevel views;
    views.weight_ih = {(weight_ih.*which).data(), DataType::kFloat32, {1, 3 * kHidden, input}};
    views.weight_hh = {(weight_hh.*which).data(), DataType::kFloat32, {1, 3 * kHidden, kHidden}};
    views.bias_ih = {(bias.*which).data(), DataType::kFloat32, {1, 3 * kHidden}};
    return views;
  }
  void step(float rate) {
    for (Parameter* parameter : {&weight_ih, &weight_hh, &bias}) parameter->step(rate);
  }

  std::int64_t input;
  Parameter weight_ih, weight_hh, bias;
};

}  // namespace

int main() {
  const penstock::Config config = penstock::config();
  std::printf("penstock %s on %s, %d threads\n", config.version.c_str(), config.cpu_isa.c_str(),
              config.num_threads);
  const penstock::Context context = penstock::Context::cpu();

  Gru grus[kLevels] = {Gru(kInput), Gru(kHidden), Gru(kHidden)};
  Parameter readout(uniform(kHidden, 0.25F));
  std::int64_t steps[kLevels], parts[kLevels];
  penstock::sliced_shape(kSteps, kSlices, kLevels - 1, steps, parts);
  std::vector<float> states[kLevels];
  for (int i = 0; i < kLevels; ++i) {
    states[i].resize(static_cast<std::size_t>(parts[i] * kBatch * kHidden));
    std::printf("level %d: %d parts of %d steps\n", i, static_cast<int>(parts[i]),
                static_cast<int>(steps[i]));
  }
  std::vector<float> dlast(kBatch * kHidden), dx(kSteps * kBatch * kInput);
  Bytes workspace, reserve;

  float first = 0.0F, last = 0.0F;
  for (int step = 0; step < 1000; ++step) {
    std::vector<float> x = uniform(kSteps * kBatch * kInput, 1.0F);

    penstock::SlicedLevel levels[kLevels], dlevels[kLevels];
    TensorView outputs[kLevels], doutputs[kLevels];
    for (int i = 0; i < kLevels; ++i) {
      levels[i] = grus[i].level(&Parameter::value);
      dlevels[i] = grus[i].level(&Parameter::gradient);
      outputs[i] = {states[i].data(), DataType::kFloat32, {parts[i], kBatch, kHidden}};
    }
    penstock::SlicedForwardArgs forward;
    forward.x = {x.data(), DataType::kFloat32, {kSteps, kBatch, kInput}};
    forward.levels = levels;
    forward.slices = kSlices;
    forward.slice_count = kLevels - 1;
    forward.outputs = outputs;
    forward.workspace = workspace.view(penstock::sliced_forward_workspace_bytes(context, forward));
    forward.reserve = reserve.view(penstock::sliced_reserve_bytes(context, forward));
    penstock::sliced_forward(context, forward);

    // Logistic loss on the sign of the first feature's sum, read off the last level's state.
    float loss = 0.0F;
    const std::vector<float>& state = states[kLevels - 1];
    std::fill(readout.gradient.begin(), readout.gradient.end(), 0.0F);
    for (std::size_t b = 0; b < kBatch; ++b) {
      float sum = 0.0F, score = 0.0F;
      for (std::size_t t = 0; t < kSteps; ++t) sum += x[(t * kBatch + b) * kInput];
      for (std::size_t h = 0; h < kHidden; ++h) score += readout.value[h] * state[b * kHidden + h];
      const float label = sum > 0.0F ? 1.0F : 0.0F;
      loss += (std::log1p(std::exp(-std::abs(score))) + std::max(score, 0.0F) - label * score) /
              static_cast<float>(kBatch);
      const float dscore = (1.0F / (1.0F + std::exp(-score)) - label) / static_cast<float>(kBatch);
      for (std::size_t h = 0; h < kHidden; ++h) {
        readout.gradient[h] += dscore * state[b * kHidden + h];
        dlast[b * kHidden + h] = dscore * readout.value[h];
      }
    }

    // Only the last level's output counts; the others' gradients are not given.
    doutputs[kLevels - 1] = {dlast.data(), DataType::kFloat32, {1, kBatch, kHidden}};
    penstock::SlicedBackwardArgs backward;
    static_cast<penstock::SlicedInputs&>(backward) = forward;
    backward.reserve = forward.reserve;
    backward.doutputs = doutputs;
    backward.dx = {dx.data(), DataType::kFloat32, {kSteps, kBatch, kInput}};
    backward.dlevels = dlevels;
    backward.workspace =
        workspace.view(penstock::sliced_backward_workspace_bytes(context, backward));
    penstock::sliced_backward(context, backward);

    for (Gru& gru : grus) gru.step(0.05F);
    readout.step(0.05F);
    first = step == 0 ? loss : first;
    last = 0.9F * (step == 0 ? loss : last) + 0.1F * loss;
    if (step % 200 == 0) std::printf("step %3d  loss %.5f\n", step, static_cast<double>(loss));
  }
  std::printf("loss %.5f, at first %.5f\n", static_cast<double>(last), static_cast<double>(first));
  return last < 0.3F * first ? 0 : 1;
}
