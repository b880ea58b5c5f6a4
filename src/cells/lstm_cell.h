// One step of long short-term memory (equations: include/penstock/lstm.h), for any value type V.
#pragma once

#include "cells/recurrent_kernels.h"
#include "core/scalar_math.h"

namespace penstock::lstm_cell {

/// See rnn_cell.h. Gates and saved values: i, f, g, o.
struct Cell {
  static constexpr int kGates = 4;
  static constexpr int kSaved = 4;
  static constexpr int kGradients = 4;
  static constexpr int kBiases = 4;
  static constexpr bool kHasC = true;
  static recurrent::Spec spec() {
    recurrent::Spec s;
    s.gates = 4;
    s.saved = 4;
    s.dgates = 4;
    s.h_split = 4;
    s.has_c = true;
    return s;
  }

  template <class V>
  PENSTOCK_HOST_DEVICE static void combine_bias(const V* ih, const V* hh, V* bias) {
    for (int g = 0; g < 4; ++g) bias[g] = ih[g] + hh[g];
  }

  template <class V>
  PENSTOCK_HOST_DEVICE static void forward(const V* wx, const V* rh, const V* bias, V /*h_prev*/,
                                           V c_prev, V* saved, V* h, V* c) {
    saved[0] = sigmoid(wx[0] + rh[0] + bias[0]);
    saved[1] = sigmoid(wx[1] + rh[1] + bias[1]);
    saved[2] = tanh(wx[2] + rh[2] + bias[2]);
    saved[3] = sigmoid(wx[3] + rh[3] + bias[3]);
    *c = saved[1] * c_prev + saved[0] * saved[2];
    *h = saved[3] * tanh(*c);
  }

  template <class V>
  PENSTOCK_HOST_DEVICE static void backward(const V* saved, V /*h_prev*/, V c_prev, V dh, V dc,
                                            V* dgates, V* dh_prev, V* dc_prev) {
    const V one = V(1);
    const V i = saved[0], f = saved[1], g = saved[2], o = saved[3];
    const V tanh_c = tanh(f * c_prev + i * g);
    const V dc_total = dc + dh * o * (one - tanh_c * tanh_c);
    dgates[0] = dc_total * g * i * (one - i);
    dgates[1] = dc_total * c_prev * f * (one - f);
    dgates[2] = dc_total * i * (one - g * g);
    dgates[3] = dh * tanh_c * o * (one - o);
    *dc_prev = dc_total * f;
    *dh_prev = V(0);
  }
};

}  // namespace penstock::lstm_cell
