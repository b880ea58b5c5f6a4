#include "sliced_problem.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "accuracy.h"

namespace penstock::tests {
namespace {

/// Whether step t of sequence b counts.
bool counts(const SlicedShape& s, const SlicedValues& v, std::int64_t t, std::int64_t b) {
  if (s.mask == SliceMask::kNone || !s.lengths) return true;
  const auto length = static_cast<std::int64_t>(v.lengths[at(b)]);
  return s.pad == PadSide::kLeft ? t >= s.steps - length : t < length;
}

/// One sequence's way through all levels.
class ReferenceTree {
 public:
  ReferenceTree(const SlicedShape& s, const SlicedValues& v, std::int64_t b)
      : s_(s), v_(v), b_(b), zeros_(at(s.input)) {
    // A row of the level's input for each of its entries, and whether it counts.
    std::vector<const double*> entries;
    std::vector<bool> valid;
    const std::int64_t padded = s.parts(0) * s.length(0);
    const std::int64_t shift = s.pad == PadSide::kLeft ? padded - s.steps : 0;
    for (std::int64_t e = 0; e < padded; ++e) {
      const std::int64_t t = e - shift;
      const bool present = t >= 0 && t < s.steps;
      entries.push_back(present ? v.x.data() + (t * s.batch + b) * s.input : zeros_.data());
      valid.push_back(present ? counts(s, v, t, b) : s.mask == SliceMask::kNone);
    }
    for (int i = 0; i < s.count(); ++i) {
      Level level;
      const std::int64_t h = s.hidden[at(i)];
      std::vector<bool> parts_valid;
      for (std::int64_t part = 0; part < s.parts(i); ++part) {
        Part p;
        for (std::int64_t e = part * s.length(i); e < (part + 1) * s.length(i); ++e) {
          if (valid[at(e)]) p.entries.push_back(e);
        }
        for (std::int64_t dir = 0; dir < s.dirs(); ++dir) {
          std::vector<const double*> steps;
          for (std::int64_t e : order(p, dir)) steps.push_back(entries[at(e)]);
          p.sequences.emplace_back(s.cell, s.activation, s.reset, s.input_of(i), h,
                                   parameters(i, dir));
          p.sequences.back().forward(steps, Values(at(h)), Values(at(h)));
          const Values& last = p.sequences.back().h(steps.size());
          p.output.insert(p.output.end(), last.begin(), last.end());
        }
        parts_valid.push_back(!p.entries.empty());
        level.push_back(std::move(p));
      }
      levels_.push_back(std::move(level));
      entries.clear();
      for (const Part& p : levels_.back()) entries.push_back(p.output.data());
      valid = parts_valid;
    }
  }

  void write(SlicedResults* r) const {
    for (int i = 0; i < s_.count(); ++i) {
      for (std::int64_t part = 0; part < s_.parts(i); ++part) {
        const Values& from = levels_[at(i)][at(part)].output;
        std::copy(from.begin(), from.end(), r->outputs[at(i)].begin() + row(i, part));
      }
    }
  }

