// The SRU's elementwise recurrence alone, on arrays beyond the caches, beside memcpy of as many
// bytes with as many threads. Prints one JSON object per line.
//
//   bench_sru_scan [T B H]

#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <new>
#include <random>
#include <vector>

#include "cells/sru_kernels.h"
#include "core/backend.h"
#include "penstock/penstock.h"

namespace {

using penstock::Context;
using Clock = std::chrono::steady_clock;

double median(std::vector<double> v) {
  std::sort(v.begin(), v.end());
  return v[v.size() / 2];
}

/// Memory as the bindings' pool gives it (python/bindings/host_pool.cc): on huge pages.
template <class T>
struct HugePages {
  using value_type = T;
  HugePages() = default;
  template <class U>
  HugePages(const HugePages<U>&) {}
  T* allocate(std::size_t n) {
    constexpr std::size_t kPage = std::size_t{1} << 21;
    const std::size_t bytes = (n * sizeof(T) + kPage - 1) / kPage * kPage;
    void* p = std::aligned_alloc(kPage, bytes);
    if (p == nullptr) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
    madvise(p, bytes, MADV_HUGEPAGE);
#endif
    return static_cast<T*>(p);
  }
  void deallocate(T* p, std::size_t) { std::free(p); }
  template <class U>
  bool operator==(const HugePages<U>&) const {
    return true;
  }
  template <class U>
  bool operator!=(const HugePages<U>&) const {
    return false;
  }
};
template <class T>
using Array = std::vector<T, HugePages<T>>;

Array<float> random_floats(std::int64_t n, unsigned seed) {
  Array<float> v(static_cast<std::size_t>(n));
  std::minstd_rand generator(seed);
  for (float& x : v) x = static_cast<float>(generator() % 2001) * 1e-3f - 1.0f;
  return v;
}

struct Problem {
  penstock::sru::Dims dims;
  std::int64_t channels = 0, groups = 0;
  Array<float> u, du, x, y, c, dy, dx, c0, state, weight_c, bias;
  std::vector<double> dparams;

  Problem(std::int64_t t, std::int64_t b, std::int64_t h, const penstock::sru::Kernels& kernels) {
    dims.steps = t;
    dims.batch = b;
    dims.input = h;
    dims.hidden = h;
    dims.skip_from_x = true;
    channels = kernels.plan(dims).channels;
    groups = (h + channels - 1) / channels;
    const std::int64_t n = t * b * h;
    u = random_floats(3 * n, 1);
    du = random_floats(3 * n, 2);
    x = random_floats(n, 3);
    y = random_floats(n, 4);
    c = random_floats(n, 5);
    dy = random_floats(n, 6);
    dx = random_floats(n, 7);
    c0.assign(static_cast<std::size_t>(b * h), 0.0f);
    state = c0;
    weight_c = random_floats(2 * h, 8);
    bias = random_floats(2 * h, 9);
    dparams.assign(static_cast<std::size_t>(4 * h), 0.0);
  }

  // As the operation lays them out: group by group, (rows, 3, channels) each.
  void fill(penstock::sru::ScanArgs& s, std::int64_t group) {
    const std::int64_t begin = group * channels;
    const std::int64_t width = std::min(channels, dims.hidden - begin);
    s.dims = dims;
    s.range.channel_begin = begin;
    s.range.channel_end = begin + width;
    s.range.step_end = dims.steps;
    s.u = {u.data() + 3 * begin * dims.rows(), 3 * width, 3 * width};
    s.gate_stride = width;
    s.x = x.data();
    s.weight_c = weight_c.data();
    s.bias = bias.data();
    s.c = {c.data() + begin * dims.rows(), width, width};
  }
};

}  // namespace

int main(int argc, char** argv) {
  const std::int64_t t = argc > 3 ? std::atoll(argv[1]) : 512;
  const std::int64_t b = argc > 3 ? std::atoll(argv[2]) : 32;
  const std::int64_t h = argc > 3 ? std::atoll(argv[3]) : 1024;
  const Context ctx = Context::cpu();
  const auto& kernels = *static_cast<const penstock::sru::Kernels*>(
      ctx.backend().cell_kernels(penstock::sru::kKernelsName));
  Problem p(t, b, h, kernels);
  const double elements = static_cast<double>(t * b * h);
  const double much = 1e12;  // work: always worth threads

  const auto forward = [&](bool train) {
    penstock::for_each(ctx, p.groups, much, [&](std::int64_t g) {
      penstock::sru::ForwardScan s;
      p.fill(s, g);
      if (!train) s.c = {};
      s.c_state = p.state.data();
      s.y = p.y.data();
      kernels.forward(ctx, s);
    });
  };
  const auto backward = [&] {
    penstock::for_each(ctx, p.groups, much, [&](std::int64_t g) {
      penstock::sru::BackwardScan s;
      p.fill(s, g);
      s.c0 = p.c0.data();
      s.dy = p.dy.data();
      s.dc_state = p.state.data();
      s.du = s.u;
      s.du.data = p.du.data() + (static_cast<float*>(s.u.data) - p.u.data());
      s.dx_skip = p.dx.data();
      s.dparams = p.dparams.data();
      kernels.backward(ctx, s);
    });
  };

  struct Pass {
    const char* name;
    double arrays;  // of float32, read or written once each
    std::function<void()> run;
  };
  const Pass passes[] = {
      {"inference", 5, [&] { forward(false); }},
      {"forward", 6, [&] { forward(true); }},
      {"backward", 10, backward},
  };
  Array<char> from(static_cast<std::size_t>(elements * 4 * 5), 1), to(from.size(), 2);
  const int processors = penstock::num_threads();
  for (int threads = 1; threads <= processors; ++threads) {
    penstock::set_num_threads(threads);
    for (const Pass& pass : passes) {
      const auto half = static_cast<std::size_t>(elements * 4 * pass.arrays / 2);
      const auto copy = [&] {
        constexpr std::int64_t kPieces = 16;
        penstock::for_each(ctx, kPieces, much, [&](std::int64_t i) {
          const std::size_t piece = half / kPieces;
          std::memcpy(to.data() + static_cast<std::size_t>(i) * piece,
                      from.data() + static_cast<std::size_t>(i) * piece, piece);
        });
      };
      const std::vector<std::function<void()>> contenders = {pass.run, copy};
      std::vector<std::vector<double>> times(2);
      for (int round = 0; round < 12; ++round) {
        for (std::size_t i = 0; i < 2; ++i) {
          const auto start = Clock::now();
          contenders[i]();
          const std::chrono::duration<double, std::milli> took = Clock::now() - start;
          if (round > 1) times[i].push_back(took.count());
        }
      }
      const double ours = median(times[0]), memcpy_ms = median(times[1]);
      std::printf(
          "{\"pass\": \"%s\", \"threads\": %d, \"T\": %lld, \"B\": %lld, \"H\": %lld, "
          "\"bytes\": %.0f, \"ms\": %.3f, \"memcpy_ms\": %.3f, \"ratio\": %.3f}\n",
          pass.name, threads, static_cast<long long>(t), static_cast<long long>(b),
          static_cast<long long>(h), elements * 4 * pass.arrays, ours, memcpy_ms, ours / memcpy_ms);
    }
  }
}
