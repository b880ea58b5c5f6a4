// The SRU's order of matrix products and scans, the same for every backend.
//
// Channels do not mix between matrix products, so work is cut into groups of channels (Plan), each
// of which goes through time on its own: u for a chunk of rows, then the scan over that chunk.
// u and du are laid out group by group, (rows, K, channels) each, so a group's stream is
// contiguous.

#include "cells/sru_work.h"

#include <algorithm>

#include "core/backend.h"
#include "core/cell_table.h"
#include "core/operands.h"

namespace penstock::sru {
namespace {

/// Where the parts of the reserve lie.
struct Reserve {
  void* u = nullptr;  // all rows, compute type
  void* c = nullptr;  // kept rows, state type
  std::size_t bytes = 0;

  Reserve(const Context& ctx, const Dims& d, void* base) {
    Carver carver(base, ctx.backend().alignment);
    u = carver.take(static_cast<std::size_t>(d.rows() * d.width() * d.blocks) * size_of(d.compute));
    c = carver.take(static_cast<std::size_t>(d.kept_rows() * d.width()) * size_of(d.state));
    bytes = carver.bytes();
  }
};

/// One group of channels: a slice of every array.
struct Group {
  Range range;                // without parts and steps
  std::int64_t channels = 0;  // per direction
  std::int64_t columns = 0;   // of u: directions * K * channels
  std::int64_t offset = 0;    // in weight rows, over all groups
};

/// Parts and, in processing order, steps that one matrix product covers.
struct Chunk {
  std::int64_t part_begin = 0, part_end = 0;
  std::int64_t step_begin = 0, step_end = 0;
};

/// What forward and backward share: the cut, and inputs in the form that kernels read.
class Run {
 public:
  Run(const Context& ctx, const SruInputs& in, const Dims& dims, const recurrent::Cut& cut,
      void* workspace)
      : ctx_(ctx),
        in_(in),
        dims_(dims),
        cut_(cut),
        kernels_(kernels_of<Kernels>(ctx, kKernelsName)),
        plan_(kernels_.plan(dims)),
        operands_(ctx, workspace) {
    groups_per_dir_ = (dims_.hidden + plan_.channels - 1) / plan_.channels;
    groups_ = groups_per_dir_ * (dims_.dirs / plan_.dirs_per_group);
  }

  std::size_t workspace_bytes() const { return operands_.bytes(); }

 protected:
  Group group(std::int64_t i) const {
    Group g;
    g.range.dir_begin = i / groups_per_dir_ * plan_.dirs_per_group;
    g.range.dir_end = g.range.dir_begin + plan_.dirs_per_group;
    g.range.channel_begin = i % groups_per_dir_ * plan_.channels;
    g.range.channel_end = std::min(g.range.channel_begin + plan_.channels, dims_.hidden);
    g.channels = g.range.channel_end - g.range.channel_begin;
    g.columns = plan_.dirs_per_group * dims_.blocks * g.channels;
    g.offset = dims_.blocks * (g.range.dir_begin * dims_.hidden + g.range.channel_begin);
    return g;
  }

  std::int64_t step_chunks() const {
    return (dims_.steps + plan_.chunk_steps - 1) / plan_.chunk_steps;
  }
  std::int64_t chunks() const {
    return (dims_.parts + plan_.chunk_parts - 1) / plan_.chunk_parts * step_chunks();
  }
  Chunk chunk(std::int64_t i) const {
    Chunk c;
    c.part_begin = i / step_chunks() * plan_.chunk_parts;
    c.part_end = std::min(c.part_begin + plan_.chunk_parts, dims_.parts);
    c.step_begin = i % step_chunks() * plan_.chunk_steps;
    c.step_end = std::min(c.step_begin + plan_.chunk_steps, dims_.steps);
    return c;
  }
  std::int64_t rows_of(const Chunk& c) const {
    return (c.part_end - c.part_begin) * (c.step_end - c.step_begin) * dims_.batch;
  }
  /// Rows of the largest chunk.
  std::int64_t chunk_rows() const {
    return std::min(plan_.chunk_parts, dims_.parts) * std::min(plan_.chunk_steps, dims_.steps) *
           dims_.batch;
  }
  /// First row, in time order, of a chunk in a group's direction.
  std::int64_t first_row(const Group& g, const Chunk& c) const {
    const bool reversed = in_.direction == Direction::kReverse || g.range.dir_begin == 1;
    const std::int64_t time = reversed ? dims_.steps - c.step_end : c.step_begin;
    return (c.part_begin * dims_.steps + time) * dims_.batch;
  }

