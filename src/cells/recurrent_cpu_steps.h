// Steps of the state-mixing cells on the CPU, for any cell as src/cells/X_cell.h describes it.
// Included by sources that are compiled once per instruction set.
//
// A block of rows goes through all steps on its own: per step and panel of units, the products of
// the block's rows with R (src/cpu/panels.h), then the gates of those units while the products are
// in the first cache. Weights are read once per step and block, states stay in the first or second
// cache, W x is read and gates are written once.
#pragma once

#include <cstring>
#include <type_traits>

#include "cells/recurrent_cpu.h"
#include "cpu/amx.h"
#include "cpu/gemm.h"
#include "cpu/panels.h"

namespace penstock::cpu::PENSTOCK_ISA_NAMESPACE {

template <bool kWhole, class T>
PENSTOCK_INLINE Vec<T> get(const T* p, int n) {
  return kWhole ? Vec<T>::load(p) : Vec<T>::load(p, n);
}
template <bool kWhole, class T>
PENSTOCK_INLINE void put(Vec<T> v, T* p, int n) {
  if (kWhole) {
    v.store(p);
  } else {
    v.store(p, n);
  }
}

/// Where a row of a block stands at one step. Null where the scan has no such array.
template <class T>
struct StepRow {
  const T* h;  // before the step
  T* h_next;
  T* c;      // in place
  T* gates;  // W x, then what backward reads
  T* y;
  T* h_kept;
  T* c_kept;
};

/// Addresses of a block's rows, for one direction.
template <class T>
class Block {
 public:
  Block(const recurrent::Scan& s, std::int64_t dir, std::int64_t begin, std::int64_t end)
      : s_(s), dir_(dir), count_(static_cast<int>(end - begin)), width_(s.dims.width()) {
    std::int64_t part = begin / s.dims.cut.batch, b = begin % s.dims.cut.batch;
    for (int i = 0; i < count_; ++i) {
      part_[i] = part;
      b_[i] = b;
      state_[i] = (begin + i) * width_ + dir * s.dims.hidden;
      s.dims.cut.valid(part, b, &valid_begin_[i], &valid_end_[i]);
      if (++b == s.dims.cut.batch) {
        b = 0;
        ++part;
      }
    }
  }
  int count() const { return count_; }
  std::int64_t time(std::int64_t k) const {
    return s_.reversed(dir_) ? s_.dims.cut.steps - 1 - k : k;
  }
  bool valid(int i, std::int64_t k) const {
    const std::int64_t t = time(k);
    return t >= valid_begin_[i] && t < valid_end_[i];
  }
  /// Offset of a row's state in an array (rows, dirs·H).
  std::int64_t state(int i) const { return state_[i]; }
  T* row(const recurrent::Rows& rows, int i, std::int64_t k) const {
    if (rows.data[dir_] == nullptr) return nullptr;
    return static_cast<T*>(rows.data[dir_]) +
           s_.row(rows, dir_, part_[i], k, b_[i]) * rows.row_stride;
  }
  /// A row of an array (time, B, dirs·H), or null beyond it.
  template <class P>
  P* output(P* base, int i, std::int64_t k) const {
    const std::int64_t entry = s_.entry(dir_, part_[i], k);
    if (base == nullptr || entry < 0 || entry >= s_.dims.cut.time) return nullptr;
    return base + (entry * s_.dims.cut.batch + b_[i]) * width_ + dir_ * s_.dims.hidden;
  }

 private:
  const recurrent::Scan& s_;
  std::int64_t dir_;
  int count_;
  std::int64_t width_;
  std::int64_t part_[kMostBlockRows], b_[kMostBlockRows], state_[kMostBlockRows];
  std::int64_t valid_begin_[kMostBlockRows], valid_end_[kMostBlockRows];
};

template <class T>
PENSTOCK_INLINE void copy(const T* from, T* to, std::int64_t n) {
  std::memcpy(to, from, static_cast<std::size_t>(n) * sizeof(T));
}
template <class T>
PENSTOCK_INLINE void clear(T* to, std::int64_t n) {
  std::memset(static_cast<void*>(to), 0, static_cast<std::size_t>(n) * sizeof(T));
}

template <class T>
void dot_products(std::int64_t m, std::int64_t n, std::int64_t k, const T* a, std::int64_t lda,
                  const T* b, std::int64_t ldb, T* c, std::int64_t ldc, bool b_transposed) {
  if constexpr (sizeof(T) == 4) {
    gemm_kernels().f32(false, b_transposed, m, n, k, a, lda, b, ldb, 0.0f, c, ldc);
  } else {
    gemm_kernels().f64(false, b_transposed, m, n, k, a, lda, b, ldb, 0.0, c, ldc);
  }
}

/// A matrix that rows are multiplied with, packed vector by vector of its columns. Neighbouring
/// vectors of a panel are packed together.
template <class T>
struct Packed {
  static constexpr int kSize = Vec<T>::kSize;
  static constexpr bool kHasFixed = std::is_same_v<T, float> && kSize == kFixedColumns;

