// The operations through the C interface: each is its C++ namesake, given the same arguments.

#include "c/call.h"
#include "c/context.h"
#include "penstock/penstock.h"

namespace penstock::c {
namespace {

constexpr std::int32_t kActivations = 3, kDirections = 3;

/// Copies options and arrays of one call, with errors in its name.
struct Reader {
  const char* op;

  void tensor(const char* name, const penstock_tensor& from, TensorView* to) const {
    *to = view_of(op, name, from);
  }
  template <class Enum>
  void option(const char* name, std::int32_t from, std::int32_t count, Enum* to) const {
    *to = enumerator<Enum>(op, name, from, count);
  }
};

// A field of `from` becomes its namesake in `to`, and is called so in errors.
#define PENSTOCK_C_TENSOR(name) read.tensor(#name, from.name, &to->name)

// ---- sru ----------------------------------------------------------------------------------------

void read_inputs(const Reader& read, const penstock_sru_forward_args& from, SruInputs* to) {
  PENSTOCK_C_TENSOR(x);
  PENSTOCK_C_TENSOR(weight);
  PENSTOCK_C_TENSOR(weight_c);
  PENSTOCK_C_TENSOR(bias);
  PENSTOCK_C_TENSOR(c0);
  PENSTOCK_C_TENSOR(mask_pad);
  PENSTOCK_C_TENSOR(lengths);
  PENSTOCK_C_TENSOR(x_skip);
  PENSTOCK_C_TENSOR(mask_c);
  read.option("activation", from.activation, kActivations, &to->activation);
  read.option("mask_site", from.mask_site, 2, &to->mask_site);
  read.option("direction", from.direction, kDirections, &to->direction);
  to->skip = from.skip != 0;
  to->scale_x = from.scale_x;
}

void read_outputs(const Reader& read, const penstock_sru_forward_args& from, SruForwardArgs* to) {
  PENSTOCK_C_TENSOR(y);
  PENSTOCK_C_TENSOR(c_last);
}

void read_gradients(const Reader& read, const penstock_sru_backward_args& from,
                    SruBackwardArgs* to) {
  PENSTOCK_C_TENSOR(dy);
  PENSTOCK_C_TENSOR(dc_last);
  PENSTOCK_C_TENSOR(dx);
  PENSTOCK_C_TENSOR(dweight);
  PENSTOCK_C_TENSOR(dweight_c);
  PENSTOCK_C_TENSOR(dbias);
  PENSTOCK_C_TENSOR(dc0);
  PENSTOCK_C_TENSOR(dmask_c);
  PENSTOCK_C_TENSOR(dx_skip);
}

// ---- rnn, gru, lstm -----------------------------------------------------------------------------

template <class Args>
void read_recurrent_inputs(const Reader& read, const Args& from, RecurrentInputs* to) {
  PENSTOCK_C_TENSOR(x);
  PENSTOCK_C_TENSOR(weight_ih);
  PENSTOCK_C_TENSOR(weight_hh);
  PENSTOCK_C_TENSOR(bias_ih);
  PENSTOCK_C_TENSOR(bias_hh);
  PENSTOCK_C_TENSOR(h0);
  PENSTOCK_C_TENSOR(lengths);
  read.option("direction", from.direction, kDirections, &to->direction);
  to->recompute = from.recompute != 0;
}

template <class Args>
void read_recurrent_outputs(const Reader& read, const Args& from, RecurrentForward* to) {
  PENSTOCK_C_TENSOR(y);
  PENSTOCK_C_TENSOR(h_last);
}

template <class Args>
void read_recurrent_gradients(const Reader& read, const Args& from, RecurrentBackward* to) {
  PENSTOCK_C_TENSOR(dy);
  PENSTOCK_C_TENSOR(dh_last);
  PENSTOCK_C_TENSOR(dx);
  PENSTOCK_C_TENSOR(dweight_ih);
  PENSTOCK_C_TENSOR(dweight_hh);
  PENSTOCK_C_TENSOR(dbias_ih);
  PENSTOCK_C_TENSOR(dbias_hh);
  PENSTOCK_C_TENSOR(dh0);
}

void read_inputs(const Reader& read, const penstock_rnn_forward_args& from, RnnInputs* to) {
  read_recurrent_inputs(read, from, to);
  read.option("activation", from.activation, kActivations, &to->activation);
}
void read_outputs(const Reader& read, const penstock_rnn_forward_args& from, RnnForwardArgs* to) {
  read_recurrent_outputs(read, from, to);
}
void read_gradients(const Reader& read, const penstock_rnn_backward_args& from,
                    RnnBackwardArgs* to) {
  read_recurrent_gradients(read, from, to);
}

void read_inputs(const Reader& read, const penstock_gru_forward_args& from, GruInputs* to) {
  read_recurrent_inputs(read, from, to);
  read.option("activation", from.activation, kActivations, &to->activation);
  read.option("reset", from.reset, 2, &to->reset);
}
void read_outputs(const Reader& read, const penstock_gru_forward_args& from, GruForwardArgs* to) {
  read_recurrent_outputs(read, from, to);
}
void read_gradients(const Reader& read, const penstock_gru_backward_args& from,
                    GruBackwardArgs* to) {
  read_recurrent_gradients(read, from, to);
}

void read_inputs(const Reader& read, const penstock_lstm_forward_args& from, LstmInputs* to) {
  read_recurrent_inputs(read, from, to);
  PENSTOCK_C_TENSOR(c0);
}
void read_outputs(const Reader& read, const penstock_lstm_forward_args& from, LstmForwardArgs* to) {
  read_recurrent_outputs(read, from, to);
  PENSTOCK_C_TENSOR(c_last);
}
void read_gradients(const Reader& read, const penstock_lstm_backward_args& from,
                    LstmBackwardArgs* to) {
  read_recurrent_gradients(read, from, to);
  PENSTOCK_C_TENSOR(dc_last);
  PENSTOCK_C_TENSOR(dc0);
}

// ---- sliced -------------------------------------------------------------------------------------

constexpr int kMostLevels = SlicedInputs::kMaxSlices + 1;
static_assert(SlicedInputs::kMaxSlices == PENSTOCK_MAX_SLICES);

/// The arguments with room for what they point to.
struct SlicedLevels {
  SlicedLevel levels[kMostLevels];
};
struct SlicedForwardCall : SlicedForwardArgs {
  SlicedLevels parameters;
  TensorView views[kMostLevels];
};
struct SlicedBackwardCall : SlicedBackwardArgs {
  SlicedLevels parameters, gradients;
  TensorView views[kMostLevels];
};

/// Names of a level's arrays, as errors have them.
struct LevelNames {
  const char *weight_ih, *weight_hh, *bias_ih, *bias_hh;
};
constexpr LevelNames kLevelNames = {"levels.weight_ih", "levels.weight_hh", "levels.bias_ih",
                                    "levels.bias_hh"};
constexpr LevelNames kGradientNames = {"dlevels.weight_ih", "dlevels.weight_hh", "dlevels.bias_ih",
                                       "dlevels.bias_hh"};

const SlicedLevel* read_levels(const char* op, const LevelNames& names,
                               const penstock_sliced_level* from, int count, SlicedLevels* to) {
  if (from == nullptr) return nullptr;
  for (int i = 0; i < count; ++i) {
    SlicedLevel& level = to->levels[i];
    level.weight_ih = view_of(op, names.weight_ih, from[i].weight_ih);
    level.weight_hh = view_of(op, names.weight_hh, from[i].weight_hh);
    level.bias_ih = view_of(op, names.bias_ih, from[i].bias_ih);
    level.bias_hh = view_of(op, names.bias_hh, from[i].bias_hh);
  }
  return to->levels;
}

const TensorView* read_views(const char* op, const char* name, const penstock_tensor* from,
                             int count, TensorView* to) {
  if (from == nullptr) return nullptr;
  for (int i = 0; i < count; ++i) to[i] = view_of(op, name, from[i]);
  return to;
}

int checked_slice_count(const char* op, std::int32_t count) {
  if (count < 0 || count > PENSTOCK_MAX_SLICES) {
    fail(ErrorCode::kValue, op, "slice_count",
         "expected 0 to " + std::to_string(PENSTOCK_MAX_SLICES), std::to_string(count));
  }
  return count;
}

template <class Call>
void read_inputs(const Reader& read, const penstock_sliced_forward_args& from, Call* to) {
  to->cell = &required(read.op, "cell", from.cell);
  to->slice_count = checked_slice_count(read.op, from.slice_count);
  to->slices = from.slices;
  to->levels = read_levels(read.op, kLevelNames, from.levels, to->slice_count + 1, &to->parameters);
  PENSTOCK_C_TENSOR(x);
  PENSTOCK_C_TENSOR(lengths);
  read.option("pad", from.pad, 2, &to->pad);
  read.option("mask", from.mask, 2, &to->mask);
  read.option("direction", from.direction, kDirections, &to->direction);
  read.option("activation", from.activation, kActivations, &to->activation);
  read.option("reset", from.reset, 2, &to->reset);
  to->skip = from.skip != 0;
  to->scale_x = from.scale_x;
  to->recompute = from.recompute != 0;
}

void read_outputs(const Reader& read, const penstock_sliced_forward_args& from,
                  SlicedForwardCall* to) {
  to->outputs = read_views(read.op, "outputs", from.outputs, to->slice_count + 1, to->views);
}

void read_gradients(const Reader& read, const penstock_sliced_backward_args& from,
                    SlicedBackwardCall* to) {
  const int count = to->slice_count + 1;
  to->doutputs = read_views(read.op, "doutputs", from.doutputs, count, to->views);
  PENSTOCK_C_TENSOR(dx);
  to->dlevels = read_levels(read.op, kGradientNames, from.dlevels, count, &to->gradients);
}

// ---- any operation ------------------------------------------------------------------------------

template <class To, class From>
void read_forward(const char* op, const From* args, To* to) {
  const Reader read{op};
  const From& from = known(op, "args", args);
  read_inputs(read, from, to);
  read_outputs(read, from, to);
  to->need_grad = from.need_grad != 0;
  PENSTOCK_C_TENSOR(workspace);
  PENSTOCK_C_TENSOR(reserve);
}

template <class To, class From>
void read_backward(const char* op, const From* args, To* to) {
  const Reader read{op};
  const From& from = known(op, "args", args);
  const auto& forward = known(op, "forward", from.forward);
  read_inputs(read, forward, to);
  read.tensor("reserve", forward.reserve, &to->reserve);
  read_gradients(read, from, to);
  PENSTOCK_C_TENSOR(workspace);
}

#undef PENSTOCK_C_TENSOR

// ---- defaults -----------------------------------------------------------------------------------

template <class Args>
Args forward_defaults() {
  Args args = {};
  args.need_grad = 1;
  return args;
}

}  // namespace
}  // namespace penstock::c

