// Sliced networks for XLA.

#include "penstock/sliced.h"

#include <string>

#include "ffi/operations.h"
#include "ffi/options.h"

namespace penstock::ffi {
namespace {

constexpr int kMostLevels = SlicedInputs::kMaxSlices + 1;

std::string at(const char* name, int index) {
  return std::string(name) + "[" + std::to_string(index) + "]";
}

/// A call's arguments and what they point to.
template <class Args>
struct Call {
  Args args;
  std::string cell;
  SlicedLevel levels[kMostLevels], dlevels[kMostLevels];
  TensorView outputs[kMostLevels];
  std::int64_t slices[SlicedInputs::kMaxSlices] = {};
};

void read_inputs(Frame& frame, SlicedInputs& in, std::string& cell, SlicedLevel* levels,
                 std::int64_t* slices) {
  cell = frame.text("cell");
  in.cell = cell.c_str();
  in.x = frame.operand("x");
  in.lengths = frame.operand("lengths");
  in.slice_count = frame.integers("slices", slices, SlicedInputs::kMaxSlices);
  in.slices = slices;
  in.pad = frame.choice<PadSide>("pad", {{"left", PadSide::kLeft}, {"right", PadSide::kRight}});
  in.mask =
      frame.choice<SliceMask>("mask", {{"skip", SliceMask::kSkip}, {"none", SliceMask::kNone}});
  in.direction = direction_of(frame);
  in.activation = activation_of(frame);
  in.reset = reset_of(frame);
  in.skip = frame.flag("skip");
  in.scale_x = frame.number("scale_x");
  in.recompute = frame.flag("recompute");
  in.levels = levels;
}

/// `take(name)` for each parameter of each level.
template <class Take>
void read_levels(const SlicedInputs& in, const char* name, SlicedLevel* levels, const Take& take) {
  const bool sru = std::string_view(in.cell) == "sru";
  for (int i = 0; i <= in.slice_count; ++i) {
    const std::string level = at(name, i);
    levels[i].weight_ih = take(level + (sru ? ".weight" : ".weight_ih"));
    levels[i].weight_hh = take(level + (sru ? ".weight_c" : ".weight_hh"));
    levels[i].bias_ih = take(level + (sru ? ".bias" : ".bias_ih"));
    if (!sru) levels[i].bias_hh = take(level + ".bias_hh");
  }
}

}  // namespace

void sliced_forward(Frame& frame) {
  Call<SlicedForwardArgs> call;
  SlicedForwardArgs& args = call.args;
  read_inputs(frame, args, call.cell, call.levels, call.slices);
  read_levels(args, "levels", call.levels, [&](const std::string& n) { return frame.operand(n); });
  for (int i = 0; i <= args.slice_count; ++i) call.outputs[i] = frame.result(at("levels", i));
  args.outputs = call.outputs;
  args.reserve = frame.result("reserve");
  args.need_grad = args.reserve.given();
  args.workspace = frame.workspace();
  frame.no_others();
  penstock::sliced_forward(frame.context(), args);
}

void sliced_backward(Frame& frame) {
  Call<SlicedBackwardArgs> call;
  SlicedBackwardArgs& args = call.args;
  read_inputs(frame, args, call.cell, call.levels, call.slices);
  read_levels(args, "levels", call.levels, [&](const std::string& n) { return frame.operand(n); });
  read_levels(args, "dlevels", call.dlevels, [&](const std::string& n) { return frame.result(n); });
  for (int i = 0; i <= args.slice_count; ++i) call.outputs[i] = frame.operand(at("dlevels", i));
  args.doutputs = call.outputs;
  args.dlevels = call.dlevels;
  args.reserve = frame.operand("reserve");
  args.dx = frame.result("dx");
  args.workspace = frame.workspace();
  frame.no_others();
  penstock::sliced_backward(frame.context(), args);
}

}  // namespace penstock::ffi
