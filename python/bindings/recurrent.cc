// penstock.rnn, gru and lstm: arrays in, TensorViews to the library, arrays out. One binding for
// all three; what a cell does not have is None on the way in and on the way out.

#include "recurrent.h"

#include <memory>
#include <string>
#include <type_traits>

#include "arrays.h"
#include "function.h"
#include "gil.h"
#include "options.h"
#include "outputs.h"
#include "penstock/gru.h"
#include "penstock/lstm.h"
#include "penstock/rnn.h"

namespace penstock::python {
namespace {

struct Rnn {
  using Inputs = RnnInputs;
  using ForwardArgs = RnnForwardArgs;
  using BackwardArgs = RnnBackwardArgs;
  static constexpr const char* kSaved = "RNNSaved";
  static constexpr const char* kName = "rnn";
  static constexpr auto forward_workspace_bytes = &rnn_forward_workspace_bytes;
  static constexpr auto reserve_bytes = &rnn_reserve_bytes;
  static constexpr auto backward_workspace_bytes = &rnn_backward_workspace_bytes;
  static constexpr auto forward = &rnn_forward;
  static constexpr auto backward = &rnn_backward;
};

struct Gru {
  using Inputs = GruInputs;
  using ForwardArgs = GruForwardArgs;
  using BackwardArgs = GruBackwardArgs;
  static constexpr const char* kSaved = "GRUSaved";
  static constexpr const char* kName = "gru";
  static constexpr auto forward_workspace_bytes = &gru_forward_workspace_bytes;
  static constexpr auto reserve_bytes = &gru_reserve_bytes;
  static constexpr auto backward_workspace_bytes = &gru_backward_workspace_bytes;
  static constexpr auto forward = &gru_forward;
  static constexpr auto backward = &gru_backward;
};

struct Lstm {
  using Inputs = LstmInputs;
  using ForwardArgs = LstmForwardArgs;
  using BackwardArgs = LstmBackwardArgs;
  static constexpr const char* kSaved = "LSTMSaved";
  static constexpr const char* kName = "lstm";
  static constexpr auto forward_workspace_bytes = &lstm_forward_workspace_bytes;
  static constexpr auto reserve_bytes = &lstm_reserve_bytes;
  static constexpr auto backward_workspace_bytes = &lstm_backward_workspace_bytes;
  static constexpr auto forward = &lstm_forward;
  static constexpr auto backward = &lstm_backward;
};

template <class Cell>
constexpr bool kHasActivation = !std::is_same_v<Cell, Lstm>;
template <class Cell>
constexpr bool kHasReset = std::is_same_v<Cell, Gru>;
template <class Cell>
constexpr bool kHasCellState = std::is_same_v<Cell, Lstm>;

/// The inputs of one call, held from forward to the last backward.
template <class Cell>
struct Inputs {
  Array x, weight_ih, weight_hh, bias_ih, bias_hh, h0, c0, lengths;
  typename Cell::Inputs views;
  Context context;

