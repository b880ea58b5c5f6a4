// Compiled once per instruction set. Part by part; in a part, time outermost, then batch, then
// channels: the channels of a
// row are contiguous in every array, so each is one stream, and the state of a group of channels
// stays in the first cache. Traffic per element: forward reads u0 u1 u2 and x', writes y (and c to
// train); backward reads u0 u1 u2 x' c dy, writes du0 du1 du2 dx'.

#include "cells/sru_cell.h"
#include "cells/sru_cpu.h"
#include "cpu/vec.h"

namespace penstock::cpu::PENSTOCK_ISA_NAMESPACE {
namespace {

using sru::BackwardScan;
using sru::ForwardScan;
using sru::ScanArgs;

// Pointers of one (step, batch row, direction), at the range's first channel.
template <class T>
struct Row {
  const T* u;
  const T* x;
  const T* mask;
  const T* params;  // v_f; b_f lies at `bias`
  const T* bias;
};

template <class T>
struct Scan {
  const ScanArgs& a;
  std::int64_t channels, hidden, width;

  explicit Scan(const ScanArgs& args)
      : a(args),
        channels(args.range.channel_end - args.range.channel_begin),
        hidden(args.dims.hidden),
        width(args.dims.width()) {}

  std::int64_t column(std::int64_t dir) const { return dir * hidden + a.range.channel_begin; }