  std::size_t compute_size() const { return size_of(dims_.compute); }
  std::size_t state_size() const { return size_of(dims_.state); }
  std::size_t u_bytes(std::int64_t rows) const {
    return static_cast<std::size_t>(rows * dims_.blocks * dims_.width()) * compute_size();
  }
  std::size_t states_bytes() const {
    return static_cast<std::size_t>(dims_.states() * dims_.width()) * state_size();
  }
  std::size_t weight_bytes() const {
    return static_cast<std::size_t>(dims_.blocks * dims_.width() * dims_.input) * compute_size();
  }
  /// Whether the cut has steps that x does not.
  bool completed() const { return cut_.time != cut_.entries(); }
  std::int64_t x_values() const { return dims_.rows() * dims_.input; }
  /// Offset of x's own first element among all rows'.
  std::int64_t x_begin() const { return cut_.shift * dims_.batch * dims_.input; }

  /// `forward`: for u = x · weight^T; otherwise for products over time and dx = du · weight.
  void prepare_inputs(bool forward) {
    const Backend& backend = ctx_.backend();
    const Group widest = group(0);
    if (plan_.pack_operand && backend.packed_b_bytes != nullptr) {
      operand_bytes_ = forward ? backend.packed_b_bytes(dims_.compute, widest.columns, dims_.input)
                               : backend.packed_b_bytes(dims_.compute, dims_.input, widest.columns);
      operand_bytes_ =
          (operand_bytes_ + backend.alignment - 1) / backend.alignment * backend.alignment;
    }
    if (in_.mask_pad.given()) {
      pad_ =
          static_cast<const std::uint8_t*>(operands_.contiguous(in_.mask_pad, in_.mask_pad.dtype));
    }
    if (in_.lengths.given()) {
      cut_.lengths =
          static_cast<const std::int64_t*>(operands_.contiguous(in_.lengths, DataType::kInt64));
    }
    prepare_x(forward);
    if (dims_.skip_from_x) {
      skip_ = in_.x_skip.given() ? operands_.contiguous(in_.x_skip, dims_.compute) : x_;
    }
    const std::size_t params = static_cast<std::size_t>(2 * dims_.width()) * compute_size();
    weight_c_ = in_.weight_c.given() ? operands_.contiguous(in_.weight_c, dims_.compute)
                                     : operands_.zeros(params);
    bias_ = operands_.contiguous(in_.bias, dims_.compute);
    mask_c_ = in_.mask_c.given() ? operands_.contiguous(in_.mask_c, dims_.compute) : nullptr;
    if (plan_.pack_weight) {
      packed_weight_ = operands_.take(weight_bytes());
    } else {
      weight_ = operands_.contiguous(in_.weight, dims_.compute);
    }
    packed_operands_ = operands_.take(operand_bytes_ * static_cast<std::size_t>(groups_));
    gemm_workspace_ = operands_.take(backend.gemm_workspace_bytes());
  }

  /// x as a row for each of the cut's steps: itself, or where it has fewer, a copy among zeros.
  void prepare_x(bool forward) {
    const Backend& backend = ctx_.backend();
    // What stands at a padded step, NaN included, must not reach the products over time; above the
    // lowest level it is 0. Asked of the arguments, not of cut_ and pad_: while the workspace is
    // only measured, what is converted has no address yet.
    const bool lengths = in_.lengths.given() && cut_.skip && cut_.unit == 1;
    const bool sanitise = !forward && (in_.mask_pad.given() || lengths);
    void* copy = nullptr;
    if (completed()) {
      copy = operands_.zeros(static_cast<std::size_t>(x_values()) * compute_size());
      if (operands_.run()) {
        void* own = advance(copy, x_begin(), compute_size());
        backend.convert(ctx_, in_.x, contiguous_like(in_.x, own, dims_.compute));
      }
      x_ = copy;
    } else {
      x_ = operands_.contiguous(in_.x, dims_.compute, sanitise);
      copy = const_cast<void*>(x_);
    }
    if (sanitise && operands_.run()) {
      Padding padding;
      padding.pad = pad_;
      padding.lengths = cut_.lengths;
      padding.left_of = cut_.left ? cut_.entries() : -1;
      backend.zero_padded(ctx_, copy, dims_.compute, cut_.entries(), dims_.batch, dims_.input,
                          padding);
    }
  }

