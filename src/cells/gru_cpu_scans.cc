// Compiled once per instruction set.

#include "cells/gru_cell.h"
#include "cells/gru_cpu.h"
#include "cells/recurrent_cpu_steps.h"

namespace penstock::cpu::PENSTOCK_ISA_NAMESPACE {
namespace {

/// Reset before the product: r and z from one product with h_prev, then n from one with r * h_prev.
template <class T, class Cell>
struct TwoHalves : StepsBase<T, Cell, TwoHalves<T, Cell>> {
  using Base = StepsBase<T, Cell, TwoHalves<T, Cell>>;
  using Base::add;
  using Base::kSize;
  using Base::lanes;
  using Base::vectors;
  using typename Base::BackwardScan;
  using typename Base::Dims;
  using typename Base::ForwardScan;
  using typename Base::Row;
  using typename Base::Scan;
  using typename Base::V;
  static constexpr int kR = 0, kZ = 1, kN = 2, kQ = 3;  // blocks of a row of gates
  static constexpr int kTile =
      kWidePanel > 2 * Base::kMostUnitsAtOnce ? kWidePanel : 2 * Base::kMostUnitsAtOnce;

  static void clear_operand(T* gates, std::int64_t hidden) { clear(gates + kQ * hidden, hidden); }

  // Scratch: biases; R_r and R_z; R_n. Where R is read as it is: biases; products.
  static std::int64_t gate_bytes(const Dims& d, Products products) {
    return vectors(d.hidden) * 2 * Packed<T>::vector_bytes(products, d.hidden);
  }
  static std::int64_t forward_scratch(const Dims& d, Products products) {
    const std::int64_t row = 2 * d.hidden * static_cast<std::int64_t>(sizeof(T));
    return Base::bias_bytes(d) +
           (products == Products::kRead
                ? kMostBlockRows * row
                : vectors(d.hidden) * 3 * Packed<T>::vector_bytes(products, d.hidden));
  }
  static void pack_forward(const Scan& s, const RowBlock& w) {
    Base::pack_bias(s, w);
    if (w.products == Products::kRead) return;
    const std::int64_t hidden = s.dims.hidden;
    char* out = static_cast<char*>(w.scratch) + Base::bias_bytes(s.dims);
    Base::pack_gates(s, w, 2, out);
    Packed<T>::pack_all(w, Base::weight(s, w.dir) + 2 * hidden * hidden, 1, hidden, hidden, hidden,
                        out + gate_bytes(s.dims, w.products));
  }

  template <bool kWhole>
  PENSTOCK_INLINE static void first_half(const Row& r, T* q_row, std::int64_t h, int n,
                                         std::int64_t hidden, const T* rh, std::int64_t stride,
                                         const T* bias) {
    V wx[2], p[2], b[Cell::kBiases], reset, update, q;
    for (int g = 0; g < 2; ++g) {
      wx[g] = get<kWhole>(r.gates + g * hidden + h, n);
      p[g] = get<kWhole>(rh + g * stride, n);
      b[g] = V::load(bias + g * kSize);
    }
    Cell::forward_gates(wx, p, b, get<kWhole>(r.h + h, n), &reset, &update, &q);
    put<kWhole>(reset, r.gates + kR * hidden + h, n);
    put<kWhole>(update, r.gates + kZ * hidden + h, n);
    put<kWhole>(q, q_row + h, n);
  }
  template <bool kWhole>
  PENSTOCK_INLINE static void second_half(const Row& r, std::int64_t h, int n, std::int64_t hidden,
                                          const T* rq, const T* bias) {
    const V before = get<kWhole>(r.h + h, n);
    V candidate, after;
    Cell::forward_state(get<kWhole>(r.gates + kN * hidden + h, n), get<kWhole>(rq, n),
                        V::load(bias + 2 * kSize), before,
                        get<kWhole>(r.gates + kZ * hidden + h, n), &candidate, &after);
    put<kWhole>(candidate, r.gates + kN * hidden + h, n);
    if (r.h_next == nullptr) return;
    put<kWhole>(after, r.h_next + h, n);
    if (r.y != nullptr) put<kWhole>(after, r.y + h, n);
    if (r.h_kept != nullptr) put<kWhole>(before, r.h_kept + h, n);
  }
  /// One vector of units of all rows. `first`: the first half.
  template <bool kFirst>
  static void units_of(const ForwardScan& s, const Row* rows, T* const* q, int count,
                       std::int64_t vector, const T* products, std::int64_t row_stride,
                       std::int64_t gate_stride, const T* bias) {
    const std::int64_t hidden = s.dims.hidden, h = vector * kSize;
    const int n = lanes(hidden, vector);
    bias += vector * Cell::kBiases * kSize;
    for (int i = 0; i < count; ++i) {
      const T* p = products + i * row_stride;
      if constexpr (kFirst) {
        if (n == kSize) {
          first_half<true>(rows[i], q[i], h, n, hidden, p, gate_stride, bias);
        } else {
          first_half<false>(rows[i], q[i], h, n, hidden, p, gate_stride, bias);
        }
      } else {
        if (n == kSize) {
          second_half<true>(rows[i], h, n, hidden, p, bias);
        } else {
          second_half<false>(rows[i], h, n, hidden, p, bias);
        }
      }
    }
  }

