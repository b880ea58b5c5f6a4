// penstock.sliced: arrays in, TensorViews to the library, arrays out.

#include "sliced.h"

#include <array>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "arrays.h"
#include "function.h"
#include "gil.h"
#include "options.h"
#include "outputs.h"
#include "penstock/sliced.h"

namespace penstock::python {
namespace {

// Where a level's parameters go, in the order in which they are given.
using Member = TensorView SlicedLevel::*;
struct Parameter {
  const char* name;
  Member member;
};
struct Parameters {
  const char* names;
  std::size_t needed;  // those behind may be left off
  std::size_t count;
  Parameter items[4];
};
constexpr Parameters kRecurrent = {"(weight_ih, weight_hh[, bias_ih[, bias_hh]])",
                                   2,
                                   4,
                                   {{"weight_ih", &SlicedLevel::weight_ih},
                                    {"weight_hh", &SlicedLevel::weight_hh},
                                    {"bias_ih", &SlicedLevel::bias_ih},
                                    {"bias_hh", &SlicedLevel::bias_hh}}};
constexpr Parameters kSru = {"(weight, weight_c, bias)",
                             3,
                             3,
                             {{"weight", &SlicedLevel::weight_ih},
                              {"weight_c", &SlicedLevel::weight_hh},
                              {"bias", &SlicedLevel::bias_ih},
                              {nullptr, nullptr}}};

std::string at(const char* name, std::size_t index) {
  return std::string(name) + "[" + std::to_string(index) + "]";
}

/// A list or a tuple; what it should hold is told by `expected`.
py::sequence sequence(const std::string& name, const char* expected, py::handle object) {
  if (!py::isinstance<py::list>(object) && !py::isinstance<py::tuple>(object)) {
    wrong_type(name, expected, object);
  }
  return py::reinterpret_borrow<py::sequence>(object);
}

std::vector<std::int64_t> slices_of(py::handle object) {
  const py::sequence given = sequence("slices", "a list or tuple of integers", object);
  std::vector<std::int64_t> slices;
  for (std::size_t i = 0; i < given.size(); ++i) {
    const py::object item = given[i];
    const auto value = py::reinterpret_steal<py::object>(PyNumber_Index(item.ptr()));
    if (!value) {
      PyErr_Clear();
      wrong_type(at("slices", i), "an integer", item);
    }
    int overflow = 0;
    const long long n = PyLong_AsLongLongAndOverflow(value.ptr(), &overflow);
    if (overflow != 0 || n < 1) {
      throw Error(ErrorCode::kValue, at("slices", i) + ": expected at least 1" +
                                         (overflow > 0 ? ", in 64 bits" : "") +
                                         " (actual: " + std::string(py::str(value)) + ")");
    }
    slices.push_back(n);
  }
  return slices;
}

/// The inputs of one call, held from forward to the last backward. Not to be moved: the views point
/// into it.
struct Inputs {
  Array x, lengths;
  std::vector<std::array<Array, 4>> arrays;
  std::vector<SlicedLevel> levels;
  std::vector<std::int64_t> slices;
  SlicedInputs views;
  Context context;

  Inputs(py::handle cell, py::handle x_, py::handle levels_, py::handle slices_,
         py::handle lengths_, py::handle pad, py::handle mask, py::handle direction,
         py::handle activation, py::handle reset, py::handle skip, py::handle scale_x,
         py::handle recompute, std::uintptr_t stream)
      : x("x", x_, stream),
        lengths("lengths", lengths_, stream),
        slices(slices_of(slices_)),
        context(context_for(x.view(), stream)) {
    views.cell = choose<const char*>(
        "cell", cell, {{"rnn", "rnn"}, {"gru", "gru"}, {"lstm", "lstm"}, {"sru", "sru"}});
    views.x = x.view();
    views.lengths = lengths.view();
    views.slices = slices.data();
    views.slice_count = static_cast<int>(slices.size());
    views.pad = choose<PadSide>("pad", pad, {{"left", PadSide::kLeft}, {"right", PadSide::kRight}});
    views.mask =
        choose<SliceMask>("mask", mask, {{"skip", SliceMask::kSkip}, {"none", SliceMask::kNone}});
    views.direction = direction_of(direction);
    set_activation(activation);
    views.reset = choose<ResetMode>("reset", reset,
                                    {{"after", ResetMode::kAfter}, {"before", ResetMode::kBefore}});
    views.skip = flag("skip", skip);
    views.scale_x = number("scale_x", scale_x);
    views.recompute = flag("recompute", recompute);
    set_levels(levels_, stream);
  }
  Inputs(const Inputs&) = delete;
  Inputs& operator=(const Inputs&) = delete;

  bool is_sru() const { return std::strcmp(views.cell, "sru") == 0; }
  const Parameters& parameters() const { return is_sru() ? kSru : kRecurrent; }

