// Order of work, forward: chunk by chunk (Plan), W x for all the chunk's steps into the rows that
// the scan reads, then the scan over them (or a scan that takes x itself). Backward, chunks from
// the last to the first: the scan leaves the gates' gradients of the chunk, and while they are in a
// cache, they go into dx, the weights' and the biases' gradients. With `recompute`, a chunk's gates
// are found again first.
//
// Levels of a sliced network that a backend takes at once (LevelKernels) are one chunk each, whose
// scans are made here and run together.
//
// A chunk is a range of parts and a range of steps. Its entries are contiguous in x if it takes all
// steps of its parts, else each part's are: a piece.

#include "cells/recurrent.h"

#include <algorithm>
#include <string>
#include <vector>

#include "core/cell_table.h"
#include "penstock/error.h"

namespace penstock::recurrent {
namespace {

using checks::Checker;

Dims dims_of(const Context& ctx, const Level& level) {
  Dims d;
  d.input = level.x.shape[2];
  d.hidden = level.weight_hh.shape[2];
  d.dirs = level.direction == Direction::kBidirectional ? 2 : 1;
  d.cut = level.cut;
  d.options = level.options;
  d.dtype = level.x.dtype;
  d.compute = ctx.backend().compute_dtype(d.dtype);
  d.state = d.dtype == DataType::kFloat64 ? DataType::kFloat64 : DataType::kFloat32;
  return d;
}

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

/// What forward keeps for backward.
struct Reserve {
  void* gates = nullptr;  // (dirs, entries * B, saved·H) compute type, unless `recompute`
  void* h = nullptr;      // (dirs, entries * B, H) compute type
  void* c = nullptr;      // (dirs, entries * B, H) state type
  std::size_t bytes = 0;

  Reserve(const Context& ctx, const Level& level, const Dims& d, const Spec& spec, void* base) {
    Carver carver(base, ctx.backend().alignment);
    const auto values = static_cast<std::size_t>(d.dirs * d.cut.entries() * d.cut.batch * d.hidden);
    if (!level.recompute) {
      gates = carver.take(values * static_cast<std::size_t>(spec.saved) * size_of(d.compute));
    }
    h = carver.take(values * size_of(d.compute));
    if (spec.has_c) c = carver.take(values * size_of(d.state));
    bytes = carver.bytes();
  }
};

/// What levels that are taken at once have together, in place of what each would take for itself.
struct Joint {
  void* gemm_workspace = nullptr;
};

/// What forward and backward share.
class Run {
 protected:
  /// `joint` null: the level is taken by itself.
  Run(const Context& ctx, const Level& level, void* workspace, const Joint* joint)
      : joint_(joint),
        ctx_(ctx),
        backend_(ctx.backend()),
        level_(level),
        kernels_(kernels_of<Kernels>(ctx, level.cell)),
        dims_(dims_of(ctx, level)),
        spec_(kernels_.spec(level.options)),
        plan_(kernels_.plan(dims_)),
        operands_(ctx, workspace) {}

  /// A range of parts and, in processing order, of steps.
  struct Chunk {
    std::int64_t part_begin = 0, part_end = 0;
    std::int64_t step_begin = 0, step_end = 0;
    std::int64_t parts() const { return part_end - part_begin; }
    std::int64_t steps() const { return step_end - step_begin; }
  };
  std::int64_t step_chunks() const { return ceil_div(dims_.cut.steps, plan_.steps); }
  std::int64_t chunks() const { return ceil_div(dims_.cut.parts, plan_.parts) * step_chunks(); }
  Chunk chunk(std::int64_t i) const {
    Chunk c;
    c.part_begin = i / step_chunks() * plan_.parts;
    c.part_end = std::min(c.part_begin + plan_.parts, dims_.cut.parts);
    c.step_begin = i % step_chunks() * plan_.steps;
    c.step_end = std::min(c.step_begin + plan_.steps, dims_.cut.steps);
    return c;
  }
  bool whole_steps(const Chunk& c) const { return c.steps() == dims_.cut.steps; }
  std::int64_t chunk_rows() const {
    return std::min(plan_.parts, dims_.cut.parts) * std::min(plan_.steps, dims_.cut.steps) *
           dims_.cut.batch;
  }

  /// Contiguous entries of a chunk: `rows` rows of x from `x_row` on, of which the first stands at
  /// row `at` of the chunk's own rows.
  struct Piece {
    std::int64_t at = 0;
    std::int64_t x_row = 0;  // may lie before x's first row
    std::int64_t rows = 0;
    std::int64_t skipped = 0;  // rows before the first that x has
    std::int64_t present = 0;  // rows that x has
  };
  std::int64_t pieces(const Chunk& c) const { return whole_steps(c) ? 1 : c.parts(); }
  /// Rows of one piece; the chunk's own rows are its pieces', one after the other.
  std::int64_t piece_rows(const Chunk& c) const {
    return (whole_steps(c) ? c.parts() : 1) * c.steps() * dims_.cut.batch;
  }
  Piece piece(const Chunk& c, std::int64_t dir, std::int64_t i) const {
    const Cut& cut = dims_.cut;
    Piece p;
    p.rows = piece_rows(c);
    p.at = i * p.rows;
    const std::int64_t time = reversed(dir) ? cut.steps - c.step_end : c.step_begin;
    const std::int64_t entry = (c.part_begin + i) * cut.steps + time - cut.shift;
    p.x_row = entry * cut.batch;
    const std::int64_t last = std::min(p.x_row + p.rows, cut.time * cut.batch);
    p.skipped = std::min(p.rows, std::max<std::int64_t>(0, -p.x_row));
    p.present = std::max<std::int64_t>(0, last - p.x_row - p.skipped);
    return p;
  }
  bool reversed(std::int64_t dir) const {
    return level_.direction == Direction::kReverse || dir == 1;
  }

  std::size_t item() const { return size_of(dims_.compute); }
  std::int64_t gate_rows() const { return spec_.gates * dims_.hidden; }
  std::size_t state_bytes() const {
    return static_cast<std::size_t>(dims_.cut.rows() * dims_.width()) * size_of(dims_.state);
  }
  void initialise(const TensorView& from, void* state) const {
    operands_.initialise(from, state, dims_.state, dims_.cut.rows() * dims_.width());
  }
  /// Multiply-adds, as far as they decide; with few rows, it is the weights' way from memory.
  double work(std::int64_t rows, std::int64_t columns) const {
    constexpr std::int64_t kFewestRows = 8;
    return static_cast<double>(std::max(rows, kFewestRows)) * static_cast<double>(columns) *
           static_cast<double>(gate_rows() * dims_.dirs);
  }

