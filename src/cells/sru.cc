// The SRU's checks and its order of matrix products and scans, the same for every backend.
//
// Channels do not mix between matrix products, so work is cut into groups of channels (Plan), each
// of which goes through time on its own: u for a chunk of steps, then the scan over that chunk.
// u and du are laid out group by group, (rows, K, channels) each, so a group's stream is
// contiguous.

#include "penstock/sru.h"

#include <algorithm>
#include <string>

#include "cells/sru_kernels.h"
#include "core/backend.h"
#include "core/checks.h"
#include "core/workspace.h"
#include "penstock/error.h"

namespace penstock {
namespace {

using checks::Checker;
using sru::Dims;
using sru::Kernels;
using sru::Plan;

const Kernels& kernels_of(const Context& ctx) {
  const void* kernels = ctx.backend().cell_kernels(sru::kKernelsName);
  if (kernels == nullptr) {
    throw Error(ErrorCode::kRuntime,
                std::string("sru: the backend ") + ctx.backend().name + " does not have this cell");
  }
  return *static_cast<const Kernels*>(kernels);
}

Dims check_inputs(Checker& check, const Context& ctx, const SruInputs& in) {
  check.required("x", in.x);
  check.required("weight", in.weight);
  check.required("bias", in.bias);
  if (!is_floating(in.x.dtype)) {
    check.fail(ErrorCode::kType, "x",
               std::string("expected float32, float64, float16 or bfloat16 (actual: ") +
                   name_of(in.x.dtype) + ")");
  }
  check.rank("x", in.x, 3, "(T, B, D)");
  check.rank("weight", in.weight, 3, "(dirs, K*H, D)");
  check.rank("bias", in.bias, 3, "(dirs, 2, H)");

  Dims d;
  d.dtype = in.x.dtype;
  d.compute = ctx.backend().compute_dtype(d.dtype);
  d.state = d.dtype == DataType::kFloat64 ? DataType::kFloat64 : DataType::kFloat32;
  d.steps = in.x.shape[0];
  d.batch = in.x.shape[1];
  d.input = in.x.shape[2];
  d.hidden = in.bias.shape[2];
  d.dirs = in.direction == Direction::kBidirectional ? 2 : 1;
  if (d.hidden < 1) {
    check.fail(ErrorCode::kValue, "bias",
               "expected at least one hidden feature (actual: " + in.bias.shape_string() + ")");
  }
  check.input("x", in.x, d.dtype, {d.steps, d.batch, d.input}, "(T, B, D)");
  check.input("bias", in.bias, d.dtype, {d.dirs, 2, d.hidden}, "(dirs, 2, H)");
  const std::int64_t weight_rows = in.weight.shape[1];
  d.blocks = weight_rows == 4 * d.hidden && in.skip ? 4 : 3;
  const char* formula = d.blocks == 4 ? "(dirs, 4*H, D)" : "(dirs, 3*H, D)";
  check.input("weight", in.weight, d.dtype, {d.dirs, d.blocks * d.hidden, d.input}, formula);
  d.skip_from_x = in.skip && d.blocks == 3;
  if (in.x_skip.given()) {
    if (!d.skip_from_x) {
      check.fail(ErrorCode::kValue, "x_skip",
                 "expected only with a skip term and 3*H rows of weight (actual: skip = " +
                     std::string(in.skip ? "true" : "false") + ", " + std::to_string(weight_rows) +
                     " rows)");
    }
    check.input("x_skip", in.x_skip, d.dtype, {d.steps, d.batch, d.width()}, "(T, B, dirs*H)");
  } else if (d.skip_from_x && d.input != d.width()) {
    check.fail(ErrorCode::kValue, "weight",
               "expected 4*H = " + std::to_string(4 * d.hidden) +
                   " rows, because x cannot be the skip term: its " + std::to_string(d.input) +
                   " features are not dirs*H = " + std::to_string(d.width()) +
                   " (actual: " + std::to_string(weight_rows) + " rows)");
  }
  check.input("weight_c", in.weight_c, d.dtype, {d.dirs, 2, d.hidden}, "(dirs, 2, H)");
  check.input("c0", in.c0, d.dtype, {d.batch, d.width()}, "(B, dirs*H)");
  check.input("mask_c", in.mask_c, d.dtype, {d.batch, d.width()}, "(B, dirs*H)");
  if (in.mask_pad.given()) {
    const bool byte = in.mask_pad.dtype == DataType::kBool || in.mask_pad.dtype == DataType::kUInt8;
    check.input("mask_pad", in.mask_pad, byte ? in.mask_pad.dtype : DataType::kBool,
                {d.steps, d.batch}, "(T, B)");
  }
  if (in.lengths.given()) {
    const bool narrow = in.lengths.dtype == DataType::kInt32;
    check.input("lengths", in.lengths, narrow ? DataType::kInt32 : DataType::kInt64, {d.batch},
                "(B,)");
    if (ctx.backend().host_accessible) {
      for (std::int64_t b = 0; b < d.batch; ++b) {
        const std::int64_t at = b * in.lengths.strides[0];
        const std::int64_t n =
            narrow ? in.lengths.as<std::int32_t>()[at] : in.lengths.as<std::int64_t>()[at];
        if (n < 0 || n > d.steps) {
          check.fail(ErrorCode::kValue, "lengths",
                     "expected values from 0 to T = " + std::to_string(d.steps) +
                         " (actual: " + std::to_string(n) + " at index " + std::to_string(b) + ")");
        }
      }
    }
  }
  if (static_cast<int>(in.activation) < 0 || static_cast<int>(in.activation) > 2) {
    check.fail(ErrorCode::kValue, "activation", "expected identity, tanh or relu");
  }
  if (in.mask_site != MaskSite::kOutput && in.mask_site != MaskSite::kState) {
    check.fail(ErrorCode::kValue, "mask_site", "expected kOutput or kState");
  }
  if (static_cast<int>(in.direction) < 0 || static_cast<int>(in.direction) > 2) {
    check.fail(ErrorCode::kValue, "direction", "expected kForward, kReverse or kBidirectional");
  }
  return d;
}

/// One group of channels: a slice of every array.
struct Group {
  sru::Range range;           // without steps
  std::int64_t channels = 0;  // per direction
  std::int64_t columns = 0;   // of u: directions * K * channels
  std::int64_t offset = 0;    // in weight rows, over all groups
};

/// What forward and backward share: the cut, and inputs in the form that kernels read.
class Call {
 public:
  Call(const Context& ctx, const SruInputs& in, const Dims& dims, void* workspace)
      : ctx_(ctx),
        in_(in),
        dims_(dims),
        kernels_(kernels_of(ctx)),
        plan_(kernels_.plan(dims)),
        carver_(workspace, ctx.backend().alignment),
        run_(workspace != nullptr) {
    groups_per_dir_ = (dims_.hidden + plan_.channels - 1) / plan_.channels;
    groups_ = groups_per_dir_ * (dims_.dirs / plan_.dirs_per_group);
  }

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

