// The gated recurrent unit with the reset before the product, on CUDA: a step has two products, R h
// for r and z, then R_n (r * h), so each step of either path has two halves.
#pragma once

#include "cells/gru_cell.h"
#include "cells/recurrent_cuda.cuh"
#include "cells/recurrent_cuda_tile.cuh"

namespace penstock::cuda::reset_before {

using mixing::kThreads;
using mixing::Site;
using recurrent::BackwardScan;
using recurrent::Dims;
using recurrent::ForwardScan;
using recurrent::Options;

struct Before {
  using Shape = gru_cell::CellBefore<Activation::kTanh>;
  template <class F>
  static __device__ __forceinline__ void with_cell(const Options& o, F&& f) {
    switch (o.activation) {
      case Activation::kTanh: return f(gru_cell::CellBefore<Activation::kTanh>{});
      case Activation::kRelu: return f(gru_cell::CellBefore<Activation::kRelu>{});
      case Activation::kIdentity: return f(gru_cell::CellBefore<Activation::kIdentity>{});
    }
  }
};

constexpr int kGates = 3;
// Blocks: r, z, n and q = r * h_prev.
constexpr int kR = 0, kZ = 1, kN = 2, kQ = 3;

inline mixing::ForwardScratch forward_scratch(const Dims& d, void* base) {
  return mixing::ForwardScratch(d, kGates, kGates, /*resets=*/true, base);
}
inline mixing::BackwardScratch backward_scratch(const Dims& d, void* base) {
  return mixing::BackwardScratch(d, kGates, /*resets=*/true, base);
}

// ---- one product a step, twice -----------------------------------------------------------------

// First half of a step, reset before the product: r, z and q = r * h_prev, given R_r h and R_z h.
// Work split: a thread per (row, direction, unit). Traffic per thread, in elements: W x and R h of
// r and z, and h, in; z in place of R_z h for the second half, q, and the saved r, z, q out.
// Limits: 64-bit offsets. Invariants: a thread reads and writes its own elements alone; at padded
// steps q is zero, and so are the saved values, W x may be NaN. Launch: step_shape, no
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
// place; otherwise as replay_kernel.
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

inline void forward_by_steps(const Context& given, const ForwardScan& a) {
  const Dims& d = a.dims;
  const mixing::ForwardScratch scratch = forward_scratch(d, a.scratch);
  const std::int64_t launches = 4 * (a.step_end - a.step_begin);
  run_as_graph(given, mixing::key_of(a, kGates), launches, [&](const Context& ctx) {
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
  });
}

inline void backward_by_steps(const Context& given, const BackwardScan& a) {
  const Dims& d = a.dims;
  const mixing::BackwardScratch scratch = backward_scratch(d, a.scratch);
  const std::int64_t launches = 4 * (a.step_end - a.step_begin);
  run_as_graph(given, mixing::key_of(a, kGates), launches, [&](const Context& ctx) {
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
  });
}

inline void replay(const Context& ctx, const ForwardScan& a) {
  const Dims& d = a.dims;
  const mixing::ForwardScratch scratch = forward_scratch(d, a.scratch);
  mixing::replay_product(ctx, a, kGates, a.h_kept, 0, kR, kN, kR, 1.0, scratch.workspace);
  with_type(d.compute, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const auto* bias = static_cast<const state_t<T>*>(scratch.bias);
    launch(ctx, "gru_replay", gru_replay_kernel<T>, mixing::replay_shape(a), a, bias, false);
    mixing::replay_product(ctx, a, kGates, a.gates, kQ, kN, kGates, kN, 1.0, scratch.workspace);
    launch(ctx, "gru_replay", gru_replay_kernel<T>, mixing::replay_shape(a), a, bias, true);
  });
}

// ---- tiles -------------------------------------------------------------------------------------