  void backward(SlicedResults* r) const {
    std::vector<Values> dentries;  // of the outputs of the level at hand
    for (int i = s_.count() - 1; i >= 0; --i) {
      std::vector<Values> dbelow(at(i == 0 ? s_.parts(0) * s_.length(0) : s_.parts(i - 1)),
                                 Values(at(s_.input_of(i))));
      for (std::int64_t part = 0; part < s_.parts(i); ++part) {
        const Part& p = levels_[at(i)][at(part)];
        Values doutput(at(s_.width(i)));
        if (!dentries.empty()) doutput = dentries[at(part)];
        if (!v_.doutputs[at(i)].empty()) {
          for (std::size_t j = 0; j < doutput.size(); ++j) {
            doutput[j] += v_.doutputs[at(i)][at(row(i, part)) + j];
          }
        }
        for (std::int64_t dir = 0; dir < s_.dirs(); ++dir) {
          const std::int64_t h = s_.hidden[at(i)];
          Values dh(doutput.begin() + dir * h, doutput.begin() + (dir + 1) * h), dc(at(h));
          std::vector<double*> dx;
          for (std::int64_t e : order(p, dir)) dx.push_back(dbelow[at(e)].data());
          LevelValues& d = r->dlevels[at(i)];
          const std::int64_t from = dir * s_.rows(i);
          const CellParameters<double> gradients = {
              d.weight_ih.data() + from * s_.input_of(i), d.weight_hh.data() + from * h,
              d.bias_ih.empty() ? nullptr : d.bias_ih.data() + from,
              d.bias_hh.empty() ? nullptr : d.bias_hh.data() + from};
          p.sequences[at(dir)].backward(std::vector<const double*>(dx.size()), &dh, &dc, dx,
                                        gradients);
        }
      }
      dentries = std::move(dbelow);
    }
    const std::int64_t shift = s_.pad == PadSide::kLeft ? s_.parts(0) * s_.length(0) - s_.steps : 0;
    for (std::int64_t t = 0; t < s_.steps; ++t) {
      const Values& from = dentries[at(t + shift)];
      std::copy(from.begin(), from.end(), r->dx.begin() + (t * s_.batch + b_) * s_.input);
    }
  }

 private:
  struct Part {
    std::vector<std::int64_t> entries;  // that count, in time order
    std::vector<ReferenceSequence> sequences;
    Values output;
  };
  using Level = std::vector<Part>;

  std::vector<std::int64_t> order(const Part& p, std::int64_t dir) const {
    std::vector<std::int64_t> entries = p.entries;
    if (s_.direction == Direction::kReverse || dir == 1) {
      std::reverse(entries.begin(), entries.end());
    }
    return entries;
  }
  CellParameters<const double> parameters(int i, std::int64_t dir) const {
    const LevelValues& p = v_.levels[at(i)];
    const std::int64_t from = dir * s_.rows(i);
    return {p.weight_ih.data() + from * s_.input_of(i),
            p.weight_hh.data() + from * s_.hidden[at(i)],
            p.bias_ih.empty() ? nullptr : p.bias_ih.data() + from,
            p.bias_hh.empty() ? nullptr : p.bias_hh.data() + from};
  }
  std::int64_t row(int i, std::int64_t part) const { return (part * s_.batch + b_) * s_.width(i); }