  std::size_t compute_size() const { return size_of(dims_.compute); }
  std::size_t state_size() const { return size_of(dims_.state); }
  std::size_t u_bytes(std::int64_t rows) const {
    return static_cast<std::size_t>(rows * dims_.blocks * dims_.width()) * compute_size();
  }
  std::size_t c_bytes() const {
    return static_cast<std::size_t>(dims_.rows() * dims_.width()) * state_size();
  }

  static void* at(void* base, std::int64_t elements, std::size_t size) {
    return static_cast<char*>(base) + elements * static_cast<std::int64_t>(size);
  }
  static const void* at(const void* base, std::int64_t elements, std::size_t size) {
    return static_cast<const char*>(base) + elements * static_cast<std::int64_t>(size);
  }

  /// `v` itself if it is contiguous and of `dtype`, else a converted copy in the workspace.
  const void* contiguous(const TensorView& v, DataType dtype, bool copy = false) {
    if (!copy && v.dtype == dtype && v.contiguous()) return v.data;
    void* piece = carver_.take(static_cast<std::size_t>(v.numel()) * size_of(dtype));
    if (run_) ctx_.backend().convert(ctx_, v, like(v, piece, dtype));
    return piece;
  }
  static TensorView like(const TensorView& v, void* data, DataType dtype) {
    TensorView r(data, dtype, {}, v.device);
    r.rank = v.rank;
    std::int64_t stride = 1;
    for (int axis = v.rank - 1; axis >= 0; --axis) {
      r.shape[axis] = v.shape[axis];
      r.strides[axis] = stride;
      stride *= v.shape[axis];
    }
    return r;
  }
  void* zeros(std::size_t bytes) {
    void* piece = carver_.take(bytes);
    if (run_) ctx_.backend().fill_zero(ctx_, piece, bytes);
    return piece;
  }
  /// dst = src, or zeros if src is not given.
  void initialise(const TensorView& src, void* dst, DataType dtype) {
    if (!run_) return;
    if (src.given()) {
      ctx_.backend().convert(ctx_, src, like(src, dst, dtype));
    } else {
      ctx_.backend().fill_zero(
          ctx_, dst, static_cast<std::size_t>(dims_.batch * dims_.width()) * size_of(dtype));
    }
  }