/// As mixing::tile_forward_steps; `states`: h and, behind it, q of the tile.
template <class T, int kRows>
__device__ __forceinline__ void tile_forward_steps(const ForwardScan& a,
                                                   const mixing::TileThread<kRows>& t,
                                                   const T* weights, state_t<T>* states,
                                                   const state_t<T>* b, state_t<T> (&h)[kRows]) {
  using S = state_t<T>;
  const Dims& d = a.dims;
  const auto pitch = static_cast<int>(mixing::tile_pitch(kGates, d.hidden));
  S* resets = states + t.hidden * t.m;
  const int own = t.unit * t.m + t.at;
  for (std::int64_t k = 0; k < d.cut.steps; ++k) {
    const std::int64_t time = mixing::time_of(a, t.dir, k);
    const bool zero = k == 0 && a.zero_state;
    T wx[kGates][kRows] = {};
    S z[kRows] = {};
    if (t.active) {
#pragma unroll
      for (int j = 0; j < kRows; ++j) {
        if (!t.counts(j, time)) continue;
        const T* from = t.template at_row<T>(a.gates, d, j, time);
#pragma unroll
        for (int g = 0; g < kGates; ++g) wx[g][j] = from[g * d.hidden];
      }
      S sum[2][kRows] = {}, q[kRows] = {};
      if (!zero) {
        mixing::multiply_tile(weights + t.unit, pitch, t.hidden, states + t.at, t.m, t.hidden, sum);
      }
#pragma unroll
      for (int j = 0; j < kRows; ++j) {
        if (!t.exists(j)) continue;
        if (a.h_kept.data[0] != nullptr) {
          *t.template at_row<T>(a.h_kept, d, j, time) = narrow<T>(h[j]);
        }
        S r = S(0);
        if (t.counts(j, time)) {
          const S x[2] = {widen(wx[kR][j]), widen(wx[kZ][j])}, rh[2] = {sum[kR][j], sum[kZ][j]};
          Before::Shape::forward_gates(x, rh, b, h[j], &r, &z[j], &q[j]);
        }
        if (a.save) {
          T* gates = t.template at_row<T>(a.gates, d, j, time);
          gates[kR * d.hidden] = narrow<T>(r);
          gates[kZ * d.hidden] = narrow<T>(z[j]);
          gates[kQ * d.hidden] = narrow<T>(q[j]);
        }
      }
      mixing::store_rows<kRows>(q, resets + own);
    }
    __syncthreads();
    if (t.active) {
      S sum[1][kRows] = {};
      if (!zero) {
        mixing::multiply_tile(weights + kN * t.hidden + t.unit, pitch, 0, resets + t.at, t.m,
                              t.hidden, sum);
      }
      Before::with_cell(d.options, [&](auto cell) {
#pragma unroll
        for (int j = 0; j < kRows; ++j) {
          if (!t.exists(j)) continue;
          S n = S(0), y = S(0);
          if (t.counts(j, time)) {
            cell.forward_state(widen(wx[kN][j]), sum[0][j], b[kN], h[j], z[j], &n, &h[j]);
            y = h[j];
          }
          if (a.save) t.template at_row<T>(a.gates, d, j, time)[kN * d.hidden] = narrow<T>(n);
          if (a.y != nullptr) {
            const std::int64_t i = t.y_index(d, j, time);
            if (i >= 0) static_cast<T*>(a.y)[i] = narrow<T>(y);
          }
        }
      });
      mixing::store_rows<kRows>(h, states + own);
    }
    __syncthreads();
  }
}

// All steps of a tile of rows, reset before the product.
// Work split, traffic, limits, launch: as mixing::tile_forward_kernel. A step has two products, so
// two barriers: what the first one reads, h, is written after the second barrier's half began, and
// q likewise. Shared memory: R once (transposed), h and q of each row.
template <class T, int kRows>
__global__ void __launch_bounds__(mixing::kTileThreads, 1)
    gru_tile_forward_kernel(ForwardScan a, const state_t<T>* bias, int groups) {
  using S = state_t<T>;
  PENSTOCK_SHARED_MEMORY(unsigned char, shared);
  const Dims& d = a.dims;
  const auto pitch = static_cast<int>(mixing::tile_pitch(kGates, d.hidden));
  T* weights = nullptr;
  S* states = nullptr;
  mixing::TileRow* rows = nullptr;
  mixing::cut_shared<T>(shared, d.hidden * pitch, groups * kRows, &weights, &rows, &states);
  const mixing::TileThread<kRows> t(d, groups, rows);
  mixing::fill_tile_rows(a, t.m, rows);
  mixing::load_transposed(a, kGates, t.dir, weights);
  __syncthreads();

  S h[kRows] = {}, b[kGates] = {};
  const int own = t.unit * t.m + t.at;
  if (t.active) {
    t.load_states(d, a.h, h);
#pragma unroll
    for (int g = 0; g < kGates; ++g) b[g] = __ldg(bias + (t.dir * kGates + g) * d.hidden + t.unit);
    mixing::store_rows<kRows>(h, states + own);
  }
  __syncthreads();

  tile_forward_steps(a, t, weights, states, b, h);
  if (t.active) t.store_states(d, h, a.h);
}