  static std::int64_t vector_bytes(Products products, std::int64_t k) {
    return kHasFixed && products == Products::kFixed
               ? static_cast<std::int64_t>(fixed_vector_bytes(k))
               : k * kSize * static_cast<std::int64_t>(sizeof(T));
  }
  /// Vector `at` of a panel `width` vectors wide that begins at `panel`.
  static void pack(Products products, const T* source, std::int64_t k_stride,
                   std::int64_t column_stride, int count, std::int64_t k, int at, int width,
                   char* panel) {
    if constexpr (kHasFixed) {
      if (products == Products::kFixed) {
        fixed_pack(source, k_stride, column_stride, count, k,
                   panel + at * vector_bytes(products, k));
        return;
      }
    }
    pack_vector(source, k_stride, column_stride, count, k, at, width, reinterpret_cast<T*>(panel));
  }
  /// One share of a matrix of plain columns, in the panels of Columns.
  static void pack_all(const RowBlock& w, const T* source, std::int64_t k_stride,
                       std::int64_t column_stride, std::int64_t columns, std::int64_t k,
                       char* out) {
    const Products products = w.products;
    const Columns<T> layout(columns);
    for (std::int64_t panel = w.first_of(layout.panels); panel < w.last_of(layout.panels);
         ++panel) {
      for (int j = 0; j < layout.width(panel); ++j) {
        const std::int64_t first = (layout.first(panel) + j) * kSize;
        const std::int64_t left = columns - first;
        pack(products, source + first * column_stride, k_stride, column_stride,
             static_cast<int>(left < kSize ? left : kSize), k, j, layout.width(panel),
             out + layout.first(panel) * vector_bytes(products, k));
      }
    }
  }
};

/// A block's rows as the left side of products.
template <class T>
class LeftRows {
 public:
  LeftRows(Products products, const T* const* rows, int count, std::int64_t k1,
           std::int64_t gap = 0, std::int64_t k2 = 0)
      : rows_(rows), count_(count), k1_(k1), gap_(gap), k2_(k2) {
    if constexpr (Packed<T>::kHasFixed) {
      if (products == Products::kFixed) fixed_ = fixed_begin(rows, count, k1, gap, k2);
    }
  }
  ~LeftRows() {
    if constexpr (Packed<T>::kHasFixed) {
      if (fixed_ != nullptr) fixed_end();
    }
  }
  LeftRows(const LeftRows&) = delete;
  LeftRows& operator=(const LeftRows&) = delete;
  /// out[row][vector] for `width` neighbouring vectors.
  void multiply_with(const char* panel, int width, T* out) const {
    if constexpr (Packed<T>::kHasFixed) {
      if (fixed_ != nullptr) {
        fixed_multiply(fixed_, count_, k1_ + k2_, panel, width, out);
        return;
      }
    }
    multiply(rows_, count_, width, k1_, gap_, k2_, reinterpret_cast<const T*>(panel), out);
  }

 private:
  const T* const* rows_;
  int count_;
  std::int64_t k1_, gap_, k2_;
  const void* fixed_ = nullptr;
};

/// What all cells' steps have in common. `Derived` is Steps or TwoHalves.
template <class T, class Cell, class Derived>
struct StepsBase {
  using V = Vec<T>;
  using Scan = recurrent::Scan;
  using ForwardScan = recurrent::ForwardScan;
  using BackwardScan = recurrent::BackwardScan;
  using Dims = recurrent::Dims;
  using Row = StepRow<T>;
  static constexpr int kSize = V::kSize;