  const SlicedShape& s_;
  const SlicedValues& v_;
  std::int64_t b_;
  Values zeros_;
  std::vector<Level> levels_;
};

/// Call each(name, a's values, b's values, whether they are gradients).
template <class F>
void for_each_result(const SlicedResults& a, const SlicedResults& b, const F& each) {
  each("dx", a.dx, b.dx, true);
  for (std::size_t i = 0; i < a.outputs.size(); ++i) {
    const std::string level = " of level " + std::to_string(i);
    const LevelValues &p = a.dlevels[i], &q = b.dlevels[i];
    each("output" + level, a.outputs[i], b.outputs[i], false);
    each("dweight_ih" + level, p.weight_ih, q.weight_ih, true);
    each("dweight_hh" + level, p.weight_hh, q.weight_hh, true);
    each("dbias_ih" + level, p.bias_ih, q.bias_ih, true);
    each("dbias_hh" + level, p.bias_hh, q.bias_hh, true);
  }
}

}  // namespace

std::string SlicedShape::words() const {
  std::string s = std::string(cell_name(cell)) + " T=" + std::to_string(steps) +
                  " B=" + std::to_string(batch) + " D=" + std::to_string(input) + " slices=(";
  for (std::int64_t n : slices) s += std::to_string(n) + ",";
  s += ") H=(";
  for (std::int64_t n : hidden) s += std::to_string(n) + ",";
  return s + ") pad=" + std::to_string(static_cast<int>(pad)) +
         " mask=" + std::to_string(static_cast<int>(mask)) +
         " direction=" + std::to_string(static_cast<int>(direction)) +
         " activation=" + std::to_string(static_cast<int>(activation)) +
         " reset=" + std::to_string(static_cast<int>(reset)) +
         " layout=" + std::to_string(static_cast<int>(layout)) + (lengths ? " lengths" : "") +
         (recompute ? " recompute" : "");
}

SlicedValues random_values(const SlicedShape& s, DataType dtype, std::uint64_t seed) {
  Numbers numbers(seed);
  SlicedValues v;
  v.x = numbers.take(s.steps * s.batch * s.input);
  for (std::int64_t b = 0; s.lengths && b < s.batch; ++b) {
    // The first sequence has no step that counts.
    const std::uint64_t length = numbers.bits() % static_cast<std::uint64_t>(s.steps + 1);
    v.lengths.push_back(b == 0 ? 0.0 : static_cast<double>(length));
  }
  for (int i = 0; i < s.count(); ++i) {
    const std::int64_t parameters = s.dirs() * s.rows(i), h = s.hidden[at(i)];
    const auto scale = [](std::int64_t n) { return 1.5 / std::sqrt(static_cast<double>(n + 1)); };
    LevelValues level;
    level.weight_ih = numbers.take(parameters * s.input_of(i), scale(s.input_of(i)));
    level.weight_hh = numbers.take(parameters * h, scale(h));
    if (s.bias_ih) level.bias_ih = numbers.take(parameters, 0.5);
    if (s.bias_hh) level.bias_hh = numbers.take(parameters, 0.5);
    for (Values* p : {&level.weight_ih, &level.weight_hh, &level.bias_ih, &level.bias_hh}) {
      round_values(dtype, p);
    }
    v.levels.push_back(level);
    v.doutputs.push_back(s.doutputs[at(i)] ? numbers.take(s.parts(i) * s.batch * s.width(i))
                                           : Values());
    round_values(dtype, &v.doutputs.back());
  }
  round_values(dtype, &v.x);
  for (std::int64_t row = 0; row < s.steps * s.batch; ++row) {
    if (counts(s, v, row / s.batch, row % s.batch)) continue;
    std::fill_n(v.x.begin() + row * s.input, s.input, NAN);
  }
  return v;
}

SlicedResults reference(const SlicedShape& s, const SlicedValues& v) {
  SlicedResults r;
  r.dx.resize(v.x.size());
  for (int i = 0; i < s.count(); ++i) {
    const LevelValues& p = v.levels[at(i)];
    r.outputs.emplace_back(at(s.parts(i) * s.batch * s.width(i)));
    r.dlevels.push_back({Values(p.weight_ih.size()), Values(p.weight_hh.size()),
                         Values(p.bias_ih.size()), Values(p.bias_hh.size())});
  }
  if (s.steps == 0) return r;  // of nothing comes 0
  for (std::int64_t b = 0; b < s.batch; ++b) {
    const ReferenceTree tree(s, v, b);
    tree.write(&r);
    tree.backward(&r);
  }
  return r;
}

SlicedCall::SlicedCall(const Context& ctx, const SlicedShape& s, const SlicedValues& v,
                       DataType dtype)
    : shape(s) {
  x = Array(dtype, {s.steps, s.batch, s.input}, v.x, s.layout);
  dx = Array(dtype, {s.steps, s.batch, s.input});
  if (s.lengths) lengths = Array(DataType::kInt32, {s.batch}, v.lengths, s.layout);
  for (int i = 0; i < s.count(); ++i) {
    const Shape ih = {s.dirs(), s.rows(i), s.input_of(i)},
                hh = {s.dirs(), s.rows(i), s.hidden[at(i)]}, bias = {s.dirs(), s.rows(i)},
                out = {s.parts(i), s.batch, s.width(i)};
    const LevelValues& p = v.levels[at(i)];
    LevelArrays a, d;
    a.weight_ih = Array(dtype, ih, p.weight_ih, s.layout);
    a.weight_hh = Array(dtype, hh, p.weight_hh, s.layout);
    d.weight_ih = Array(dtype, ih);
    d.weight_hh = Array(dtype, hh);
    if (s.bias_ih) {
      a.bias_ih = Array(dtype, bias, p.bias_ih, s.layout);
      d.bias_ih = Array(dtype, bias);
    }
    if (s.bias_hh) {
      a.bias_hh = Array(dtype, bias, p.bias_hh, s.layout);
      d.bias_hh = Array(dtype, bias);
    }
    levels.push_back(a);
    dlevels.push_back(d);
    outputs.emplace_back(dtype, out);
    doutputs.push_back(s.doutputs[at(i)] ? Array(dtype, out, v.doutputs[at(i)], s.layout)
                                         : Array());
    level_views.push_back(a.view());
    dlevel_views.push_back(d.view());
    output_views.push_back(outputs.back().view());
    doutput_views.push_back(doutputs.back().view());
  }
  SlicedInputs& in = forward;
  in.cell = cell_name(s.cell);
  in.x = x.view();
  in.levels = level_views.data();
  in.slices = shape.slices.data();
  in.slice_count = s.count() - 1;
  in.lengths = lengths.view();
  in.pad = s.pad;
  in.mask = s.mask;
  in.direction = s.direction;
  in.activation = s.activation;
  in.reset = s.reset;
  in.recompute = s.recompute;
  static_cast<SlicedInputs&>(backward) = in;
  workspace = Array::bytes(sliced_forward_workspace_bytes(ctx, forward));
  reserve = Array::bytes(sliced_reserve_bytes(ctx, forward));
  forward.outputs = output_views.data();
  forward.workspace = workspace.view();
  forward.reserve = reserve.view();
  backward.reserve = reserve.view();
  backward.doutputs = doutput_views.data();
  backward.dx = dx.view();
  backward.dlevels = dlevel_views.data();
  backward_workspace = Array::bytes(sliced_backward_workspace_bytes(ctx, backward));
  backward.workspace = backward_workspace.view();
}

SlicedResults SlicedCall::results() const {
  SlicedResults r;
  r.dx = dx.get();
  for (const Array& a : outputs) r.outputs.push_back(a.get());
  for (const LevelArrays& d : dlevels) {
    r.dlevels.push_back({d.weight_ih.get(), d.weight_hh.get(), d.bias_ih.get(), d.bias_hh.get()});
  }
  return r;
}
std::vector<const Array*> SlicedCall::written() const {
  std::vector<const Array*> all = {&dx, &workspace, &reserve, &backward_workspace};
  for (const Array& a : outputs) all.push_back(&a);
  for (const LevelArrays& d : dlevels) {
    for (const Array* a : {&d.weight_ih, &d.weight_hh, &d.bias_ih, &d.bias_hh}) all.push_back(a);
  }
  return all;
}
std::vector<const Array*> SlicedCall::read() const {
  std::vector<const Array*> all = {&x, &lengths};
  for (const Array& a : doutputs) all.push_back(&a);
  for (const LevelArrays& d : levels) {
    for (const Array* a : {&d.weight_ih, &d.weight_hh, &d.bias_ih, &d.bias_hh}) all.push_back(a);
  }
  return all;
}

SlicedResults compute(const Context& ctx, const SlicedShape& s, const SlicedValues& v,
                      DataType dtype) {
  const SlicedCall call(ctx, s, v, dtype);
  sliced_forward(ctx, call.forward);
  sliced_backward(ctx, call.backward);
  return call.results();
}

void expect_close(const SlicedResults& got, const SlicedResults& expected, DataType dtype,
                  const SlicedShape& s) {
  // Each level rounds its outputs and their gradients.
  const double tolerance = tolerance_of(dtype) * s.count();
  for_each_result(got, expected,
                  [&](const std::string& name, const Values& a, const Values& b, bool gradient) {
                    EXPECT_LE(relative_error(a, b), (gradient ? 10.0 : 1.0) * tolerance)
                        << name << " " << name_of(dtype) << " " << s.words();
                  });
}

bool same_bits(const SlicedResults& a, const SlicedResults& b) {
  bool same = true;
  for_each_result(a, b, [&](const std::string&, const Values& x, const Values& y, bool) {
    same = same && same_bits(x, y);
  });
  return same;
}

std::vector<SlicedShape> sliced_shapes() {
  std::vector<SlicedShape> all;
  const auto add = [&](const std::function<void(SlicedShape&)>& change) {
    SlicedShape s;
    change(s);
    s.hidden.resize(at(s.count()), 4);
    s.doutputs.resize(at(s.count()), true);
    all.push_back(s);
  };
  for (Cell cell : {Cell::kRnn, Cell::kGru, Cell::kLstm}) {
    for (Direction direction :
         {Direction::kForward, Direction::kReverse, Direction::kBidirectional}) {
      for (PadSide pad : {PadSide::kLeft, PadSide::kRight}) {
        for (SliceMask mask : {SliceMask::kSkip, SliceMask::kNone}) {
          for (std::int64_t steps : {12, 14}) {
            add([&](SlicedShape& s) {
              s.cell = cell;
              s.direction = direction;
              s.pad = pad;
              s.mask = mask;
              s.steps = steps;
              s.lengths = steps == 14;
              s.recompute = steps == 12;
            });
          }
        }
      }
    }
  }
  for (PadSide pad : {PadSide::kLeft, PadSide::kRight}) {
    for (Activation activation : {Activation::kIdentity, Activation::kRelu}) {
      add([&](SlicedShape& s) {
        s.pad = pad;
        s.activation = activation;
        s.reset = ResetMode::kBefore;
        s.lengths = true;
        s.recompute = activation == Activation::kRelu;
      });
    }
    // More parts than steps: some are padding alone.
    add([&](SlicedShape& s) { s.pad = pad, s.steps = 4; });
    add([&](SlicedShape& s) { s.pad = pad, s.steps = 4, s.mask = SliceMask::kNone; });
    add([&](SlicedShape& s) { s.pad = pad, s.steps = 1; });
    add([&](SlicedShape& s) { s.pad = pad, s.steps = 0; });
    add([&](SlicedShape& s) { s.pad = pad, s.steps = 0, s.mask = SliceMask::kNone; });
    // Several parts at a time, and only some of their steps.
    add([&](SlicedShape& s) {
      s.pad = pad;
      s.steps = 1211, s.batch = 2, s.input = 3;
      s.slices = {3, 2};
      s.hidden = {70, 5, 6};
      s.direction = Direction::kBidirectional;
      s.lengths = true;
    });
  }
  add([](SlicedShape& s) { s.slices = {}, s.lengths = true; });
  add([](SlicedShape& s) { s.slices = {5}, s.lengths = true; });
  add([](SlicedShape& s) { s.slices = {1, 1, 1}; });
  add([](SlicedShape& s) { s.slices = {2, 2, 3, 2}, s.steps = 50, s.lengths = true; });
  add([](SlicedShape& s) { s.batch = 0; });
  add([](SlicedShape& s) { s.input = 0; });
  add([](SlicedShape& s) { s.bias_ih = false; });
  add([](SlicedShape& s) { s.bias_ih = s.bias_hh = false; });
  add([](SlicedShape& s) { s.doutputs = {true, true, true}; });
  add([](SlicedShape& s) { s.doutputs = {true, false, false}; });
  add([](SlicedShape& s) { s.doutputs = {false, true, false}; });
  add([](SlicedShape& s) { s.doutputs = {false, false, false}; });
  for (Layout layout : {Layout::kFortran, Layout::kNegative, Layout::kGaps}) {
    add([&](SlicedShape& s) {
      s.layout = layout;
      s.lengths = true;
      s.doutputs = {true, true, true};
      s.direction = Direction::kBidirectional;
    });
  }
  return all;
}

}  // namespace penstock::tests