  Inputs(py::handle x_, py::handle weight_ih_, py::handle weight_hh_, py::handle bias_ih_,
         py::handle bias_hh_, py::handle h0_, py::handle c0_, py::handle lengths_,
         py::handle direction, py::handle activation, py::handle reset, py::handle recompute,
         std::uintptr_t stream)
      : x("x", x_, stream),
        weight_ih("weight_ih", weight_ih_, stream),
        weight_hh("weight_hh", weight_hh_, stream),
        bias_ih("bias_ih", bias_ih_, stream),
        bias_hh("bias_hh", bias_hh_, stream),
        h0("h0", h0_, stream),
        c0("c0", c0_, stream),
        lengths("lengths", lengths_, stream),
        context(context_for(x.view(), stream)) {
    views.x = x.view();
    views.weight_ih = weight_ih.view();
    views.weight_hh = weight_hh.view();
    views.bias_ih = bias_ih.view();
    views.bias_hh = bias_hh.view();
    views.h0 = h0.view();
    if constexpr (kHasCellState<Cell>) views.c0 = c0.view();
    views.lengths = lengths.view();
    views.direction = direction_of(direction);
    if constexpr (kHasActivation<Cell>) views.activation = activation_of(activation);
    if constexpr (kHasReset<Cell>) {
      views.reset = choose<ResetMode>(
          "reset", reset, {{"after", ResetMode::kAfter}, {"before", ResetMode::kBefore}});
    }
    views.recompute = flag("recompute", recompute);
  }
};

/// What forward keeps for backward.
template <class Cell>
struct Saved {
  std::unique_ptr<Inputs<Cell>> inputs;
  Bytes reserve;
  py::object empty, empty_bytes;
};

/// What a forward pass makes for the caller.
struct Outputs {
  Array y, h_last, c_last;
};

/// `make_reserve(allocator, bytes)` returns the view of a buffer that outlives the call; it is not
/// called without need_grad.
template <class Cell, class MakeReserve>
Outputs run_forward(const Inputs<Cell>& inputs, bool need_grad, py::handle empty,
                    py::handle empty_bytes, std::uintptr_t stream, MakeReserve&& make_reserve) {
  const Context& ctx = inputs.context;
  typename Cell::ForwardArgs args;
  static_cast<typename Cell::Inputs&>(args) = inputs.views;
  args.need_grad = need_grad;
  const std::size_t workspace_bytes = Cell::forward_workspace_bytes(ctx, args);
  const std::size_t reserve_bytes = need_grad ? Cell::reserve_bytes(ctx, args) : 0;

  const Allocator allocator(inputs.x, ctx, empty, empty_bytes, stream);
  const std::int64_t batch = args.x.shape[1];
  const std::int64_t width = args.weight_hh.shape[0] * args.weight_hh.shape[2];
  Outputs outputs;
  outputs.y = allocator.array("y", {args.x.shape[0], batch, width});
  outputs.h_last = allocator.array("h_last", {batch, width});
  const Bytes workspace(allocator, at_least_one(workspace_bytes));
  if (need_grad) args.reserve = make_reserve(allocator, at_least_one(reserve_bytes));
  args.y = outputs.y.view();
  args.h_last = outputs.h_last.view();
  if constexpr (kHasCellState<Cell>) {
    outputs.c_last = allocator.array("c_last", {batch, width});
    args.c_last = outputs.c_last.view();
  }
  args.workspace = workspace.view();
  {
    const GilRelease release;
    Cell::forward(ctx, args);
  }
  return outputs;
}

template <class Cell>
py::tuple forward(py::handle x, py::handle weight_ih, py::handle weight_hh, py::handle bias_ih,
                  py::handle bias_hh, py::handle h0, py::handle c0, py::handle lengths,
                  py::handle direction, py::handle activation, py::handle reset,
                  py::handle recompute, py::handle need_grad_, const py::object& empty,
                  const py::object& empty_bytes, std::uintptr_t stream) {
  const bool need_grad = flag("need_grad", need_grad_);
  auto inputs =
      std::make_unique<Inputs<Cell>>(x, weight_ih, weight_hh, bias_ih, bias_hh, h0, c0, lengths,
                                     direction, activation, reset, recompute, stream);
  Bytes reserve;
  const Outputs outputs = run_forward(*inputs, need_grad, empty, empty_bytes, stream,
                                      [&](const Allocator& allocator, std::size_t bytes) {
                                        reserve = Bytes(allocator, bytes);
                                        return reserve.view();
                                      });
  if (!need_grad) {
    return py::make_tuple(outputs.y.object(), outputs.h_last.object(), or_none(outputs.c_last),
                          py::none());
  }
  auto saved = std::make_unique<Saved<Cell>>();
  saved->inputs = std::move(inputs);
  saved->reserve = std::move(reserve);
  saved->empty = empty;
  saved->empty_bytes = empty_bytes;
  return py::make_tuple(outputs.y.object(), outputs.h_last.object(), or_none(outputs.c_last),
                        std::move(saved));
}

/// As `forward`, with the reserve as an array of the caller's library, made by `empty_bytes`, or
/// None without need_grad. Nothing else is kept: backward_arrays takes the inputs again.
template <class Cell>
py::tuple forward_arrays(py::handle x, py::handle weight_ih, py::handle weight_hh,
                         py::handle bias_ih, py::handle bias_hh, py::handle h0, py::handle c0,
                         py::handle lengths, py::handle direction, py::handle activation,
                         py::handle reset, py::handle recompute, py::handle need_grad,
                         const py::object& empty, const py::object& empty_bytes,
                         std::uintptr_t stream) {
  const Inputs<Cell> inputs(x, weight_ih, weight_hh, bias_ih, bias_hh, h0, c0, lengths, direction,
                            activation, reset, recompute, stream);
  Array reserve;
  const Outputs outputs = run_forward(inputs, flag("need_grad", need_grad), empty, empty_bytes,
                                      stream, [&](const Allocator&, std::size_t bytes) {
                                        reserve = reserve_array(empty_bytes, bytes, stream);
                                        return reserve.view();
                                      });
  return py::make_tuple(outputs.y.object(), outputs.h_last.object(), or_none(outputs.c_last),
                        or_none(reserve));
}

/// Bytes of the array that forward_arrays keeps.
template <class Cell>
std::size_t reserve_bytes(py::handle x, py::handle weight_ih, py::handle weight_hh,
                          py::handle bias_ih, py::handle bias_hh, py::handle h0, py::handle c0,
                          py::handle lengths, py::handle direction, py::handle activation,
                          py::handle reset, py::handle recompute, std::uintptr_t stream) {
  const Inputs<Cell> inputs(x, weight_ih, weight_hh, bias_ih, bias_hh, h0, c0, lengths, direction,
                            activation, reset, recompute, stream);
  typename Cell::ForwardArgs args;
  static_cast<typename Cell::Inputs&>(args) = inputs.views;
  args.need_grad = true;
  return at_least_one(Cell::reserve_bytes(inputs.context, args));
}

template <class Cell>
py::tuple run_backward(const Inputs<Cell>& in, const TensorView& reserve, py::handle dy_,
                       py::handle dh_last_, py::handle dc_last_, py::handle empty,
                       py::handle empty_bytes, std::uintptr_t stream) {
  // The gradient may be asked for on another stream than the result was.
  const Context ctx = context_for(in.x.view(), stream);
  const Array dy("dy", dy_, stream), dh_last("dh_last", dh_last_, stream);
  const Array dc_last("dc_last", dc_last_, stream);
  typename Cell::BackwardArgs args;
  static_cast<typename Cell::Inputs&>(args) = in.views;
  args.reserve = reserve;
  args.dy = dy.view();
  args.dh_last = dh_last.view();

  const Allocator allocator(in.x, ctx, empty, empty_bytes, stream);
  const std::int64_t batch = args.x.shape[1];
  const std::int64_t width = args.weight_hh.shape[0] * args.weight_hh.shape[2];
  const Array dx = output_like(allocator, "dx", args.x);
  const Array dweight_ih = output_like(allocator, "dweight_ih", args.weight_ih);
  const Array dweight_hh = output_like(allocator, "dweight_hh", args.weight_hh);
  const Array dbias_ih = output_like(allocator, "dbias_ih", args.bias_ih);
  const Array dbias_hh = output_like(allocator, "dbias_hh", args.bias_hh);
  const Array dh0 = allocator.array("dh0", {batch, width});
  Array dc0;
  args.dx = dx.view();
  args.dweight_ih = dweight_ih.view();
  args.dweight_hh = dweight_hh.view();
  args.dbias_ih = dbias_ih.view();
  args.dbias_hh = dbias_hh.view();
  args.dh0 = dh0.view();
  if constexpr (kHasCellState<Cell>) {
    dc0 = allocator.array("dc0", {batch, width});
    args.dc_last = dc_last.view();
    args.dc0 = dc0.view();
  }
  const Bytes workspace(allocator, at_least_one(Cell::backward_workspace_bytes(ctx, args)));
  args.workspace = workspace.view();
  {
    const GilRelease release;
    Cell::backward(ctx, args);
  }
  return py::make_tuple(dx.object(), dweight_ih.object(), dweight_hh.object(), or_none(dbias_ih),
                        or_none(dbias_hh), dh0.object(), or_none(dc0));
}

template <class Cell>
py::tuple backward(const Saved<Cell>& saved, py::handle dy, py::handle dh_last, py::handle dc_last,
                   std::uintptr_t stream) {
  return run_backward(*saved.inputs, saved.reserve.view(), dy, dh_last, dc_last, saved.empty,
                      saved.empty_bytes, stream);
}

/// The gradients from the inputs of forward_arrays and the reserve that it returned.
template <class Cell>
py::tuple backward_arrays(py::handle x, py::handle weight_ih, py::handle weight_hh,
                          py::handle bias_ih, py::handle bias_hh, py::handle h0, py::handle c0,
                          py::handle lengths, py::handle direction, py::handle activation,
                          py::handle reset, py::handle recompute, py::handle reserve_,
                          py::handle dy, py::handle dh_last, py::handle dc_last,
                          const py::object& empty, const py::object& empty_bytes,
                          std::uintptr_t stream) {
  const Inputs<Cell> inputs(x, weight_ih, weight_hh, bias_ih, bias_hh, h0, c0, lengths, direction,
                            activation, reset, recompute, stream);
  const Array reserve("reserve", reserve_, stream);
  return run_backward(inputs, reserve.view(), dy, dh_last, dc_last, empty, empty_bytes, stream);
}

template <class Cell>
void bind(py::module_& m) {
  py::class_<Saved<Cell>>(m, Cell::kSaved);
  const std::string name = Cell::kName;
  define<&forward<Cell>>(m, name + "_forward");
  define<&backward<Cell>>(m, name + "_backward");
  define<&forward_arrays<Cell>>(m, name + "_forward_arrays");
  define<&backward_arrays<Cell>>(m, name + "_backward_arrays");
  define<&reserve_bytes<Cell>>(m, name + "_reserve_bytes");
}

}  // namespace

void bind_recurrent(py::module_& m) {
  bind<Rnn>(m);
  bind<Gru>(m);
  bind<Lstm>(m);
  m.def("host_bytes", &host_bytes);
}

}  // namespace penstock::python