  /// `forward`: for u = x · weight^T; otherwise for products over time and dx = du · weight.
  void prepare_inputs(bool forward) {
    const Backend& backend = ctx_.backend();
    const Group widest = group(0);
    if (plan_.pack_weight && backend.packed_b_bytes != nullptr) {
      operand_bytes_ = forward ? backend.packed_b_bytes(dims_.compute, widest.columns, dims_.input)
                               : backend.packed_b_bytes(dims_.compute, dims_.input, widest.columns);
      operand_bytes_ =
          (operand_bytes_ + backend.alignment - 1) / backend.alignment * backend.alignment;
    }
    if (in_.mask_pad.given()) {
      padding_.pad = static_cast<const std::uint8_t*>(contiguous(in_.mask_pad, in_.mask_pad.dtype));
    }
    if (in_.lengths.given()) {
      padding_.lengths =
          static_cast<const std::int64_t*>(contiguous(in_.lengths, DataType::kInt64));
    }
    // What stands at a padded step, NaN included, must not reach the products over time. Asked of
    // the arguments, not of padding_: while the workspace is only measured, what is converted has no
    // address yet.
    const bool sanitise = !forward && (in_.mask_pad.given() || in_.lengths.given());
    const void* x = contiguous(in_.x, dims_.compute, sanitise);
    if (sanitise && run_) {
      ctx_.backend().zero_padded(ctx_, const_cast<void*>(x), dims_.compute, dims_.steps,
                                 dims_.batch, dims_.input, padding_);
    }
    x_ = x;
    if (dims_.skip_from_x) {
      skip_ = in_.x_skip.given() ? contiguous(in_.x_skip, dims_.compute) : x;
    }
    const std::size_t params = static_cast<std::size_t>(2 * dims_.width()) * compute_size();
    weight_c_ = in_.weight_c.given() ? contiguous(in_.weight_c, dims_.compute) : zeros(params);
    bias_ = contiguous(in_.bias, dims_.compute);
    mask_c_ = in_.mask_c.given() ? contiguous(in_.mask_c, dims_.compute) : nullptr;
    if (plan_.pack_weight) {
      packed_weight_ = carver_.take(weight_bytes());
      operands_ = carver_.take(operand_bytes_ * static_cast<std::size_t>(groups_));
    } else {
      weight_ = contiguous(in_.weight, dims_.compute);
    }
    gemm_workspace_ = carver_.take(ctx_.backend().gemm_workspace_bytes());
  }

  std::size_t weight_bytes() const {
    return static_cast<std::size_t>(dims_.blocks * dims_.width() * dims_.input) * compute_size();
  }

