// Trains one SRU to follow a fading average of its input, by gradient descent with momentum, on
// nothing but penstock's public headers. Ends with status 1 if it does not learn.
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

constexpr std::int64_t kSteps = 32, kBatch = 16, kInput = 4, kHidden = 32;

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

}  // namespace

int main() {
  const penstock::Config config = penstock::config();
  std::printf("penstock %s on %s, %d threads\n", config.version.c_str(), config.cpu_isa.c_str(),
              config.num_threads);
  const penstock::Context context = penstock::Context::cpu();

  // K = 4 row blocks, for D != H: candidate, forget, reset, skip.
  Parameter weight(uniform(4 * kHidden * kInput, std::sqrt(3.0F / kInput)));
  Parameter weight_c(uniform(2 * kHidden, std::sqrt(1.5F)));
  Parameter bias(std::vector<float>(2 * kHidden));
  std::vector<float> y(kSteps * kBatch * kHidden), dy(y.size()), c_last(kBatch * kHidden);
  std::vector<float> dx(kSteps * kBatch * kInput);
  Bytes workspace, reserve;

  float first = 0.0F, last = 0.0F;
  for (int step = 0; step < 300; ++step) {
    std::vector<float> x = uniform(kSteps * kBatch * kInput, 1.0F);

    penstock::SruForwardArgs forward;
    forward.x = {x.data(), DataType::kFloat32, {kSteps, kBatch, kInput}};
    forward.weight = {weight.value.data(), DataType::kFloat32, {1, 4 * kHidden, kInput}};
    forward.weight_c = {weight_c.value.data(), DataType::kFloat32, {1, 2, kHidden}};
    forward.bias = {bias.value.data(), DataType::kFloat32, {1, 2, kHidden}};
    forward.y = {y.data(), DataType::kFloat32, {kSteps, kBatch, kHidden}};
    forward.c_last = {c_last.data(), DataType::kFloat32, {kBatch, kHidden}};
    forward.workspace = workspace.view(penstock::sru_forward_workspace_bytes(context, forward));
    forward.reserve = reserve.view(penstock::sru_reserve_bytes(context, forward));
    penstock::sru_forward(context, forward);

    // Half the mean square of y[t, b, i] - average[t, b, i], for the first kInput features.
    float loss = 0.0F;
    const float scale = 1.0F / (kSteps * kBatch * kInput);
    std::vector<float> average(kBatch * kInput);
    std::fill(dy.begin(), dy.end(), 0.0F);
    for (std::size_t row = 0; row < kSteps * kBatch; ++row) {
      for (std::size_t i = 0; i < kInput; ++i) {
        float& target = average[row % kBatch * kInput + i];
        target = 0.8F * target + 0.2F * x[row * kInput + i];
        const float error = y[row * kHidden + i] - target;
        loss += 0.5F * error * error * scale;
        dy[row * kHidden + i] = error * scale;
      }
    }

    penstock::SruBackwardArgs backward;
    static_cast<penstock::SruInputs&>(backward) = forward;
    backward.reserve = forward.reserve;
    backward.dy = {dy.data(), DataType::kFloat32, {kSteps, kBatch, kHidden}};
    backward.dx = {dx.data(), DataType::kFloat32, {kSteps, kBatch, kInput}};
    backward.dweight = {weight.gradient.data(), DataType::kFloat32, {1, 4 * kHidden, kInput}};
    backward.dweight_c = {weight_c.gradient.data(), DataType::kFloat32, {1, 2, kHidden}};
    backward.dbias = {bias.gradient.data(), DataType::kFloat32, {1, 2, kHidden}};
    backward.workspace = workspace.view(penstock::sru_backward_workspace_bytes(context, backward));
    penstock::sru_backward(context, backward);

    for (Parameter* parameter : {&weight, &weight_c, &bias}) parameter->step(0.3F);
    if (step == 0) first = loss;
    last = loss;
    if (step % 50 == 0) std::printf("step %3d  loss %.5f\n", step, static_cast<double>(loss));
  }
  std::printf("loss %.5f, at first %.5f\n", static_cast<double>(last), static_cast<double>(first));

  // A mistake is an exception that names the argument; nothing has been written then.
  penstock::SruForwardArgs wrong;
  try {
    penstock::sru_forward(context, wrong);
  } catch (const penstock::Error& error) {
    std::printf("as expected: %s\n", error.what());
  }
  return last < 0.1F * first ? 0 : 1;
}