  /// dirs * H of a level; after the library has checked the shapes.
  std::int64_t width(std::size_t level) const {
    const TensorView& v = is_sru() ? levels[level].bias_ih : levels[level].weight_hh;
    return v.shape[0] * v.shape[2];
  }

 private:
  void set_activation(py::handle activation) {
    const bool lstm = std::strcmp(views.cell, "lstm") == 0;
    if (activation.is_none()) {
      views.activation = is_sru() ? Activation::kIdentity : Activation::kTanh;
      return;
    }
    views.activation = activation_of(activation);
    if (lstm && views.activation != Activation::kTanh) {
      throw Error(ErrorCode::kValue, "activation: expected 'tanh' with the cell 'lstm' (actual: '" +
                                         activation.cast<std::string>() + "')");
    }
  }

  void set_levels(py::handle object, std::uintptr_t stream) {
    const py::sequence given = sequence("levels", "a list or tuple of one tuple per level", object);
    if (given.size() != slices.size() + 1) {
      throw Error(ErrorCode::kValue,
                  "levels: expected len(slices) + 1 = " + std::to_string(slices.size() + 1) +
                      " levels (actual: " + std::to_string(given.size()) + ")");
    }
    const Parameters& all = parameters();
    arrays.resize(given.size());
    levels.resize(given.size());
    for (std::size_t i = 0; i < given.size(); ++i) {
      const py::object level = given[i];
      const py::sequence items = sequence(at("levels", i), all.names, level);
      if (items.size() < all.needed || items.size() > all.count) {
        throw Error(ErrorCode::kValue, at("levels", i) + ": expected " + all.names + " (actual: " +
                                           std::to_string(items.size()) + " arrays)");
      }
      for (std::size_t j = 0; j < items.size(); ++j) {
        const std::string name = at("levels", i) + "." + all.items[j].name;
        const py::object item = items[j];
        arrays[i][j] = Array(name.c_str(), item, stream);
        levels[i].*all.items[j].member = arrays[i][j].view();
      }
    }
    views.levels = levels.data();
  }
};

/// Call the library, whose names of a level's members are not those of an SRU's parameters.
template <class F>
auto in_the_callers_words(const Inputs& in, F&& function) {
  try {
    return function();
  } catch (const Error& e) {
    if (!in.is_sru()) throw;
    std::string words = e.what();
    for (std::size_t j = 0; j < kSru.count; ++j) {
      const std::string there = std::string("].") + kRecurrent.items[j].name + ":";
      const std::size_t found = words.find(there);
      if (found != std::string::npos) {
        words.replace(found, there.size(), std::string("].") + kSru.items[j].name + ":");
        break;
      }
    }
    throw Error(e.code(), words);
  }
}

/// The number of parts of each level; after the library has checked the shapes.
std::vector<std::int64_t> parts_of(const Inputs& in) {
  std::vector<std::int64_t> steps(in.levels.size()), parts(in.levels.size());
  sliced_shape(in.views.x.shape[0], in.views.slices, in.views.slice_count, steps.data(),
               parts.data());
  return parts;
}

/// What forward keeps for backward.
struct Saved {
  std::unique_ptr<Inputs> inputs;
  Bytes reserve;
  py::object empty, empty_bytes;
};

/// `make_reserve(allocator, bytes)` returns the view of a buffer that outlives the call; it is not
/// called without need_grad. Returns the levels' outputs.
template <class MakeReserve>
py::tuple run_forward(const Inputs& inputs, bool need_grad, py::handle empty,
                      py::handle empty_bytes, std::uintptr_t stream, MakeReserve&& make_reserve) {
  const Context& ctx = inputs.context;
  SlicedForwardArgs args;
  static_cast<SlicedInputs&>(args) = inputs.views;
  args.need_grad = need_grad;
  const std::size_t workspace_bytes =
      in_the_callers_words(inputs, [&] { return sliced_forward_workspace_bytes(ctx, args); });
  const std::size_t reserve_bytes = need_grad ? sliced_reserve_bytes(ctx, args) : 0;

  const std::size_t count = inputs.levels.size();
  const std::vector<std::int64_t> parts = parts_of(inputs);
  const Allocator allocator(inputs.x, ctx, empty, empty_bytes, stream);
  std::vector<Array> outputs;
  std::vector<TensorView> views;
  for (std::size_t i = 0; i < count; ++i) {
    outputs.push_back(allocator.array("levels", {parts[i], args.x.shape[1], inputs.width(i)}));
    views.push_back(outputs.back().view());
  }
  const Bytes workspace(allocator, at_least_one(workspace_bytes));
  if (need_grad) args.reserve = make_reserve(allocator, at_least_one(reserve_bytes));
  args.outputs = views.data();
  args.workspace = workspace.view();
  {
    const GilRelease release;
    sliced_forward(ctx, args);
  }
  py::tuple states(count);
  for (std::size_t i = 0; i < count; ++i) states[i] = outputs[i].object();
  return states;
}

py::tuple forward(py::handle cell, py::handle x, py::handle levels, py::handle slices,
                  py::handle lengths, py::handle pad, py::handle mask, py::handle direction,
                  py::handle activation, py::handle reset, py::handle skip, py::handle scale_x,
                  py::handle recompute, py::handle need_grad_, const py::object& empty,
                  const py::object& empty_bytes, std::uintptr_t stream) {
  const bool need_grad = flag("need_grad", need_grad_);
  auto inputs = std::make_unique<Inputs>(cell, x, levels, slices, lengths, pad, mask, direction,
                                         activation, reset, skip, scale_x, recompute, stream);
  Bytes reserve;
  const py::tuple states = run_forward(*inputs, need_grad, empty, empty_bytes, stream,
                                       [&](const Allocator& allocator, std::size_t bytes) {
                                         reserve = Bytes(allocator, bytes);
                                         return reserve.view();
                                       });
  if (!need_grad) return py::make_tuple(states, py::none());
  auto saved = std::make_unique<Saved>();
  saved->inputs = std::move(inputs);
  saved->reserve = std::move(reserve);
  saved->empty = empty;
  saved->empty_bytes = empty_bytes;
  return py::make_tuple(states, std::move(saved));
}

/// As `forward`, with the reserve as an array of the caller's library, made by `empty_bytes`, or
/// None without need_grad. Nothing else is kept: backward_arrays takes the inputs again.
py::tuple forward_arrays(py::handle cell, py::handle x, py::handle levels, py::handle slices,
                         py::handle lengths, py::handle pad, py::handle mask, py::handle direction,
                         py::handle activation, py::handle reset, py::handle skip,
                         py::handle scale_x, py::handle recompute, py::handle need_grad,
                         const py::object& empty, const py::object& empty_bytes,
                         std::uintptr_t stream) {
  const Inputs inputs(cell, x, levels, slices, lengths, pad, mask, direction, activation, reset,
                      skip, scale_x, recompute, stream);
  Array reserve;
  const py::tuple states = run_forward(inputs, flag("need_grad", need_grad), empty, empty_bytes,
                                       stream, [&](const Allocator&, std::size_t bytes) {
                                         reserve = reserve_array(empty_bytes, bytes, stream);
                                         return reserve.view();
                                       });
  return py::make_tuple(states, or_none(reserve));
}

/// Bytes of the array that forward_arrays keeps.
std::size_t reserve_bytes(py::handle cell, py::handle x, py::handle levels, py::handle slices,
                          py::handle lengths, py::handle pad, py::handle mask, py::handle direction,
                          py::handle activation, py::handle reset, py::handle skip,
                          py::handle scale_x, py::handle recompute, std::uintptr_t stream) {
  const Inputs inputs(cell, x, levels, slices, lengths, pad, mask, direction, activation, reset,
                      skip, scale_x, recompute, stream);
  SlicedForwardArgs args;
  static_cast<SlicedInputs&>(args) = inputs.views;
  args.need_grad = true;
  return at_least_one(
      in_the_callers_words(inputs, [&] { return sliced_reserve_bytes(inputs.context, args); }));
}

/// Checked here, because the caller's names are not the library's, and y's gradient may be added.
void check_gradient(const std::string& name, const TensorView& v, const TensorView& x,
                    const TensorView& expected, const char* formula) {
  if (!v.given()) return;
  if (v.dtype != x.dtype) {
    throw Error(ErrorCode::kType,
                name + ": expected " + name_of(x.dtype) + " (actual: " + name_of(v.dtype) + ")");
  }
  bool same = v.rank == expected.rank;
  for (int axis = 0; same && axis < v.rank; ++axis) {
    same = v.shape[axis] == expected.shape[axis];
  }
  if (!same) {
    throw Error(ErrorCode::kValue, name + ": expected shape " + formula + " = " +
                                       expected.shape_string() + " (actual: " + v.shape_string() +
                                       ")");
  }
  if (v.device != x.device) {
    throw Error(ErrorCode::kBuffer, name + ": expected an array on x's device");
  }
}

py::tuple run_backward(const Inputs& in, const TensorView& reserve, py::handle dy_,
                       py::handle dlevels_, py::handle empty, py::handle empty_bytes,
                       std::uintptr_t stream) {
  // The gradient may be asked for on another stream than the result was.
  const Context ctx = context_for(in.x.view(), stream);
  const std::size_t count = in.levels.size();
  SlicedBackwardArgs args;
  static_cast<SlicedInputs&>(args) = in.views;
  args.reserve = reserve;
  const std::vector<std::int64_t> parts = parts_of(in);
  const TensorView& x = args.x;

  std::vector<Array> given(count);
  if (!dlevels_.is_none()) {
    const py::sequence items = sequence("dlevels", "a list or tuple of arrays", dlevels_);
    if (items.size() != count) {
      throw Error(ErrorCode::kValue,
                  "dlevels: expected " + std::to_string(count) +
                      " gradients, one per level (actual: " + std::to_string(items.size()) + ")");
    }
    for (std::size_t i = 0; i < count; ++i) {
      const py::object item = items[i];
      given[i] = Array(at("dlevels", i).c_str(), item, stream);
      const std::int64_t count_of_parts = parts[i];
      check_gradient(at("dlevels", i), given[i].view(), x,
                     TensorView(x.data, x.dtype, {count_of_parts, x.shape[1], in.width(i)}),
                     "(parts, B, dirs*H)");
    }
  }
  const Array dy("dy", dy_, stream);
  check_gradient("dy", dy.view(), x, TensorView(x.data, x.dtype, {x.shape[1], in.width(count - 1)}),
                 "(B, dirs*H)");
  std::vector<TensorView> doutputs;
  doutputs.reserve(count);
  for (const Array& gradient : given) doutputs.push_back(gradient.view());
  Array sum;
  if (dy.view().given() && given.back().view().given()) {
    sum = Array("dlevels", given.back().object() + dy.object(), stream);
    doutputs.back() = sum.view();
  } else if (dy.view().given()) {
    TensorView& last = doutputs.back();
    last = dy.view();
    last.rank = 3;
    for (int axis = 2; axis > 0; --axis) {
      last.shape[axis] = last.shape[axis - 1];
      last.strides[axis] = last.strides[axis - 1];
    }
    last.shape[0] = last.strides[0] = 1;
  }
  args.doutputs = doutputs.data();

  const Allocator allocator(in.x, ctx, empty, empty_bytes, stream);
  const Array dx = output_like(allocator, "dx", x);
  args.dx = dx.view();
  const Parameters& parameters = in.parameters();
  std::vector<std::array<Array, 4>> grads(count);
  std::vector<SlicedLevel> dlevels(count);
  for (std::size_t i = 0; i < count; ++i) {
    for (std::size_t j = 0; j < parameters.count; ++j) {
      const Member member = parameters.items[j].member;
      grads[i][j] = output_like(allocator, "dlevels", in.levels[i].*member);
      dlevels[i].*member = grads[i][j].view();
    }
  }
  args.dlevels = dlevels.data();
  const Bytes workspace(allocator, at_least_one(sliced_backward_workspace_bytes(ctx, args)));
  args.workspace = workspace.view();
  {
    const GilRelease release;
    sliced_backward(ctx, args);
  }
  py::tuple result(count);
  for (std::size_t i = 0; i < count; ++i) {
    py::tuple level(parameters.count);
    for (std::size_t j = 0; j < parameters.count; ++j) level[j] = or_none(grads[i][j]);
    result[i] = level;
  }
  return py::make_tuple(dx.object(), result);
}

py::tuple backward(const Saved& saved, py::handle dy, py::handle dlevels, std::uintptr_t stream) {
  return run_backward(*saved.inputs, saved.reserve.view(), dy, dlevels, saved.empty,
                      saved.empty_bytes, stream);
}

/// The gradients from the inputs of forward_arrays and the reserve that it returned.
py::tuple backward_arrays(py::handle cell, py::handle x, py::handle levels, py::handle slices,
                          py::handle lengths, py::handle pad, py::handle mask, py::handle direction,
                          py::handle activation, py::handle reset, py::handle skip,
                          py::handle scale_x, py::handle recompute, py::handle reserve_,
                          py::handle dy, py::handle dlevels, const py::object& empty,
                          const py::object& empty_bytes, std::uintptr_t stream) {
  const Inputs inputs(cell, x, levels, slices, lengths, pad, mask, direction, activation, reset,
                      skip, scale_x, recompute, stream);
  const Array reserve("reserve", reserve_, stream);
  // Here the inputs come without a forward pass that has checked them.
  SlicedForwardArgs args;
  static_cast<SlicedInputs&>(args) = inputs.views;
  in_the_callers_words(inputs, [&] { return sliced_reserve_bytes(inputs.context, args); });
  return run_backward(inputs, reserve.view(), dy, dlevels, empty, empty_bytes, stream);
}

}  // namespace

void bind_sliced(py::module_& m) {
  py::class_<Saved>(m, "SlicedSaved");
  define<&forward>(m, "sliced_forward");
  define<&backward>(m, "sliced_backward");
  define<&forward_arrays>(m, "sliced_forward_arrays");
  define<&backward_arrays>(m, "sliced_backward_arrays");
  define<&reserve_bytes>(m, "sliced_reserve_bytes");
}

}  // namespace penstock::python
