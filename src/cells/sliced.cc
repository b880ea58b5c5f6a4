// Slicing: one level after the other, each a cell over the rows of a Cut, or the upper ones at once
// where the backend offers that. Nothing here knows what a cell computes.

#include "penstock/sliced.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "cells/recurrent.h"
#include "cells/sru_level.h"
#include "core/backend.h"
#include "core/checks.h"
#include "core/workspace.h"
#include "penstock/error.h"

namespace penstock {
namespace {

using checks::Checker;
using recurrent::Level;
using recurrent::LevelGradients;
using recurrent::LevelOutputs;

/// A cell that can be sliced.
struct SlicedCell {
  const char* name;
  int gates;   // G of weight_ih, weight_hh and the biases
  bool joint;  // recurrent::first_joint_level may be asked
  /// Check what is the cell's own in a level whose x has `input` features; H.
  std::int64_t (*check)(Checker&, const SlicedInputs&, const SlicedLevel&, const char* const* names,
                        std::int64_t input, int gates);
  std::size_t (*reserve_bytes)(const Context&, const Level&);
  std::size_t (*forward_workspace_bytes)(const Context&, const Level&, const LevelOutputs&);
  std::size_t (*backward_workspace_bytes)(const Context&, const Level&, const LevelGradients&);
  void (*forward)(const Context&, const Level&, const LevelOutputs&, void* workspace,
                  void* reserve);
  void (*backward)(const Context&, const Level&, const LevelGradients&, void* workspace,
                   const void* reserve);
};

std::int64_t check_recurrent(Checker& check, const SlicedInputs& in, const SlicedLevel& level,
                             const char* const* names, std::int64_t input, int gates) {
  const std::string g = gates == 1 ? "H" : std::to_string(gates) + "*H";
  const std::string ih = "(dirs, " + g + ", D)", hh = "(dirs, " + g + ", H)",
                    bias = "(dirs, " + g + ")";
  check.required(names[0], level.weight_ih);
  check.required(names[1], level.weight_hh);
  check.rank(names[1], level.weight_hh, 3, hh.c_str());
  const std::int64_t dirs = in.direction == Direction::kBidirectional ? 2 : 1;
  const std::int64_t hidden = level.weight_hh.shape[2];
  if (hidden < 1) {
    check.fail(
        ErrorCode::kValue, names[1],
        "expected at least one hidden feature (actual: " + level.weight_hh.shape_string() + ")");
  }
  const DataType dtype = in.x.dtype;
  check.input(names[0], level.weight_ih, dtype, {dirs, gates * hidden, input}, ih.c_str());
  check.input(names[1], level.weight_hh, dtype, {dirs, gates * hidden, hidden}, hh.c_str());
  check.input(names[2], level.bias_ih, dtype, {dirs, gates * hidden}, bias.c_str());
  check.input(names[3], level.bias_hh, dtype, {dirs, gates * hidden}, bias.c_str());
  return hidden;
}

constexpr SlicedCell recurrent_cell(const char* name, int gates) {
  return {name,
          gates,
          /*joint=*/true,
          &check_recurrent,
          &recurrent::level_reserve_bytes,
          &recurrent::level_forward_workspace_bytes,
          &recurrent::level_backward_workspace_bytes,
          &recurrent::level_forward,
          &recurrent::level_backward};
}

// One line each.
constexpr SlicedCell kCells[] = {
    recurrent_cell("rnn", 1),
    recurrent_cell("gru", 3),
    recurrent_cell("lstm", 4),
    {"sru", 0, /*joint=*/false, &sru::check_level, &sru::level_reserve_bytes,
     &sru::level_forward_workspace_bytes, &sru::level_backward_workspace_bytes, &sru::level_forward,
     &sru::level_backward},
};

const SlicedCell& cell_of(const Checker& check, const char* name) {
  std::string names;
  for (const SlicedCell& cell : kCells) {
    if (name != nullptr && std::strcmp(cell.name, name) == 0) return cell;
    names += std::string(names.empty() ? "'" : ", '") + cell.name + "'";
  }
  check.fail(ErrorCode::kValue, "cell",
             "expected one of " + names + " (actual: " +
                 (name == nullptr ? "not given" : "'" + std::string(name) + "'") + ")");
}

std::size_t align(std::size_t bytes, std::size_t alignment) {
  return (bytes + alignment - 1) / alignment * alignment;
}

/// The levels of a call: shapes and checked arguments.
class Sliced {
 public:
  Sliced(Checker& check, const Context& ctx, const SlicedInputs& in)
      : ctx_(ctx), in_(in), cell_(cell_of(check, in.cell)) {
    check.required("x", in.x);
    if (!is_floating(in.x.dtype)) {
      check.fail(ErrorCode::kType, "x",
                 std::string("expected float32, float64, float16 or bfloat16 (actual: ") +
                     name_of(in.x.dtype) + ")");
    }
    check.rank("x", in.x, 3, "(T, B, D)");
    if (in.slice_count < 0 || in.slice_count > SlicedInputs::kMaxSlices) {
      check.fail(ErrorCode::kValue, "slices",
                 "expected at most " + std::to_string(SlicedInputs::kMaxSlices) +
                     " numbers (actual: " + std::to_string(in.slice_count) + ")");
    }
    if (in.slice_count > 0 && in.slices == nullptr) {
      check.fail(ErrorCode::kValue, "slices", "expected numbers (actual: not given)");
    }
    if (in.levels == nullptr) check.fail(ErrorCode::kValue, "levels", "expected parameters");
    check_options(check);
    const std::int64_t time = in.x.shape[0], batch = in.x.shape[1];
    count_ = in.slice_count + 1;
    sliced_shape(time, in.slices, in.slice_count, steps_, parts_);
    check.input("x", in.x, in.x.dtype, {time, batch, in.x.shape[2]}, "(T, B, D)");
    recurrent::check_lengths(check, ctx, in.lengths, batch, time);

    static const char* const kSuffixes[] = {".weight_ih", ".weight_hh", ".bias_ih", ".bias_hh"};
    const std::int64_t dirs = in.direction == Direction::kBidirectional ? 2 : 1;
    std::int64_t input = in.x.shape[2], unit = 1;
    names_.reserve(4 * static_cast<std::size_t>(count_));
    for (int i = 0; i < count_; ++i) {
      const char* names[4];
      for (int j = 0; j < 4; ++j) {
        names_.push_back("levels[" + std::to_string(i) + "]" + kSuffixes[j]);
        names[j] = names_.back().c_str();
      }
      const SlicedLevel& given = in.levels[i];
      const std::int64_t hidden = cell_.check(check, in, given, names, input, cell_.gates);
      Level& level = levels_[i];
      level.cell = cell_.name;
      level.options.activation = in.activation;
      level.options.reset = in.reset;
      level.weight_ih = given.weight_ih;
      level.weight_hh = given.weight_hh;
      level.bias_ih = given.bias_ih;
      level.bias_hh = given.bias_hh;
      level.lengths = in.lengths;
      level.direction = in.direction;
      level.recompute = in.recompute;
      level.skip = in.skip;
      level.scale_x = in.scale_x;
      width_[i] = dirs * hidden;
      recurrent::Cut& cut = level.cut;
      cut.time = i == 0 ? time : parts_[i - 1];
      cut.batch = batch;
      cut.parts = parts_[i];
      cut.steps = steps_[i];
      cut.skip = in.mask == SliceMask::kSkip || time == 0;  // of nothing comes 0
      cut.left = in.pad == PadSide::kLeft;
      cut.whole = time;
      cut.padded = parts_[0] * steps_[0];
      cut.shift = i == 0 && cut.left ? cut.padded - time : 0;
      cut.unit = unit;
      unit *= steps_[i];
      // Where padding is data, lengths do not count.
      if (!cut.skip) level.lengths = TensorView();
      input = width_[i];
    }
  }