  /// The rows of a (dirs, K·H, D) array that belong to a group, as (K, channels, D).
  TensorView rows_of(const TensorView& weight, const Group& g) const {
    TensorView v = weight;
    v.shape[0] = dims_.blocks;
    v.shape[1] = g.channels;
    v.strides[0] = weight.strides[1] * dims_.hidden;
    v.data =
        advance(weight.data,
                weight.strides[0] * g.range.dir_begin + weight.strides[1] * g.range.channel_begin,
                size_of(weight.dtype));
    return v;
  }
  TensorView packed_rows(void* packed, const Group& g) const {
    return TensorView(advance(packed, g.offset * dims_.input, compute_size()), dims_.compute,
                      {dims_.blocks, g.channels, dims_.input}, ctx_.device());
  }
  /// Copy the group's rows of the weight next to each other and, where the backend has a form of
  /// its own for what products share, into that, both if planned: for u = x · weight^T if
  /// `transposed`, else for dx = du · weight.
  void pack(std::int64_t i, const Group& g, bool transposed) const {
    if (plan_.pack_weight) {
      ctx_.backend().convert(ctx_, rows_of(in_.weight, g), packed_rows(packed_weight_, g));
    }
    if (operand_bytes_ == 0) return;
    GemmArgs product = gemm_args();
    product.trans_b = transposed;
    product.n = transposed ? g.columns : dims_.input;
    product.k = transposed ? dims_.input : g.columns;
    product.b = advance(weight(), rows(g).begin * dims_.input, compute_size());
    product.ldb = std::max<std::int64_t>(1, dims_.input);
    ctx_.backend().pack_b(ctx_, product, operand(i));
  }
  void* operand(std::int64_t i) const {
    return operand_bytes_ == 0 ? nullptr
                               : static_cast<char*>(packed_operands_) +
                                     static_cast<std::size_t>(i) * operand_bytes_;
  }

  /// Where a group's rows lie in a (dirs, K·H, D) array: `segments` runs of `rows` rows.
  struct Rows {
    std::int64_t begin = 0;  // first row
    std::int64_t rows = 0;   // per segment
    std::int64_t segments = 1;
    std::int64_t stride = 0;  // rows between segments
  };
  Rows rows(const Group& g) const {
    Rows r;
    if (plan_.pack_weight || g.channels == dims_.hidden) {
      r.begin = g.offset;
      r.rows = g.columns;
    } else {
      r.begin = dims_.blocks * g.range.dir_begin * dims_.hidden + g.range.channel_begin;
      r.rows = g.channels;
      r.segments = dims_.blocks;
      r.stride = dims_.hidden;
    }
    return r;
  }
  const void* weight() const { return plan_.pack_weight ? packed_weight_ : weight_; }

  GemmArgs gemm_args() const {
    GemmArgs g;
    g.dtype = dims_.compute;
    g.workspace = gemm_workspace_;
    return g;
  }

  void fill(ScanArgs& s, const Group& g, const Chunk& c) const {
    s.dims = dims_;
    s.range = g.range;
    s.range.part_begin = c.part_begin;
    s.range.part_end = c.part_end;
    s.range.step_begin = c.step_begin;
    s.range.step_end = c.step_end;
    s.activation = in_.activation;
    s.mask_site = in_.mask_site;
    s.first_reverse = in_.direction == Direction::kReverse;
    s.scale_x = in_.scale_x;
    s.cut = cut_;
    s.masked = cut_.skip && (cut_.lengths != nullptr || cut_.whole != cut_.padded);
    s.pad = pad_;
    s.gate_stride = g.channels;
    s.x = skip_;
    s.weight_c = weight_c_;
    s.bias = bias_;
    s.mask_c = mask_c_;
  }
  Plane plane(void* data, const Group& g, std::int64_t blocks) const {
    Plane p;
    p.data = data;
    p.row_stride = plan_.dirs_per_group * blocks * g.channels;
    p.dir_stride = blocks * g.channels;
    return p;
  }
  /// A group's states in the reserve.
  Plane kept_states(void* c, const Group& g) const {
    return plane(advance(c, g.offset / dims_.blocks * dims_.kept_rows(), state_size()), g, 1);
  }
  std::int64_t windows() const {
    return (chunks() + plan_.window - 1) / std::max<std::int64_t>(1, plan_.window);
  }
  /// Chunks of a window, in processing order.
  struct Window {
    std::int64_t begin = 0, end = 0;
    std::int64_t chunks() const { return end - begin; }
  };
  Window window(std::int64_t i) const {
    Window w;
    if (i < 0 || i >= windows()) return w;
    w.begin = i * plan_.window;
    w.end = std::min(w.begin + plan_.window, chunks());
    return w;
  }
  double product_work() const {
    return static_cast<double>(dims_.rows()) * static_cast<double>(dims_.input) *
           static_cast<double>(dims_.blocks * dims_.width());
  }