  static std::int64_t vectors(std::int64_t hidden) { return (hidden + kSize - 1) / kSize; }
  static int lanes(std::int64_t hidden, std::int64_t vector) {
    const std::int64_t left = hidden - vector * kSize;
    return static_cast<int>(left < kSize ? left : kSize);
  }

  /// The units of a block's share.
  struct Units {
    std::int64_t first, count;
  };
  static Units own_units(const RowBlock& w, std::int64_t hidden) {
    const std::int64_t first = w.first_of(vectors(hidden)) * kSize;
    const std::int64_t end = w.last_of(vectors(hidden)) * kSize;
    return {first, (end < hidden ? end : hidden) - first};
  }

  /// to += from.
  static void add(const T* from, T* to, std::int64_t n) {
    for_each_vector<V>(n, [&](auto whole, std::int64_t h, int lanes_) PENSTOCK_LAMBDA_INLINE {
      constexpr bool kWhole = decltype(whole)::value;
      put<kWhole>(get<kWhole>(to + h, lanes_) + get<kWhole>(from + h, lanes_), to + h, lanes_);
    });
  }

  /// Combined biases, vector by vector of units: kBiases vectors each.
  static std::int64_t bias_bytes(const Dims& d) {
    return (vectors(d.hidden) * Cell::kBiases * kSize * static_cast<std::int64_t>(sizeof(T)) + 63) /
           64 * 64;
  }
  static void pack_bias(const Scan& s, const RowBlock& w) {
    if (w.share != 0) return;
    const std::int64_t dir = w.dir;
    const std::int64_t h = s.dims.hidden;
    T* out = static_cast<T*>(w.scratch);
    const T* ih = static_cast<const T*>(s.bias_ih) + dir * Cell::kGates * h;
    const T* hh = static_cast<const T*>(s.bias_hh) + dir * Cell::kGates * h;
    for (std::int64_t v = 0; v < vectors(h); ++v) {
      const int n = lanes(h, v);
      V a[Cell::kGates], b[Cell::kGates], bias[Cell::kBiases];
      for (int g = 0; g < Cell::kGates; ++g) {
        a[g] = V::load(ih + g * h + v * kSize, n);
        b[g] = V::load(hh + g * h + v * kSize, n);
      }
      Cell::combine_bias(a, b, bias);
      for (int g = 0; g < Cell::kBiases; ++g) {
        bias[g].store(out + (v * Cell::kBiases + g) * kSize);
      }
    }
  }

  static const T* weight(const Scan& s, std::int64_t dir) {
    return static_cast<const T*>(s.weight_hh) + dir * Cell::kGates * s.dims.hidden * s.dims.hidden;
  }

  /// The first `gates` gates of R in panels of one vector per gate, for each vector of units.
  static void pack_gates(const Scan& s, const RowBlock& w, int gates, char* out) {
    const std::int64_t h = s.dims.hidden;
    const T* r = weight(s, w.dir);
    for (std::int64_t v = w.first_of(vectors(h)); v < w.last_of(vectors(h)); ++v) {
      for (int g = 0; g < gates; ++g) {
        Packed<T>::pack(w.products, r + (g * h + v * kSize) * h, 1, h, lanes(h, v), h, g, gates,
                        out + v * gates * Packed<T>::vector_bytes(w.products, h));
      }
    }
  }
  /// Vectors of units whose gates one product takes: the matrix unit wants an even number.
  static int units_at_once(const RowBlock& w) { return w.products == Products::kFixed ? 2 : 1; }
  static constexpr int kMostUnitsAtOnce = 2;

  static void forward(const ForwardScan& s, const RowBlock& w) {
    const Block<T> block(s, w.dir, w.begin, w.end);
    for (std::int64_t k = s.step_begin; k < s.step_end; ++k) step_of(s, w, block, k);
    end_of(s, block);
  }
  static void forward_step(const ForwardScan& s, const RowBlock& w, std::int64_t k) {
    step_of(s, w, Block<T>(s, w.dir, w.begin, w.end), k);
  }
  static void forward_end(const ForwardScan& s, const RowBlock& w) {
    end_of(s, Block<T>(s, w.dir, w.begin, w.end));
  }