  int count() const { return count_; }
  std::int64_t parts(int i) const { return parts_[i]; }
  std::int64_t width(int i) const { return width_[i]; }
  std::int64_t batch() const { return in_.x.shape[1]; }
  const SlicedCell& cell() const { return cell_; }
  std::size_t output_bytes(int i) const {
    return static_cast<std::size_t>(parts_[i] * batch() * width_[i]) * size_of(in_.x.dtype);
  }
  /// A level with its input: x, or the last states of the level below, at `below`.
  Level level(int i, const void* below, bool need_grad) const {
    Level l = levels_[i];
    l.need_grad = need_grad;
    l.x = i == 0 ? in_.x
                 : TensorView(below, in_.x.dtype, {parts_[i - 1], batch(), width_[i - 1]},
                              in_.x.device);
    return l;
  }
  /// An array of level i's outputs as the rows of its cell.
  TensorView rows(int i, void* data) const {
    // NOLINTNEXTLINE(clang-analyzer-security.ArrayBound)
    return TensorView(data, in_.x.dtype, {parts_[i] * batch(), width_[i]}, in_.x.device);
  }
  TensorView rows(int i, const void* data) const {
    // The analyser forgets that there are at most kMaxSlices slices.
    // NOLINTNEXTLINE(clang-analyzer-security.ArrayBound)
    return TensorView(data, in_.x.dtype, {parts_[i] * batch(), width_[i]}, in_.x.device);
  }

