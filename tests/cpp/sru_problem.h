// SRU problems for the tests: random inputs, a plain float64 reference, and the library's answer
// through the public headers alone.
#pragma once

#include <string>
#include <vector>

#include "accuracy.h"
#include "array.h"
#include "penstock/sru.h"

namespace penstock::tests {

struct SruShape {
  std::int64_t steps = 5, batch = 3, input = 4, hidden = 6;
  int blocks = 4;  // K
  bool skip = true;
  Direction direction = Direction::kForward;
  Activation activation = Activation::kIdentity;
  MaskSite mask_site = MaskSite::kOutput;
  bool weight_c = true, c0 = true, mask_pad = false, lengths = false, mask_c = false;
  bool x_skip = false;  // with K = 3: an array of its own for the skip term
  bool dy = true, dc_last = true;
  double scale_x = 1.0;
  Layout layout = Layout::kContiguous;  // of every input

  std::int64_t dirs() const { return direction == Direction::kBidirectional ? 2 : 1; }
  std::int64_t width() const { return dirs() * hidden; }
  /// x' is scale_x times an input: x, or x_skip.
  bool skip_from_input() const { return skip && blocks == 3; }
  std::string words() const;
};

using Values = std::vector<double>;

/// Empty where not given.
struct SruValues {
  Values x, weight, weight_c, bias, c0, mask_pad, lengths, mask_c, x_skip, dy, dc_last;
};

struct SruResults {
  Values y, c_last, dx, dweight, dweight_c, dbias, dc0, dmask_c, dx_skip;
};

/// A result by name, and how many times tolerance_of it may be off.
struct SruResult {
  const char* name;
  const Values SruResults::* values;
  double factor;
};
constexpr SruResult kSruResults[] = {
    {"y", &SruResults::y, 1.0},
    {"c_last", &SruResults::c_last, 1.0},
    {"dx", &SruResults::dx, 10.0},
    {"dweight", &SruResults::dweight, 10.0},
    {"dweight_c", &SruResults::dweight_c, 10.0},
    {"dbias", &SruResults::dbias, 10.0},
    {"dc0", &SruResults::dc0, 10.0},
    {"dmask_c", &SruResults::dmask_c, 10.0},
    {"dx_skip", &SruResults::dx_skip, 10.0},
};
inline bool same_bits(const SruResults& a, const SruResults& b) {
  return same_bits(a, b, kSruResults);
}

/// Random inputs, already rounded to `dtype`; x and x_skip are NaN at padded
/// steps.
SruValues random_values(const SruShape&, DataType dtype, std::uint64_t seed);
/// The equations of include/penstock/sru.h and their derivatives, in float64, element by element.
SruResults reference(const SruShape&, const SruValues&);
/// The library's forward and backward.
SruResults compute(const Context&, const SruShape&, const SruValues&, DataType dtype);

/// A call's arguments with all their arrays, for tests that change some of them.
struct SruCall {
  SruCall(const Context&, const SruShape&, const SruValues&, DataType dtype);
  SruForwardArgs forward;
  SruBackwardArgs backward;
  Array x, weight, weight_c, bias, c0, mask_pad, lengths, mask_c, x_skip, dy, dc_last;
  Array y, c_last, dx, dweight, dweight_c, dbias, dc0, dmask_c, dx_skip;
  Array forward_workspace, reserve, backward_workspace;
  SruResults results() const;
  std::vector<const Array*> outputs() const;
};

}  // namespace penstock::tests