  /// Rows with a place for each entry of the level, as a scan over a chunk sees them.
  Rows all_rows(void* base, std::int64_t columns, std::size_t size, const Chunk& c) const {
    Rows r;
    if (base == nullptr) return r;
    const Cut& cut = dims_.cut;
    r.row_stride = columns;
    r.part_rows = cut.steps * cut.batch;
    for (std::int64_t dir = 0; dir < dims_.dirs; ++dir) {
      const std::int64_t time = reversed(dir) ? cut.steps - c.step_end : c.step_begin;
      const std::int64_t row = (dir * cut.entries() + c.part_begin * cut.steps + time) * cut.batch;
      r.data[dir] = advance(base, row * columns, size);
    }
    return r;
  }
  /// Rows with a place for each entry of one chunk.
  Rows chunk_rows(void* base, std::int64_t columns, std::size_t size, const Chunk& c) const {
    Rows r;
    r.row_stride = columns;
    r.part_rows = c.steps() * dims_.cut.batch;
    for (std::int64_t dir = 0; dir < dims_.dirs; ++dir) {
      r.data[dir] = advance(base, dir * chunk_rows() * columns, size);
    }
    return r;
  }
  /// Address of a chunk's own row.
  void* row_at(const Rows& rows, const Chunk& c, std::int64_t dir, std::int64_t row,
               std::size_t size) const {
    const std::int64_t part = c.steps() * dims_.cut.batch;
    const std::int64_t there = row / part * rows.part_rows + row % part;
    return advance(rows.data[dir], there * rows.row_stride, size);
  }

  void prepare_inputs(bool forward) {
    if (level_.lengths.given()) {
      dims_.cut.lengths =
          static_cast<const std::int64_t*>(operands_.contiguous(level_.lengths, DataType::kInt64));
    }
    // What stands at a padded step, NaN included, must not reach the products over time;
    // above the lowest level it is 0.
    const bool sanitise =
        !forward && level_.lengths.given() && level_.cut.skip && level_.cut.unit == 1;
    const void* x = operands_.contiguous(level_.x, dims_.compute, sanitise);
    if (sanitise && operands_.run() && level_.x.numel() != 0) {
      Padding padding;
      padding.lengths = dims_.cut.lengths;
      padding.left_of = dims_.cut.left ? dims_.cut.time : -1;
      backend_.zero_padded(ctx_, const_cast<void*>(x), dims_.compute, dims_.cut.time,
                           dims_.cut.batch, dims_.input, padding);
    }
    x_ = x;
    weight_ih_ = operands_.contiguous(level_.weight_ih, dims_.compute);
    weight_hh_ = operands_.contiguous(level_.weight_hh, dims_.compute);
    const std::size_t bias = static_cast<std::size_t>(dims_.dirs * gate_rows()) * item();
    bias_ih_ = level_.bias_ih.given() ? operands_.contiguous(level_.bias_ih, dims_.compute)
                                      : operands_.zeros(bias);
    bias_hh_ = level_.bias_hh.given() ? operands_.contiguous(level_.bias_hh, dims_.compute)
                                      : operands_.zeros(bias);
    gemm_workspace_ = joint_ == nullptr ? operands_.take(backend_.gemm_workspace_bytes())
                                        : joint_->gemm_workspace;
  }

  /// Room for op(weight_ih) of each direction in the backend's form for products.
  struct Packed {
    void* data = nullptr;
    std::size_t bytes = 0;  // of one direction; 0: products read the weights themselves
  };
  Packed make_packed(std::int64_t n, std::int64_t k) {
    Packed p;
    if (!plan_.pack_weights || backend_.packed_b_bytes == nullptr) return p;
    p.bytes = backend_.packed_b_bytes(dims_.compute, n, k);
    p.bytes = (p.bytes + backend_.alignment - 1) / backend_.alignment * backend_.alignment;
    p.data = operands_.take(p.bytes * static_cast<std::size_t>(dims_.dirs));
    return p;
  }
  void pack(const Packed& p, bool transposed) const {
    if (p.bytes == 0) return;
    for_each(ctx_, dims_.dirs, static_cast<double>(gate_rows() * dims_.input * dims_.dirs),
             [&](std::int64_t dir) {
               GemmArgs g = product();
               g.trans_b = transposed;
               g.n = transposed ? gate_rows() : dims_.input;
               g.k = transposed ? dims_.input : gate_rows();
               g.b = weight_ih(dir);
               g.ldb = std::max<std::int64_t>(1, dims_.input);
               backend_.pack_b(ctx_, g, packed(p, dir));
             });
  }
  static void* packed(const Packed& p, std::int64_t dir) {
    return p.bytes == 0 ? nullptr
                        : static_cast<char*>(p.data) + static_cast<std::size_t>(dir) * p.bytes;
  }
  const void* weight_ih(std::int64_t dir) const {
    return advance(weight_ih_, dir * gate_rows() * dims_.input, item());
  }
  GemmArgs product() const {
    GemmArgs g;
    g.dtype = dims_.compute;
    g.workspace = gemm_workspace_;
    return g;
  }

  void fill(Scan& s, const Chunk& c) const {
    s.dims = dims_;
    s.first_reverse = level_.direction == Direction::kReverse;
    s.part_begin = c.part_begin;
    s.part_end = c.part_end;
    s.step_begin = c.step_begin;
    s.step_end = c.step_end;
    s.weight_hh = weight_hh_;
    s.bias_ih = bias_ih_;
    s.bias_hh = bias_hh_;
    s.scratch = scratch_;
  }