  static void step_of(const ForwardScan& s, const RowBlock& w, const Block<T>& block,
                      std::int64_t k) {
    const std::int64_t hidden = s.dims.hidden;
    // The two states take turns.
    const bool odd = (k - s.step_begin) % 2 != 0;
    const T* h = static_cast<const T*>(odd ? s.h_next : s.h);
    T* h_next = static_cast<T*>(odd ? s.h : s.h_next);
    Row rows[kMostBlockRows];
    int count = 0;
    for (int i = 0; i < block.count(); ++i) {
      Row r;
      r.h = h + block.state(i);
      r.h_next = h_next + block.state(i);
      r.c = Cell::kHasC ? static_cast<T*>(s.c) + block.state(i) : nullptr;
      r.gates = block.row(s.gates, i, k);
      r.y = block.output(static_cast<T*>(s.y), i, k);
      r.h_kept = block.row(s.h_kept, i, k);
      r.c_kept = Cell::kHasC ? block.row(s.c_kept, i, k) : nullptr;
      if (block.valid(i, k)) {
        rows[count++] = r;
        continue;
      }
      if (w.share != 0 || !w.does(0)) continue;
      copy(r.h, r.h_next, hidden);
      if (r.y != nullptr) clear(r.y, hidden);
      if (r.h_kept != nullptr) copy(r.h, r.h_kept, hidden);
      if (r.c_kept != nullptr) copy<T>(r.c, r.c_kept, hidden);
      if (s.save) Derived::clear_operand(r.gates, hidden);
    }
    if (count > 0) Derived::step(s, w, rows, count, s.zero_state && k == s.step_begin);
  }
  static void end_of(const ForwardScan& s, const Block<T>& block) {
    if ((s.step_end - s.step_begin) % 2 == 0) return;
    for (int i = 0; i < block.count(); ++i) {
      copy(static_cast<const T*>(s.h_next) + block.state(i), static_cast<T*>(s.h) + block.state(i),
           s.dims.hidden);
    }
  }

  static void backward(const BackwardScan& s, const RowBlock& w) {
    const Block<T> block(s, w.dir, w.begin, w.end);
    for (std::int64_t k = s.step_end - 1; k >= s.step_begin; --k) {
      Derived::step_back(s, w, block, k);
    }
  }
  static void backward_step(const BackwardScan& s, const RowBlock& w, std::int64_t k) {
    Derived::step_back(s, w, Block<T>(s, w.dir, w.begin, w.end), k);
  }

  static void replay(const ForwardScan& s, const RowBlock& w) {
    const std::int64_t dir = w.dir;
    const std::int64_t hidden = s.dims.hidden, batch = s.dims.cut.batch;
    const std::int64_t part_rows = (s.step_end - s.step_begin) * batch;
    Row rows[kMostBlockRows];
    int count = 0;
    for (std::int64_t entry = w.begin; entry < w.end; ++entry) {
      const std::int64_t part = entry / part_rows, t = entry % part_rows / batch, b = entry % batch;
      std::int64_t first = 0, last = 0;
      s.dims.cut.valid(s.part_begin + part, b, &first, &last);
      const std::int64_t time = s.first_time(dir) + t;
      Row r = {};
      r.gates = static_cast<T*>(s.gates.data[dir]) +
                (part * s.gates.part_rows + t * batch + b) * s.gates.row_stride;
      r.h = static_cast<const T*>(s.h_kept.data[dir]) +
            (part * s.h_kept.part_rows + t * batch + b) * s.h_kept.row_stride;
      if (time >= first && time < last) {
        rows[count++] = r;
      } else {
        Derived::clear_operand(r.gates, hidden);
      }
    }
    if (count > 0) {
      Derived::step(s, w, rows, count, /*zero_state=*/false);
    }
  }
};

/// A cell whose gates all come from one product with h_prev.
template <class T, class Cell>
struct Steps : StepsBase<T, Cell, Steps<T, Cell>> {
  using Base = StepsBase<T, Cell, Steps<T, Cell>>;
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
  static constexpr int kGates = Cell::kGates;
  static constexpr int kSaved = Cell::kSaved;
  static constexpr int kGradients = Cell::kGradients;
  // Panels of a cell with one gate hold several vectors of units.
  static constexpr bool kUnitPanels = kGates == 1;
  static constexpr int kTile = kUnitPanels ? kWidePanel : kGates * Base::kMostUnitsAtOnce;

  static void clear_operand(T*, std::int64_t) {}

