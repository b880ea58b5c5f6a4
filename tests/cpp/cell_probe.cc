// Compiled once per instruction set.

#include "cell_probe.h"

#include "cells/sru_cell.h"
#include "cpu/vec.h"

namespace penstock::cpu::PENSTOCK_ISA_NAMESPACE {
namespace {

// Whole vectors, then the rest, as the kernels do it.
template <class T, class F>
PENSTOCK_INLINE void map(std::int64_t n, const T* x, T* y, const F& f) {
  for_each_vector<Vec<T>>(n, [&](auto, std::int64_t i, int lanes) PENSTOCK_LAMBDA_INLINE {
    f(Vec<T>::load(x + i, lanes)).store(y + i, lanes);
  });
}

template <class T>
void exp_of(std::int64_t n, const T* x, T* y) {
  map(n, x, y, [](Vec<T> v) PENSTOCK_LAMBDA_INLINE { return exp(v); });
}
template <class T>
void sigmoid_of(std::int64_t n, const T* x, T* y) {
  map(n, x, y, [](Vec<T> v) PENSTOCK_LAMBDA_INLINE { return sigmoid(v); });
}
template <class T>
void tanh_of(std::int64_t n, const T* x, T* y) {
  map(n, x, y, [](Vec<T> v) PENSTOCK_LAMBDA_INLINE { return tanh(v); });
}
template <class T>
T sum_of(const T* lanes) {
  return horizontal_sum(Vec<T>::load(lanes));
}

template <Activation A, class T>
void cell_as(T site, std::int64_t n, const tests::CellArrays<T>& a) {
  using V = Vec<T>;
  for_each_vector<V>(n, [&](auto, std::int64_t i, int lanes) PENSTOCK_LAMBDA_INLINE {
    const auto get = [&](const T* p) PENSTOCK_LAMBDA_INLINE { return V::load(p + i, lanes); };
    const sru_cell::Inputs<V> in = {get(a.u0),   get(a.u1),   get(a.u2),
                                    get(a.skip), get(a.mask), get(a.mask_skip)};
    const sru_cell::Parameters<V> p = {get(a.v_f), get(a.v_r), get(a.b_f), get(a.b_r)};
    const auto f = sru_cell::forward<A, V>(in, p, get(a.c_prev));
    f.c.store(a.c_out + i, lanes);
    f.h.store(a.h_out + i, lanes);
    const auto b =
        sru_cell::backward<A, V>(in, p, get(a.c_prev), get(a.c), get(a.dh), get(a.dc), V(site));
    b.du0.store(a.du0 + i, lanes);
    b.du1.store(a.du1 + i, lanes);
    b.du2.store(a.du2 + i, lanes);
    b.dskip.store(a.dskip + i, lanes);
    b.dmask.store(a.dmask + i, lanes);
    b.dc_prev.store(a.dc_prev + i, lanes);
  });
}

template <class T>
void cell(Activation activation, T site, std::int64_t n, const tests::CellArrays<T>& a) {
  switch (activation) {
    case Activation::kIdentity: return cell_as<Activation::kIdentity>(site, n, a);
    case Activation::kTanh: return cell_as<Activation::kTanh>(site, n, a);
    case Activation::kRelu: return cell_as<Activation::kRelu>(site, n, a);
  }
}

}  // namespace

const tests::CellProbe& cell_probe() {
  static constexpr tests::CellProbe probe = {
      {Vec<float>::kSize, &exp_of<float>, &sigmoid_of<float>, &tanh_of<float>, &sum_of<float>,
       &cell<float>},
      {Vec<double>::kSize, &exp_of<double>, &sigmoid_of<double>, &tanh_of<double>, &sum_of<double>,
       &cell<double>}};
  return probe;
}

}  // namespace penstock::cpu::PENSTOCK_ISA_NAMESPACE