/// As mixing::tile_backward_steps.
template <class T, int kRows>
__device__ __forceinline__ void tile_backward_steps(const BackwardScan& a,
                                                    const mixing::TileThread<kRows>& t,
                                                    const T* weights, state_t<T>* operand,
                                                    state_t<T> (&dh)[kRows]) {
  using S = state_t<T>;
  const Dims& d = a.dims;
  T r[kRows] = {}, z[kRows] = {}, n[kRows] = {}, h_prev[kRows] = {}, dy[kRows] = {};
  const auto fetch = [&](std::int64_t k) {
    const std::int64_t time = mixing::time_of(a, t.dir, k);
#pragma unroll
    for (int j = 0; j < kRows; ++j) {
      if (!t.counts(j, time)) continue;
      const T* gates = t.template at_row<T>(a.gates, d, j, time);
      r[j] = gates[kR * d.hidden];
      z[j] = gates[kZ * d.hidden];
      n[j] = gates[kN * d.hidden];
      h_prev[j] = *t.template at_row<T>(a.h_kept, d, j, time);
      const std::int64_t i = a.dy == nullptr ? -1 : t.y_index(d, j, time);
      dy[j] = i < 0 ? T{} : static_cast<const T*>(a.dy)[i];
    }
  };
  if (t.active) fetch(d.cut.steps - 1);

  const int own = t.unit * t.m + t.at, block = t.hidden * t.m;
  for (std::int64_t k = d.cut.steps - 1; k >= 0; --k) {
    const std::int64_t time = mixing::time_of(a, t.dir, k);
    if (t.active) {
      S dz[kRows] = {}, dn[kRows] = {};
      Before::with_cell(d.options, [&](auto cell) {
#pragma unroll
        for (int j = 0; j < kRows; ++j) {
          if (t.counts(j, time)) {
            S dh_prev = S(0);
            cell.backward_state(widen(z[j]), widen(n[j]), widen(h_prev[j]), dh[j] + widen(dy[j]),
                                &dz[j], &dn[j], &dh_prev);
            dh[j] = dh_prev;
          }
          if (t.exists(j)) {
            T* out = t.template at_row<T>(a.dgates, d, j, time);
            out[kZ * d.hidden] = narrow<T>(dz[j]);
            out[kN * d.hidden] = narrow<T>(dn[j]);
          }
        }
      });
      mixing::store_rows<kRows>(dz, operand + kZ * block + own);
      mixing::store_rows<kRows>(dn, operand + kN * block + own);
    }
    __syncthreads();
    if (t.active) {
      S dq[1][kRows] = {}, dr[kRows] = {};
      mixing::multiply_tile(weights + kN * t.hidden * t.hidden + t.unit, t.hidden, 0,
                            operand + kN * block + t.at, t.m, t.hidden, dq);
#pragma unroll
      for (int j = 0; j < kRows; ++j) {
        if (t.counts(j, time)) {
          S through = S(0);
          Before::Shape::backward_gates(widen(r[j]), widen(h_prev[j]), dq[0][j], &dr[j], &through);
          dh[j] += through;
        }
        if (t.exists(j)) {
          t.template at_row<T>(a.dgates, d, j, time)[kR * d.hidden] = narrow<T>(dr[j]);
        }
      }
      mixing::store_rows<kRows>(dr, operand + kR * block + own);
    }
    if (k == 0 && !a.want_first) break;
    __syncthreads();
    if (t.active) {
      if (k > 0) fetch(k - 1);
      S sum[1][kRows] = {};
      mixing::multiply_tile(weights + t.unit, t.hidden, 0, operand + t.at, t.m, 2 * t.hidden, sum);
#pragma unroll
      for (int j = 0; j < kRows; ++j) dh[j] += sum[0][j];
    }
    __syncthreads();
  }
}

