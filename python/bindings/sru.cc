// penstock.sru: arrays in, TensorViews to the library, arrays out.

#include "sru.h"

#include <memory>

#include "arrays.h"
#include "function.h"
#include "gil.h"
#include "options.h"
#include "outputs.h"
#include "penstock/sru.h"

namespace penstock::python {
namespace {

/// The inputs of one call, held from forward to the last backward.
struct Inputs {
  Array x, weight, weight_c, bias, c0, mask_pad, lengths, mask_c, x_skip;
  SruInputs views;
  Context context;

  Inputs(py::handle x_, py::handle weight_, py::handle weight_c_, py::handle bias_, py::handle c0_,
         py::handle mask_pad_, py::handle lengths_, py::handle mask_c_, py::handle x_skip_,
         py::handle activation, py::handle skip, py::handle scale_x, py::handle mask_site,
         py::handle direction, std::uintptr_t stream)
      : x("x", x_, stream),
        weight("weight", weight_, stream),
        weight_c("weight_c", weight_c_, stream),
        bias("bias", bias_, stream),
        c0("c0", c0_, stream),
        mask_pad("mask_pad", mask_pad_, stream),
        lengths("lengths", lengths_, stream),
        mask_c("mask_c", mask_c_, stream),
        x_skip("x_skip", x_skip_, stream),
        context(context_for(x.view(), stream)) {
    views.x = x.view();
    views.weight = weight.view();
    views.weight_c = weight_c.view();
    views.bias = bias.view();
    views.c0 = c0.view();
    views.mask_pad = mask_pad.view();
    views.lengths = lengths.view();
    views.mask_c = mask_c.view();
    views.x_skip = x_skip.view();
    views.activation = activation_of(activation);
    views.skip = flag("skip", skip);
    views.scale_x = number("scale_x", scale_x);
    views.mask_site = choose<MaskSite>(
        "mask_site", mask_site, {{"output", MaskSite::kOutput}, {"state", MaskSite::kState}});
    views.direction = direction_of(direction);
  }
};

/// What forward keeps for backward.
struct Saved {
  std::unique_ptr<Inputs> inputs;
  Bytes reserve;
  py::object empty, empty_bytes;
};

/// What a forward pass makes for the caller.
struct Outputs {
  Array y, c_last;
};

/// `make_reserve(allocator, bytes)` returns the view of a buffer that outlives the call; it is not
/// called without need_grad.
template <class MakeReserve>
Outputs run_forward(const Inputs& inputs, bool need_grad, py::handle empty, py::handle empty_bytes,
                    std::uintptr_t stream, MakeReserve&& make_reserve) {
  const Context& ctx = inputs.context;
  SruForwardArgs args;
  static_cast<SruInputs&>(args) = inputs.views;
  args.need_grad = need_grad;
  const std::size_t workspace_bytes = sru_forward_workspace_bytes(ctx, args);
  const std::size_t reserve_bytes = need_grad ? sru_reserve_bytes(ctx, args) : 0;

  const Allocator allocator(inputs.x, ctx, empty, empty_bytes, stream);
  const std::int64_t width = args.bias.shape[0] * args.bias.shape[2];
  Outputs outputs;
  outputs.y = allocator.array("y", {args.x.shape[0], args.x.shape[1], width});
  outputs.c_last = allocator.array("c_last", {args.x.shape[1], width});
  const Bytes workspace(allocator, at_least_one(workspace_bytes));
  if (need_grad) args.reserve = make_reserve(allocator, at_least_one(reserve_bytes));
  args.y = outputs.y.view();
  args.c_last = outputs.c_last.view();
  args.workspace = workspace.view();
  {
    const GilRelease release;
    sru_forward(ctx, args);
  }
  return outputs;
}

py::tuple forward(py::handle x, py::handle weight, py::handle weight_c, py::handle bias,
                  py::handle c0, py::handle mask_pad, py::handle lengths, py::handle mask_c,
                  py::handle x_skip, py::handle activation, py::handle skip, py::handle scale_x,
                  py::handle mask_site, py::handle direction, py::handle need_grad_,
                  const py::object& empty, const py::object& empty_bytes, std::uintptr_t stream) {
  const bool need_grad = flag("need_grad", need_grad_);
  auto inputs =
      std::make_unique<Inputs>(x, weight, weight_c, bias, c0, mask_pad, lengths, mask_c, x_skip,
                               activation, skip, scale_x, mask_site, direction, stream);
  Bytes reserve;
  const Outputs outputs = run_forward(*inputs, need_grad, empty, empty_bytes, stream,
                                      [&](const Allocator& allocator, std::size_t bytes) {
                                        reserve = Bytes(allocator, bytes);
                                        return reserve.view();
                                      });
  if (!need_grad) return py::make_tuple(outputs.y.object(), outputs.c_last.object(), py::none());
  auto saved = std::make_unique<Saved>();
  saved->inputs = std::move(inputs);
  saved->reserve = std::move(reserve);
  saved->empty = empty;
  saved->empty_bytes = empty_bytes;
  return py::make_tuple(outputs.y.object(), outputs.c_last.object(), std::move(saved));
}

/// As `forward`, with the reserve as an array of the caller's library, made by `empty_bytes`, or
/// None without need_grad. Nothing else is kept: backward_arrays takes the inputs again.
py::tuple forward_arrays(py::handle x, py::handle weight, py::handle weight_c, py::handle bias,
                         py::handle c0, py::handle mask_pad, py::handle lengths, py::handle mask_c,
                         py::handle x_skip, py::handle activation, py::handle skip,
                         py::handle scale_x, py::handle mask_site, py::handle direction,
                         py::handle need_grad, const py::object& empty,
                         const py::object& empty_bytes, std::uintptr_t stream) {
  const Inputs inputs(x, weight, weight_c, bias, c0, mask_pad, lengths, mask_c, x_skip, activation,
                      skip, scale_x, mask_site, direction, stream);
  Array reserve;
  const Outputs outputs = run_forward(inputs, flag("need_grad", need_grad), empty, empty_bytes,
                                      stream, [&](const Allocator&, std::size_t bytes) {
                                        reserve = reserve_array(empty_bytes, bytes, stream);
                                        return reserve.view();
                                      });
  return py::make_tuple(outputs.y.object(), outputs.c_last.object(), or_none(reserve));
}

/// Bytes of the array that forward_arrays keeps.
std::size_t reserve_bytes(py::handle x, py::handle weight, py::handle weight_c, py::handle bias,
                          py::handle c0, py::handle mask_pad, py::handle lengths, py::handle mask_c,
                          py::handle x_skip, py::handle activation, py::handle skip,
                          py::handle scale_x, py::handle mask_site, py::handle direction,
                          std::uintptr_t stream) {
  const Inputs inputs(x, weight, weight_c, bias, c0, mask_pad, lengths, mask_c, x_skip, activation,
                      skip, scale_x, mask_site, direction, stream);
  SruForwardArgs args;
  static_cast<SruInputs&>(args) = inputs.views;
  args.need_grad = true;
  return at_least_one(sru_reserve_bytes(inputs.context, args));
}

py::tuple run_backward(const Inputs& in, const TensorView& reserve, py::handle dy_,
                       py::handle dc_last_, py::handle empty, py::handle empty_bytes,
                       std::uintptr_t stream) {
  // The gradient may be asked for on another stream than the result was.
  const Context ctx = context_for(in.x.view(), stream);
  const Array dy("dy", dy_, stream), dc_last("dc_last", dc_last_, stream);
  SruBackwardArgs args;
  static_cast<SruInputs&>(args) = in.views;
  args.reserve = reserve;
  args.dy = dy.view();
  args.dc_last = dc_last.view();

  const Allocator allocator(in.x, ctx, empty, empty_bytes, stream);
  const auto like = [&](const char* name, const TensorView& v) {
    return output_like(allocator, name, v);
  };
  const Array dx = like("dx", args.x);
  const Array dweight = like("dweight", args.weight);
  const Array dbias = like("dbias", args.bias);
  const Array dc0 =
      allocator.array("dc0", {args.x.shape[1], args.bias.shape[0] * args.bias.shape[2]});
  const Array dweight_c = like("dweight_c", args.weight_c);
  const Array dmask_c = like("dmask_c", args.mask_c);
  const Array dx_skip = like("dx_skip", args.x_skip);
  args.dx = dx.view();
  args.dweight = dweight.view();
  args.dweight_c = dweight_c.view();
  args.dbias = dbias.view();
  args.dc0 = dc0.view();
  args.dmask_c = dmask_c.view();
  args.dx_skip = dx_skip.view();
  const Bytes workspace(allocator, at_least_one(sru_backward_workspace_bytes(ctx, args)));
  args.workspace = workspace.view();
  {
    const GilRelease release;
    sru_backward(ctx, args);
  }
  return py::make_tuple(dx.object(), dweight.object(), or_none(dweight_c), dbias.object(),
                        dc0.object(), or_none(dmask_c), or_none(dx_skip));
}

py::tuple backward(const Saved& saved, py::handle dy, py::handle dc_last, std::uintptr_t stream) {
  return run_backward(*saved.inputs, saved.reserve.view(), dy, dc_last, saved.empty,
                      saved.empty_bytes, stream);
}

/// The gradients from the inputs of forward_arrays and the reserve that it returned.
py::tuple backward_arrays(py::handle x, py::handle weight, py::handle weight_c, py::handle bias,
                          py::handle c0, py::handle mask_pad, py::handle lengths, py::handle mask_c,
                          py::handle x_skip, py::handle activation, py::handle skip,
                          py::handle scale_x, py::handle mask_site, py::handle direction,
                          py::handle reserve_, py::handle dy, py::handle dc_last,
                          const py::object& empty, const py::object& empty_bytes,
                          std::uintptr_t stream) {
  const Inputs inputs(x, weight, weight_c, bias, c0, mask_pad, lengths, mask_c, x_skip, activation,
                      skip, scale_x, mask_site, direction, stream);
  const Array reserve("reserve", reserve_, stream);
  return run_backward(inputs, reserve.view(), dy, dc_last, empty, empty_bytes, stream);
}

}  // namespace

void bind_sru(py::module_& m) {
  py::class_<Saved>(m, "SRUSaved");
  define<&forward>(m, "sru_forward");
  define<&backward>(m, "sru_backward");
  define<&forward_arrays>(m, "sru_forward_arrays");
  define<&backward_arrays>(m, "sru_backward_arrays");
  define<&reserve_bytes>(m, "sru_reserve_bytes");
}

}  // namespace penstock::python