  /// Bytes of what forward keeps; `offsets[i]`: where level i's own begins, and behind it the
  /// outputs of the levels below the last.
  std::size_t reserve(std::size_t* offsets, std::size_t* output_offsets) const {
    Carver carver(nullptr, ctx_.backend().alignment);
    for (int i = 0; i < count_; ++i) {
      offsets[i] = carver.bytes();
      carver.take(cell_.reserve_bytes(ctx_, level(i, nullptr, true)));
      output_offsets[i] = carver.bytes();
      if (i + 1 < count_) carver.take(output_bytes(i));
    }
    return carver.bytes();
  }

  /// The first of the levels that are taken at once.
  int first_joint(bool need_grad, bool backward) const {
    if (!cell_.joint) return count_;
    std::vector<Level> levels;
    levels.reserve(static_cast<std::size_t>(count_));
    for (int i = 0; i < count_; ++i) levels.push_back(level(i, nullptr, need_grad));
    return recurrent::first_joint_level(ctx_, levels.data(), count_, backward);
  }

  std::size_t forward_workspace(bool need_grad) const {
    std::size_t most = 0;
    void* nowhere = nullptr;
    const int first = first_joint(need_grad, /*backward=*/false);
    std::vector<Level> levels;
    std::vector<LevelOutputs> outputs;
    for (int i = 0; i < count_; ++i) {
      LevelOutputs out;
      out.h_last = rows(i, nowhere);
      if (i < first) {
        most =
            std::max(most, cell_.forward_workspace_bytes(ctx_, level(i, nullptr, need_grad), out));
      } else {
        levels.push_back(level(i, nullptr, need_grad));
        outputs.push_back(out);
      }
    }
    if (first == count_) return most;
    return std::max(most, recurrent::joint_forward_workspace_bytes(ctx_, levels.data(),
                                                                   outputs.data(), count_ - first));
  }