  /// W x for all of a chunk's steps and directions.
  void input_products(const Chunk& c, const Rows& rows, const Packed& weights) const {
    if (dims_.dirs == 2 && weights.bytes == 0 && chunks() == 1 && dims_.cut.shift == 0 &&
        dims_.cut.entries() == dims_.cut.time && plan_.tile_rows >= chunk_rows()) {
      // Both directions read the same rows of x: one call.
      GemmArgs g = input_product(weights, 0);
      g.m = chunk_rows();
      g.a = x_;
      g.c = rows.data[0];
      g.ldc = rows.row_stride;
      g.batch = 2;
      g.stride_b = gate_rows() * dims_.input;
      g.stride_c = (static_cast<char*>(rows.data[1]) - static_cast<char*>(rows.data[0])) /
                   static_cast<std::int64_t>(item());
      backend_.gemm(ctx_, g);
      return;
    }
    const std::int64_t tiles = ceil_div(piece_rows(c), plan_.tile_rows);
    const std::int64_t cuts = weights.bytes == 0 ? ceil_div(gate_rows(), plan_.tile_outputs) : 1;
    const std::int64_t per_dir = pieces(c) * tiles;
    for_each(ctx_, dims_.dirs * per_dir * cuts, work(piece_rows(c) * pieces(c), dims_.input),
             [&](std::int64_t item_index) {
               const std::int64_t i = item_index / cuts;
               const std::int64_t dir = i / per_dir;
               const Piece p = piece(c, dir, i % per_dir / tiles);
               const std::int64_t begin = i % tiles * plan_.tile_rows;
               const std::int64_t end = std::min(begin + plan_.tile_rows, p.rows);
               const std::int64_t first = std::clamp(p.skipped, begin, end);
               const std::int64_t last = std::clamp(p.skipped + p.present, begin, end);
               if (!dims_.cut.skip && item_index % cuts == 0) {
                 // Beyond x there are zeros, and they count.
                 zero_rows(rows, c, dir, p.at + begin, p.at + first);
                 zero_rows(rows, c, dir, p.at + last, p.at + end);
               }
               if (first == last) return;
               GemmArgs g = input_product(weights, dir);
               g.m = last - first;
               g.a = advance(x_, (p.x_row + first) * dims_.input, item());
               g.c = row_at(rows, c, dir, p.at + first, item());
               g.ldc = rows.row_stride;
               if (cuts > 1) {
                 const std::int64_t n = item_index % cuts * plan_.tile_outputs;
                 g.n = std::min(plan_.tile_outputs, g.n - n);
                 g.b = advance(g.b, n * g.ldb, item());
                 g.c = advance(g.c, n, item());
               }
               backend_.gemm(ctx_, g);
             });
  }

  const Joint* joint_;
  const Context& ctx_;
  const Backend& backend_;
  const Level& level_;
  const Kernels& kernels_;
  Dims dims_;
  const Spec spec_;
  const Plan plan_;
  Operands operands_;

  const void* x_ = nullptr;
  const void* weight_ih_ = nullptr;
  const void* weight_hh_ = nullptr;
  const void* bias_ih_ = nullptr;
  const void* bias_hh_ = nullptr;
  void* scratch_ = nullptr;
  void* gemm_workspace_ = nullptr;

 private:
  GemmArgs input_product(const Packed& weights, std::int64_t dir) const {
    GemmArgs g = product();
    g.trans_b = true;
    g.n = gate_rows();
    g.k = dims_.input;
    g.lda = std::max<std::int64_t>(1, dims_.input);
    g.b = weight_ih(dir);
    g.ldb = g.lda;
    g.packed_b = packed(weights, dir);
    return g;
  }
  void zero_rows(const Rows& rows, const Chunk& c, std::int64_t dir, std::int64_t begin,
                 std::int64_t end) const {
    // One run: a piece's rows are contiguous.
    if (begin == end) return;
    backend_.fill_zero(ctx_, row_at(rows, c, dir, begin, item()),
                       static_cast<std::size_t>((end - begin) * rows.row_stride) * item());
  }
};

class ForwardRun : public Run {
 public:
  ForwardRun(const Context& ctx, const Level& level, const LevelOutputs& out, void* workspace,
             const Joint* joint = nullptr)
      : Run(ctx, level, workspace, joint), out_(out) {
    prepare_inputs(/*forward=*/true);
    takes_input_ =
        joint == nullptr && kernels_.takes_input != nullptr && kernels_.takes_input(ctx, dims_);
    weights_ = make_packed(gate_rows(), dims_.input);
    if (joint == nullptr) {
      scratch_ = operands_.take(kernels_.forward_scratch_bytes(dims_));
      y_ = out.y.given() ? operands_.place(out.y, dims_.compute) : nullptr;
      h_ = operands_.place(out.h_last, dims_.state);
      h_next_ = operands_.take(state_bytes());
      if (spec_.has_c) {
        c_ = out.c_last.given() ? operands_.place(out.c_last, dims_.state)
                                : operands_.take(state_bytes());
      }
    }
    if (!takes_input_ && (!level.need_grad || level.recompute)) {
      gates_ = operands_.take(static_cast<std::size_t>(dims_.dirs * chunk_rows() * gate_rows()) *
                              item());
    }
  }

  std::size_t workspace_bytes() const { return operands_.bytes(); }

  void run(void* reserve_base) {
    initialise(level_.h0, h_);
    if (c_ != nullptr) initialise(level_.c0, c_);
    if (dims_.cut.entries() * dims_.cut.batch > 0) {
      ForwardScan scan;
      fill(scan, Chunk());
      kernels_.prepare_forward(ctx_, scan);
      pack(weights_, /*transposed=*/true);
      const Reserve reserve(ctx_, level_, dims_, spec_, reserve_base);
      for (std::int64_t i = 0; i < chunks(); ++i) run_chunk(chunk(i), reserve);
    }
    if (y_ != nullptr) operands_.deliver(y_, dims_.compute, out_.y);
    operands_.deliver(h_, dims_.state, out_.h_last);
    if (out_.c_last.given()) operands_.deliver(c_, dims_.state, out_.c_last);
  }

  /// The level as one of those that are taken at once. `first`: it is the network's lowest, so its
  /// products W x are computed here.
  LevelForward joint_level(void* reserve_base, void* kept, bool first) const {
    const Reserve reserve(ctx_, level_, dims_, spec_, reserve_base);
    LevelForward f;
    static_cast<ForwardScan&>(f) = scan_of(chunk(0), reserve);
    f.weight_ih = weight_ih_;
    f.outputs = out_.h_last.data;
    f.kept = kept;
    if (first) {
      pack(weights_, /*transposed=*/true);
      input_products(chunk(0), f.gates, weights_);
    } else {
      f.x = x_;
    }
    return f;
  }