  static void step(const ForwardScan& s, const RowBlock& w, const Row* rows, int count,
                   bool zero_state) {
    const std::int64_t hidden = s.dims.hidden;
    const T* bias = static_cast<const T*>(w.scratch);
    char* data = static_cast<char*>(w.scratch) + Base::bias_bytes(s.dims);
    const T* h[kMostBlockRows];
    T* q[kMostBlockRows];
    for (int i = 0; i < count; ++i) {
      h[i] = rows[i].h;
      // A row whose gates are not saved has no place for q. But r is needed no more once q is
      // known.
      q[i] = rows[i].gates + (s.save ? kQ : kR) * hidden;
    }
    const std::int64_t v0 = w.first_of(vectors(hidden)), v1 = w.last_of(vectors(hidden));
    if (w.products == Products::kRead) {
      const T* r = Base::weight(s, w.dir);
      T* products = reinterpret_cast<T*>(data);
      const std::int64_t u0 = v0 * kSize, u1 = v1 * kSize < hidden ? v1 * kSize : hidden;
      // Units [u0, u1) of x · R of gate g.
      const auto multiply_gate = [&](const T* x, int g, T* out) {
        if (zero_state) {
          clear(out + u0, u1 - u0);
        } else {
          dot_products(1, u1 - u0, hidden, x, hidden, r + (g * hidden + u0) * hidden, hidden,
                       out + u0, hidden, true);
        }
      };
      for (int i = 0; i < count; ++i) {
        T* own = products + i * 2 * hidden;
        if (w.does(0)) {
          multiply_gate(h[i], kR, own);
          multiply_gate(h[i], kZ, own + hidden);
          for (std::int64_t v = v0; v < v1; ++v) {
            units_of<true>(s, rows + i, q + i, 1, v, own + v * kSize, 0, hidden, bias);
          }
        }
        if (w.does(1)) {
          multiply_gate(q[i], kN, own);
          for (std::int64_t v = v0; v < v1; ++v) {
            units_of<false>(s, rows + i, q + i, 1, v, own + v * kSize, 0, 0, bias);
          }
        }
      }
      return;
    }
    alignas(64) T out[kMostBlockRows * kTile * kSize];
    if (zero_state) clear(out, count * kTile * kSize);
    const Products products = zero_state ? Products::kPanels : w.products;
    const std::int64_t vector_bytes = Packed<T>::vector_bytes(w.products, hidden);
    if (w.does(0)) {
      const LeftRows<T> left(products, h, count, hidden);
      const int at_once = Base::units_at_once(w);
      for (std::int64_t v = v0; v < v1; v += at_once) {
        const int units = v + at_once <= v1 ? at_once : 1;
        const int width = units * 2;
        if (!zero_state) left.multiply_with(data + v * 2 * vector_bytes, width, out);
        for (int j = 0; j < units; ++j) {
          units_of<true>(s, rows, q, count, v + j, out + j * 2 * kSize, width * kSize, kSize, bias);
        }
      }
    }
    if (!w.does(1)) return;
    const LeftRows<T> left(products, q, count, hidden);
    const char* panels = data + gate_bytes(s.dims, w.products);
    const Columns<T> layout(hidden);
    for (std::int64_t panel = w.first_of(layout.panels); panel < w.last_of(layout.panels);
         ++panel) {
      const int width = layout.width(panel);
      const std::int64_t first = layout.first(panel);
      if (!zero_state) left.multiply_with(panels + first * vector_bytes, width, out);
      for (int j = 0; j < width; ++j) {
        units_of<false>(s, rows, q, count, first + j, out + j * kSize, width * kSize, 0, bias);
      }
    }
  }