namespace c = penstock::c;

penstock_status penstock_sru_forward_init(penstock_sru_forward_args* args, size_t size) {
  return c::guarded([&] {
    auto defaults = c::forward_defaults<penstock_sru_forward_args>();
    defaults.activation = PENSTOCK_IDENTITY;
    defaults.skip = 1;
    defaults.scale_x = 1.0;
    c::initialise("sru_forward_init", "args", args, size, defaults);
  });
}

penstock_status penstock_rnn_forward_init(penstock_rnn_forward_args* args, size_t size) {
  return c::guarded([&] {
    auto defaults = c::forward_defaults<penstock_rnn_forward_args>();
    defaults.activation = PENSTOCK_TANH;
    c::initialise("rnn_forward_init", "args", args, size, defaults);
  });
}

penstock_status penstock_gru_forward_init(penstock_gru_forward_args* args, size_t size) {
  return c::guarded([&] {
    auto defaults = c::forward_defaults<penstock_gru_forward_args>();
    defaults.activation = PENSTOCK_TANH;
    c::initialise("gru_forward_init", "args", args, size, defaults);
  });
}

penstock_status penstock_lstm_forward_init(penstock_lstm_forward_args* args, size_t size) {
  return c::guarded([&] {
    c::initialise("lstm_forward_init", "args", args, size,
                  c::forward_defaults<penstock_lstm_forward_args>());
  });
}

