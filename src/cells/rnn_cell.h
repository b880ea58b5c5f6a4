// One step of the plain recurrent cell (equations: include/penstock/rnn.h), for any value type V.
#pragma once

#include "cells/activations.h"
#include "cells/recurrent_kernels.h"

namespace penstock::rnn_cell {

/// A cell as the step templates of the backends take it. kGates: row blocks of the weights; kSaved:
/// values that backward reads; kGradients: gradients that a step leaves; kBiases: values of `bias`.
template <Activation A>
struct Cell {
  static constexpr int kGates = 1;
  static constexpr int kSaved = 1;
  static constexpr int kGradients = 1;
  static constexpr int kBiases = 1;
  static constexpr bool kHasC = false;
  static recurrent::Spec spec() {
    recurrent::Spec s;
    s.gates = 1;
    s.saved = 1;
    s.dgates = 1;
    s.h_split = 1;
    return s;
  }

  /// The biases that `forward` takes, from both biases of each gate.
  template <class V>
  PENSTOCK_HOST_DEVICE static void combine_bias(const V* ih, const V* hh, V* bias) {
    bias[0] = ih[0] + hh[0];
  }

  /// `wx` and `rh`: the products of each gate.
  template <class V>
  PENSTOCK_HOST_DEVICE static void forward(const V* wx, const V* rh, const V* bias, V /*h_prev*/,
                                           V /*c_prev*/, V* saved, V* h, V* /*c*/) {
    saved[0] = cells::activate<A>(wx[0] + rh[0] + bias[0]);
    *h = saved[0];
  }

  /// `dh` and `dc` of the step's states; `dh_prev` without what comes through R.
  template <class V>
  PENSTOCK_HOST_DEVICE static void backward(const V* saved, V /*h_prev*/, V /*c_prev*/, V dh,
                                            V /*dc*/, V* dgates, V* dh_prev, V* /*dc_prev*/) {
    dgates[0] = cells::activation_gradient<A>(dh, saved[0]);
    *dh_prev = V(0);
  }
};

}  // namespace penstock::rnn_cell