  /// Gradients of a level's parameters, as given or, to measure, without memory.
  LevelGradients gradients(int i, const SlicedLevel* dlevels) const {
    const SlicedLevel& like = in_.levels[i];
    LevelGradients g;
    if (dlevels != nullptr) {
      g.dweight_ih = dlevels[i].weight_ih;
      g.dweight_hh = dlevels[i].weight_hh;
      g.dbias_ih = dlevels[i].bias_ih;
      g.dbias_hh = dlevels[i].bias_hh;
      return g;
    }
    const auto stand_in = [](const TensorView& v) {
      return v.given() ? contiguous_like(v, nullptr, v.dtype) : TensorView();
    };
    g.dweight_ih = stand_in(like.weight_ih);
    g.dweight_hh = stand_in(like.weight_hh);
    g.dbias_ih = stand_in(like.bias_ih);
    g.dbias_hh = stand_in(like.bias_hh);
    return g;
  }
  TensorView dx_of(int i, void* data) const {
    return contiguous_like(level(i, nullptr, true).x, data, in_.x.dtype);
  }
  std::size_t level_backward_workspace(int i) const {
    LevelGradients g = gradients(i, nullptr);
    void* nowhere = nullptr;
    g.dh_last = rows(i, nowhere);
    g.dx = dx_of(i, nullptr);
    return cell_.backward_workspace_bytes(ctx_, level(i, nullptr, true), g);
  }
  std::size_t joint_backward_workspace(int first) const {
    std::vector<Level> levels;
    std::vector<LevelGradients> all;
    for (int i = first; i < count_; ++i) {
      LevelGradients g = gradients(i, nullptr);
      void* nowhere = nullptr;
      g.dh_last = rows(i, nowhere);
      // Not contiguous, so that there is room for a copy.
      g.dh_last.strides[0] = 0;
      g.dh_last.strides[1] = 2;
      if (i == first) g.dx = dx_of(i, nullptr);
      levels.push_back(level(i, nullptr, true));
      all.push_back(g);
    }
    return recurrent::joint_backward_workspace_bytes(ctx_, levels.data(), all.data(),
                                                     count_ - first);
  }
  std::size_t backward_workspace() const {
    // Two gradients of outputs live at a time: of the level at hand and of the one below.
    std::size_t most = 0, outputs = 0;
    const int first = first_joint(true, /*backward=*/true);
    if (first < count_) most = joint_backward_workspace(first);
    for (int i = 0; i < first; ++i) most = std::max(most, level_backward_workspace(i));
    for (int i = 0; i < count_; ++i) outputs = std::max(outputs, output_bytes(i));
    const std::size_t alignment = ctx_.backend().alignment;
    return 2 * align(outputs, alignment) + most;
  }
  std::size_t largest_output() const {
    std::size_t outputs = 0;
    for (int i = 0; i < count_; ++i) outputs = std::max(outputs, output_bytes(i));
    return align(outputs, ctx_.backend().alignment);
  }

 private:
  void check_options(Checker& check) const {
    const auto range = [&](const char* name, int value, int count, const char* expected) {
      if (value < 0 || value >= count) check.fail(ErrorCode::kValue, name, expected);
    };
    range("pad", static_cast<int>(in_.pad), 2, "expected kLeft or kRight");
    range("mask", static_cast<int>(in_.mask), 2, "expected kSkip or kNone");
    range("direction", static_cast<int>(in_.direction), 3,
          "expected kForward, kReverse or kBidirectional");
    range("activation", static_cast<int>(in_.activation), 3, "expected identity, tanh or relu");
    range("reset", static_cast<int>(in_.reset), 2, "expected kAfter or kBefore");
  }