 private:
  ForwardScan scan_of(const Chunk& c, const Reserve& reserve) const {
    ForwardScan scan;
    fill(scan, c);
    scan.save = level_.need_grad && !level_.recompute;
    if (scan.save) {
      scan.gates = all_rows(reserve.gates, spec_.saved * dims_.hidden, item(), c);
    } else if (!takes_input_) {
      scan.gates = chunk_rows(gates_, gate_rows(), item(), c);
    }
    if (level_.need_grad) {
      scan.h_kept = all_rows(reserve.h, dims_.hidden, item(), c);
      scan.c_kept = all_rows(reserve.c, dims_.hidden, size_of(dims_.state), c);
    }
    scan.zero_state = c.step_begin == 0 && !level_.h0.given();
    scan.h = h_;
    scan.h_next = h_next_;
    scan.c = c_;
    scan.y = y_;
    if (takes_input_) {
      scan.x = x_;
      scan.weight_ih = weight_ih_;
    }
    return scan;
  }
  void run_chunk(const Chunk& c, const Reserve& reserve) const {
    const ForwardScan scan = scan_of(c, reserve);
    if (!takes_input_) input_products(c, scan.gates, weights_);
    kernels_.forward(ctx_, scan);
  }

  const LevelOutputs& out_;
  bool takes_input_ = false;
  Packed weights_;
  void* y_ = nullptr;
  void* h_ = nullptr;
  void* h_next_ = nullptr;
  void* c_ = nullptr;
  void* gates_ = nullptr;
};

class BackwardRun : public Run {
 public:
  BackwardRun(const Context& ctx, const Level& level, const LevelGradients& grads, void* workspace,
              const Joint* joint = nullptr)
      : Run(ctx, level, workspace, joint), grads_(grads) {
    prepare_inputs(/*forward=*/false);
    if (level.recompute) {
      weights_ = make_packed(gate_rows(), dims_.input);
      gates_ = operands_.take(
          static_cast<std::size_t>(dims_.dirs * chunk_rows() * spec_.saved * dims_.hidden) *
          item());
    }
    transposed_ = make_packed(dims_.input, gate_rows());
    if (joint == nullptr) {
      scratch_ = operands_.take(kernels_.backward_scratch_bytes(dims_));
      if (level.recompute) {
        forward_scratch_ = operands_.take(kernels_.forward_scratch_bytes(dims_));
      }
      dy_ = grads.dy.given() ? operands_.contiguous(grads.dy, dims_.compute) : nullptr;
      dh_ = grads.dh0.given() ? operands_.place(grads.dh0, dims_.state)
                              : operands_.take(state_bytes());
      if (spec_.has_c) {
        dc_ = grads.dc0.given() ? operands_.place(grads.dc0, dims_.state)
                                : operands_.take(state_bytes());
      }
    } else {
      doutputs_ =
          grads.dh_last.given() ? operands_.contiguous(grads.dh_last, dims_.compute) : nullptr;
    }
    dgates_ = operands_.take(
        static_cast<std::size_t>(dims_.dirs * chunk_rows() * spec_.dgates * dims_.hidden) * item());
    if (grads.dx.given()) {
      dx_ = operands_.place(grads.dx, dims_.compute);
    } else {
      dx_parts_ = operands_.take(static_cast<std::size_t>(dims_.dirs * level.x.numel()) *
                                 size_of(dims_.state));
    }
    dweight_ih_ = operands_.place(grads.dweight_ih, dims_.compute);
    dweight_hh_ = operands_.place(grads.dweight_hh, dims_.compute);
    if (grads.dbias_ih.given() || grads.dbias_hh.given()) {
      dbias_ =
          operands_.take(static_cast<std::size_t>(dims_.dirs * dgate_columns()) * sizeof(double));
    }
  }

  std::size_t workspace_bytes() const { return operands_.bytes(); }

  void run(const void* reserve_base) {
    initialise(grads_.dh_last, dh_);
    if (dc_ != nullptr) initialise(grads_.dc_last, dc_);
    zero_bias_sums();
    if (dims_.cut.entries() * dims_.cut.batch > 0) {
      if (dims_.dirs == 2) zero(dx_, grads_.dx, item());
      BackwardScan scan;
      fill(scan, Chunk());
      kernels_.prepare_backward(ctx_, scan);
      pack(transposed_, /*transposed=*/false);
      if (level_.recompute) {
        scan.scratch = forward_scratch_;
        kernels_.prepare_forward(ctx_, scan);
        pack(weights_, /*transposed=*/true);
      }
      const Reserve reserve(ctx_, level_, dims_, spec_, const_cast<void*>(reserve_base));
      for (std::int64_t i = chunks() - 1; i >= 0; --i) {
        run_chunk(chunk(i), reserve, /*first=*/i == chunks() - 1);
      }
    } else {
      zero(dweight_ih_, grads_.dweight_ih, item());
      zero(dweight_hh_, grads_.dweight_hh, item());
    }
    deliver();
    if (grads_.dh0.given()) operands_.deliver(dh_, dims_.state, grads_.dh0);
    if (grads_.dc0.given()) operands_.deliver(dc_, dims_.state, grads_.dc0);
  }

  /// The level as one of those that are taken at once.
  LevelBackward joint_level(const void* reserve_base) const {
    const Reserve reserve(ctx_, level_, dims_, spec_, const_cast<void*>(reserve_base));
    LevelBackward b;
    static_cast<BackwardScan&>(b) = scan_of(chunk(0), reserve);
    b.gates = all_rows(reserve.gates, spec_.saved * dims_.hidden, item(), chunk(0));
    b.weight_ih = weight_ih_;
    b.doutputs = doutputs_;
    b.dx = dx_parts_;
    return b;
  }
  /// What is left to do when the gates' gradients of a level among those taken at once are there.
  void joint_finish(const LevelBackward& b) {
    zero_bias_sums();
    if (dims_.dirs == 2 && dx_ != nullptr) zero(dx_, grads_.dx, item());
    pack(transposed_, /*transposed=*/false);
    for (std::int64_t dir = 0; dir < dims_.dirs; ++dir) products(chunk(0), b, dir, /*first=*/true);
    deliver();
  }

