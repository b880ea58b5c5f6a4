// One step of the SRU (equations: include/penstock/sru.h), forward and backward, for any value
// type V with arithmetic, sigmoid(V), tanh(V) and where_positive(V, V, V): float, double or a SIMD
// vector. No branches; padding is the caller's, whole steps at a time.
//
// Both mask sites are one formula, h = r * (m * g - n * x') + x', with n = m where the mask
// multiplies the output and n = 1 where it multiplies the state.
#pragma once

#include "core/scalar_math.h"
#include "penstock/types.h"

namespace penstock::sru_cell {

template <Activation A, class V>
PENSTOCK_HOST_DEVICE V activate(V c) {
  if constexpr (A == Activation::kTanh) {
    return tanh(c);
  } else if constexpr (A == Activation::kRelu) {
    return where_positive(-c, V(0), c);  // NaN stays NaN
  } else {
    return c;
  }
}

/// dy * g'(c), with g = activate(c).
template <Activation A, class V>
PENSTOCK_HOST_DEVICE V activation_gradient(V dy, V c, V g) {
  if constexpr (A == Activation::kTanh) {
    return dy * (V(1) - g * g);
  } else if constexpr (A == Activation::kRelu) {
    return where_positive(c, dy, V(0));
  } else {
    return dy;
  }
}

template <class V>
struct Parameters {
  V v_f, v_r, b_f, b_r;
};

template <class V>
struct Inputs {
  V u0, u1, u2;
  V skip;       // x'
  V mask;       // m, 1 without a mask
  V mask_skip;  // n
};

template <class V>
struct Forward {
  V c, h;
};

/// a * b + c. A value type may have one of its own, that is always rounded once: then two scans
/// that compute the same state, each in its own surroundings, get the same bits.
template <class V>
PENSTOCK_HOST_DEVICE V multiply_add(V a, V b, V c) {
  return a * b + c;
}

template <class V>
PENSTOCK_HOST_DEVICE V forget_gate(const Inputs<V>& in, const Parameters<V>& p, V c_prev) {
  return sigmoid(multiply_add(p.v_f, c_prev, in.u1 + p.b_f));
}

/// The state after a step whose forget gate is f.
template <class V>
PENSTOCK_HOST_DEVICE V next_state(const Inputs<V>& in, V c_prev, V f) {
  return multiply_add(f, c_prev, (V(1) - f) * in.u0);
}

template <Activation A, class V>
PENSTOCK_HOST_DEVICE Forward<V> forward(const Inputs<V>& in, const Parameters<V>& p, V c_prev) {
  const V f = forget_gate(in, p, c_prev);
  const V r = sigmoid(in.u2 + p.b_r + p.v_r * c_prev);
  Forward<V> out;
  out.c = next_state(in, c_prev, f);
  out.h = r * (in.mask * activate<A>(out.c) - in.mask_skip * in.skip) + in.skip;
  return out;
}

/// A step's effect on the state, or on the state's gradient: what comes out is a * what goes in +
/// b.
template <class V>
struct Affine {
  V a, b;
};

/// `forward`'s c of c_prev, for v = 0.
template <class V>
PENSTOCK_HOST_DEVICE Affine<V> forward_step(const Inputs<V>& in, const Parameters<V>& p) {
  const V f = sigmoid(in.u1 + p.b_f);
  return {f, (V(1) - f) * in.u0};
}

/// `forward`'s c, as b, and its derivative by c_prev, as a.
template <class V>
PENSTOCK_HOST_DEVICE Affine<V> forward_tangent(const Inputs<V>& in, const Parameters<V>& p,
                                               V c_prev) {
  const V f = forget_gate(in, p, c_prev);
  return {f + (c_prev - in.u0) * f * (V(1) - f) * p.v_f, next_state(in, c_prev, f)};
}

template <class V>
struct Backward {
  V du0, du1, du2;  // du1 and du2 are also the gradients of b_f and b_r; times c_prev, of v_f, v_r
  V dskip;
  V dmask;
  V dc_prev;
};

/// An activation that is known at compile time.
template <Activation A>
struct Fixed {
  template <class V>
  PENSTOCK_HOST_DEVICE V value(V c) const {
    return activate<A>(c);
  }
  template <class V>
  PENSTOCK_HOST_DEVICE V gradient(V dy, V c, V g) const {
    return activation_gradient<A>(dy, c, g);
  }
};

/// `dh` and `dc` come from the output and from the next step; `site` is 1 where the mask multiplies
/// the output, 0 where it multiplies the state. f is the step's forget gate; u1 is not read.
template <class Function, class V>
PENSTOCK_HOST_DEVICE Backward<V> backward_of_gate(const Function& activation, const Inputs<V>& in,
                                                  const Parameters<V>& p, V c_prev, V c, V f, V dh,
                                                  V dc, V site) {
  const V one = V(1);
  const V r = sigmoid(in.u2 + p.b_r + p.v_r * c_prev);
  const V g = activation.value(c);
  Backward<V> out;
  const V dr = dh * (in.mask * g - in.mask_skip * in.skip);
  out.dskip = dh * (one - r * in.mask_skip);
  out.dmask = dh * r * (g - site * in.skip);
  const V dc_total = dc + activation.gradient(dh * r * in.mask, c, g);
  out.du0 = dc_total * (one - f);
  out.du1 = dc_total * (c_prev - in.u0) * f * (one - f);
  out.du2 = dr * r * (one - r);
  out.dc_prev = dc_total * f + out.du1 * p.v_f + out.du2 * p.v_r;
  return out;
}

template <Activation A, class V>
PENSTOCK_HOST_DEVICE Backward<V> backward(const Inputs<V>& in, const Parameters<V>& p, V c_prev,
                                          V c, V dh, V dc, V site) {
  return backward_of_gate(Fixed<A>(), in, p, c_prev, c, forget_gate(in, p, c_prev), dh, dc, site);
}

/// `backward`'s dc_prev of dc.
template <Activation A, class V>
PENSTOCK_HOST_DEVICE Affine<V> backward_step(const Inputs<V>& in, const Parameters<V>& p, V c_prev,
                                             V c, V dh) {
  const V one = V(1);
  const V f = sigmoid(in.u1 + p.b_f + p.v_f * c_prev);
  const V r = sigmoid(in.u2 + p.b_r + p.v_r * c_prev);
  const V g = activate<A>(c);
  const V dr = dh * (in.mask * g - in.mask_skip * in.skip);
  Affine<V> out;
  out.a = f + (c_prev - in.u0) * f * (one - f) * p.v_f;
  out.b = activation_gradient<A>(dh * r * in.mask, c, g) * out.a + dr * r * (one - r) * p.v_r;
  return out;
}

}  // namespace penstock::sru_cell