  const Context& ctx_;
  const SlicedInputs& in_;
  const SlicedCell& cell_;
  int count_ = 1;
  std::int64_t steps_[SlicedInputs::kMaxSlices + 1] = {};
  std::int64_t parts_[SlicedInputs::kMaxSlices + 1] = {};
  std::int64_t width_[SlicedInputs::kMaxSlices + 1] = {};
  Level levels_[SlicedInputs::kMaxSlices + 1];
  std::vector<std::string> names_;
};

constexpr int kMostLevels = SlicedInputs::kMaxSlices + 1;

}  // namespace

void sliced_shape(std::int64_t time, const std::int64_t* slices, int slice_count,
                  std::int64_t* steps, std::int64_t* parts) {
  std::int64_t product = 1;
  for (int i = 0; i < slice_count; ++i) {
    if (slices[i] < 1) {
      throw Error(ErrorCode::kValue, "sliced: slices: expected numbers of at least 1 (actual: " +
                                         std::to_string(slices[i]) + " at index " +
                                         std::to_string(i) + ")");
    }
    if (product > (std::int64_t{1} << 40) / slices[i]) {
      throw Error(ErrorCode::kValue,
                  "sliced: slices: expected a product of at most 2^40 (actual: more)");
    }
    product *= slices[i];
  }
  for (int level = 0; level <= slice_count; ++level) {
    parts[level] = product;
    steps[level] = level == 0 ? (time + product - 1) / product : slices[slice_count - level];
    if (level < slice_count) product /= slices[slice_count - 1 - level];
  }
}

std::size_t sliced_forward_workspace_bytes(const Context& ctx, const SlicedForwardArgs& a) {
  Checker check("sliced", ctx);
  return Sliced(check, ctx, a).forward_workspace(a.need_grad);
}

std::size_t sliced_reserve_bytes(const Context& ctx, const SlicedForwardArgs& a) {
  Checker check("sliced", ctx);
  const Sliced sliced(check, ctx, a);
  std::size_t offsets[kMostLevels], outputs[kMostLevels];
  return a.need_grad ? sliced.reserve(offsets, outputs) : 0;
}

std::size_t sliced_backward_workspace_bytes(const Context& ctx, const SlicedBackwardArgs& a) {
  Checker check("sliced.backprop", ctx);
  return Sliced(check, ctx, a).backward_workspace();
}

void sliced_forward(const Context& ctx, const SlicedForwardArgs& a) {
  Checker check("sliced", ctx);
  const Sliced sliced(check, ctx, a);
  const Backend& backend = ctx.backend();
  const int count = sliced.count();
  if (a.outputs == nullptr) check.fail(ErrorCode::kValue, "outputs", "expected arrays");
  for (int i = 0; i < count; ++i) {
    check.required("outputs", a.outputs[i]);
    check.output("outputs", a.outputs[i], a.x.dtype,
                 {sliced.parts(i), sliced.batch(), sliced.width(i)}, "(s_i, B, dirs*H)");
  }
  check.buffer("workspace", a.workspace, sliced.forward_workspace(a.need_grad), backend.alignment,
               /*written=*/true);
  std::size_t offsets[kMostLevels] = {}, kept[kMostLevels] = {};
  if (a.need_grad) {
    check.buffer("reserve", a.reserve, sliced.reserve(offsets, kept), kReserveAlignment,
                 /*written=*/true);
  }
  char none = 0;
  void* workspace = a.workspace.data != nullptr ? a.workspace.data : &none;
  auto* reserve = static_cast<char*>(a.reserve.data);
  const int first = sliced.first_joint(a.need_grad, /*backward=*/false);
  std::vector<Level> joint_levels;
  std::vector<LevelOutputs> joint_outputs;
  std::vector<void*> reserves, copies;
  for (int i = 0; i < count; ++i) {
    const void* below = i == 0 ? nullptr : a.outputs[i - 1].data;
    LevelOutputs out;
    out.h_last = sliced.rows(i, a.outputs[i].data);
    if (i >= first) {
      joint_levels.push_back(sliced.level(i, below, a.need_grad));
      joint_outputs.push_back(out);
      reserves.push_back(a.need_grad ? reserve + offsets[i] : nullptr);
      copies.push_back(a.need_grad && i + 1 < count ? reserve + kept[i] : nullptr);
      continue;
    }
    sliced.cell().forward(ctx, sliced.level(i, below, a.need_grad), out, workspace,
                          a.need_grad ? reserve + offsets[i] : nullptr);
    if (a.need_grad && i + 1 < count) {
      // The caller may change what it was given before it asks for gradients.
      backend.convert(ctx, out.h_last, sliced.rows(i, static_cast<void*>(reserve + kept[i])));
    }
  }
  if (first == count) return;
  recurrent::joint_forward(ctx, joint_levels.data(), joint_outputs.data(), count - first,
                           /*from_input=*/first == 0, workspace, reserves.data(), copies.data());
}

void sliced_backward(const Context& ctx, const SlicedBackwardArgs& a) {
  Checker check("sliced.backprop", ctx);
  const Sliced sliced(check, ctx, a);
  const Backend& backend = ctx.backend();
  const int count = sliced.count();
  const DataType dtype = a.x.dtype;
  if (a.doutputs != nullptr) {
    for (int i = 0; i < count; ++i) {
      check.input("doutputs", a.doutputs[i], dtype,
                  {sliced.parts(i), sliced.batch(), sliced.width(i)}, "(s_i, B, dirs*H)");
    }
  }
  std::size_t offsets[kMostLevels] = {}, kept[kMostLevels] = {};
  check.buffer("reserve", a.reserve, sliced.reserve(offsets, kept), kReserveAlignment,
               /*written=*/false);
  check.required("dx", a.dx);
  check.output("dx", a.dx, dtype, {a.x.shape[0], a.x.shape[1], a.x.shape[2]}, "(T, B, D)");
  if (a.dlevels == nullptr) check.fail(ErrorCode::kValue, "dlevels", "expected arrays");
  for (int i = 0; i < count; ++i) {
    const auto output = [&](const char* name, const TensorView& v, const TensorView& like,
                            bool required) {
      if (required && like.given()) check.required(name, v);
      if (v.given() && !like.given()) {
        check.fail(ErrorCode::kValue, name, "expected the parameter to be given too");
      }
      if (like.rank == 3) {
        check.output(name, v, dtype, {like.shape[0], like.shape[1], like.shape[2]},
                     "the parameter's");
      } else {
        check.output(name, v, dtype, {like.shape[0], like.shape[1]}, "the parameter's");
      }
    };
    const SlicedLevel& like = a.levels[i];
    output("dlevels.weight_ih", a.dlevels[i].weight_ih, like.weight_ih, true);
    output("dlevels.weight_hh", a.dlevels[i].weight_hh, like.weight_hh, sliced.cell().gates > 0);
    output("dlevels.bias_ih", a.dlevels[i].bias_ih, like.bias_ih, false);
    output("dlevels.bias_hh", a.dlevels[i].bias_hh, like.bias_hh, false);
  }
  check.buffer("workspace", a.workspace, sliced.backward_workspace(), backend.alignment,
               /*written=*/true);

  char none = 0;
  char* workspace = a.workspace.data != nullptr ? static_cast<char*>(a.workspace.data) : &none;
  const auto* reserve = static_cast<const char*>(a.reserve.data);
  const std::size_t size = sliced.largest_output();
  char* const turns[2] = {workspace, workspace + size};
  workspace += 2 * size;
  const int first = sliced.first_joint(true, /*backward=*/true);
  if (first < count) {
    std::vector<Level> levels;
    std::vector<LevelGradients> all;
    std::vector<const void*> reserves;
    for (int i = first; i < count; ++i) {
      LevelGradients g = sliced.gradients(i, a.dlevels);
      if (a.doutputs != nullptr) g.dh_last = a.doutputs[i];
      if (i == first) g.dx = i == 0 ? a.dx : sliced.dx_of(i, turns[(i + 1) % 2]);
      levels.push_back(sliced.level(i, i == 0 ? nullptr : reserve + kept[i - 1], true));
      all.push_back(g);
      reserves.push_back(reserve + offsets[i]);
    }
    recurrent::joint_backward(ctx, levels.data(), all.data(), count - first, workspace,
                              reserves.data());
  }
  // What comes from the level above; the last level has none.
  for (int i = first - 1; i >= 0; --i) {
    void* from_above = turns[i % 2];
    const bool last = i == count - 1;
    const TensorView given = a.doutputs == nullptr ? TensorView() : a.doutputs[i];
    LevelGradients g = sliced.gradients(i, a.dlevels);
    g.dh_last = sliced.rows(i, from_above);
    if (last) {
      if (given.given()) {
        backend.convert(ctx, given, contiguous_like(given, from_above, dtype));
      } else {
        g.dh_last = TensorView();
      }
    } else if (given.given()) {
      // The turn that level i + 1 used is free again.
      void* copy = turns[(i + 1) % 2];
      const void* source = given.data;
      if (!given.contiguous()) {
        backend.convert(ctx, given, contiguous_like(given, copy, dtype));
        source = copy;
      }
      backend.add(ctx, source, from_above, dtype, given.numel());
    }
    g.dx = i == 0 ? a.dx : sliced.dx_of(i, turns[(i + 1) % 2]);
    const void* below = i == 0 ? nullptr : reserve + kept[i - 1];
    sliced.cell().backward(ctx, sliced.level(i, below, true), g, workspace, reserve + offsets[i]);
  }
}

}  // namespace penstock
