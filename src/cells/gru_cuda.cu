// The gated recurrent unit on CUDA. With the reset after the product a step is as in the other
// cells; with the reset before it, a step has two products and so two kernels.

#include "cells/gru_cell.h"
#include "cells/recurrent_cuda_table.cuh"

namespace penstock::cuda {
namespace {

using mixing::Site;
using recurrent::BackwardScan;
using recurrent::Dims;
using recurrent::ForwardScan;
using recurrent::Options;
using recurrent::Scan;

constexpr int kThreads = mixing::kThreads;

template <template <Activation> class Cell, class F>
__device__ __forceinline__ void with_activation(const Options& o, F&& f) {
  switch (o.activation) {
    case Activation::kTanh: return f(Cell<Activation::kTanh>{});
    case Activation::kRelu: return f(Cell<Activation::kRelu>{});
    case Activation::kIdentity: return f(Cell<Activation::kIdentity>{});
  }
}

struct After {
  using Shape = gru_cell::CellAfter<Activation::kTanh>;
  static constexpr int kSplit = 2;
  template <class F>
  static __device__ __forceinline__ void with_cell(const Options& o, F&& f) {
    with_activation<gru_cell::CellAfter>(o, f);
  }
};

struct Before {
  using Shape = gru_cell::CellBefore<Activation::kTanh>;
  template <class F>
  static __device__ __forceinline__ void with_cell(const Options& o, F&& f) {
    with_activation<gru_cell::CellBefore>(o, f);
  }
};

constexpr int kGates = 3;
// Blocks: r, z, n and q = r * h_prev.
constexpr int kR = 0, kZ = 1, kN = 2, kQ = 3;

// First half of a step, reset before the product: r, z and q = r * h_prev, given R_r h and R_z h.
// Work split: a thread per (row, direction, unit). Traffic per thread, in elements: W x and R h of
// r and z, and h, in; z in place of R_z h for the second half, q, and the saved r, z, q out.
// Limits: 64-bit offsets. Invariants: a thread reads and writes its own elements alone; at padded
// steps q is zero, and so are the saved values, W x may be NaN. Launch: mixing::step_shape, no
// shared memory.
template <class T>
__global__ void __launch_bounds__(kThreads)
    gru_gates_kernel(ForwardScan a, std::int64_t k, bool zero_state, state_t<T>* products,
                     const state_t<T>* bias, T* reset) {
  using S = state_t<T>;
  Site s;
  if (!mixing::find_site(a.dims, &s)) return;
  const std::int64_t hidden = a.dims.hidden;
  const S h_prev = static_cast<const S*>(a.h)[s.state];
  mixing::keep_state<Before::Shape, T>(a, s, k, h_prev, S(0));
  T* gates = mixing::at<T>(a.gates, a, s, k);
  S* product = products + (s.dir * a.dims.cut.rows() + s.row) * kGates * hidden + s.unit;
  S r = S(0), z = S(0), q = S(0);
  if (mixing::counts(a, s, k)) {
    const S wx[2] = {widen(gates[0]), widen(gates[hidden])};
    S rh[2] = {};
    if (!zero_state) {
      rh[kR] = product[0];
      rh[kZ] = product[hidden];
    }
    S b[kGates];
    mixing::read_bias<kGates>(a.dims, s, bias, b);
    // Without the activation, so any cell will do.
    Before::Shape::forward_gates(wx, rh, b, h_prev, &r, &z, &q);
  }
  product[kZ * hidden] = z;
  reset[s.state] = narrow<T>(q);
  if (a.save) {
    gates[kR * hidden] = narrow<T>(r);
    gates[kZ * hidden] = narrow<T>(z);
    gates[kQ * hidden] = narrow<T>(q);
  }
}

// Second half: n and h, given R_n q.
// Work split, limits, launch: as the first half. Traffic per thread, in elements: W_n x, R_n q, z
// and h in; h, y and the saved n out.
template <class T>
__global__ void __launch_bounds__(kThreads)
    gru_state_kernel(ForwardScan a, std::int64_t k, bool zero_state, const state_t<T>* products,
                     const state_t<T>* bias, T* operand) {
  using S = state_t<T>;
  Site s;
  if (!mixing::find_site(a.dims, &s)) return;
  const std::int64_t hidden = a.dims.hidden;
  S* h_at = static_cast<S*>(a.h) + s.state;
  const S h_prev = *h_at;
  T* gates = mixing::at<T>(a.gates, a, s, k);
  const S* product = products + (s.dir * a.dims.cut.rows() + s.row) * kGates * hidden + s.unit;
  S n = S(0), h = h_prev, y = S(0);
  if (mixing::counts(a, s, k)) {
    S b[kGates];
    mixing::read_bias<kGates>(a.dims, s, bias, b);
    const S wx = widen(gates[kN * hidden]);
    const S rq = zero_state ? S(0) : product[kN * hidden];
    const S z = product[kZ * hidden];
    Before::with_cell(a.dims.options,
                      [&](auto cell) { cell.forward_state(wx, rq, b[kN], h_prev, z, &n, &h); });
    y = h;
    *h_at = h;
  }
  if (a.save) gates[kN * hidden] = narrow<T>(n);
  if (operand != nullptr) operand[s.state] = narrow<T>(h);
  mixing::write_y<T>(a, s, k, y);
}

// First half of a step backward: gradients of z's and n's sums.
// Work split: a thread per (row, direction, unit). Traffic per thread, in elements: z, n, h_prev
// and dy in, dh in and out, both gradients out twice (for the products over time and for R's).
// Limits, invariants, launch: as forward; zeros at padded steps, whatever dy holds.
template <class T>
__global__ void __launch_bounds__(kThreads)
    gru_state_backward_kernel(BackwardScan a, std::int64_t k, T* operand) {
  using S = state_t<T>;
  Site s;
  if (!mixing::find_site(a.dims, &s)) return;
  const std::int64_t hidden = a.dims.hidden;
  S dz = S(0), dn = S(0);
  if (mixing::counts(a, s, k)) {
    S* dh_at = static_cast<S*>(a.dh) + s.state;
    const S dh = *dh_at + mixing::read_dy<T>(a, s, k);
    const S h_prev = widen(*mixing::at<T>(a.h_kept, a, s, k));
    const T* gates = mixing::at<T>(a.gates, a, s, k);
    const S z = widen(gates[kZ * hidden]), n = widen(gates[kN * hidden]);
    S dh_prev = S(0);
    Before::with_cell(a.dims.options, [&](auto cell) {
      cell.backward_state(z, n, h_prev, dh, &dz, &dn, &dh_prev);
    });
    *dh_at = dh_prev;
  }
  T* out = mixing::at<T>(a.dgates, a, s, k);
  T* operands = operand + (s.dir * a.dims.cut.rows() + s.row) * kGates * hidden + s.unit;
  out[kZ * hidden] = operands[kZ * hidden] = narrow<T>(dz);
  out[kN * hidden] = operands[kN * hidden] = narrow<T>(dn);
}

// Second half: the gradient of r's sum and what h_prev receives through r, given dq = R_n^T dn.
// Work split, limits, launch: as the first half. Traffic per thread, in elements: r, h_prev and dq
// in, dh in and out, r's gradient out twice.
template <class T>
__global__ void __launch_bounds__(kThreads)
    gru_gates_backward_kernel(BackwardScan a, std::int64_t k, const state_t<T>* dreset,
                              T* operand) {
  using S = state_t<T>;
  Site s;
  if (!mixing::find_site(a.dims, &s)) return;
  const std::int64_t hidden = a.dims.hidden;
  S dr = S(0);
  if (mixing::counts(a, s, k)) {
    const S h_prev = widen(*mixing::at<T>(a.h_kept, a, s, k));
    const S r = widen(mixing::at<T>(a.gates, a, s, k)[kR * hidden]);
    S through = S(0);
    Before::Shape::backward_gates(r, h_prev, dreset[s.state], &dr, &through);
    static_cast<S*>(a.dh)[s.state] += through;
  }
  T* operands = operand + (s.dir * a.dims.cut.rows() + s.row) * kGates * hidden + s.unit;
  mixing::at<T>(a.dgates, a, s, k)[kR * hidden] = operands[kR * hidden] = narrow<T>(dr);
}

// Replay, reset before the product: first r, z and q from W x + R h, then n from W_n x + R_n q. In
// place; otherwise as mixing::replay_kernel.
template <class T>
__global__ void __launch_bounds__(kThreads)
    gru_replay_kernel(ForwardScan a, const state_t<T>* bias, bool second) {
  using S = state_t<T>;
  Site s;
  std::int64_t k = 0;
  if (!mixing::find_entry(a, &s, &k)) return;
  const std::int64_t hidden = a.dims.hidden;
  T* gates = mixing::at<T>(a.gates, a, s, k);
  const bool valid = mixing::counts(a, s, k);
  S b[kGates];
  mixing::read_bias<kGates>(a.dims, s, bias, b);
  if (second) {
    S n = S(0), h = S(0);
    if (valid) {
      const S wx = widen(gates[kN * hidden]);
      Before::with_cell(a.dims.options, [&](auto cell) {
        cell.forward_state(wx, S(0), b[kN], S(0), S(0), &n, &h);
      });
    }
    gates[kN * hidden] = narrow<T>(n);
    return;
  }
  S r = S(0), z = S(0), q = S(0);
  if (valid) {
    const S wx[2] = {widen(gates[0]), widen(gates[hidden])}, rh[2] = {};
    const S h_prev = widen(*mixing::at<T>(a.h_kept, a, s, k));
    Before::Shape::forward_gates(wx, rh, b, h_prev, &r, &z, &q);
  }
  gates[kR * hidden] = narrow<T>(r);
  gates[kZ * hidden] = narrow<T>(z);
  gates[kQ * hidden] = narrow<T>(q);
}

void forward_before(const Context& ctx, const ForwardScan& a) {
  const Dims& d = a.dims;
  const mixing::ForwardScratch scratch(d, kGates, kGates, /*resets=*/true, /*by_steps=*/true,
                                       a.scratch);
  const void* operand = mixing::first_operand(ctx, a, scratch.operand);
  with_type(d.compute, [&](auto tag) {
    using T = typename decltype(tag)::type;
    using S = state_t<T>;
    const LaunchShape shape = mixing::step_shape(d, d.cut.rows());
    auto* products = static_cast<S*>(scratch.products);
    auto* reset = static_cast<T*>(scratch.reset);
    const auto* bias = static_cast<const S*>(scratch.bias);
    for (std::int64_t k = a.step_begin; k < a.step_end; ++k) {
      const bool zero = a.zero_state && k == a.step_begin;
      if (!zero) {
        mixing::multiply(ctx, a, kGates, operand, kR, kN, products, scratch.workspace);
      }
      launch(ctx, "gru_gates", gru_gates_kernel<T>, shape, a, k, zero, products, bias, reset);
      if (!zero) {
        mixing::multiply(ctx, a, kGates, reset, kN, kGates, products, scratch.workspace);
      }
      launch(ctx, "gru_state", gru_state_kernel<T>, shape, a, k, zero, products, bias,
             static_cast<T*>(scratch.operand));
    }
  });
}

void backward_before(const Context& ctx, const BackwardScan& a) {
  const Dims& d = a.dims;
  const mixing::BackwardScratch scratch(d, kGates, /*resets=*/true, /*by_steps=*/true, a.scratch);
  with_type(d.compute, [&](auto tag) {
    using T = typename decltype(tag)::type;
    using S = state_t<T>;
    const LaunchShape shape = mixing::step_shape(d, d.cut.rows());
    auto* operand = static_cast<T*>(scratch.operand);
    for (std::int64_t k = a.step_end - 1; k >= a.step_begin; --k) {
      launch(ctx, "gru_state_backward", gru_state_backward_kernel<T>, shape, a, k, operand);
      mixing::multiply_back(ctx, a, kGates, operand, kN, kGates, scratch.dreset, 0.0,
                            scratch.workspace);
      launch(ctx, "gru_gates_backward", gru_gates_backward_kernel<T>, shape, a, k,
             static_cast<const S*>(scratch.dreset), operand);
      if (k == 0 && !a.want_first) continue;
      mixing::multiply_back(ctx, a, kGates, operand, kR, kN, a.dh, 1.0, scratch.workspace);
    }
  });
}

void replay_before(const Context& ctx, const ForwardScan& a) {
  const Dims& d = a.dims;
  const mixing::ForwardScratch scratch(d, kGates, kGates, /*resets=*/true, /*by_steps=*/true,
                                       a.scratch);
  mixing::replay_product(ctx, a, kGates, a.h_kept, 0, kR, kN, kR, 1.0, scratch.workspace);
  with_type(d.compute, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const auto* bias = static_cast<const state_t<T>*>(scratch.bias);
    launch(ctx, "gru_replay", gru_replay_kernel<T>, mixing::replay_shape(a), a, bias, false);
    mixing::replay_product(ctx, a, kGates, a.gates, kQ, kN, kGates, kN, 1.0, scratch.workspace);
    launch(ctx, "gru_replay", gru_replay_kernel<T>, mixing::replay_shape(a), a, bias, true);
  });
}

// ---- the table: either reset -------------------------------------------------------------------

bool is_before(const Options& o) { return o.reset == ResetMode::kBefore; }

recurrent::Spec spec(const Options& o) {
  return is_before(o) ? Before::Shape::spec() : After::Shape::spec();
}

std::size_t forward_scratch_bytes(const Dims& d) {
  if (!is_before(d.options)) return mixing::forward_scratch_bytes<After>(d);
  return mixing::ForwardScratch(d, kGates, kGates, /*resets=*/true, /*by_steps=*/true, nullptr)
      .bytes;
}

std::size_t backward_scratch_bytes(const Dims& d) {
  if (!is_before(d.options)) return mixing::backward_scratch_bytes<After>(d);
  return mixing::BackwardScratch(d, kGates, /*resets=*/true, /*by_steps=*/true, nullptr).bytes;
}

void prepare_forward(const Context& ctx, const Scan& a) {
  if (!is_before(a.dims.options)) return mixing::prepare_forward<After>(ctx, a);
  mixing::combine_bias<Before::Shape>(ctx, a);
}

void forward(const Context& ctx, const ForwardScan& a) {
  if (!is_before(a.dims.options)) return mixing::forward<After>(ctx, a);
  if (mixing::empty(a)) return;
  const DeviceGuard guard(ctx);
  forward_before(ctx, a);
}

void backward(const Context& ctx, const BackwardScan& a) {
  if (!is_before(a.dims.options)) return mixing::backward<After>(ctx, a);
  if (mixing::empty(a)) return;
  const DeviceGuard guard(ctx);
  backward_before(ctx, a);
}

void replay(const Context& ctx, const ForwardScan& a) {
  if (!is_before(a.dims.options)) return mixing::replay<After>(ctx, a);
  if (mixing::empty(a)) return;
  const DeviceGuard guard(ctx);
  replay_before(ctx, a);
}

}  // namespace

const recurrent::Kernels& gru_kernels() {
  static constexpr recurrent::Kernels table = {&spec,
                                               &mixing::plan,
                                               &forward_scratch_bytes,
                                               &backward_scratch_bytes,
                                               &prepare_forward,
                                               &mixing::prepare_nothing,
                                               &forward,
                                               &replay,
                                               &backward};
  return table;
}

}  // namespace penstock::cuda