  const Context& ctx_;
  const SruInputs& in_;
  const Dims dims_;
  recurrent::Cut cut_;
  const Kernels& kernels_;
  const Plan plan_;
  Operands operands_;
  std::int64_t groups_per_dir_ = 1, groups_ = 1;

  const std::uint8_t* pad_ = nullptr;
  const void* x_ = nullptr;
  const void* skip_ = nullptr;  // what the skip term reads, if dims_.skip_from_x
  const void* weight_ = nullptr;
  void* packed_weight_ = nullptr;
  std::size_t operand_bytes_ = 0;  // of each group's operand in the backend's form
  void* packed_operands_ = nullptr;
  const void* weight_c_ = nullptr;
  const void* bias_ = nullptr;
  const void* mask_c_ = nullptr;
  void* gemm_workspace_ = nullptr;
};

class ForwardRun : public Run {
 public:
  ForwardRun(const Context& ctx, const ForwardWork& work, void* workspace)
      : Run(ctx, work, work.dims, work.cut, workspace), work_(work) {
    prepare_inputs(/*forward=*/true);
    // While the workspace is measured, outputs may be without memory.
    const auto place = [&](const TensorView& v, std::int64_t values) {
      return dims_.compute == dims_.dtype
                 ? v.data
                 : operands_.take(static_cast<std::size_t>(values) * compute_size());
    };
    if (work.part_outputs) {
      h_last_ = place(work.h_last, dims_.states() * dims_.width());
    } else {
      y_ = place(work.y, dims_.rows() * dims_.width());
    }
    c_state_ = !work.part_outputs && dims_.state == dims_.dtype ? work.c_last.data
                                                                : operands_.take(states_bytes());
    if (!work.need_grad) {
      u_chunk_ =
          operands_.take(u_bytes(chunk_rows()) * static_cast<std::size_t>(resident_chunks()));
    }
    scratch_ = operands_.take(kernels_.scratch_bytes(ctx, dims_, /*backward=*/false));
  }

  void run(void* reserve) {
    operands_.initialise(work_.c0, c_state_, dims_.state, dims_.states() * dims_.width());
    if (work_.part_outputs) {
      operands_.initialise(TensorView(), h_last_, dims_.compute, dims_.states() * dims_.width());
    }
    if (work_.need_grad) {
      const Reserve kept(ctx_, dims_, reserve);
      u_all_ = kept.u;
      c_all_ = kept.c;
    }
    if (dims_.rows() > 0) {
      if (plan_.overlap) {
        run_overlapped();
      } else {
        for_each(ctx_, groups_, product_work(), [this](std::int64_t i) { run_group(i); });
      }
    }
    if (work_.part_outputs) {
      operands_.deliver(h_last_, dims_.compute, work_.h_last);
    } else {
      operands_.deliver(y_, dims_.compute, work_.y);
      operands_.deliver(c_state_, dims_.state, work_.c_last);
    }
  }

 private:
  void run_group(std::int64_t i) const {
    const Group g = group(i);
    pack(i, g, /*transposed=*/true);
    for (std::int64_t n = 0; n < chunks(); ++n) {
      multiply(i, g, n);
      scan(g, n);
    }
  }