  /// The rows of a (dirs, K·H, D) array that belong to a group, as (K, channels, D).
  TensorView rows_of(const TensorView& weight, const Group& g) const {
    TensorView v = weight;
    v.shape[0] = dims_.blocks;
    v.shape[1] = g.channels;
    v.strides[0] = weight.strides[1] * dims_.hidden;
    v.data = at(weight.data,
                weight.strides[0] * g.range.dir_begin + weight.strides[1] * g.range.channel_begin,
                size_of(weight.dtype));
    return v;
  }
  TensorView packed_rows(void* packed, const Group& g) const {
    return TensorView(at(packed, g.offset * dims_.input, compute_size()), dims_.compute,
                      {dims_.blocks, g.channels, dims_.input}, ctx_.device());
  }
  /// Copy the group's rows of the weight next to each other and, where the backend has a form of
  /// its own for what products share, into that: for u = x · weight^T if `transposed`, else for
  /// dx = du · weight.
  void pack(std::int64_t i, const Group& g, bool transposed) const {
    if (!plan_.pack_weight) return;
    ctx_.backend().convert(ctx_, rows_of(in_.weight, g), packed_rows(packed_weight_, g));
    if (operand_bytes_ == 0) return;
    GemmArgs product = gemm_args();
    product.trans_b = transposed;
    product.n = transposed ? g.columns : dims_.input;
    product.k = transposed ? dims_.input : g.columns;
    product.b = at(packed_weight_, g.offset * dims_.input, compute_size());
    product.ldb = dims_.input;
    ctx_.backend().pack_b(ctx_, product, operand(i));
  }
  void* operand(std::int64_t i) const {
    return operand_bytes_ == 0
               ? nullptr
               : static_cast<char*>(operands_) + static_cast<std::size_t>(i) * operand_bytes_;
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

  void fill(sru::ScanArgs& s, const Group& g) const {
    s.dims = dims_;
    s.range = g.range;
    s.activation = in_.activation;
    s.mask_site = in_.mask_site;
    s.first_reverse = in_.direction == Direction::kReverse;
    s.scale_x = in_.scale_x;
    s.padding = padding_;
    s.gate_stride = g.channels;
    s.x = skip_;
    s.weight_c = weight_c_;
    s.bias = bias_;
    s.mask_c = mask_c_;
  }
  sru::Plane plane(void* data, const Group& g, std::int64_t blocks) const {
    sru::Plane p;
    p.data = data;
    p.row_stride = plan_.dirs_per_group * blocks * g.channels;
    p.dir_stride = blocks * g.channels;
    return p;
  }
  /// First row, in time order, of steps [begin, end) of a group's direction.
  std::int64_t first_row(const Group& g, std::int64_t begin, std::int64_t end) const {
    const bool reversed = in_.direction == Direction::kReverse || g.range.dir_begin == 1;
    return (reversed ? dims_.steps - end : begin) * dims_.batch;
  }
  double product_work() const {
    return static_cast<double>(dims_.rows()) * static_cast<double>(dims_.input) *
           static_cast<double>(dims_.blocks * dims_.width());
  }

  const Context& ctx_;
  const SruInputs& in_;
  const Dims dims_;
  const Kernels& kernels_;
  const Plan plan_;
  Carver carver_;
  const bool run_;
  std::int64_t groups_per_dir_ = 1, groups_ = 1;

  Padding padding_;
  const void* x_ = nullptr;
  const void* skip_ = nullptr;  // what the skip term reads, if dims_.skip_from_x
  const void* weight_ = nullptr;
  void* packed_weight_ = nullptr;
  std::size_t operand_bytes_ = 0;  // of each group's operand in the backend's form
  void* operands_ = nullptr;
  const void* weight_c_ = nullptr;
  const void* bias_ = nullptr;
  const void* mask_c_ = nullptr;
  void* gemm_workspace_ = nullptr;
};

class ForwardCall : public Call {
 public:
  ForwardCall(const Context& ctx, const SruForwardArgs& a, const Dims& dims, void* workspace)
      : Call(ctx, a, dims, workspace), args_(a) {
    prepare_inputs(/*forward=*/true);
    y_ =
        dims_.compute == dims_.dtype
            ? a.y.data
            : carver_.take(static_cast<std::size_t>(dims_.rows() * dims_.width()) * compute_size());
    c_state_ =
        dims_.state == dims_.dtype
            ? a.c_last.data
            : carver_.take(static_cast<std::size_t>(dims_.batch * dims_.width()) * state_size());
    if (!a.need_grad) u_chunk_ = carver_.take(u_bytes(chunk_rows()));
  }