  // Scratch: biases, then R; or, where R is read as it is, products.
  static std::int64_t forward_scratch(const Dims& d, Products products) {
    const std::int64_t row = kGates * d.hidden * static_cast<std::int64_t>(sizeof(T));
    return Base::bias_bytes(d) +
           (products == Products::kRead
                ? kMostBlockRows * row
                : vectors(d.hidden) * kGates * Packed<T>::vector_bytes(products, d.hidden));
  }
  static void pack_forward(const Scan& s, const RowBlock& w) {
    Base::pack_bias(s, w);
    if (w.products == Products::kRead) return;
    const std::int64_t h = s.dims.hidden;
    char* out = static_cast<char*>(w.scratch) + Base::bias_bytes(s.dims);
    if (kUnitPanels) {
      Packed<T>::pack_all(w, Base::weight(s, w.dir), 1, h, h, h, out);
    } else {
      Base::pack_gates(s, w, kGates, out);
    }
  }

  /// Gates and states of one vector of units of one row. `rh`: the products, `stride` apart.
  template <bool kWhole>
  PENSTOCK_INLINE static void units(const Row& r, std::int64_t h, int n, std::int64_t hidden,
                                    const T* rh, std::int64_t stride, const T* bias, bool save) {
    V wx[kGates], p[kGates], b[Cell::kBiases], saved[kSaved];
    for (int g = 0; g < kGates; ++g) {
      wx[g] = get<kWhole>(r.gates + g * hidden + h, n);
      p[g] = get<kWhole>(rh + g * stride, n);
    }
    for (int g = 0; g < Cell::kBiases; ++g) b[g] = V::load(bias + g * kSize);
    const V before = get<kWhole>(r.h + h, n);
    V c_before(T(0)), c(T(0)), after;
    if (Cell::kHasC && r.c != nullptr) c_before = get<kWhole>(r.c + h, n);
    Cell::forward(wx, p, b, before, c_before, saved, &after, &c);
    if (save) {
      for (int g = 0; g < kSaved; ++g) put<kWhole>(saved[g], r.gates + g * hidden + h, n);
    }
    if (r.h_next == nullptr) return;
    put<kWhole>(after, r.h_next + h, n);
    if (Cell::kHasC) put<kWhole>(c, r.c + h, n);
    if (r.y != nullptr) put<kWhole>(after, r.y + h, n);
    if (r.h_kept != nullptr) put<kWhole>(before, r.h_kept + h, n);
    if (r.c_kept != nullptr) put<kWhole>(c_before, r.c_kept + h, n);
  }
  static void units_of(const ForwardScan& s, const Row* rows, int count, std::int64_t vector,
                       const T* rh, std::int64_t row_stride, std::int64_t gate_stride,
                       const T* bias) {
    const std::int64_t hidden = s.dims.hidden;
    const int n = lanes(hidden, vector);
    bias += vector * Cell::kBiases * kSize;
    if (n == kSize) {
      for (int i = 0; i < count; ++i) {
        units<true>(rows[i], vector * kSize, n, hidden, rh + i * row_stride, gate_stride, bias,
                    s.save);
      }
    } else {
      for (int i = 0; i < count; ++i) {
        units<false>(rows[i], vector * kSize, n, hidden, rh + i * row_stride, gate_stride, bias,
                     s.save);
      }
    }
  }