  /// Each turn takes the products of one window and the scans of the window before it.
  void run_overlapped() const {
    for_each(ctx_, groups_, product_work(),
             [this](std::int64_t i) { pack(i, group(i), /*transposed=*/true); });
    for (std::int64_t turn = 0; turn <= windows(); ++turn) {
      const Window scanned = window(turn - 1), multiplied = window(turn);
      // A group's scans are one item, and the longest: they come first.
      const std::int64_t scans = scanned.chunks() > 0 ? groups_ : 0;
      for_each(ctx_, scans + groups_ * multiplied.chunks(),
               product_work() / static_cast<double>(windows()), [&](std::int64_t item) {
                 if (item < scans) {
                   const Group g = group(item);
                   for (std::int64_t n = scanned.begin; n < scanned.end; ++n) scan(g, n);
                 } else {
                   const std::int64_t i = (item - scans) % groups_;
                   multiply(i, group(i), multiplied.begin + (item - scans) / groups_);
                 }
               });
    }
  }

  /// Chunks whose u is in memory at a time, without gradients.
  std::int64_t resident_chunks() const { return std::max<std::int64_t>(1, 2 * plan_.window); }
  void* u_of(const Group& g, std::int64_t n) const {
    if (work_.need_grad) {
      return advance(u_all_, g.offset * dims_.rows() + first_row(g, chunk(n)) * g.columns,
                     compute_size());
    }
    // Chunks in turn follow each other closely in a cache, where they do not overlap.
    const std::int64_t slot = plan_.overlap ? n % resident_chunks() : 0;
    return advance(u_chunk_, (slot * dims_.blocks * dims_.width() + g.offset) * chunk_rows(),
                   compute_size());
  }

  void multiply(std::int64_t i, const Group& g, std::int64_t n) const {
    const Rows w = rows(g);
    const Chunk c = chunk(n);
    GemmArgs product = gemm_args();
    product.trans_b = true;
    product.m = rows_of(c);
    product.n = w.rows;
    product.k = dims_.input;
    product.a = advance(x_, first_row(g, c) * dims_.input, compute_size());
    product.lda = std::max<std::int64_t>(1, dims_.input);
    product.b = advance(weight(), w.begin * dims_.input, compute_size());
    product.ldb = product.lda;
    product.stride_b = w.stride * dims_.input;
    product.c = u_of(g, n);
    product.ldc = g.columns;
    product.stride_c = g.channels;
    product.batch = w.segments;
    product.packed_b = operand(i);
    ctx_.backend().gemm(ctx_, product);
  }

  void scan(const Group& g, std::int64_t n) const {
    ForwardScan scan;
    fill(scan, g, chunk(n));
    scan.u = plane(u_of(g, n), g, dims_.blocks);
    scan.c_state = c_state_;
    scan.y = y_;
    scan.h_last = h_last_;
    scan.scratch = scratch_;
    if (work_.need_grad) {
      scan.c = kept_states(c_all_, g);
    }
    kernels_.forward(ctx_, scan);
  }

  const ForwardWork& work_;
  void* y_ = nullptr;
  void* h_last_ = nullptr;
  void* c_state_ = nullptr;
  void* u_chunk_ = nullptr;
  void* scratch_ = nullptr;
  void* u_all_ = nullptr;
  void* c_all_ = nullptr;
};

class BackwardRun : public Run {
 public:
  BackwardRun(const Context& ctx, const BackwardWork& work, void* workspace)
      : Run(ctx, work, work.dims, work.cut, workspace), work_(work) {
    prepare_inputs(/*forward=*/false);
    c0_ = work.c0.given() ? operands_.contiguous(work.c0, dims_.state)
                          : operands_.zeros(states_bytes());
    dy_ = work.dy.given() ? operands_.contiguous(work.dy, dims_.compute) : nullptr;
    dh_last_ = work.dh_last.given() ? operands_.contiguous(work.dh_last, dims_.compute) : nullptr;
    const bool same_state = dims_.state == dims_.dtype;
    const bool same_compute = dims_.compute == dims_.dtype;
    dc_state_ = work.dc0.given() && same_state ? work.dc0.data : operands_.take(states_bytes());
    du_ = operands_.take(u_bytes(dims_.rows()));
    dx_ = same_compute && !completed()
              ? work.dx.data
              : operands_.take(static_cast<std::size_t>(x_values()) * compute_size());
    if (work.x_skip.given()) {
      dx_skip_ = same_compute && work.dx_skip.given()
                     ? work.dx_skip.data
                     : operands_.take(static_cast<std::size_t>(dims_.rows() * dims_.width()) *
                                      compute_size());
    } else if (dims_.skip_from_x) {
      dx_skip_ = dx_;
    }
    dweight_ =
        same_compute && !plan_.pack_weight ? work.dweight.data : operands_.take(weight_bytes());
    scratch_ = operands_.take(kernels_.scratch_bytes(ctx, dims_, /*backward=*/true));
    dparams_bytes_ = kernels_.param_partial_bytes(ctx, dims_);
    dparams_ = operands_.take(dparams_bytes_);
    if (work.dmask_c.given()) {
      dmask_ = same_state ? work.dmask_c.data : operands_.take(states_bytes());
    }
  }