  // Scratch: R_n^T, then [R_r; R_z]^T. Where R is read as it is: one row of products.
  static std::int64_t backward_scratch(const Dims& d, Products products) {
    if (products == Products::kRead) {
      return kMostBlockRows * d.hidden * static_cast<std::int64_t>(sizeof(T));
    }
    return vectors(d.hidden) * (Packed<T>::vector_bytes(products, d.hidden) +
                                Packed<T>::vector_bytes(products, 2 * d.hidden));
  }
  static void pack_backward(const Scan& s, const RowBlock& w) {
    if (w.products == Products::kRead) return;
    const std::int64_t hidden = s.dims.hidden;
    const T* r = Base::weight(s, w.dir);
    char* out = static_cast<char*>(w.scratch);
    Packed<T>::pack_all(w, r + 2 * hidden * hidden, hidden, 1, hidden, hidden, out);
    out += vectors(hidden) * Packed<T>::vector_bytes(w.products, hidden);
    Packed<T>::pack_all(w, r, hidden, 1, hidden, 2 * hidden, out);
  }

  struct GradientRow {
    const T* gates;
    const T* h;
    const T* dy;
    T* dgates;
    T* dh;
  };

  /// For units [begin, begin + units).
  static void first_gradients(const GradientRow& r, std::int64_t hidden, std::int64_t begin,
                              std::int64_t units) {
    for_each_vector<V>(units, [&](auto whole, std::int64_t i, int n) PENSTOCK_LAMBDA_INLINE {
      constexpr bool kWhole = decltype(whole)::value;
      const std::int64_t h = begin + i;
      V dh = get<kWhole>(r.dh + h, n), dz, dn, dh_prev;
      if (r.dy != nullptr) dh = dh + get<kWhole>(r.dy + h, n);
      Cell::backward_state(get<kWhole>(r.gates + kZ * hidden + h, n),
                           get<kWhole>(r.gates + kN * hidden + h, n), get<kWhole>(r.h + h, n), dh,
                           &dz, &dn, &dh_prev);
      put<kWhole>(dz, r.dgates + kZ * hidden + h, n);
      put<kWhole>(dn, r.dgates + kN * hidden + h, n);
      put<kWhole>(dh_prev, r.dh + h, n);
    });
  }
  /// For units [begin, begin + units), given dq.
  static void second_gradients(const GradientRow& r, std::int64_t hidden, std::int64_t begin,
                               std::int64_t units, const T* dq) {
    for_each_vector<V>(units, [&](auto whole, std::int64_t i, int n) PENSTOCK_LAMBDA_INLINE {
      constexpr bool kWhole = decltype(whole)::value;
      const std::int64_t h = begin + i;
      V dr, more;
      Cell::backward_gates(get<kWhole>(r.gates + kR * hidden + h, n), get<kWhole>(r.h + h, n),
                           get<kWhole>(dq + i, n), &dr, &more);
      put<kWhole>(dr, r.dgates + kR * hidden + h, n);
      put<kWhole>(get<kWhole>(r.dh + h, n) + more, r.dh + h, n);
    });
  }

