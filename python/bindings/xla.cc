// What penstock.jax needs: the library's handlers for XLA's foreign function interface, and how
// much memory a call works with, told from shapes alone, because that is all there is while a
// function is traced.

#include "xla.h"

#include <cstring>
#include <string>
#include <type_traits>
#include <vector>

#include "options.h"
#include "penstock/penstock.h"

// In src/ffi/handlers.cc; what they take and return is XLA's business.
extern "C" {
#define PENSTOCK_XLA_OPERATION(op)               \
  void* penstock_xla_##op##_forward_cpu(void*);  \
  void* penstock_xla_##op##_forward_cuda(void*); \
  void* penstock_xla_##op##_backward_cpu(void*); \
  void* penstock_xla_##op##_backward_cuda(void*);
PENSTOCK_XLA_OPERATION(rnn)
PENSTOCK_XLA_OPERATION(gru)
PENSTOCK_XLA_OPERATION(lstm)
PENSTOCK_XLA_OPERATION(sru)
PENSTOCK_XLA_OPERATION(sliced)
#undef PENSTOCK_XLA_OPERATION
}

namespace penstock::python {
namespace {

using XlaHandler = void* (*)(void*);

/// (operation, pass, device, capsule) for each handler.
py::list xla_handlers() {
  py::list all;
  const auto add = [&](const char* op, const char* pass, const char* device, XlaHandler handler) {
    all.append(py::make_tuple(op, pass, device,
                              py::capsule(reinterpret_cast<void*>(handler), [](void*) {})));
  };
#define PENSTOCK_XLA_OPERATION(op)                                \
  add(#op, "forward", "cpu", &penstock_xla_##op##_forward_cpu);   \
  add(#op, "forward", "cuda", &penstock_xla_##op##_forward_cuda); \
  add(#op, "backward", "cpu", &penstock_xla_##op##_backward_cpu); \
  add(#op, "backward", "cuda", &penstock_xla_##op##_backward_cuda);
  PENSTOCK_XLA_OPERATION(rnn)
  PENSTOCK_XLA_OPERATION(gru)
  PENSTOCK_XLA_OPERATION(lstm)
  PENSTOCK_XLA_OPERATION(sru)
  PENSTOCK_XLA_OPERATION(sliced)
#undef PENSTOCK_XLA_OPERATION
  return all;
}

/// Arrays of which only the element type and the shape are known, each by its name, and options.
class Shapes {
 public:
  Shapes(const py::dict& operands, const py::dict& options, bool cuda)
      : operands_(operands),
        options_(options),
        context_(cuda ? Context::cuda(0, nullptr) : Context::cpu()) {}

  const Context& context() const { return context_; }

  /// A view that is not given if there is none of that name.
  TensorView operand(const std::string& name) {
    const py::str key(name);
    if (!operands_.contains(key)) return {};
    const auto known = operands_[key].cast<py::tuple>();
    TensorView v;
    v.dtype = dtype_of(name, known[0]);
    v.device = context_.device();
    const auto shape = known[1].cast<py::tuple>();
    if (shape.size() > TensorView::kMaxRank) {
      throw Error(ErrorCode::kValue, name + ": expected at most 4 axes (actual: shape " +
                                         std::string(py::str(shape)) + ")");
    }
    v.rank = static_cast<int>(shape.size());
    std::int64_t stride = 1;
    for (int axis = v.rank - 1; axis >= 0; --axis) {
      v.shape[axis] = shape[static_cast<std::size_t>(axis)].cast<std::int64_t>();
      v.strides[axis] = stride;
      stride *= v.shape[axis];
    }
    v.read_only = true;
    // Only lengths are ever looked at; of the others, that there is memory.
    v.data = &memory_;
    if (name == "lengths") {
      zeros_.assign(static_cast<std::size_t>(v.numel()), 0);
      v.data = zeros_.data();
    }
    return v;
  }
  /// An output of that shape without memory; not given if `like` is not.
  TensorView output(const TensorView& like) const {
    TensorView v = like;
    v.data = nullptr;
    v.read_only = false;
    return v;
  }
  py::object option(const char* name) const { return options_[name]; }

 private:
  static DataType dtype_of(const std::string& name, py::handle dtype) {
    return choose<DataType>(name.c_str(), dtype,
                            {{"float32", DataType::kFloat32},
                             {"float64", DataType::kFloat64},
                             {"float16", DataType::kFloat16},
                             {"bfloat16", DataType::kBFloat16},
                             {"bool", DataType::kBool},
                             {"int32", DataType::kInt32},
                             {"int64", DataType::kInt64},
                             {"uint8", DataType::kUInt8}});
  }

  const py::dict& operands_;
  const py::dict& options_;
  Context context_;
  std::vector<std::int64_t> zeros_;  // room for either type
  char memory_ = 0;
};

ResetMode reset_of(const Shapes& shapes) {
  return choose<ResetMode>("reset", shapes.option("reset"),
                           {{"after", ResetMode::kAfter}, {"before", ResetMode::kBefore}});
}

void read(Shapes& shapes, RecurrentInputs& in) {
  in.x = shapes.operand("x");
  in.weight_ih = shapes.operand("weight_ih");
  in.weight_hh = shapes.operand("weight_hh");
  in.bias_ih = shapes.operand("bias_ih");
  in.bias_hh = shapes.operand("bias_hh");
  in.h0 = shapes.operand("h0");
  in.lengths = shapes.operand("lengths");
  in.direction = direction_of(shapes.option("direction"));
  in.recompute = flag("recompute", shapes.option("recompute"));
}
void read_own(Shapes& shapes, RnnInputs& in) {
  in.activation = activation_of(shapes.option("activation"));
}
void read_own(Shapes& shapes, GruInputs& in) {
  in.activation = activation_of(shapes.option("activation"));
  in.reset = reset_of(shapes);
}
void read_own(Shapes& shapes, LstmInputs& in) { in.c0 = shapes.operand("c0"); }

py::tuple both(std::size_t workspace, std::size_t reserve) {
  return py::make_tuple(workspace, reserve);
}

/// Of RNN, GRU and LSTM.
template <class ForwardArgs, class BackwardArgs, auto forward_workspace_bytes, auto reserve_bytes,
          auto backward_workspace_bytes>
py::tuple recurrent_bytes(const py::dict& operands, const py::dict& options, bool cuda,
                          const std::string& pass) {
  Shapes shapes(operands, options, cuda);
  const Context& ctx = shapes.context();
  if (pass == "backward") {
    BackwardArgs args;
    read(shapes, args);
    read_own(shapes, args);
    args.dy = shapes.operand("dy");
    args.dh_last = shapes.operand("dh_last");
    args.dx = shapes.output(args.x);
    args.dweight_ih = shapes.output(args.weight_ih);
    args.dweight_hh = shapes.output(args.weight_hh);
    args.dbias_ih = shapes.output(args.bias_ih);
    args.dbias_hh = shapes.output(args.bias_hh);
    args.dh0 = shapes.output(args.h0);
    if constexpr (std::is_base_of_v<LstmInputs, BackwardArgs>) {
      args.dc_last = shapes.operand("dc_last");
      args.dc0 = shapes.output(args.c0);
    }
    return both(backward_workspace_bytes(ctx, args), 0);
  }
  ForwardArgs args;
  read(shapes, args);
  read_own(shapes, args);
  args.need_grad = pass == "forward";
  return both(forward_workspace_bytes(ctx, args), reserve_bytes(ctx, args));
}

void read(Shapes& shapes, SruInputs& in) {
  in.x = shapes.operand("x");
  in.weight = shapes.operand("weight");
  in.weight_c = shapes.operand("weight_c");
  in.bias = shapes.operand("bias");
  in.c0 = shapes.operand("c0");
  in.mask_pad = shapes.operand("mask_pad");
  in.lengths = shapes.operand("lengths");
  in.x_skip = shapes.operand("x_skip");
  in.mask_c = shapes.operand("mask_c");
  in.activation = activation_of(shapes.option("activation"));
  in.skip = flag("skip", shapes.option("skip"));
  in.scale_x = number("scale_x", shapes.option("scale_x"));
  in.mask_site = choose<MaskSite>("mask_site", shapes.option("mask_site"),
                                  {{"output", MaskSite::kOutput}, {"state", MaskSite::kState}});
  in.direction = direction_of(shapes.option("direction"));
}

py::tuple sru_bytes(const py::dict& operands, const py::dict& options, bool cuda,
                    const std::string& pass) {
  Shapes shapes(operands, options, cuda);
  const Context& ctx = shapes.context();
  if (pass == "backward") {
    SruBackwardArgs args;
    read(shapes, args);
    args.dy = shapes.operand("dy");
    args.dc_last = shapes.operand("dc_last");
    args.dx = shapes.output(args.x);
    args.dweight = shapes.output(args.weight);
    args.dweight_c = shapes.output(args.weight_c);
    args.dbias = shapes.output(args.bias);
    args.dc0 = shapes.output(args.c0);
    args.dmask_c = shapes.output(args.mask_c);
    args.dx_skip = shapes.output(args.x_skip);
    return both(sru_backward_workspace_bytes(ctx, args), 0);
  }
  SruForwardArgs args;
  read(shapes, args);
  args.need_grad = pass == "forward";
  return both(sru_forward_workspace_bytes(ctx, args), sru_reserve_bytes(ctx, args));
}

/// The inputs of a sliced network. Not to be moved: the views point into it.
struct Sliced {
  Shapes shapes;
  SlicedInputs in;
  std::vector<SlicedLevel> levels, dlevels;
  std::vector<TensorView> doutputs;
  std::vector<std::int64_t> slices;

  Sliced(const py::dict& operands, const py::dict& options, bool cuda)
      : shapes(operands, options, cuda) {
    in.cell =
        choose<const char*>("cell", shapes.option("cell"),
                            {{"rnn", "rnn"}, {"gru", "gru"}, {"lstm", "lstm"}, {"sru", "sru"}});
    in.x = shapes.operand("x");
    in.lengths = shapes.operand("lengths");
    for (py::handle n : shapes.option("slices").cast<py::tuple>()) {
      slices.push_back(n.cast<std::int64_t>());
    }
    in.slices = slices.data();
    in.slice_count = static_cast<int>(slices.size());
    in.pad = choose<PadSide>("pad", shapes.option("pad"),
                             {{"left", PadSide::kLeft}, {"right", PadSide::kRight}});
    in.mask = choose<SliceMask>("mask", shapes.option("mask"),
                                {{"skip", SliceMask::kSkip}, {"none", SliceMask::kNone}});
    in.direction = direction_of(shapes.option("direction"));
    in.activation = activation_of(shapes.option("activation"));
    in.reset = reset_of(shapes);
    in.skip = flag("skip", shapes.option("skip"));
    in.scale_x = number("scale_x", shapes.option("scale_x"));
    in.recompute = flag("recompute", shapes.option("recompute"));
    const bool sru = std::strcmp(in.cell, "sru") == 0;
    for (std::size_t i = 0; i <= slices.size(); ++i) {
      const std::string level = "levels[" + std::to_string(i) + "]";
      SlicedLevel given;
      given.weight_ih = shapes.operand(level + (sru ? ".weight" : ".weight_ih"));
      given.weight_hh = shapes.operand(level + (sru ? ".weight_c" : ".weight_hh"));
      given.bias_ih = shapes.operand(level + (sru ? ".bias" : ".bias_ih"));
      if (!sru) given.bias_hh = shapes.operand(level + ".bias_hh");
      levels.push_back(given);
      SlicedLevel gradient;
      gradient.weight_ih = shapes.output(given.weight_ih);
      gradient.weight_hh = shapes.output(given.weight_hh);
      gradient.bias_ih = shapes.output(given.bias_ih);
      gradient.bias_hh = shapes.output(given.bias_hh);
      dlevels.push_back(gradient);
      doutputs.push_back(shapes.operand("d" + level));
    }
    in.levels = levels.data();
  }
  Sliced(const Sliced&) = delete;
  Sliced& operator=(const Sliced&) = delete;

  py::tuple bytes(const std::string& pass) {
    const Context& ctx = shapes.context();
    if (pass == "backward") {
      SlicedBackwardArgs args;
      static_cast<SlicedInputs&>(args) = in;
      args.doutputs = doutputs.data();
      args.dx = shapes.output(in.x);
      args.dlevels = dlevels.data();
      return both(sliced_backward_workspace_bytes(ctx, args), 0);
    }
    SlicedForwardArgs args;
    static_cast<SlicedInputs&>(args) = in;
    args.need_grad = pass == "forward";
    return both(sliced_forward_workspace_bytes(ctx, args), sliced_reserve_bytes(ctx, args));
  }
};

py::tuple sliced_bytes(const py::dict& operands, const py::dict& options, bool cuda,
                       const std::string& pass) {
  Sliced sliced(operands, options, cuda);
  try {
    return sliced.bytes(pass);
  } catch (const Error& e) {
    if (std::strcmp(sliced.in.cell, "sru") != 0) throw;
    // The library's names of a level's members are not those of an SRU's parameters.
    std::string words = e.what();
    const char* const names[][2] = {
        {"].weight_ih:", "].weight:"}, {"].weight_hh:", "].weight_c:"}, {"].bias_ih:", "].bias:"}};
    for (const auto& [library, caller] : names) {
      const std::size_t found = words.find(library);
      if (found != std::string::npos) words.replace(found, std::strlen(library), caller);
    }
    throw Error(e.code(), words);
  }
}

/// (workspace, reserve) of a call on the CPU or on the first CUDA device, both 0 or more.
///
/// `pass` is "infer" for a forward pass that keeps nothing, "forward" or "backward". `operands`
/// maps a name to (dtype, shape), `options` all options of the operation to their values. Checks
/// them as the operation does.
py::tuple xla_bytes(const std::string& op, const std::string& pass, bool cuda,
                    const py::dict& operands, const py::dict& options) {
  if (op == "rnn") {
    return recurrent_bytes<RnnForwardArgs, RnnBackwardArgs, rnn_forward_workspace_bytes,
                           rnn_reserve_bytes, rnn_backward_workspace_bytes>(operands, options, cuda,
                                                                            pass);
  }
  if (op == "gru") {
    return recurrent_bytes<GruForwardArgs, GruBackwardArgs, gru_forward_workspace_bytes,
                           gru_reserve_bytes, gru_backward_workspace_bytes>(operands, options, cuda,
                                                                            pass);
  }
  if (op == "lstm") {
    return recurrent_bytes<LstmForwardArgs, LstmBackwardArgs, lstm_forward_workspace_bytes,
                           lstm_reserve_bytes, lstm_backward_workspace_bytes>(operands, options,
                                                                              cuda, pass);
  }
  return op == "sru" ? sru_bytes(operands, options, cuda, pass)
                     : sliced_bytes(operands, options, cuda, pass);
}

}  // namespace

void bind_xla(py::module_& m) {
  m.def("xla_handlers", &xla_handlers);
  m.def("xla_bytes", &xla_bytes);
}

}  // namespace penstock::python