  static void step(const ForwardScan& s, const RowBlock& w, const Row* rows, int count,
                   bool zero_state) {
    const std::int64_t hidden = s.dims.hidden;
    const T* bias = static_cast<const T*>(w.scratch);
    char* data = static_cast<char*>(w.scratch) + Base::bias_bytes(s.dims);
    if (w.products == Products::kRead) {
      T* products = reinterpret_cast<T*>(data);
      const std::int64_t row = kGates * hidden;
      const std::int64_t v0 = w.first_of(vectors(hidden)), v1 = w.last_of(vectors(hidden));
      const std::int64_t u0 = v0 * kSize, u1 = v1 * kSize < hidden ? v1 * kSize : hidden;
      for (int i = 0; i < count; ++i) {
        // Neighbours that are equally far apart share a reading of R.
        int same = 1;
        while (!zero_state && i + same < count &&
               rows[i + same].h - rows[i].h == same * (rows[i + 1].h - rows[i].h)) {
          ++same;
        }
        for (int g = 0; g < kGates; ++g) {
          T* out = products + i * row + g * hidden + u0;
          if (zero_state) {
            clear(out, u1 - u0);
          } else {
            dot_products(
                same, u1 - u0, hidden, rows[i].h, same > 1 ? rows[i + 1].h - rows[i].h : hidden,
                Base::weight(s, w.dir) + (g * hidden + u0) * hidden, hidden, out, row, true);
          }
        }
        i += same - 1;
      }
      for (std::int64_t v = v0; v < v1; ++v) {
        units_of(s, rows, count, v, products + v * kSize, row, hidden, bias);
      }
      return;
    }
    alignas(64) T out[kMostBlockRows * kTile * kSize];
    const T* h[kMostBlockRows];
    for (int i = 0; i < count; ++i) h[i] = rows[i].h;
    if (zero_state) clear(out, count * kTile * kSize);
    const LeftRows<T> left(zero_state ? Products::kPanels : w.products, h, count, hidden);
    const std::int64_t vector_bytes = Packed<T>::vector_bytes(w.products, hidden);
    if (kUnitPanels) {
      const Columns<T> layout(hidden);
      for (std::int64_t panel = w.first_of(layout.panels); panel < w.last_of(layout.panels);
           ++panel) {
        const int width = layout.width(panel);
        const std::int64_t first = layout.first(panel);
        if (!zero_state) left.multiply_with(data + first * vector_bytes, width, out);
        for (int j = 0; j < width; ++j) {
          units_of(s, rows, count, first + j, out + j * kSize, width * kSize, 0, bias);
        }
      }
    } else {
      const int at_once = Base::units_at_once(w);
      const std::int64_t end = w.last_of(vectors(hidden));
      for (std::int64_t v = w.first_of(vectors(hidden)); v < end; v += at_once) {
        const int units = v + at_once <= end ? at_once : 1;
        const int width = units * kGates;
        if (!zero_state) left.multiply_with(data + v * kGates * vector_bytes, width, out);
        for (int j = 0; j < units; ++j) {
          units_of(s, rows, count, v + j, out + j * kGates * kSize, width * kSize, kSize, bias);
        }
      }
    }
  }

  // Columns of a row of gate gradients that are those of R h_prev: two runs where the last block
  // stands apart.
  struct Runs {
    std::int64_t first, gap, second;
  };
  static Runs runs(std::int64_t hidden) {
    const recurrent::Spec spec = Cell::spec();
    Runs r;
    r.first = spec.h_split * hidden;
    r.gap = (spec.h_block - spec.h_split) * hidden;
    r.second = (kGates - spec.h_split) * hidden;
    return r;
  }

  // Scratch: R^T; or, where R is read as it is, products.
  static std::int64_t backward_scratch(const Dims& d, Products products) {
    if (products == Products::kRead) {
      return kMostBlockRows * d.hidden * static_cast<std::int64_t>(sizeof(T));
    }
    return vectors(d.hidden) * Packed<T>::vector_bytes(products, kGates * d.hidden);
  }
  static void pack_backward(const Scan& s, const RowBlock& w) {
    if (w.products == Products::kRead) return;
    const std::int64_t h = s.dims.hidden;
    Packed<T>::pack_all(w, Base::weight(s, w.dir), h, 1, h, kGates * h,
                        static_cast<char*>(w.scratch));
  }

  struct GradientRow {
    const T* gates;
    const T* h;  // before the step
    const T* c;
    const T* dy;
    T* dgates;
    T* dh;  // in place
    T* dc;
  };

  template <bool kWhole>
  PENSTOCK_INLINE static void gradients(const GradientRow& r, std::int64_t h, int n,
                                        std::int64_t hidden) {
    V saved[kSaved], dgates[kGradients];
    for (int g = 0; g < kSaved; ++g) saved[g] = get<kWhole>(r.gates + g * hidden + h, n);
    V dh = get<kWhole>(r.dh + h, n);
    if (r.dy != nullptr) dh = dh + get<kWhole>(r.dy + h, n);
    V dc(T(0)), c(T(0)), dh_prev, dc_prev;
    if (Cell::kHasC) {
      dc = get<kWhole>(r.dc + h, n);
      c = get<kWhole>(r.c + h, n);
    }
    Cell::backward(saved, get<kWhole>(r.h + h, n), c, dh, dc, dgates, &dh_prev, &dc_prev);
    for (int g = 0; g < kGradients; ++g) put<kWhole>(dgates[g], r.dgates + g * hidden + h, n);
    put<kWhole>(dh_prev, r.dh + h, n);
    if (Cell::kHasC) put<kWhole>(dc_prev, r.dc + h, n);
  }