  std::size_t workspace_bytes() const { return carver_.bytes(); }
  std::size_t reserve_bytes() const {
    Carver reserve(nullptr, ctx_.backend().alignment);
    reserve.take(u_bytes(dims_.rows()));
    reserve.take(c_bytes());
    return reserve.bytes();
  }

  void run() {
    initialise(args_.c0, c_state_, dims_.state);
    if (args_.need_grad) {
      Carver reserve(args_.reserve.data, ctx_.backend().alignment);
      u_all_ = reserve.take(u_bytes(dims_.rows()));
      c_all_ = reserve.take(c_bytes());
    }
    if (dims_.rows() > 0) {
      for_each(ctx_, groups_, product_work(), [this](std::int64_t i) { run_group(i); });
    }
    if (y_ != args_.y.data) {
      ctx_.backend().convert(ctx_, like(args_.y, y_, dims_.compute), args_.y);
    }
    if (c_state_ != args_.c_last.data) {
      ctx_.backend().convert(ctx_, like(args_.c_last, c_state_, dims_.state), args_.c_last);
    }
  }

 private:
  std::int64_t chunk_rows() const { return std::min(plan_.chunk_steps, dims_.steps) * dims_.batch; }

  void run_group(std::int64_t i) const {
    const Group g = group(i);
    pack(i, g, /*transposed=*/true);
    const Rows w = rows(g);
    for (std::int64_t s = 0; s < dims_.steps; s += plan_.chunk_steps) {
      const std::int64_t end = std::min(s + plan_.chunk_steps, dims_.steps);
      const std::int64_t row = first_row(g, s, end);
      const std::int64_t rows = (end - s) * dims_.batch;
      void* u = args_.need_grad
                    ? at(u_all_, g.offset * dims_.rows() + row * g.columns, compute_size())
                    : at(u_chunk_, g.offset * chunk_rows(), compute_size());
      GemmArgs product = gemm_args();
      product.trans_b = true;
      product.m = rows;
      product.n = w.rows;
      product.k = dims_.input;
      product.a = at(x_, row * dims_.input, compute_size());
      product.lda = std::max<std::int64_t>(1, dims_.input);
      product.b = at(weight(), w.begin * dims_.input, compute_size());
      product.ldb = product.lda;
      product.stride_b = w.stride * dims_.input;
      product.c = u;
      product.ldc = g.columns;
      product.stride_c = g.channels;
      product.batch = w.segments;
      product.packed_b = operand(i);
      ctx_.backend().gemm(ctx_, product);

      sru::ForwardScan scan;
      fill(scan, g);
      scan.range.step_begin = s;
      scan.range.step_end = end;
      scan.u = plane(u, g, dims_.blocks);
      scan.c_state = c_state_;
      scan.y = y_;
      if (args_.need_grad) {
        scan.c = plane(at(c_all_, g.offset / dims_.blocks * dims_.rows(), state_size()), g, 1);
      }
      kernels_.forward(ctx_, scan);
    }
  }

