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
  using typename Base::BackwardScan;
  using typename Base::Dims;
  using typename Base::ForwardScan;
  using typename Base::Row;
  using typename Base::Scan;
  using typename Base::V;
  using Base::kSize;
  using Base::lanes;
  using Base::vectors;
  static constexpr int kR = 0, kZ = 1, kN = 2, kQ = 3;  // blocks of a row of gates
  static constexpr int kTile = kWidePanel > 2 ? kWidePanel : 2;

  static void clear_operand(T* gates, std::int64_t hidden) {
    clear(gates + kQ * hidden, hidden);
  }

  // Scratch: biases; panels of r and z; panels of n. With few rows: biases; products.
  static std::int64_t gate_panels(const Dims& d) {
    return vectors(d.hidden) * Base::gate_panel_size(d, 2);
  }
  static std::int64_t forward_scratch(const Dims& d, bool few_rows) {
    return Base::bias_size(d) + (few_rows ? kMostBlockRows * 2 * d.hidden
                                          : gate_panels(d) + Columns<T>(d.hidden).size(d.hidden));
  }
  static void pack_forward(const Scan& s, std::int64_t dir, void* scratch, bool few_rows) {
    T* out = static_cast<T*>(scratch);
    Base::pack_bias(s, dir, out);
    if (few_rows) return;
    const std::int64_t hidden = s.dims.hidden;
    out += Base::bias_size(s.dims);
    Base::pack_gate_panels(s, dir, 2, out);
    pack_columns(Base::weight(s, dir) + 2 * hidden * hidden, 1, hidden, hidden, hidden,
                 out + gate_panels(s.dims));
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

  static void step(const ForwardScan& s, std::int64_t dir, const Row* rows, int count,
                   bool zero_state, T* scratch, bool few_rows) {
    const std::int64_t hidden = s.dims.hidden;
    const T* bias = scratch;
    T* data = scratch + Base::bias_size(s.dims);
    const T* h[kMostBlockRows];
    T* q[kMostBlockRows];
    for (int i = 0; i < count; ++i) {
      h[i] = rows[i].h;
      // A row whose gates are not saved has no place for q. But r is needed no more once q is known.
      q[i] = rows[i].gates + (s.save ? kQ : kR) * hidden;
    }
    if (few_rows) {
      const T* r = Base::weight(s, dir);
      for (int i = 0; i < count; ++i) {
        T* products = data + i * 2 * hidden;
        if (zero_state) {
          clear(products, 2 * hidden);
        } else {
          dot_products(1, 2 * hidden, hidden, h[i], hidden, r, hidden, products, 2 * hidden, true);
        }
        for (std::int64_t v = 0; v < vectors(hidden); ++v) {
          units_of<true>(s, rows + i, q + i, 1, v, products + v * kSize, 0, hidden, bias);
        }
        if (zero_state) {
          clear(products, hidden);
        } else {
          dot_products(1, hidden, hidden, q[i], hidden, r + 2 * hidden * hidden, hidden, products,
                       hidden, true);
        }
        for (std::int64_t v = 0; v < vectors(hidden); ++v) {
          units_of<false>(s, rows + i, q + i, 1, v, products + v * kSize, 0, 0, bias);
        }
      }
      return;
    }
    alignas(64) T out[kMostBlockRows * kTile * kSize];
    if (zero_state) clear(out, count * kTile * kSize);
    for (std::int64_t v = 0; v < vectors(hidden); ++v) {
      if (!zero_state) {
        multiply(h, count, 2, hidden, 0, 0, data + v * Base::gate_panel_size(s.dims, 2), out);
      }
      units_of<true>(s, rows, q, count, v, out, 2 * kSize, kSize, bias);
    }
    const T* panels = data + gate_panels(s.dims);
    const Columns<T> layout(hidden);
    for (std::int64_t panel = 0; panel < layout.panels; ++panel) {
      const int width = layout.width(panel);
      if (!zero_state) {
        multiply(q, count, width, hidden, 0, 0, panels + layout.offset(panel, hidden), out);
      }
      for (int j = 0; j < width; ++j) {
        units_of<false>(s, rows, q, count, layout.first(panel) + j, out + j * kSize, width * kSize,
                        0, bias);
      }
    }
  }

  // Backward scratch: panels of R_n^T, then of [R_r; R_z]^T. With few rows, one row of products.
  static std::int64_t backward_scratch(const Dims& d, bool few_rows) {
    return few_rows ? kMostBlockRows * d.hidden
                    : Columns<T>(d.hidden).size(d.hidden) + Columns<T>(d.hidden).size(2 * d.hidden);
  }
  static void pack_backward(const Scan& s, std::int64_t dir, void* scratch, bool few_rows) {
    if (few_rows) return;
    const std::int64_t hidden = s.dims.hidden;
    const T* r = Base::weight(s, dir);
    T* out = static_cast<T*>(scratch);
    pack_columns(r + 2 * hidden * hidden, hidden, 1, hidden, hidden, out);
    pack_columns(r, hidden, 1, hidden, 2 * hidden, out + Columns<T>(hidden).size(hidden));
  }

  struct GradientRow {
    const T* gates;
    const T* h;
    const T* dy;
    T* dgates;
    T* dh;
  };

  static void first_gradients(const GradientRow& r, std::int64_t hidden) {
    for_each_vector<V>(hidden, [&](auto whole, std::int64_t h, int n) PENSTOCK_LAMBDA_INLINE {
      constexpr bool kWhole = decltype(whole)::value;
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

  static void backward(const BackwardScan& s, std::int64_t dir, std::int64_t begin,
                       std::int64_t end, void* scratch_, bool few_rows) {
    const Block<T> block(s, dir, begin, end);
    const std::int64_t hidden = s.dims.hidden;
    T* scratch = static_cast<T*>(scratch_);
    const T* r = Base::weight(s, dir);
    for (std::int64_t k = s.step_end - 1; k >= s.step_begin; --k) {
      GradientRow rows[kMostBlockRows];
      const T* dn[kMostBlockRows];
      const T* drz[kMostBlockRows];
      int count = 0;
      for (int i = 0; i < block.count(); ++i) {
        GradientRow row;
        row.dgates = block.row(s.dgates, i, k);
        if (!block.valid(i, k)) {
          clear(row.dgates, 3 * hidden);
          continue;
        }
        row.gates = block.row(s.gates, i, k);
        row.h = block.row(s.h_kept, i, k);
        row.dy = block.output(static_cast<const T*>(s.dy), i, k);
        row.dh = static_cast<T*>(s.dh) + block.state(i);
        first_gradients(row, hidden);
        dn[count] = row.dgates + kN * hidden;
        drz[count] = row.dgates;
        rows[count++] = row;
      }
      if (count == 0) continue;
      const bool last = k == 0 && !s.want_first;
      if (few_rows) {
        for (int i = 0; i < count; ++i) {
          dot_products(1, hidden, hidden, dn[i], hidden, r + 2 * hidden * hidden, hidden, scratch,
                       hidden, false);
          second_gradients(rows[i], hidden, 0, hidden, scratch);
          if (last) continue;
          dot_products(1, hidden, 2 * hidden, drz[i], 2 * hidden, r, hidden, scratch, hidden,
                       false);
          add(scratch, rows[i].dh, hidden);
        }
        continue;
      }
      alignas(64) T out[kMostBlockRows * kWidePanel * kSize];
      const Columns<T> layout(hidden);
      const T* panels_rz = scratch + layout.size(hidden);
      for (std::int64_t panel = 0; panel < layout.panels; ++panel) {
        const int width = layout.width(panel);
        multiply(dn, count, width, hidden, 0, 0, scratch + layout.offset(panel, hidden), out);
        const std::int64_t first = layout.first(panel) * kSize;
        const std::int64_t left = hidden - first;
        for (int i = 0; i < count; ++i) {
          second_gradients(rows[i], hidden, first, left < width * kSize ? left : width * kSize,
                           out + i * width * kSize);
        }
      }
      if (last) continue;
      for (std::int64_t panel = 0; panel < layout.panels; ++panel) {
        const int width = layout.width(panel);
        multiply(drz, count, width, 2 * hidden, 0, 0,
                 panels_rz + layout.offset(panel, 2 * hidden), out);
        const std::int64_t first = layout.first(panel) * kSize;
        const std::int64_t left = hidden - first;
        for (int i = 0; i < count; ++i) {
          add(out + i * width * kSize, rows[i].dh + first,
              left < width * kSize ? left : width * kSize);
        }
      }
    }
  }
  static void add(const T* from, T* to, std::int64_t n) {
    for_each_vector<V>(n, [&](auto whole, std::int64_t h, int rest) PENSTOCK_LAMBDA_INLINE {
      constexpr bool kWhole = decltype(whole)::value;
      put<kWhole>(get<kWhole>(to + h, rest) + get<kWhole>(from + h, rest), to + h, rest);
    });
  }

  static constexpr RecurrentSteps table() {
    return {&forward_scratch, &backward_scratch, &pack_forward,    &pack_backward,
            &Base::forward,   &backward,         &Base::replay};
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