// All steps of a tile of rows backward, reset before the product.
// Work split, traffic, limits, invariants, launch: as mixing::tile_backward_kernel, with three
// barriers per step for its two products. Shared memory: R once, G·H values per row.
template <class T, int kRows>
__global__ void __launch_bounds__(mixing::kTileThreads, 1)
    gru_tile_backward_kernel(BackwardScan a, int groups) {
  using S = state_t<T>;
  PENSTOCK_SHARED_MEMORY(unsigned char, shared);
  const Dims& d = a.dims;
  T* weights = nullptr;
  S* operand = nullptr;
  mixing::TileRow* rows = nullptr;
  mixing::cut_shared<T>(shared, kGates * d.hidden * d.hidden, groups * kRows, &weights, &rows,
                        &operand);
  const mixing::TileThread<kRows> t(d, groups, rows);
  mixing::fill_tile_rows(a, t.m, rows);
  mixing::load_weights(a, kGates, t.dir, weights);
  __syncthreads();

  S dh[kRows] = {};
  if (t.active) t.load_states(d, a.dh, dh);
  tile_backward_steps(a, t, weights, operand, dh);
  if (t.active) t.store_states(d, dh, a.dh);
}

/// As mixing::OneProduct, for levels in one launch.
struct Steps {
  using Shape = Before::Shape;
  static constexpr int kProducts = 2;
  template <class T, int kRows>
  static __device__ __forceinline__ void forward(const ForwardScan& a,
                                                 const mixing::TileThread<kRows>& t, T* weights,
                                                 state_t<T>* states, const state_t<T>* b,
                                                 state_t<T> (&h)[kRows], state_t<T> (&)[kRows]) {
    tile_forward_steps(a, t, weights, states, b, h);
  }
  template <class T, int kRows>
  static __device__ __forceinline__ void backward(const BackwardScan& a,
                                                  const mixing::TileThread<kRows>& t, T* weights,
                                                  state_t<T>* operand, state_t<T> (&dh)[kRows],
                                                  state_t<T> (&)[kRows]) {
    tile_backward_steps(a, t, weights, operand, dh);
  }
};

inline void forward_by_tiles(const Context& ctx, const ForwardScan& a,
                             const mixing::RecurrentPlan& plan) {
  with_type(a.dims.compute, [&](auto tag) {
    using T = typename decltype(tag)::type;
    mixing::with_tile<T>(a.dims, plan, [&](auto rows, const mixing::TileLaunch& t) {
      launch(ctx, "gru_tile_forward", gru_tile_forward_kernel<T, decltype(rows)::value>, t.shape, a,
             static_cast<const state_t<T>*>(a.scratch), t.groups);
    });
  });
}

inline void backward_by_tiles(const Context& ctx, const BackwardScan& a,
                              const mixing::RecurrentPlan& plan) {
  with_type(a.dims.compute, [&](auto tag) {
    using T = typename decltype(tag)::type;
    mixing::with_tile<T>(a.dims, plan, [&](auto rows, const mixing::TileLaunch& t) {
      launch(ctx, "gru_tile_backward", gru_tile_backward_kernel<T, decltype(rows)::value>, t.shape,
             a, t.groups);
    });
  });
}

inline mixing::RecurrentPlan plan_of(const Context& ctx, const recurrent::Scan& a, bool backward) {
  mixing::RecurrentProblem p = mixing::problem_of(ctx, a, kGates, backward);
  p.one_product = false;
  const mixing::RecurrentPlan plan = mixing::choose(p);
  mixing::report(p, plan);
  return plan;
}

inline void forward(const Context& ctx, const ForwardScan& a) {
  const mixing::RecurrentPlan plan = plan_of(ctx, a, /*backward=*/false);
  if (plan.path == mixing::RecurrentPath::kTile) return forward_by_tiles(ctx, a, plan);
  forward_by_steps(ctx, a);
}
inline void backward(const Context& ctx, const BackwardScan& a) {
  const mixing::RecurrentPlan plan = plan_of(ctx, a, /*backward=*/true);
  if (plan.path == mixing::RecurrentPath::kTile) return backward_by_tiles(ctx, a, plan);
  backward_by_steps(ctx, a);
}

}  // namespace penstock::cuda::reset_before