  const SruForwardArgs& args_;
  void* y_ = nullptr;
  void* c_state_ = nullptr;
  void* u_chunk_ = nullptr;
  void* u_all_ = nullptr;
  void* c_all_ = nullptr;
};

class BackwardCall : public Call {
 public:
  BackwardCall(const Context& ctx, const SruBackwardArgs& a, const Dims& dims, void* workspace)
      : Call(ctx, a, dims, workspace), args_(a) {
    prepare_inputs(/*forward=*/false);
    const std::size_t state_bytes =
        static_cast<std::size_t>(dims_.batch * dims_.width()) * state_size();
    c0_ = a.c0.given() ? contiguous(a.c0, dims_.state) : zeros(state_bytes);
    dy_ = a.dy.given() ? contiguous(a.dy, dims_.compute) : nullptr;
    dc_state_ =
        a.dc0.given() && dims_.state == dims_.dtype ? a.dc0.data : carver_.take(state_bytes);
    du_ = carver_.take(u_bytes(dims_.rows()));
    dx_ = dims_.compute == dims_.dtype
              ? a.dx.data
              : carver_.take(static_cast<std::size_t>(dims_.rows() * dims_.input) * compute_size());
    if (a.x_skip.given()) {
      dx_skip_ = dims_.compute == dims_.dtype && a.dx_skip.given()
                     ? a.dx_skip.data
                     : carver_.take(static_cast<std::size_t>(dims_.rows() * dims_.width()) *
                                    compute_size());
    } else if (dims_.skip_from_x) {
      dx_skip_ = dx_;
    }
    dweight_ = dims_.compute == dims_.dtype && !plan_.pack_weight ? a.dweight.data
                                                                  : carver_.take(weight_bytes());
    dparams_bytes_ = kernels_.param_partial_bytes(dims_);
    dparams_ = carver_.take(dparams_bytes_);
    if (a.dmask_c.given()) {
      dmask_ = dims_.state == dims_.dtype ? a.dmask_c.data : carver_.take(state_bytes);
    }
  }

  std::size_t workspace_bytes() const { return carver_.bytes(); }

  void run() {
    const Backend& backend = ctx_.backend();
    initialise(args_.dc_last, dc_state_, dims_.state);
    backend.fill_zero(ctx_, dparams_, dparams_bytes_);
    if (dmask_ != nullptr) initialise(TensorView(), dmask_, dims_.state);
    Carver reserve(args_.reserve.data, backend.alignment);
    u_ = reserve.take(u_bytes(dims_.rows()));
    c_ = reserve.take(c_bytes());
    if (dims_.rows() > 0) {
      for_each(ctx_, groups_, product_work(), [this](std::int64_t i) { run_group(i); });
      const std::int64_t tile = plan_.dx_rows;
      for_each(ctx_, (dims_.rows() + tile - 1) / tile, product_work(), [&](std::int64_t i) {
        input_gradient(i * tile, std::min(tile, dims_.rows() - i * tile));
      });
      if (dweight_ != args_.dweight.data && !plan_.pack_weight) {
        backend.convert(ctx_, like(args_.dweight, dweight_, dims_.compute), args_.dweight);
      }
    } else {
      backend.fill_zero(ctx_, args_.dweight.data, static_cast<std::size_t>(args_.dweight.nbytes()));
    }
    if (dx_ != args_.dx.data) {
      backend.convert(ctx_, like(args_.dx, dx_, dims_.compute), args_.dx);
    }
    if (args_.dx_skip.given() && dx_skip_ != args_.dx_skip.data) {
      backend.convert(ctx_, like(args_.dx_skip, dx_skip_, dims_.compute), args_.dx_skip);
    }
    kernels_.reduce_params(ctx_, dims_, dparams_,
                           args_.dweight_c.given() ? args_.dweight_c.data : nullptr,
                           args_.dbias.given() ? args_.dbias.data : nullptr);
    if (args_.dc0.given() && dc_state_ != args_.dc0.data) {
      backend.convert(ctx_, like(args_.dc0, dc_state_, dims_.state), args_.dc0);
    }
    if (args_.dmask_c.given() && dmask_ != args_.dmask_c.data) {
      backend.convert(ctx_, like(args_.dmask_c, dmask_, dims_.state), args_.dmask_c);
    }
  }

