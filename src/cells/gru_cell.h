// One step of the gated recurrent unit (equations: include/penstock/gru.h), for any value type V.
#pragma once

#include "cells/activations.h"
#include "cells/recurrent_kernels.h"

namespace penstock::gru_cell {

/// Reset after the product; see rnn_cell.h. Saved: r, z, n and q = R_n h_prev + b_hn. Gradients: of
/// r's, z's and n's sums, then of q.
template <Activation A>
struct CellAfter {
  static constexpr int kGates = 3;
  static constexpr int kSaved = 4;
  static constexpr int kGradients = 4;
  static constexpr int kBiases = 4;
  static constexpr bool kHasC = false;
  static recurrent::Spec spec() {
    recurrent::Spec s;
    s.gates = 3;
    s.saved = 4;
    s.dgates = 4;
    s.h_split = 2;
    s.h_block = 3;
    return s;
  }

  template <class V>
  PENSTOCK_HOST_DEVICE static void combine_bias(const V* ih, const V* hh, V* bias) {
    bias[0] = ih[0] + hh[0];
    bias[1] = ih[1] + hh[1];
    bias[2] = ih[2];
    bias[3] = hh[2];
  }

  template <class V>
  PENSTOCK_HOST_DEVICE static void forward(const V* wx, const V* rh, const V* bias, V h_prev,
                                           V /*c_prev*/, V* saved, V* h, V* /*c*/) {
    const V r = sigmoid(wx[0] + rh[0] + bias[0]);
    const V z = sigmoid(wx[1] + rh[1] + bias[1]);
    const V q = rh[2] + bias[3];
    const V n = cells::activate<A>(wx[2] + bias[2] + r * q);
    saved[0] = r;
    saved[1] = z;
    saved[2] = n;
    saved[3] = q;
    *h = n + z * (h_prev - n);
  }

  template <class V>
  PENSTOCK_HOST_DEVICE static void backward(const V* saved, V h_prev, V /*c_prev*/, V dh, V /*dc*/,
                                            V* dgates, V* dh_prev, V* /*dc_prev*/) {
    const V one = V(1);
    const V r = saved[0], z = saved[1], n = saved[2], q = saved[3];
    const V dn = cells::activation_gradient<A>(dh * (one - z), n);
    dgates[0] = dn * q * r * (one - r);
    dgates[1] = dh * (h_prev - n) * z * (one - z);
    dgates[2] = dn;
    dgates[3] = dn * r;
    *dh_prev = dh * z;
  }
};

/// Reset before the product: two products a step, so two halves. Saved: r, z, n and q = r * h_prev.
/// Gradients: of r's, z's and n's sums.
template <Activation A>
struct CellBefore {
  static constexpr int kGates = 3;
  static constexpr int kSaved = 4;
  static constexpr int kGradients = 3;
  static constexpr int kBiases = 3;
  static constexpr bool kHasC = false;
  static recurrent::Spec spec() {
    recurrent::Spec s;
    s.gates = 3;
    s.saved = 4;
    s.dgates = 3;
    s.h_split = 2;
    s.h_block = 2;
    s.operand = 3;
    return s;
  }

  template <class V>
  PENSTOCK_HOST_DEVICE static void combine_bias(const V* ih, const V* hh, V* bias) {
    for (int g = 0; g < 3; ++g) bias[g] = ih[g] + hh[g];
  }

  /// r, z and q from the products of r and z.
  template <class V>
  PENSTOCK_HOST_DEVICE static void forward_gates(const V* wx, const V* rh, const V* bias, V h_prev,
                                                 V* r, V* z, V* q) {
    *r = sigmoid(wx[0] + rh[0] + bias[0]);
    *z = sigmoid(wx[1] + rh[1] + bias[1]);
    *q = *r * h_prev;
  }
  /// n and h, given the products W_n x and R_n q.
  template <class V>
  PENSTOCK_HOST_DEVICE static void forward_state(V wx, V rq, V bias, V h_prev, V z, V* n, V* h) {
    *n = cells::activate<A>(wx + rq + bias);
    *h = *n + z * (h_prev - *n);
  }

  /// Gradients of z's and n's sums; `dh_prev` without what comes through R and through r.
  template <class V>
  PENSTOCK_HOST_DEVICE static void backward_state(V z, V n, V h_prev, V dh, V* dz, V* dn,
                                                  V* dh_prev) {
    const V one = V(1);
    *dz = dh * (h_prev - n) * z * (one - z);
    *dn = cells::activation_gradient<A>(dh * (one - z), n);
    *dh_prev = dh * z;
  }
  /// Gradient of r's sum, and what h_prev receives through r, given dq = R_n^T dn.
  template <class V>
  PENSTOCK_HOST_DEVICE static void backward_gates(V r, V h_prev, V dq, V* dr, V* dh_prev) {
    *dr = dq * h_prev * r * (V(1) - r);
    *dh_prev = dq * r;
  }
};

}  // namespace penstock::gru_cell
