// The vector functions against libm, and the SRU cell over vectors against the same header over
// scalars, for each instruction set that this processor has.

#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "array.h"
#include "cell_probe.h"
#include "cells/sru_cell.h"

namespace penstock::tests {
namespace {

std::vector<std::pair<std::string, const CellProbe*>> probes() {
  std::vector<std::pair<std::string, const CellProbe*>> list = {
      {"base", &cpu::isa_base::cell_probe()}};
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    list.emplace_back("avx2", &cpu::isa_avx2::cell_probe());
  }
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    list.emplace_back("avx512", &cpu::isa_avx512::cell_probe());
  }
#endif
  return list;
}

template <class T>
const Probe<T>& probe_of(const CellProbe& p) {
  if constexpr (sizeof(T) == 4) {
    return p.f32;
  } else {
    return p.f64;
  }
}

/// Dense over the range where results are neither 0 nor saturated, dense again around zero, and
/// far out.
template <class T>
std::vector<T> arguments(double reach) {
  std::vector<T> x;
  const int n = 40001;
  for (int i = 0; i < n; ++i) x.push_back(static_cast<T>(reach * (2.0 * i / (n - 1) - 1.0)));
  for (int i = -3000; i <= 3000; ++i) x.push_back(static_cast<T>(i * 1e-3));
  for (double tiny = 1e-30; tiny < 1.0; tiny *= 3.0) {
    x.push_back(static_cast<T>(tiny));
    x.push_back(static_cast<T>(-tiny));
  }
  for (double far : {200.0, 1e4, 1e30}) {
    x.push_back(static_cast<T>(far));
    x.push_back(static_cast<T>(-far));
  }
  return x;
}

/// Worst error relative to the true value, where that is a normal number of T.
template <class T, class F>
double worst(void (*function)(std::int64_t, const T*, T*), const std::vector<T>& x, F&& truth) {
  std::vector<T> y(x.size(), T(NAN));
  function(static_cast<std::int64_t>(x.size()), x.data(), y.data());
  double worst = 0.0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double expected = truth(static_cast<double>(x[i]));
    const double scale = std::max(std::abs(expected), 4.0 * std::numeric_limits<T>::min());
    const double e = std::abs(static_cast<double>(y[i]) - expected) / scale;
    worst = std::isnan(e) ? INFINITY : std::max(worst, e);
  }
  return worst;
}

template <class T>
void check_functions(double reach, double bound) {
  const auto x = arguments<T>(reach);
  for (const auto& [isa, all] : probes()) {
    const Probe<T>& p = probe_of<T>(*all);
    std::vector<T> inside;  // exp saturates outside
    for (T v : x) {
      if (std::abs(v) < static_cast<T>(reach)) inside.push_back(v);
    }
    EXPECT_LE(worst<T>(p.exp, inside, [](double v) { return std::exp(v); }), bound) << isa;
    EXPECT_LE(worst<T>(p.sigmoid, inside, [](double v) { return 1.0 / (1.0 + std::exp(-v)); }),
              bound)
        << isa;
    EXPECT_LE(worst<T>(p.tanh, x, [](double v) { return std::tanh(v); }), bound) << isa;

    // Saturation and NaN.
    const T special[] = {T(-INFINITY), T(INFINITY), T(NAN), T(0)};
    T y[4];
    p.sigmoid(4, special, y);
    EXPECT_LE(y[0], T(1e-37)) << isa;
    EXPECT_GE(y[0], T(0)) << isa;
    EXPECT_EQ(y[1], T(1)) << isa;
    EXPECT_TRUE(std::isnan(y[2])) << isa;
    EXPECT_EQ(y[3], T(0.5)) << isa;
    p.tanh(4, special, y);
    EXPECT_EQ(y[0], T(-1)) << isa;
    EXPECT_EQ(y[1], T(1)) << isa;
    EXPECT_TRUE(std::isnan(y[2])) << isa;
    EXPECT_EQ(y[3], T(0)) << isa;
  }
}

TEST(Vec, Float32FunctionsAreAccurate) { check_functions<float>(87.0, 4e-7); }
TEST(Vec, Float64FunctionsAreAccurate) { check_functions<double>(700.0, 2e-15); }