 private:
  /// du over time and, while it is in a cache, its product with x: the group's rows of dweight.
  void run_group(std::int64_t i) const {
    const Group g = group(i);
    pack(i, g, /*transposed=*/false);
    const Rows w = rows(g);
    const std::int64_t chunks = (dims_.steps + plan_.chunk_steps - 1) / plan_.chunk_steps;
    for (std::int64_t chunk = chunks - 1; chunk >= 0; --chunk) {
      const std::int64_t begin = chunk * plan_.chunk_steps;
      const std::int64_t end = std::min(begin + plan_.chunk_steps, dims_.steps);
      const std::int64_t row = first_row(g, begin, end);
      const std::int64_t u_at = g.offset * dims_.rows() + row * g.columns;
      sru::BackwardScan scan;
      fill(scan, g);
      scan.range.step_begin = begin;
      scan.range.step_end = end;
      scan.u = plane(at(u_, u_at, compute_size()), g, dims_.blocks);
      scan.c = plane(at(c_, g.offset / dims_.blocks * dims_.rows(), state_size()), g, 1);
      scan.c0 = c0_;
      scan.dy = dy_;
      scan.dc_state = dc_state_;
      scan.du = plane(at(du_, u_at, compute_size()), g, dims_.blocks);
      scan.dx_skip = dx_skip_;
      scan.dparams = dparams_;
      scan.dmask = dmask_;
      kernels_.backward(ctx_, scan);

      GemmArgs product = gemm_args();
      product.trans_a = true;
      product.m = w.rows;
      product.n = dims_.input;
      product.k = (end - begin) * dims_.batch;
      product.a = scan.du.data;
      product.lda = g.columns;
      product.stride_a = g.channels;
      product.b = at(x_, row * dims_.input, compute_size());
      product.ldb = std::max<std::int64_t>(1, dims_.input);
      product.beta = chunk == chunks - 1 ? 0.0 : 1.0;
      product.c = at(dweight_, w.begin * dims_.input, compute_size());
      product.ldc = product.ldb;
      product.stride_c = w.stride * dims_.input;
      product.batch = w.segments;
      ctx_.backend().gemm(ctx_, product);
    }
    if (plan_.pack_weight) {
      ctx_.backend().convert(ctx_, packed_rows(dweight_, g), rows_of(args_.dweight, g));
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
        product.a = at(du_, g.offset * dims_.rows() + row * g.columns + segment * g.channels,
                       compute_size());
        product.lda = g.columns;
        product.b = at(weight(), (w.begin + segment * w.stride) * dims_.input, compute_size());
        product.ldb = std::max<std::int64_t>(1, dims_.input);
        product.packed_b = operand(i);
        product.beta = onto ? 1.0 : 0.0;
        product.c = at(dx_, row * dims_.input, compute_size());
        product.ldc = product.ldb;
        ctx_.backend().gemm(ctx_, product);
        onto = true;
      }
    }
  }

