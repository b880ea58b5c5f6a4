// The C++ calls that bench/overhead.py's Python calls make, alone: prints microseconds per call.

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>

#include "penstock/penstock.h"

namespace {

using penstock::DataType;
using penstock::TensorView;

template <class Call>
double microseconds(Call call) {
  using Clock = std::chrono::steady_clock;
  constexpr int kCalls = 20000, kRounds = 15;
  double rounds[kRounds];
  for (double& round : rounds) {
    const auto start = Clock::now();
    for (int i = 0; i < kCalls; ++i) call();
    round = std::chrono::duration<double, std::micro>(Clock::now() - start).count() / kCalls;
  }
  std::sort(rounds, rounds + kRounds);
  return rounds[kRounds / 2];
}

}  // namespace

int main() {
  penstock::set_num_threads(1);
  const penstock::Context ctx = penstock::Context::cpu();
  const DataType type = DataType::kFloat32;
  float x = 0.1f, weight[4] = {0.1f, 0.1f, 0.1f, 0.1f}, y = 0, last = 0;
  constexpr std::size_t kBytes = std::size_t{1} << 20;
  void* memory = std::aligned_alloc(64, kBytes);
  if (memory == nullptr) return 1;
  const TensorView workspace(memory, DataType::kUInt8, {kBytes});

  penstock::GruForwardArgs gru;
  gru.x = TensorView(&x, type, {1, 1, 1});
  gru.weight_ih = gru.weight_hh = TensorView(weight, type, {1, 3, 1});
  gru.bias_ih = gru.bias_hh = TensorView(weight, type, {1, 3});
  gru.need_grad = false;
  gru.y = TensorView(&y, type, {1, 1, 1});
  gru.h_last = TensorView(&last, type, {1, 1});
  gru.workspace = workspace;

  penstock::SruForwardArgs sru;
  sru.x = gru.x;
  sru.weight = TensorView(weight, type, {1, 4, 1});
  sru.weight_c = sru.bias = TensorView(weight, type, {1, 2, 1});
  sru.need_grad = false;
  sru.y = gru.y;
  sru.c_last = gru.h_last;
  sru.workspace = workspace;

  const double gru_us = microseconds([&] { penstock::gru_forward(ctx, gru); });
  const double sru_us = microseconds([&] { penstock::sru_forward(ctx, sru); });
  std::printf("{\"gru\": %.4f, \"sru\": %.4f}\n", gru_us, sru_us);
  std::free(memory);
  return 0;
}