 private:
  void zero_bias_sums() const {
    if (dbias_ == nullptr) return;
    backend_.fill_zero(ctx_, dbias_,
                       static_cast<std::size_t>(dims_.dirs * dgate_columns()) * sizeof(double));
  }
  void deliver() const {
    if (dx_ != nullptr) operands_.deliver(dx_, dims_.compute, grads_.dx);
    operands_.deliver(dweight_ih_, dims_.compute, grads_.dweight_ih);
    operands_.deliver(dweight_hh_, dims_.compute, grads_.dweight_hh);
    if (grads_.dbias_ih.given()) bias_gradient(grads_.dbias_ih, 0, spec_.gates, 0);
    if (grads_.dbias_hh.given()) {
      bias_gradient(grads_.dbias_hh, 0, spec_.h_split, 0);
      bias_gradient(grads_.dbias_hh, spec_.h_split, spec_.gates, spec_.h_block);
    }
  }
  std::int64_t dgate_columns() const { return spec_.dgates * dims_.hidden; }
  void zero(void* place, const TensorView& like, std::size_t size) const {
    backend_.fill_zero(ctx_, place, static_cast<std::size_t>(like.numel()) * size);
  }
  /// Blocks [begin, end) of a bias' gradient from the sums, block `from` on.
  void bias_gradient(const TensorView& bias, int begin, int end, int from) const {
    if (begin == end) return;
    const std::int64_t h = dims_.hidden;
    TensorView source(advance(dbias_, from * h, sizeof(double)), DataType::kFloat64,
                      {dims_.dirs, (end - begin) * h}, ctx_.device());
    source.strides[0] = dgate_columns();
    TensorView target = bias;
    target.data = advance(bias.data, begin * h, size_of(bias.dtype));
    target.shape[1] = (end - begin) * h;
    backend_.convert(ctx_, source, target);
  }

  /// A chunk's scan, but for its gates.
  BackwardScan scan_of(const Chunk& c, const Reserve& reserve) const {
    BackwardScan scan;
    fill(scan, c);
    scan.h_kept = all_rows(reserve.h, dims_.hidden, item(), c);
    scan.c_kept = all_rows(reserve.c, dims_.hidden, size_of(dims_.state), c);
    scan.dgates = chunk_rows(dgates_, dgate_columns(), item(), c);
    scan.dy = dy_;
    scan.dh = dh_;
    scan.dc = dc_;
    scan.want_first = level_.h0.given() || grads_.dh0.given();
    return scan;
  }
  void run_chunk(const Chunk& c, const Reserve& reserve, bool first) const {
    BackwardScan scan = scan_of(c, reserve);
    if (level_.recompute) {
      ForwardScan again;
      static_cast<Scan&>(again) = scan;
      again.scratch = forward_scratch_;
      again.gates = chunk_rows(gates_, spec_.saved * dims_.hidden, item(), c);
      again.save = true;
      input_products(c, again.gates, weights_);
      kernels_.replay(ctx_, again);
      scan.gates = again.gates;
    } else {
      scan.gates = all_rows(reserve.gates, spec_.saved * dims_.hidden, item(), c);
    }
    kernels_.backward(ctx_, scan);
    // One direction after the other, because both add to dx.
    for (std::int64_t dir = 0; dir < dims_.dirs; ++dir) products(c, scan, dir, first);
  }

  /// What a chunk's gate gradients add to dx and to the parameters' gradients; the first chunk's
  /// begin the weights' gradients.
  void products(const Chunk& c, const BackwardScan& scan, std::int64_t dir, bool first) const {
    const std::int64_t tiles = ceil_div(piece_rows(c), plan_.tile_rows);
    const std::int64_t dx_items = dx_ == nullptr ? 0 : pieces(c) * tiles;
    const std::int64_t unit_items = ceil_div(gate_rows(), plan_.tile_units);
    const std::int64_t sum_items =
        dbias_ == nullptr ? 0 : ceil_div(dgate_columns(), plan_.sum_columns);
    const double total = work(piece_rows(c) * pieces(c), 2 * dims_.input + dims_.hidden);
    for_each(ctx_, 2 * unit_items + dx_items + sum_items, total, [&](std::int64_t i) {
      // The longest first.
      if (i < 2 * unit_items) {
        const std::int64_t begin = i / 2 * plan_.tile_units;
        const std::int64_t end = std::min(begin + plan_.tile_units, gate_rows());
        if (i % 2 == 0) {
          input_weight_gradient(c, scan, dir, begin, end, first);
        } else {
          state_weight_gradient(c, scan, dir, begin, end, first);
        }
        return;
      }
      i -= 2 * unit_items;
      if (i < dx_items) {
        const Piece p = piece(c, dir, i / tiles);
        const std::int64_t begin = i % tiles * plan_.tile_rows;
        const std::int64_t end = std::min(begin + plan_.tile_rows, p.rows);
        input_gradient(c, scan, dir, p, std::clamp(p.skipped, begin, end),
                       std::clamp(p.skipped + p.present, begin, end));
        return;
      }
      i -= dx_items;
      const std::int64_t begin = i * plan_.sum_columns;
      backend_.sum_rows(
          ctx_, advance(scan.dgates.data[dir], begin, item()), dims_.compute,
          piece_rows(c) * pieces(c), std::min(plan_.sum_columns, dgate_columns() - begin),
          scan.dgates.row_stride, static_cast<double*>(dbias_) + dir * dgate_columns() + begin,
          /*accumulate=*/true);
    });
  }

  /// Rows [first, last) of a piece of dx: gates' gradients · W.
  void input_gradient(const Chunk& c, const BackwardScan& scan, std::int64_t dir, const Piece& p,
                      std::int64_t first, std::int64_t last) const {
    if (first == last || dims_.input == 0) return;
    GemmArgs g = product();
    g.m = last - first;
    g.n = dims_.input;
    g.k = gate_rows();
    g.a = row_at(scan.dgates, c, dir, p.at + first, item());
    g.lda = scan.dgates.row_stride;
    g.b = weight_ih(dir);
    g.ldb = dims_.input;
    g.packed_b = packed(transposed_, dir);
    g.beta = dims_.dirs == 2 ? 1.0 : 0.0;
    g.c = advance(dx_, (p.x_row + first) * dims_.input, item());
    g.ldc = dims_.input;
    backend_.gemm(ctx_, g);
  }