  const SruBackwardArgs& args_;
  const void* c0_ = nullptr;
  const void* dy_ = nullptr;
  void* dc_state_ = nullptr;
  void* du_ = nullptr;
  void* dx_ = nullptr;
  void* dx_skip_ = nullptr;  // where the skip term's gradient goes: dx or an array of its own
  void* dweight_ = nullptr;
  std::size_t dparams_bytes_ = 0;
  void* dparams_ = nullptr;
  void* dmask_ = nullptr;
  void* u_ = nullptr;
  void* c_ = nullptr;
};

std::size_t reserve_bytes(const Context& ctx, const SruForwardArgs& a, const Dims& dims) {
  return ForwardCall(ctx, a, dims, nullptr).reserve_bytes();
}

}  // namespace

std::size_t sru_forward_workspace_bytes(const Context& ctx, const SruForwardArgs& a) {
  Checker check("sru", ctx);
  const Dims dims = check_inputs(check, ctx, a);
  return ForwardCall(ctx, a, dims, nullptr).workspace_bytes();
}

std::size_t sru_reserve_bytes(const Context& ctx, const SruForwardArgs& a) {
  Checker check("sru", ctx);
  const Dims dims = check_inputs(check, ctx, a);
  return a.need_grad ? reserve_bytes(ctx, a, dims) : 0;
}

std::size_t sru_backward_workspace_bytes(const Context& ctx, const SruBackwardArgs& a) {
  Checker check("sru.backprop", ctx);
  const Dims dims = check_inputs(check, ctx, a);
  return BackwardCall(ctx, a, dims, nullptr).workspace_bytes();
}

void sru_forward(const Context& ctx, const SruForwardArgs& a) {
  Checker check("sru", ctx);
  const Dims dims = check_inputs(check, ctx, a);
  const std::size_t alignment = ctx.backend().alignment;
  check.required("y", a.y);
  check.required("c_last", a.c_last);
  check.output("y", a.y, dims.dtype, {dims.steps, dims.batch, dims.width()}, "(T, B, dirs*H)");
  check.output("c_last", a.c_last, dims.dtype, {dims.batch, dims.width()}, "(B, dirs*H)");
  check.buffer("workspace", a.workspace, ForwardCall(ctx, a, dims, nullptr).workspace_bytes(),
               alignment, /*written=*/true);
  if (a.need_grad) {
    check.buffer("reserve", a.reserve, reserve_bytes(ctx, a, dims), alignment, /*written=*/true);
  }
  // A call that needs no workspace still runs: any non-null base will do, as nothing is cut off it.
  char none = 0;
  ForwardCall(ctx, a, dims, a.workspace.data != nullptr ? a.workspace.data : &none).run();
}

void sru_backward(const Context& ctx, const SruBackwardArgs& a) {
  Checker check("sru.backprop", ctx);
  const Dims dims = check_inputs(check, ctx, a);
  const std::size_t alignment = ctx.backend().alignment;
  check.input("dy", a.dy, dims.dtype, {dims.steps, dims.batch, dims.width()}, "(T, B, dirs*H)");
  check.input("dc_last", a.dc_last, dims.dtype, {dims.batch, dims.width()}, "(B, dirs*H)");
  SruForwardArgs forward;
  static_cast<SruInputs&>(forward) = a;
  check.buffer("reserve", a.reserve, reserve_bytes(ctx, forward, dims), alignment,
               /*written=*/false);
  check.required("dx", a.dx);
  check.required("dweight", a.dweight);
  check.output("dx", a.dx, dims.dtype, {dims.steps, dims.batch, dims.input}, "(T, B, D)");
  check.output("dweight", a.dweight, dims.dtype, {dims.dirs, dims.blocks * dims.hidden, dims.input},
               "(dirs, K*H, D)");
  check.output("dweight_c", a.dweight_c, dims.dtype, {dims.dirs, 2, dims.hidden}, "(dirs, 2, H)");
  check.output("dbias", a.dbias, dims.dtype, {dims.dirs, 2, dims.hidden}, "(dirs, 2, H)");
  check.output("dc0", a.dc0, dims.dtype, {dims.batch, dims.width()}, "(B, dirs*H)");
  if (a.dmask_c.given() && !a.mask_c.given()) {
    check.fail(ErrorCode::kValue, "dmask_c", "expected mask_c to be given too (actual: it is not)");
  }
  check.output("dmask_c", a.dmask_c, dims.dtype, {dims.batch, dims.width()}, "(B, dirs*H)");
  if (a.dx_skip.given() && !a.x_skip.given()) {
    check.fail(ErrorCode::kValue, "dx_skip", "expected x_skip to be given too (actual: it is not)");
  }
  check.output("dx_skip", a.dx_skip, dims.dtype, {dims.steps, dims.batch, dims.width()},
               "(T, B, dirs*H)");
  check.buffer("workspace", a.workspace, BackwardCall(ctx, a, dims, nullptr).workspace_bytes(),
               alignment, /*written=*/true);
  BackwardCall(ctx, a, dims, a.workspace.data).run();
}

}  // namespace penstock
