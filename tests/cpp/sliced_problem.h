// Sliced networks for the tests: random inputs, a float64 reference that gathers each part's steps
// into a sequence of its own, and the library's answer through the public headers alone.
#pragma once

#include <functional>
#include <numeric>
#include <string>
#include <vector>

#include "array.h"
#include "penstock/sliced.h"
#include "recurrent_problem.h"

namespace penstock::tests {

inline std::size_t at(std::int64_t i) { return static_cast<std::size_t>(i); }

struct SlicedShape {
  Cell cell = Cell::kGru;
  std::int64_t steps = 12, batch = 3, input = 4;
  std::vector<std::int64_t> slices = {2, 3};
  std::vector<std::int64_t> hidden = {6, 5, 7};  // of each level
  PadSide pad = PadSide::kLeft;
  SliceMask mask = SliceMask::kSkip;
  Direction direction = Direction::kForward;
  Activation activation = Activation::kTanh;
  ResetMode reset = ResetMode::kAfter;
  bool lengths = false, recompute = false, bias_ih = true, bias_hh = true;
  std::vector<bool> doutputs = {false, false, true};  // which gradients are given
  Layout layout = Layout::kContiguous;                // of every input

  int count() const { return static_cast<int>(slices.size()) + 1; }
  std::int64_t dirs() const { return direction == Direction::kBidirectional ? 2 : 1; }
  std::int64_t width(int i) const { return dirs() * hidden[at(i)]; }
  std::int64_t rows(int i) const { return gates_of(cell) * hidden[at(i)]; }
  std::int64_t input_of(int i) const { return i == 0 ? input : width(i - 1); }
  std::int64_t parts(int i) const {
    return std::accumulate(slices.begin(), slices.end() - i, std::int64_t{1},
                           std::multiplies<std::int64_t>());
  }
  /// Steps of each part.
  std::int64_t length(int i) const {
    return i == 0 ? (steps + parts(0) - 1) / parts(0) : slices[slices.size() - at(i)];
  }
  std::string words() const;
};

/// Of one level; empty where not given. Also their gradients.
struct LevelValues {
  Values weight_ih, weight_hh, bias_ih, bias_hh;
};
struct SlicedValues {
  Values x, lengths;
  std::vector<LevelValues> levels;
  std::vector<Values> doutputs;
};
struct SlicedResults {
  std::vector<Values> outputs;
  Values dx;
  std::vector<LevelValues> dlevels;
};

/// Random inputs, already rounded to `dtype`; x is NaN at padded steps.
SlicedValues random_values(const SlicedShape&, DataType dtype, std::uint64_t seed);
SlicedResults reference(const SlicedShape&, const SlicedValues&);
/// The library's forward and backward.
SlicedResults compute(const Context&, const SlicedShape&, const SlicedValues&, DataType dtype);
/// Expect what each element type may be off, at each level.
void expect_close(const SlicedResults& got, const SlicedResults& expected, DataType dtype,
                  const SlicedShape& s);
bool same_bits(const SlicedResults&, const SlicedResults&);
/// Shapes that between them have every option.
std::vector<SlicedShape> sliced_shapes();

/// A call's arguments with all their arrays, for tests that change some of them.
struct SlicedCall {
  struct LevelArrays {
    Array weight_ih, weight_hh, bias_ih, bias_hh;
    SlicedLevel view() const {
      return {weight_ih.view(), weight_hh.view(), bias_ih.view(), bias_hh.view()};
    }
  };

  SlicedCall(const Context&, const SlicedShape&, const SlicedValues&, DataType dtype);
  SlicedCall(const SlicedCall&) = delete;

  SlicedResults results() const;
  std::vector<const Array*> written() const;
  std::vector<const Array*> read() const;

  SlicedShape shape;
  SlicedForwardArgs forward;
  SlicedBackwardArgs backward;
  Array x, lengths, dx, workspace, reserve, backward_workspace;
  std::vector<LevelArrays> levels, dlevels;
  std::vector<Array> outputs, doutputs;
  std::vector<SlicedLevel> level_views, dlevel_views;
  std::vector<TensorView> output_views, doutput_views;
};

}  // namespace penstock::tests