  /// Phase 0: the gates' gradients of each unit; phase 1: what they add to dh through R.
  static void step_back(const BackwardScan& s, const RowBlock& w, const Block<T>& block,
                        std::int64_t k) {
    const std::int64_t hidden = s.dims.hidden;
    const auto own = Base::own_units(w, hidden);
    const std::int64_t u0 = own.first, units = own.count;
    GradientRow rows[kMostBlockRows];
    const T* dgates[kMostBlockRows];
    int count = 0;
    for (int i = 0; i < block.count(); ++i) {
      GradientRow r;
      r.dgates = block.row(s.dgates, i, k);
      if (!block.valid(i, k)) {
        if (w.share == 0 && w.does(0)) clear(r.dgates, kGradients * hidden);
        continue;
      }
      r.gates = block.row(s.gates, i, k);
      r.h = block.row(s.h_kept, i, k);
      r.c = Cell::kHasC ? block.row(s.c_kept, i, k) : nullptr;
      r.dy = block.output(static_cast<const T*>(s.dy), i, k);
      r.dh = static_cast<T*>(s.dh) + block.state(i);
      r.dc = Cell::kHasC ? static_cast<T*>(s.dc) + block.state(i) : nullptr;
      if (w.does(0)) {
        for_each_vector<V>(units, [&](auto whole, std::int64_t h, int n) PENSTOCK_LAMBDA_INLINE {
          gradients<decltype(whole)::value>(r, u0 + h, n, hidden);
        });
      }
      dgates[count] = r.dgates;
      rows[count++] = r;
    }
    if (count == 0 || !w.does(1) || (k == 0 && !s.want_first)) return;
    add_products(s, w, rows, dgates, count);
  }

  /// dh += gates' gradients · R.
  static void add_products(const BackwardScan& s, const RowBlock& w, const GradientRow* rows,
                           const T* const* dgates, int count) {
    const std::int64_t hidden = s.dims.hidden;
    const Runs run = runs(hidden);
    if (w.products == Products::kRead) {
      const auto own = Base::own_units(w, hidden);
      const std::int64_t u0 = own.first, units = own.count;
      T* out = static_cast<T*>(w.scratch) + u0;
      const T* r = Base::weight(s, w.dir) + u0;
      for (int i = 0; i < count; ++i) {
        dot_products(1, units, run.first, dgates[i], run.first, r, hidden, out, hidden, false);
        add(out, rows[i].dh + u0, units);
        if (run.second == 0) continue;
        dot_products(1, units, run.second, dgates[i] + run.first + run.gap, run.second,
                     r + run.first * hidden, hidden, out, hidden, false);
        add(out, rows[i].dh + u0, units);
      }
      return;
    }
    alignas(64) T out[kMostBlockRows * kWidePanel * kSize];
    const LeftRows<T> left(w.products, dgates, count, run.first, run.gap, run.second);
    const std::int64_t vector_bytes = Packed<T>::vector_bytes(w.products, kGates * hidden);
    const Columns<T> layout(hidden);
    for (std::int64_t panel = w.first_of(layout.panels); panel < w.last_of(layout.panels);
         ++panel) {
      const int width = layout.width(panel);
      left.multiply_with(static_cast<const char*>(w.scratch) + layout.first(panel) * vector_bytes,
                         width, out);
      const std::int64_t first = layout.first(panel) * kSize;
      const std::int64_t rest = hidden - first;
      const std::int64_t columns = rest < width * kSize ? rest : width * kSize;
      for (int i = 0; i < count; ++i) add(out + i * width * kSize, rows[i].dh + first, columns);
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
            1,
            2,
            &Base::replay};
  }
};

template <class FloatSteps, class DoubleSteps>
constexpr RecurrentVariant variant() {
  return {FloatSteps::table(), DoubleSteps::table()};
}

}  // namespace penstock::cpu::PENSTOCK_ISA_NAMESPACE