  void run(const void* reserve) {
    const Backend& backend = ctx_.backend();
    const std::int64_t states = dims_.states() * dims_.width();
    operands_.initialise(work_.dc_last, dc_state_, dims_.state, states);
    backend.fill_zero(ctx_, dparams_, dparams_bytes_);
    if (dmask_ != nullptr) operands_.initialise(TensorView(), dmask_, dims_.state, states);
    const Reserve kept(ctx_, dims_, const_cast<void*>(reserve));
    u_ = kept.u;
    c_ = kept.c;
    if (dims_.rows() > 0) {
      if (plan_.overlap) {
        run_overlapped();
      } else {
        for_each(ctx_, groups_, product_work(), [this](std::int64_t i) { run_group(i); });
      }
      const std::int64_t tile = plan_.dx_rows;
      for_each(ctx_, (dims_.rows() + tile - 1) / tile, product_work(), [&](std::int64_t i) {
        input_gradient(i * tile, std::min(tile, dims_.rows() - i * tile));
      });
      if (!plan_.pack_weight) operands_.deliver(dweight_, dims_.compute, work_.dweight);
    } else {
      backend.fill_zero(ctx_, work_.dweight.data, static_cast<std::size_t>(work_.dweight.nbytes()));
    }
    operands_.deliver(completed() ? advance(dx_, x_begin(), compute_size()) : dx_, dims_.compute,
                      work_.dx);
    if (work_.dx_skip.given()) operands_.deliver(dx_skip_, dims_.compute, work_.dx_skip);
    kernels_.reduce_params(ctx_, dims_, dparams_,
                           work_.dweight_c.given() ? work_.dweight_c.data : nullptr,
                           work_.dbias.given() ? work_.dbias.data : nullptr);
    if (work_.dc0.given()) operands_.deliver(dc_state_, dims_.state, work_.dc0);
    if (work_.dmask_c.given()) operands_.deliver(dmask_, dims_.state, work_.dmask_c);
  }

 private:
  /// du over time and, while it is in a cache, its product with x: the group's rows of dweight.
  void run_group(std::int64_t i) const {
    const Group g = group(i);
    pack(i, g, /*transposed=*/false);
    for (std::int64_t n = chunks() - 1; n >= 0; --n) {
      scan(g, n);
      multiply(g, n);
    }
    finish(g);
  }

  /// Each turn takes the scans of one window and the products of the one scanned before it.
  void run_overlapped() const {
    for_each(ctx_, groups_, product_work(),
             [this](std::int64_t i) { pack(i, group(i), /*transposed=*/false); });
    for (std::int64_t turn = windows() - 1; turn >= -1; --turn) {
      const Window scanned = window(turn), multiplied = window(turn + 1);
      const std::int64_t scans = scanned.chunks() > 0 ? groups_ : 0;
      const std::int64_t products = multiplied.chunks() > 0 ? groups_ : 0;
      for_each(ctx_, scans + products, product_work() / static_cast<double>(windows()),
               [&](std::int64_t item) {
                 const Group g = group(item % groups_);
                 const bool is_scan = item < scans;
                 const Window& w = is_scan ? scanned : multiplied;
                 for (std::int64_t n = w.end - 1; n >= w.begin; --n) {
                   is_scan ? scan(g, n) : multiply(g, n);
                 }
               });
    }
    for_each(ctx_, groups_, 0.0, [this](std::int64_t i) { finish(group(i)); });
  }

  /// A chunk's first element of u or du.
  std::int64_t u_at(const Group& g, const Chunk& c) const {
    return g.offset * dims_.rows() + first_row(g, c) * g.columns;
  }