penstock_status penstock_sliced_forward_init(penstock_sliced_forward_args* args, size_t size) {
  return c::guarded([&] {
    auto defaults = c::forward_defaults<penstock_sliced_forward_args>();
    defaults.cell = "gru";
    defaults.activation = PENSTOCK_TANH;
    defaults.skip = 1;
    defaults.scale_x = 1.0;
    c::initialise("sliced_forward_init", "args", args, size, defaults);
  });
}

// The six other functions of operation `x`, over the C++ arguments Forward and Backward.
#define PENSTOCK_C_OPERATION(x, Forward, Backward)                                                \
  penstock_status penstock_##x##_backward_init(penstock_##x##_backward_args* args, size_t size) { \
    return c::guarded([&] {                                                                       \
      c::initialise(#x "_backward_init", "args", args, size, penstock_##x##_backward_args{});     \
    });                                                                                           \
  }                                                                                               \
  penstock_status penstock_##x##_forward_workspace_bytes(                                         \
      const penstock_context* context, const penstock_##x##_forward_args* args, size_t* bytes) {  \
    return c::guarded([&] {                                                                       \
      Forward call;                                                                               \
      c::required(#x, "bytes", bytes);                                                            \
      c::read_forward(#x, args, &call);                                                           \
      *bytes = penstock::x##_forward_workspace_bytes(c::required(#x, "context", context).context, \
                                                     call);                                       \
    });                                                                                           \
  }                                                                                               \
  penstock_status penstock_##x##_reserve_bytes(                                                   \
      const penstock_context* context, const penstock_##x##_forward_args* args, size_t* bytes) {  \
    return c::guarded([&] {                                                                       \
      Forward call;                                                                               \
      c::required(#x, "bytes", bytes);                                                            \
      c::read_forward(#x, args, &call);                                                           \
      *bytes = penstock::x##_reserve_bytes(c::required(#x, "context", context).context, call);    \
    });                                                                                           \
  }                                                                                               \
  penstock_status penstock_##x##_backward_workspace_bytes(                                        \
      const penstock_context* context, const penstock_##x##_backward_args* args, size_t* bytes) { \
    return c::guarded([&] {                                                                       \
      Backward call;                                                                              \
      c::required(#x ".backprop", "bytes", bytes);                                                \
      c::read_backward(#x ".backprop", args, &call);                                              \
      *bytes = penstock::x##_backward_workspace_bytes(                                            \
          c::required(#x ".backprop", "context", context).context, call);                         \
    });                                                                                           \
  }                                                                                               \
  penstock_status penstock_##x##_forward(const penstock_context* context,                         \
                                         const penstock_##x##_forward_args* args) {               \
    return c::guarded([&] {                                                                       \
      Forward call;                                                                               \
      c::read_forward(#x, args, &call);                                                           \
      penstock::x##_forward(c::required(#x, "context", context).context, call);                   \
    });                                                                                           \
  }                                                                                               \
  penstock_status penstock_##x##_backward(const penstock_context* context,                        \
                                          const penstock_##x##_backward_args* args) {             \
    return c::guarded([&] {                                                                       \
      Backward call;                                                                              \
      c::read_backward(#x ".backprop", args, &call);                                              \
      penstock::x##_backward(c::required(#x ".backprop", "context", context).context, call);      \
    });                                                                                           \
  }

PENSTOCK_C_OPERATION(sru, penstock::SruForwardArgs, penstock::SruBackwardArgs)
PENSTOCK_C_OPERATION(rnn, penstock::RnnForwardArgs, penstock::RnnBackwardArgs)
PENSTOCK_C_OPERATION(gru, penstock::GruForwardArgs, penstock::GruBackwardArgs)
PENSTOCK_C_OPERATION(lstm, penstock::LstmForwardArgs, penstock::LstmBackwardArgs)
PENSTOCK_C_OPERATION(sliced, c::SlicedForwardCall, c::SlicedBackwardCall)

#undef PENSTOCK_C_OPERATION

penstock_status penstock_sliced_shape(int64_t time, const int64_t* slices, int32_t slice_count,
                                      int64_t* steps, int64_t* parts) {
  return c::guarded([&] {
    const char* op = "sliced_shape";
    if (time < 0) {
      c::fail(penstock::ErrorCode::kValue, op, "time", "expected 0 or more", std::to_string(time));
    }
    const int count = c::checked_slice_count(op, slice_count);
    if (count > 0) c::required(op, "slices", slices);
    c::required(op, "steps", steps);
    c::required(op, "parts", parts);
    penstock::sliced_shape(time, slices, count, steps, parts);
  });
}