  /// Rows [begin, end) of dweight_ih: gates' gradients^T · x, over the chunk.
  void input_weight_gradient(const Chunk& c, const BackwardScan& scan, std::int64_t dir,
                             std::int64_t begin, std::int64_t end, bool first) const {
    if (dims_.input == 0) return;
    void* const rows = advance(dweight_ih_, (dir * gate_rows() + begin) * dims_.input, item());
    for (std::int64_t i = 0; i < pieces(c); ++i) {
      const Piece p = piece(c, dir, i);
      if (p.present == 0) continue;
      GemmArgs g = product();
      g.trans_a = true;
      g.m = end - begin;
      g.n = dims_.input;
      g.k = p.present;
      g.a = advance(row_at(scan.dgates, c, dir, p.at + p.skipped, item()), begin, item());
      g.lda = scan.dgates.row_stride;
      g.b = advance(x_, (p.x_row + p.skipped) * dims_.input, item());
      g.ldb = dims_.input;
      g.beta = first ? 0.0 : 1.0;
      g.c = rows;
      g.ldc = dims_.input;
      backend_.gemm(ctx_, g);
      first = false;
    }
    if (first) {  // all of it padding beyond x
      backend_.fill_zero(ctx_, rows,
                         static_cast<std::size_t>((end - begin) * dims_.input) * item());
    }
  }

  /// Rows [begin, end) of dweight_hh: gates' gradients^T · what R multiplies, over the chunk.
  void state_weight_gradient(const Chunk& c, const BackwardScan& scan, std::int64_t dir,
                             std::int64_t begin, std::int64_t end, bool first_chunk) const {
    const std::int64_t h = dims_.hidden, split = spec_.h_split * h;
    if (dims_.cut.steps == 1 && !level_.h0.given()) {  // R multiplied nothing but zeros
      backend_.fill_zero(ctx_, advance(dweight_hh_, (dir * gate_rows() + begin) * h, item()),
                         static_cast<std::size_t>((end - begin) * h) * item());
      return;
    }
    // Rows from the split on find their gradients, and perhaps their operand, elsewhere.
    for (const bool upper : {false, true}) {
      const std::int64_t first = upper ? std::max(begin, split) : begin;
      const std::int64_t last = upper ? end : std::min(end, split);
      if (first >= last) continue;
      const bool from_gates = upper && spec_.operand >= 0;
      const Rows& operand = from_gates ? scan.gates : scan.h_kept;
      for (std::int64_t i = 0; i < pieces(c); ++i) {
        const std::int64_t at = i * piece_rows(c);
        GemmArgs g = product();
        g.trans_a = true;
        g.m = last - first;
        g.n = h;
        g.k = piece_rows(c);
        g.a = advance(row_at(scan.dgates, c, dir, at, item()),
                      upper ? first - split + spec_.h_block * h : first, item());
        g.lda = scan.dgates.row_stride;
        g.b = advance(row_at(operand, c, dir, at, item()), from_gates ? spec_.operand * h : 0,
                      item());
        g.ldb = operand.row_stride;
        g.beta = first_chunk && i == 0 ? 0.0 : 1.0;
        g.c = advance(dweight_hh_, (dir * gate_rows() + first) * h, item());
        g.ldc = h;
        backend_.gemm(ctx_, g);
      }
    }
  }

  const LevelGradients& grads_;
  Packed weights_, transposed_;
  void* forward_scratch_ = nullptr;
  const void* dy_ = nullptr;
  void* dh_ = nullptr;
  void* dc_ = nullptr;
  void* gates_ = nullptr;
  void* dgates_ = nullptr;
  void* dx_ = nullptr;
  const void* doutputs_ = nullptr;  // of a level among others, as
  void* dx_parts_ = nullptr;        // LevelBackward has them
  void* dweight_ih_ = nullptr;
  void* dweight_hh_ = nullptr;
  void* dbias_ = nullptr;
};

}  // namespace

std::size_t level_reserve_bytes(const Context& ctx, const Level& level) {
  const Kernels& kernels = kernels_of<Kernels>(ctx, level.cell);
  return Reserve(ctx, level, dims_of(ctx, level), kernels.spec(level.options), nullptr).bytes;
}
std::size_t level_forward_workspace_bytes(const Context& ctx, const Level& level,
                                          const LevelOutputs& out) {
  return ForwardRun(ctx, level, out, nullptr).workspace_bytes();
}
std::size_t level_backward_workspace_bytes(const Context& ctx, const Level& level,
                                           const LevelGradients& grads) {
  return BackwardRun(ctx, level, grads, nullptr).workspace_bytes();
}
void level_forward(const Context& ctx, const Level& level, const LevelOutputs& out, void* workspace,
                   void* reserve) {
  ForwardRun(ctx, level, out, workspace).run(reserve);
}
void level_backward(const Context& ctx, const Level& level, const LevelGradients& grads,
                    void* workspace, const void* reserve) {
  BackwardRun(ctx, level, grads, workspace).run(reserve);
}

int first_joint_level(const Context& ctx, const Level* levels, int count, bool backward) {
  const LevelKernels* kernels = kernels_of<Kernels>(ctx, levels[0].cell).levels;
  // With `recompute`, backward would need all levels' gates at a time.
  if (kernels == nullptr || (backward && levels[0].recompute)) return count;
  std::vector<Dims> dims;
  dims.reserve(static_cast<std::size_t>(count));
  for (int i = 0; i < count; ++i) {
    dims.push_back(dims_of(ctx, levels[i]));
    if (dims.back().cut.entries() * dims.back().cut.batch == 0) return count;
  }
  return kernels->first(ctx, dims.data(), count, backward);
}

namespace {

/// Runs of levels taken at once and what they share, cut off one workspace. The same code measures
/// and runs.
template <class OneRun, class Argument>
class JointRuns {
 public:
  JointRuns(const Context& ctx, const Level* levels, const Argument* arguments, int count,
            void* workspace)
      : ctx_(ctx), kernels_(*kernels_of<Kernels>(ctx, levels[0].cell).levels) {
    const Backend& backend = ctx.backend();
    Carver carver(workspace, backend.alignment);
    joint_.gemm_workspace = carver.take(backend.gemm_workspace_bytes());
    scratch_ = carver.take(kernels_.scratch_bytes);
    runs_.reserve(static_cast<std::size_t>(count));
    for (int i = 0; i < count; ++i) {
      void* base = carver.take(0);
      runs_.emplace_back(ctx, levels[i], arguments[i], base, &joint_);
      carver.take(runs_.back().workspace_bytes());
    }
    bytes_ = carver.bytes();
  }
  JointRuns(const JointRuns&) = delete;
  JointRuns& operator=(const JointRuns&) = delete;