  void scan(const Group& g, std::int64_t n) const {
    const Chunk c = chunk(n);
    BackwardScan scan;
    fill(scan, g, c);
    scan.u = plane(advance(u_, u_at(g, c), compute_size()), g, dims_.blocks);
    scan.c = kept_states(c_, g);
    scan.c0 = c0_;
    scan.dy = dy_;
    scan.dh_last = dh_last_;
    scan.dc_state = dc_state_;
    scan.du = plane(advance(du_, u_at(g, c), compute_size()), g, dims_.blocks);
    scan.dx_skip = dx_skip_;
    scan.dparams = dparams_;
    scan.dmask = dmask_;
    scan.scratch = scratch_;
    kernels_.backward(ctx_, scan);
  }

  void multiply(const Group& g, std::int64_t n) const {
    const Rows w = rows(g);
    const Chunk c = chunk(n);
    GemmArgs product = gemm_args();
    product.trans_a = true;
    product.m = w.rows;
    product.n = dims_.input;
    product.k = rows_of(c);
    product.a = advance(du_, u_at(g, c), compute_size());
    product.lda = g.columns;
    product.stride_a = g.channels;
    product.b = advance(x_, first_row(g, c) * dims_.input, compute_size());
    product.ldb = std::max<std::int64_t>(1, dims_.input);
    product.beta = n == chunks() - 1 ? 0.0 : 1.0;
    product.c = advance(dweight_, w.begin * dims_.input, compute_size());
    product.ldc = product.ldb;
    product.stride_c = w.stride * dims_.input;
    product.batch = w.segments;
    ctx_.backend().gemm(ctx_, product);
  }

  void finish(const Group& g) const {
    if (plan_.pack_weight) {
      ctx_.backend().convert(ctx_, packed_rows(dweight_, g), rows_of(work_.dweight, g));
    }
  }

  /// Rows [row, row + count) of dx: the sum of du · weight over all groups, onto the skip term.
  void input_gradient(std::int64_t row, std::int64_t count) const {
    bool onto = dx_skip_ != nullptr && dx_skip_ == dx_;
    for (std::int64_t i = 0; i < groups_; ++i) {
      const Group g = group(i);
      const Rows w = rows(g);
      for (std::int64_t segment = 0; segment < w.segments; ++segment) {
        GemmArgs product = gemm_args();
        product.m = count;
        product.n = dims_.input;
        product.k = w.rows;
        product.a = advance(du_, g.offset * dims_.rows() + row * g.columns + segment * g.channels,
                            compute_size());
        product.lda = g.columns;
        product.b = advance(weight(), (w.begin + segment * w.stride) * dims_.input, compute_size());
        product.ldb = std::max<std::int64_t>(1, dims_.input);
        product.packed_b = operand(i);
        product.beta = onto ? 1.0 : 0.0;
        product.c = advance(dx_, row * dims_.input, compute_size());
        product.ldc = product.ldb;
        ctx_.backend().gemm(ctx_, product);
        onto = true;
      }
    }
  }

  const BackwardWork& work_;
  const void* c0_ = nullptr;
  const void* dy_ = nullptr;
  const void* dh_last_ = nullptr;
  void* dc_state_ = nullptr;
  void* du_ = nullptr;
  void* dx_ = nullptr;
  void* dx_skip_ = nullptr;  // where the skip term's gradient goes: dx or an array of its own
  void* dweight_ = nullptr;
  std::size_t dparams_bytes_ = 0;
  void* dparams_ = nullptr;
  void* dmask_ = nullptr;
  void* scratch_ = nullptr;
  void* u_ = nullptr;
  void* c_ = nullptr;
};

}  // namespace

std::size_t reserve_bytes(const Context& ctx, const Dims& dims) {
  return Reserve(ctx, dims, nullptr).bytes;
}
std::size_t workspace_bytes(const Context& ctx, const ForwardWork& work) {
  return ForwardRun(ctx, work, nullptr).workspace_bytes();
}
std::size_t workspace_bytes(const Context& ctx, const BackwardWork& work) {
  return BackwardRun(ctx, work, nullptr).workspace_bytes();
}
void forward(const Context& ctx, const ForwardWork& work, void* workspace, void* reserve) {
  ForwardRun(ctx, work, workspace).run(reserve);
}
void backward(const Context& ctx, const BackwardWork& work, void* workspace, const void* reserve) {
  BackwardRun(ctx, work, workspace).run(reserve);
}

}  // namespace penstock::sru