  /// Row `row` of the arrays, of sequence b.
  Row<T> row(std::int64_t row, std::int64_t b, std::int64_t dir) const {
    Row<T> r;
    r.u = static_cast<const T*>(a.u.data) + (row - a.first_row(dir)) * a.u.row_stride +
          (dir - a.range.dir_begin) * a.u.dir_stride;
    const std::int64_t at = column(dir);
    r.x = a.dims.skip_from_x ? static_cast<const T*>(a.x) + row * width + at : nullptr;
    r.mask = a.mask_c == nullptr ? nullptr : static_cast<const T*>(a.mask_c) + b * width + at;
    r.params = static_cast<const T*>(a.weight_c) + dir * 2 * hidden + a.range.channel_begin;
    r.bias = static_cast<const T*>(a.bias) + dir * 2 * hidden + a.range.channel_begin;
    return r;
  }
};

// The processor's own prefetchers do not follow a group's short run of channels from row to row, so
// the row that comes this much later is asked for while the present one is worked on.
constexpr std::int64_t kRowsAhead = 4;

/// Distance in memory rows from row (step, b) to the one that is worked on kRowsAhead rows later,
/// if the range has it, else 0. `backward`: steps run from the last to the first.
inline std::int64_t rows_ahead(const ScanArgs& a, std::int64_t step, std::int64_t b,
                               std::int64_t dir, bool backward) {
  const std::int64_t batch = a.dims.batch;
  const std::int64_t steps_on = (b + kRowsAhead) / batch;
  const std::int64_t left = backward ? step - a.range.step_begin : a.range.step_end - 1 - step;
  if (steps_on > left) return 0;
  const bool down = a.reversed(dir) != backward;
  return (down ? -steps_on : steps_on) * batch + (b + kRowsAhead) % batch - b;
}

template <class V>
struct Loaded {
  sru_cell::Inputs<V> in;
  sru_cell::Parameters<V> p;
};

// kWhole: all lanes; otherwise the first n.
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

template <bool kWhole, class T>
PENSTOCK_INLINE Loaded<Vec<T>> load(const ScanArgs& a, const Row<T>& r, std::int64_t h,
                                    std::int64_t hidden, T scale, bool mask_skip, int n) {
  using V = Vec<T>;
  Loaded<V> l;
  const T* u = r.u + h;
  l.in.u0 = get<kWhole>(u, n);
  l.in.u1 = get<kWhole>(u + a.gate_stride, n);
  l.in.u2 = get<kWhole>(u + 2 * a.gate_stride, n);
  if (r.x != nullptr) {
    l.in.skip = V(scale) * get<kWhole>(r.x + h, n);
  } else if (a.dims.blocks == 4) {
    l.in.skip = get<kWhole>(u + 3 * a.gate_stride, n);
  } else {
    l.in.skip = V(T(0));
  }
  const V one(T(1));
  l.in.mask = r.mask == nullptr ? one : get<kWhole>(r.mask + h, n);
  l.in.mask_skip = mask_skip ? l.in.mask : one;
  l.p.v_f = get<kWhole>(r.params + h, n);
  l.p.v_r = get<kWhole>(r.params + hidden + h, n);
  l.p.b_f = get<kWhole>(r.bias + h, n);
  l.p.b_r = get<kWhole>(r.bias + hidden + h, n);
  return l;
}

template <Activation A, class T>
void forward(const ForwardScan& a, std::int64_t part) {
  using V = Vec<T>;
  const Scan<T> scan(a);
  const T scale = static_cast<T>(a.scale_x);
  const bool mask_skip = a.mask_site == MaskSite::kOutput;
  for (std::int64_t s = a.range.step_begin; s < a.range.step_end; ++s) {
    for (std::int64_t dir = a.range.dir_begin; dir < a.range.dir_end; ++dir) {
      const std::int64_t t = a.time(s, dir);
      for (std::int64_t b = 0; b < a.dims.batch; ++b) {
        const std::int64_t at = scan.column(dir);
        const std::int64_t row = a.row(part, t, b);
        const std::int64_t state_at = (part * a.dims.batch + b) * scan.width + at;
        T* state = static_cast<T*>(a.c_state) + state_at;
        // Without y, each valid output takes the place of the one before it.
        T* y = a.y != nullptr ? static_cast<T*>(a.y) + row * scan.width + at
                              : static_cast<T*>(a.h_last) + state_at;
        T* c = a.c.data == nullptr ? nullptr
                                   : static_cast<T*>(a.c.data) + row * a.c.row_stride +
                                         (dir - a.range.dir_begin) * a.c.dir_stride;
        if (a.padded(part, t, b)) {
          for (std::int64_t h = 0; h < scan.channels; ++h) {
            if (a.y != nullptr) y[h] = T(0);
            if (c != nullptr) c[h] = state[h];
          }
          continue;
        }
        const Row<T> r = scan.row(row, b, dir);
        const std::int64_t ahead = rows_ahead(a, s, b, dir, false);
        const T* next_u = r.u + ahead * a.u.row_stride;
        const T* next_x = r.x == nullptr ? next_u : r.x + ahead * scan.width;
        const T* next_y = a.y == nullptr ? y : y + ahead * scan.width;
        const T* next_c = c == nullptr ? next_u : c + ahead * a.c.row_stride;
        const auto step = [&](auto whole, std::int64_t h, int n) PENSTOCK_LAMBDA_INLINE {
          constexpr bool kWhole = decltype(whole)::value;
          prefetch_to_read(next_u + h);
          prefetch_to_read(next_u + a.gate_stride + h);
          prefetch_to_read(next_u + 2 * a.gate_stride + h);
          prefetch_to_read(next_x + h);
          prefetch_to_write(next_y + h);
          prefetch_to_write(next_c + h);
          const Loaded<V> l = load<kWhole>(a, r, h, scan.hidden, scale, mask_skip, n);
          const auto out = sru_cell::forward<A, V>(l.in, l.p, get<kWhole>(state + h, n));
          put<kWhole>(out.c, state + h, n);
          if (c != nullptr) put<kWhole>(out.c, c + h, n);
          put<kWhole>(out.h, y + h, n);
        };
        for_each_vector<V>(scan.channels, step);
      }
    }
  }
}

template <Activation A, class T>
void backward(const BackwardScan& a, std::int64_t part) {
  using V = Vec<T>;
  const Scan<T> scan(a);
  const T scale = static_cast<T>(a.scale_x);
  const bool mask_skip = a.mask_site == MaskSite::kOutput;
  const V site(mask_skip ? T(1) : T(0));
  // dv_f, dv_r, db_f, db_r of this range in T, then added to the double totals: short sums keep
  // float32's error small however long the sequence is.
  constexpr int kBlock = 128;
  const std::int64_t dirs_hidden = a.dims.dirs * scan.hidden;
  for (std::int64_t h0 = 0; h0 < scan.channels; h0 += kBlock) {
    const std::int64_t block = scan.channels - h0 < kBlock ? scan.channels - h0 : kBlock;
    for (std::int64_t dir = a.range.dir_begin; dir < a.range.dir_end; ++dir) {
      alignas(64) T sums[4][kBlock] = {};
      for (std::int64_t s = a.range.step_end - 1; s >= a.range.step_begin; --s) {
        const std::int64_t t = a.time(s, dir);
        const std::int64_t t_prev = a.time(s - 1, dir);
        for (std::int64_t b = 0; b < a.dims.batch; ++b) {
          const std::int64_t at = scan.column(dir) + h0;
          const std::int64_t row = a.row(part, t, b);
          T* dx =
              a.dx_skip == nullptr ? nullptr : static_cast<T*>(a.dx_skip) + row * scan.width + at;
          T* du = static_cast<T*>(a.du.data) + (row - a.first_row(dir)) * a.du.row_stride +
                  (dir - a.range.dir_begin) * a.du.dir_stride + h0;
          if (a.padded(part, t, b)) {
            for (std::int64_t h = 0; h < block; ++h) {
              for (std::int64_t k = 0; k < a.dims.blocks; ++k) du[k * a.gate_stride + h] = T(0);
              if (dx != nullptr) dx[h] = T(0);
            }
            continue;
          }
          const std::int64_t state_at = (part * a.dims.batch + b) * scan.width + at;
          const std::int64_t c_dir = (dir - a.range.dir_begin) * a.c.dir_stride + h0;
          const T* c = static_cast<const T*>(a.c.data) + row * a.c.row_stride + c_dir;
          const T* c_prev = s == 0 ? static_cast<const T*>(a.c0) + state_at
                                   : static_cast<const T*>(a.c.data) +
                                         a.row(part, t_prev, b) * a.c.row_stride + c_dir;
          const T* dy = nullptr;
          if (a.dy != nullptr) {
            dy = static_cast<const T*>(a.dy) + row * scan.width + at;
          } else if (a.dh_last != nullptr && a.last(part, t, b, dir)) {
            dy = static_cast<const T*>(a.dh_last) + state_at;
          }
          T* dc = static_cast<T*>(a.dc_state) + state_at;
          T* dmask = a.dmask == nullptr ? nullptr : static_cast<T*>(a.dmask) + b * scan.width + at;
          const Row<T> r = scan.row(row, b, dir);
          const std::int64_t ahead = rows_ahead(a, s, b, dir, true);
          const T* next_u = r.u + ahead * a.u.row_stride + h0;
          const T* next_x = r.x == nullptr ? next_u : r.x + ahead * scan.width + h0;
          const T* next_c = c + ahead * a.c.row_stride;
          const T* next_dy = a.dy == nullptr ? next_u : dy + ahead * scan.width;
          const T* next_du = du + ahead * a.du.row_stride;
          const T* next_dx = dx == nullptr ? next_u : dx + ahead * scan.width;
          const auto step = [&](auto whole, std::int64_t h, int n) PENSTOCK_LAMBDA_INLINE {
            constexpr bool kWhole = decltype(whole)::value;
            prefetch_to_read(next_u + h);
            prefetch_to_read(next_u + a.gate_stride + h);
            prefetch_to_read(next_u + 2 * a.gate_stride + h);
            prefetch_to_read(next_x + h);
            prefetch_to_read(next_c + h);
            prefetch_to_read(next_dy + h);
            prefetch_to_write(next_du + h);
            prefetch_to_write(next_du + a.gate_stride + h);
            prefetch_to_write(next_du + 2 * a.gate_stride + h);
            prefetch_to_write(next_dx + h);
            const Loaded<V> l = load<kWhole>(a, r, h0 + h, scan.hidden, scale, mask_skip, n);
            const V before = get<kWhole>(c_prev + h, n);
            const V dh = dy == nullptr ? V(T(0)) : get<kWhole>(dy + h, n);
            const auto out = sru_cell::backward<A, V>(l.in, l.p, before, get<kWhole>(c + h, n), dh,
                                                      get<kWhole>(dc + h, n), site);
            put<kWhole>(out.dc_prev, dc + h, n);
            put<kWhole>(out.du0, du + h, n);
            put<kWhole>(out.du1, du + a.gate_stride + h, n);
            put<kWhole>(out.du2, du + 2 * a.gate_stride + h, n);
            if (dx != nullptr) {
              put<kWhole>(V(scale) * out.dskip, dx + h, n);
            } else if (a.dims.blocks == 4) {
              put<kWhole>(out.dskip, du + 3 * a.gate_stride + h, n);
            }
            if (dmask != nullptr) put<kWhole>(get<kWhole>(dmask + h, n) + out.dmask, dmask + h, n);
            put<kWhole>(get<kWhole>(sums[0] + h, n) + out.du1 * before, sums[0] + h, n);
            put<kWhole>(get<kWhole>(sums[1] + h, n) + out.du2 * before, sums[1] + h, n);
            put<kWhole>(get<kWhole>(sums[2] + h, n) + out.du1, sums[2] + h, n);
            put<kWhole>(get<kWhole>(sums[3] + h, n) + out.du2, sums[3] + h, n);
          };
          for_each_vector<V>(block, step);
        }
      }
      double* totals = static_cast<double*>(a.dparams) + scan.column(dir) + h0;
      for (int i = 0; i < 4; ++i) {
        for (std::int64_t h = 0; h < block; ++h) {
          totals[i * dirs_hidden + h] += static_cast<double>(sums[i][h]);
        }
      }
    }
  }
}

template <class T>
void forward_any(const ForwardScan& a) {
  for (std::int64_t part = a.range.part_begin; part < a.range.part_end; ++part) {
    switch (a.activation) {
      case Activation::kIdentity: forward<Activation::kIdentity, T>(a, part); break;
      case Activation::kTanh: forward<Activation::kTanh, T>(a, part); break;
      case Activation::kRelu: forward<Activation::kRelu, T>(a, part); break;
    }
  }
}

template <class T>
void backward_any(const BackwardScan& a) {
  for (std::int64_t part = a.range.part_begin; part < a.range.part_end; ++part) {
    switch (a.activation) {
      case Activation::kIdentity: backward<Activation::kIdentity, T>(a, part); break;
      case Activation::kTanh: backward<Activation::kTanh, T>(a, part); break;
      case Activation::kRelu: backward<Activation::kRelu, T>(a, part); break;
    }
  }
}

}  // namespace

const SruScans& sru_scans() {
  static constexpr SruScans table = {&forward_any<float>, &forward_any<double>,
                                     &backward_any<float>, &backward_any<double>};
  return table;
}

}  // namespace penstock::cpu::PENSTOCK_ISA_NAMESPACE