template <class T>
void check_lanes() {
  for (const auto& [isa, all] : probes()) {
    const Probe<T>& p = probe_of<T>(*all);
    // A value does not depend on the lane it falls into, nor on what lies beside it; and nothing
    // beyond n is written.
    const std::int64_t most = 3 * p.lanes + 1;
    for (std::int64_t n = 0; n <= most; ++n) {
      std::vector<T> x(static_cast<std::size_t>(n)), y(static_cast<std::size_t>(most) + 1, T(7));
      for (std::int64_t i = 0; i < n; ++i) x[static_cast<std::size_t>(i)] = T(0.1) * T(i) - T(1);
      p.tanh(n, x.data(), y.data());
      for (std::size_t i = 0; i < y.size(); ++i) {
        T alone = T(7);
        if (i < x.size()) p.tanh(1, &x[i], &alone);
        EXPECT_EQ(y[i], alone) << isa << " n=" << n << " i=" << i;
      }
    }
    std::vector<T> lanes(static_cast<std::size_t>(p.lanes));
    T sum = T(0);
    for (std::size_t i = 0; i < lanes.size(); ++i) sum += lanes[i] = T(1 << i);
    EXPECT_EQ(p.horizontal_sum(lanes.data()), sum) << isa;
  }
}

TEST(Vec, LanesAreIndependent) {
  check_lanes<float>();
  check_lanes<double>();
}

template <Activation A, class T>
void check_cell(double bound) {
  const std::int64_t n = 1003;
  std::vector<std::vector<T>> in;
  Numbers numbers(21);
  for (int i = 0; i < 14; ++i) {
    in.emplace_back();
    for (std::int64_t j = 0; j < n; ++j) in.back().push_back(static_cast<T>(3.0 * numbers.next()));
  }
  for (const auto& [isa, all] : probes()) {
    for (T site : {T(0), T(1)}) {
      std::vector<std::vector<T>> out(8, std::vector<T>(static_cast<std::size_t>(n), T(NAN)));
      const CellArrays<T> arrays = {
          in[0].data(),  in[1].data(),  in[2].data(),  in[3].data(),  in[4].data(),  in[5].data(),
          in[6].data(),  in[7].data(),  in[8].data(),  in[9].data(),  in[10].data(), in[11].data(),
          in[12].data(), in[13].data(), out[0].data(), out[1].data(), out[2].data(), out[3].data(),
          out[4].data(), out[5].data(), out[6].data(), out[7].data()};
      probe_of<T>(*all).cell(A, site, n, arrays);
      for (std::size_t i = 0; i < static_cast<std::size_t>(n); ++i) {
        const auto wide = [&](int k) {
          return static_cast<double>(in[static_cast<std::size_t>(k)][i]);
        };
        const sru_cell::Inputs<double> inputs = {wide(0), wide(1), wide(2),
                                                 wide(3), wide(4), wide(5)};
        const sru_cell::Parameters<double> p = {wide(6), wide(7), wide(8), wide(9)};
        const auto f = sru_cell::forward<A, double>(inputs, p, wide(10));
        const auto b = sru_cell::backward<A, double>(inputs, p, wide(10), wide(11), wide(12),
                                                     wide(13), static_cast<double>(site));
        const double expected[] = {f.c, f.h, b.du0, b.du1, b.du2, b.dskip, b.dmask, b.dc_prev};
        for (std::size_t k = 0; k < 8; ++k) {
          // Terms are up to a few hundred before they cancel.
          ASSERT_NEAR(static_cast<double>(out[k][i]), expected[k], 300.0 * bound)
              << isa << " result " << k << " element " << i;
        }
      }
    }
  }
}

TEST(SruCell, VectorsAgreeWithScalars) {
  check_cell<Activation::kIdentity, float>(2e-7);
  check_cell<Activation::kTanh, float>(2e-7);
  check_cell<Activation::kRelu, float>(2e-7);
  check_cell<Activation::kIdentity, double>(1e-15);
  check_cell<Activation::kTanh, double>(1e-15);
  check_cell<Activation::kRelu, double>(1e-15);
}

}  // namespace
}  // namespace penstock::tests