  /// Phase 0: gradients of z and n; phase 1: through R_n, those of r; phase 2: what r and z add to
  /// dh through R.
  static void step_back(const BackwardScan& s, const RowBlock& w, const Block<T>& block,
                        std::int64_t k) {
    const std::int64_t hidden = s.dims.hidden;
    const auto own = Base::own_units(w, hidden);
    const std::int64_t u0 = own.first, units = own.count;
    GradientRow rows[kMostBlockRows];
    const T* dn[kMostBlockRows];
    const T* drz[kMostBlockRows];
    int count = 0;
    for (int i = 0; i < block.count(); ++i) {
      GradientRow row;
      row.dgates = block.row(s.dgates, i, k);
      if (!block.valid(i, k)) {
        if (w.share == 0 && w.does(0)) clear(row.dgates, 3 * hidden);
        continue;
      }
      row.gates = block.row(s.gates, i, k);
      row.h = block.row(s.h_kept, i, k);
      row.dy = block.output(static_cast<const T*>(s.dy), i, k);
      row.dh = static_cast<T*>(s.dh) + block.state(i);
      if (w.does(0)) first_gradients(row, hidden, u0, units);
      dn[count] = row.dgates + kN * hidden;
      drz[count] = row.dgates;
      rows[count++] = row;
    }
    if (count == 0) return;
    const bool last = k == 0 && !s.want_first;
    if (w.products == Products::kRead) {
      const T* r = Base::weight(s, w.dir) + u0;
      T* out = static_cast<T*>(w.scratch) + u0;
      for (int i = 0; i < count; ++i) {
        if (w.does(1)) {
          dot_products(1, units, hidden, dn[i], hidden, r + 2 * hidden * hidden, hidden, out,
                       hidden, false);
          second_gradients(rows[i], hidden, u0, units, out);
        }
        if (w.does(2) && !last) {
          dot_products(1, units, 2 * hidden, drz[i], 2 * hidden, r, hidden, out, hidden, false);
          add(out, rows[i].dh + u0, units);
        }
      }
      return;
    }
    alignas(64) T out[kMostBlockRows * kWidePanel * kSize];
    const Columns<T> layout(hidden);
    const std::int64_t first_panel = w.first_of(layout.panels);
    const std::int64_t last_panel = w.last_of(layout.panels);
    const auto columns = [&](std::int64_t panel) {
      const std::int64_t rest = hidden - layout.first(panel) * kSize;
      return rest < layout.width(panel) * kSize ? rest : layout.width(panel) * kSize;
    };
    const std::int64_t n_bytes = Packed<T>::vector_bytes(w.products, hidden);
    const std::int64_t rz_bytes = Packed<T>::vector_bytes(w.products, 2 * hidden);
    const char* panels_n = static_cast<const char*>(w.scratch);
    const char* panels_rz = panels_n + vectors(hidden) * n_bytes;
    if (w.does(1)) {
      const LeftRows<T> left(w.products, dn, count, hidden);
      for (std::int64_t panel = first_panel; panel < last_panel; ++panel) {
        const int width = layout.width(panel);
        left.multiply_with(panels_n + layout.first(panel) * n_bytes, width, out);
        for (int i = 0; i < count; ++i) {
          second_gradients(rows[i], hidden, layout.first(panel) * kSize, columns(panel),
                           out + i * width * kSize);
        }
      }
    }
    if (!w.does(2) || last) return;
    const LeftRows<T> left(w.products, drz, count, 2 * hidden);
    for (std::int64_t panel = first_panel; panel < last_panel; ++panel) {
      const int width = layout.width(panel);
      left.multiply_with(panels_rz + layout.first(panel) * rz_bytes, width, out);
      for (int i = 0; i < count; ++i) {
        add(out + i * width * kSize, rows[i].dh + layout.first(panel) * kSize, columns(panel));
      }
    }
  }
  static constexpr RecurrentSteps table() {
    return {&forward_scratch,
            &backward_scratch,
            &pack_forward,
            &pack_backward,
            &Base::forward,
            &Base::backward,
            &Base::forward_step,
            &Base::backward_step,
            &Base::forward_end,
            2,
            3,
            &Base::replay};
  }
};

template <Activation A>
constexpr RecurrentVariant after() {
  using Cell = gru_cell::CellAfter<A>;
  return variant<Steps<float, Cell>, Steps<double, Cell>>();
}
template <Activation A>
constexpr RecurrentVariant before() {
  using Cell = gru_cell::CellBefore<A>;
  return variant<TwoHalves<float, Cell>, TwoHalves<double, Cell>>();
}

}  // namespace

const GruSteps& gru_steps() {
  static constexpr GruSteps table = {
      {after<Activation::kIdentity>(), after<Activation::kTanh>(), after<Activation::kRelu>()},
      {before<Activation::kIdentity>(), before<Activation::kTanh>(), before<Activation::kRelu>()}};
  return table;
}

}  // namespace penstock::cpu::PENSTOCK_ISA_NAMESPACE