  std::size_t bytes() const { return bytes_; }
  void forward(void* const* reserves, void* const* kept, bool from_input) const {
    std::vector<LevelForward> joint;
    joint.reserve(runs_.size());
    for (const OneRun& run : runs_) {
      const std::size_t i = joint.size();
      joint.push_back(run.joint_level(reserves[i], kept[i], from_input && i == 0));
    }
    kernels_.forward(ctx_, joint.data(), static_cast<int>(joint.size()), scratch_);
  }
  void backward(const void* const* reserves) {
    std::vector<LevelBackward> joint;
    joint.reserve(runs_.size());
    for (const OneRun& run : runs_) joint.push_back(run.joint_level(reserves[joint.size()]));
    kernels_.backward(ctx_, joint.data(), static_cast<int>(joint.size()), scratch_);
    for (std::size_t i = runs_.size(); i-- > 0;) runs_[i].joint_finish(joint[i]);
  }

 private:
  const Context& ctx_;
  const LevelKernels& kernels_;
  Joint joint_;
  void* scratch_ = nullptr;
  std::vector<OneRun> runs_;
  std::size_t bytes_ = 0;
};

using JointForward = JointRuns<ForwardRun, LevelOutputs>;
using JointBackward = JointRuns<BackwardRun, LevelGradients>;

}  // namespace

std::size_t joint_forward_workspace_bytes(const Context& ctx, const Level* levels,
                                          const LevelOutputs* out, int count) {
  return JointForward(ctx, levels, out, count, nullptr).bytes();
}
std::size_t joint_backward_workspace_bytes(const Context& ctx, const Level* levels,
                                           const LevelGradients* grads, int count) {
  return JointBackward(ctx, levels, grads, count, nullptr).bytes();
}
void joint_forward(const Context& ctx, const Level* levels, const LevelOutputs* out, int count,
                   bool from_input, void* workspace, void* const* reserves, void* const* kept) {
  JointForward(ctx, levels, out, count, workspace).forward(reserves, kept, from_input);
}
void joint_backward(const Context& ctx, const Level* levels, const LevelGradients* grads, int count,
                    void* workspace, const void* const* reserves) {
  JointBackward(ctx, levels, grads, count, workspace).backward(reserves);
}

void check_lengths(Checker& check, const Context& ctx, const TensorView& lengths,
                   std::int64_t batch, std::int64_t time) {
  if (!lengths.given()) return;
  const bool narrow = lengths.dtype == DataType::kInt32;
  check.input("lengths", lengths, narrow ? DataType::kInt32 : DataType::kInt64, {batch}, "(B,)");
  if (!ctx.backend().host_accessible) return;
  for (std::int64_t b = 0; b < batch; ++b) {
    const std::int64_t at = b * lengths.strides[0];
    const std::int64_t n = narrow ? lengths.as<std::int32_t>()[at] : lengths.as<std::int64_t>()[at];
    if (n < 0 || n > time) {
      check.fail(ErrorCode::kValue, "lengths",
                 "expected values from 0 to T = " + std::to_string(time) +
                     " (actual: " + std::to_string(n) + " at index " + std::to_string(b) + ")");
    }
  }
}

Level check_inputs(Checker& check, const Context& ctx, const char* cell, const RecurrentInputs& in,
                   int gates, const Options& options) {
  check.required("x", in.x);
  check.required("weight_ih", in.weight_ih);
  check.required("weight_hh", in.weight_hh);
  if (!is_floating(in.x.dtype)) {
    check.fail(ErrorCode::kType, "x",
               std::string("expected float32, float64, float16 or bfloat16 (actual: ") +
                   name_of(in.x.dtype) + ")");
  }
  const std::string g = gates == 1 ? "H" : std::to_string(gates) + "*H";
  const std::string ih_formula = "(dirs, " + g + ", D)", hh_formula = "(dirs, " + g + ", H)",
                    bias_formula = "(dirs, " + g + ")";
  check.rank("x", in.x, 3, "(T, B, D)");
  check.rank("weight_ih", in.weight_ih, 3, ih_formula.c_str());
  check.rank("weight_hh", in.weight_hh, 3, hh_formula.c_str());
  if (static_cast<int>(in.direction) < 0 || static_cast<int>(in.direction) > 2) {
    check.fail(ErrorCode::kValue, "direction", "expected kForward, kReverse or kBidirectional");
  }
  if (static_cast<int>(options.activation) < 0 || static_cast<int>(options.activation) > 2) {
    check.fail(ErrorCode::kValue, "activation", "expected identity, tanh or relu");
  }
  if (options.reset != ResetMode::kAfter && options.reset != ResetMode::kBefore) {
    check.fail(ErrorCode::kValue, "reset", "expected kAfter or kBefore");
  }
  const std::int64_t dirs = in.direction == Direction::kBidirectional ? 2 : 1;
  const std::int64_t time = in.x.shape[0], batch = in.x.shape[1], input = in.x.shape[2];
  const std::int64_t hidden = in.weight_hh.shape[2];
  if (hidden < 1) {
    check.fail(
        ErrorCode::kValue, "weight_hh",
        "expected at least one hidden feature (actual: " + in.weight_hh.shape_string() + ")");
  }
  const DataType dtype = in.x.dtype;
  check.input("x", in.x, dtype, {time, batch, input}, "(T, B, D)");
  check.input("weight_hh", in.weight_hh, dtype, {dirs, gates * hidden, hidden}, hh_formula.c_str());
  check.input("weight_ih", in.weight_ih, dtype, {dirs, gates * hidden, input}, ih_formula.c_str());
  check.input("bias_ih", in.bias_ih, dtype, {dirs, gates * hidden}, bias_formula.c_str());
  check.input("bias_hh", in.bias_hh, dtype, {dirs, gates * hidden}, bias_formula.c_str());
  check.input("h0", in.h0, dtype, {batch, dirs * hidden}, "(B, dirs*H)");
  check_lengths(check, ctx, in.lengths, batch, time);

  Level level;
  level.cell = cell;
  level.options = options;
  level.x = in.x;
  level.weight_ih = in.weight_ih;
  level.weight_hh = in.weight_hh;
  level.bias_ih = in.bias_ih;
  level.bias_hh = in.bias_hh;
  level.h0 = in.h0;
  level.lengths = in.lengths;
  level.cut.time = level.cut.steps = level.cut.whole = level.cut.padded = time;
  level.cut.batch = batch;
  level.direction = in.direction;
  level.recompute = in.recompute;
  return level;
}

namespace {

LevelOutputs outputs_of(const RecurrentForward& a, const TensorView* c_last) {
  LevelOutputs out;
  out.y = a.y;
  out.h_last = a.h_last;
  if (c_last != nullptr) out.c_last = *c_last;
  return out;
}

/// Stand-ins without memory for outputs that are not given yet.
LevelOutputs measured(const Context& ctx, const Level& level, LevelOutputs out, bool has_c) {
  const Dims d = dims_of(ctx, level);
  void* nowhere = nullptr;
  const TensorView state(nowhere, d.dtype, {d.cut.rows(), d.width()}, ctx.device());
  out.y = TensorView(nowhere, d.dtype, {d.cut.time, d.cut.batch, d.width()}, ctx.device());
  out.h_last = state;
  if (has_c) out.c_last = state;
  return out;
}

LevelGradients gradients_of(const RecurrentBackward& a, const TensorView* dc_last,
                            const TensorView* dc0) {
  LevelGradients g;
  g.dy = a.dy;
  g.dh_last = a.dh_last;
  g.dx = a.dx;
  g.dweight_ih = a.dweight_ih;
  g.dweight_hh = a.dweight_hh;
  g.dbias_ih = a.dbias_ih;
  g.dbias_hh = a.dbias_hh;
  g.dh0 = a.dh0;
  if (dc_last != nullptr) g.dc_last = *dc_last;
  if (dc0 != nullptr) g.dc0 = *dc0;
  return g;
}

}  // namespace

std::size_t forward_workspace_bytes(const Context& ctx, Level level, const RecurrentForward& a,
                                    const TensorView* c_last) {
  level.need_grad = a.need_grad;
  return level_forward_workspace_bytes(
      ctx, level, measured(ctx, level, outputs_of(a, c_last), c_last != nullptr));
}

std::size_t backward_workspace_bytes(const Context& ctx, const Level& level,
                                     const RecurrentBackward& a, const TensorView* dc_last,
                                     const TensorView* dc0) {
  LevelGradients g = gradients_of(a, dc_last, dc0);
  // These must be given to run; their shapes are the inputs'.
  void* nowhere = nullptr;
  g.dx = contiguous_like(level.x, nowhere, level.x.dtype);
  g.dweight_ih = contiguous_like(level.weight_ih, nowhere, level.x.dtype);
  g.dweight_hh = contiguous_like(level.weight_hh, nowhere, level.x.dtype);
  return level_backward_workspace_bytes(ctx, level, g);
}

void forward(Checker& check, const Context& ctx, Level level, const RecurrentForward& a,
             const TensorView* c_last) {
  const Dims d = dims_of(ctx, level);
  const std::size_t alignment = ctx.backend().alignment;
  level.need_grad = a.need_grad;
  check.required("y", a.y);
  check.required("h_last", a.h_last);
  check.output("y", a.y, d.dtype, {d.cut.time, d.cut.batch, d.width()}, "(T, B, dirs*H)");
  check.output("h_last", a.h_last, d.dtype, {d.cut.batch, d.width()}, "(B, dirs*H)");
  if (c_last != nullptr) {
    check.required("c_last", *c_last);
    check.output("c_last", *c_last, d.dtype, {d.cut.batch, d.width()}, "(B, dirs*H)");
  }
  check.buffer("workspace", a.workspace, forward_workspace_bytes(ctx, level, a, c_last), alignment,
               /*written=*/true);
  if (a.need_grad) {
    check.buffer("reserve", a.reserve, level_reserve_bytes(ctx, level), kReserveAlignment,
                 /*written=*/true);
  }
  // A call that needs no workspace still runs: any non-null base will do, as nothing is cut off it.
  char none = 0;
  level_forward(ctx, level, outputs_of(a, c_last),
                a.workspace.data != nullptr ? a.workspace.data : &none, a.reserve.data);
}

void backward(Checker& check, const Context& ctx, const Level& level, const RecurrentBackward& a,
              const TensorView* dc_last, const TensorView* dc0) {
  const Dims d = dims_of(ctx, level);
  const std::size_t alignment = ctx.backend().alignment;
  const TensorView& ih = level.weight_ih;
  const TensorView& hh = level.weight_hh;
  check.input("dy", a.dy, d.dtype, {d.cut.time, d.cut.batch, d.width()}, "(T, B, dirs*H)");
  check.input("dh_last", a.dh_last, d.dtype, {d.cut.batch, d.width()}, "(B, dirs*H)");
  if (dc_last != nullptr) {
    check.input("dc_last", *dc_last, d.dtype, {d.cut.batch, d.width()}, "(B, dirs*H)");
  }
  check.buffer("reserve", a.reserve, level_reserve_bytes(ctx, level), kReserveAlignment,
               /*written=*/false);
  check.required("dx", a.dx);
  check.required("dweight_ih", a.dweight_ih);
  check.required("dweight_hh", a.dweight_hh);
  check.output("dx", a.dx, d.dtype, {d.cut.time, d.cut.batch, d.input}, "(T, B, D)");
  check.output("dweight_ih", a.dweight_ih, d.dtype, {ih.shape[0], ih.shape[1], ih.shape[2]},
               "weight_ih's");
  check.output("dweight_hh", a.dweight_hh, d.dtype, {hh.shape[0], hh.shape[1], hh.shape[2]},
               "weight_hh's");
  const auto bias = [&](const char* name, const TensorView& v, const char* of,
                        const TensorView& parameter) {
    if (v.given() && !parameter.given()) {
      check.fail(ErrorCode::kValue, name,
                 std::string("expected ") + of + " to be given too (actual: it is not)");
    }
    check.output(name, v, d.dtype, {hh.shape[0], hh.shape[1]}, "the bias'");
  };
  bias("dbias_ih", a.dbias_ih, "bias_ih", level.bias_ih);
  bias("dbias_hh", a.dbias_hh, "bias_hh", level.bias_hh);
  check.output("dh0", a.dh0, d.dtype, {d.cut.batch, d.width()}, "(B, dirs*H)");
  if (dc0 != nullptr) {
    check.output("dc0", *dc0, d.dtype, {d.cut.batch, d.width()}, "(B, dirs*H)");
  }
  check.buffer("workspace", a.workspace, backward_workspace_bytes(ctx, level, a, dc_last, dc0),
               alignment, /*written=*/true);
  char none = 0;
  level_backward(ctx, level, gradients_of(a, dc_last, dc0),
                 a.workspace.data != nullptr ? a.workspace.data : &none, a.reserve.data);
}

}  // namespace penstock::recurrent
