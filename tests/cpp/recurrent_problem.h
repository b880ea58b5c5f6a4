// Problems of the cells whose steps mix the state through a matrix: random inputs, a plain float64
// reference, and the library's answer through the public headers alone.
#pragma once

#include <string>
#include <vector>

#include "accuracy.h"
#include "array.h"
#include "penstock/gru.h"
#include "penstock/lstm.h"
#include "penstock/rnn.h"

namespace penstock::tests {

using Values = std::vector<double>;

enum class Cell { kRnn, kGru, kLstm };
const char* cell_name(Cell);
std::int64_t gates_of(Cell);

/// Round values to what `dtype` holds.
void round_values(DataType dtype, Values* v);

struct RecurrentShape {
  Cell cell = Cell::kGru;
  std::int64_t steps = 5, batch = 3, input = 4, hidden = 6;
  Direction direction = Direction::kForward;
  Activation activation = Activation::kTanh;  // not of the LSTM
  ResetMode reset = ResetMode::kAfter;        // of the GRU
  bool bias_ih = true, bias_hh = true, h0 = true, c0 = true, lengths = false;
  bool dy = true, dh_last = true, dc_last = true;
  bool state_gradients = true;  // ask for dh0 and dc0
  bool recompute = false;
  Layout layout = Layout::kContiguous;  // of every input
  DataType lengths_type = DataType::kInt64;

  bool has_c() const { return cell == Cell::kLstm; }
  std::int64_t dirs() const { return direction == Direction::kBidirectional ? 2 : 1; }
  std::int64_t width() const { return dirs() * hidden; }
  std::int64_t rows() const { return gates_of(cell) * hidden; }
  std::string words() const;
};

/// Empty where not given.
struct RecurrentValues {
  Values x, weight_ih, weight_hh, bias_ih, bias_hh, h0, c0, lengths, dy, dh_last, dc_last;
};
struct RecurrentResults {
  Values y, h_last, c_last, dx, dweight_ih, dweight_hh, dbias_ih, dbias_hh, dh0, dc0;
};

struct NamedResult {
  const char* name;
  const Values RecurrentResults::* values;
  double factor;  // of the tolerance
};
constexpr NamedResult kRecurrentResults[] = {
    {"y", &RecurrentResults::y, 1.0},
    {"h_last", &RecurrentResults::h_last, 1.0},
    {"c_last", &RecurrentResults::c_last, 1.0},
    {"dx", &RecurrentResults::dx, 10.0},
    {"dweight_ih", &RecurrentResults::dweight_ih, 10.0},
    {"dweight_hh", &RecurrentResults::dweight_hh, 10.0},
    {"dbias_ih", &RecurrentResults::dbias_ih, 10.0},
    {"dbias_hh", &RecurrentResults::dbias_hh, 10.0},
    {"dh0", &RecurrentResults::dh0, 10.0},
    {"dc0", &RecurrentResults::dc0, 10.0},
};
inline bool same_bits(const RecurrentResults& a, const RecurrentResults& b) {
  return same_bits(a, b, kRecurrentResults);
}

/// One direction of a cell's parameters, or of their gradients; a bias may be null.
template <class T>
struct CellParameters {
  T* weight_ih = nullptr;
  T* weight_hh = nullptr;
  T* bias_ih = nullptr;
  T* bias_hh = nullptr;
};

/// The equations of include/penstock/{rnn,gru,lstm}.h and their derivatives, in float64, over one
/// sequence in one direction: the steps are those that count, in processing order.
class ReferenceSequence {
 public:
  ReferenceSequence(Cell cell, Activation activation, ResetMode reset, std::int64_t input,
                    std::int64_t hidden, const CellParameters<const double>& parameters)
      : cell_(cell),
        activation_(activation),
        reset_(reset),
        input_(input),
        hidden_(hidden),
        p_(parameters) {}
  /// `steps`: a row of x each.
  void forward(const std::vector<const double*>& steps, const Values& h0, const Values& c0);
  /// State after step k; before it for k = 0.
  const Values& h(std::size_t k) const { return h_[k]; }
  const Values& c(std::size_t k) const { return c_[k]; }
  /// `dy[k]`: gradient of step k's output, or null. `dh` and `dc`: of the last states, then of the
  /// first. `dx[k]`: row to add to. Adds to the gradients of the parameters.
  void backward(const std::vector<const double*>& dy, Values* dh, Values* dc,
                const std::vector<double*>& dx, const CellParameters<double>& gradients) const;

 private:
  Cell cell_;
  Activation activation_;
  ResetMode reset_;
  std::int64_t input_, hidden_;
  CellParameters<const double> p_;
  std::vector<const double*> x_;
  std::vector<Values> h_, c_, gates_, sums_;
};

/// Random inputs, already rounded to `dtype`; x and dy are NaN at padded steps.
RecurrentValues random_values(const RecurrentShape&, DataType dtype, std::uint64_t seed);
RecurrentResults reference(const RecurrentShape&, const RecurrentValues&);
/// The library's forward and backward.
RecurrentResults compute(const Context&, const RecurrentShape&, const RecurrentValues&,
                         DataType dtype);

/// A call's arguments with all their arrays, for tests that change some of them.
struct RecurrentCall {
  RecurrentCall(const Context&, const RecurrentShape&, const RecurrentValues&, DataType dtype);
  Context ctx;
  RecurrentShape shape;
  RecurrentInputs forward_inputs, backward_inputs;
  RecurrentForward forward;
  RecurrentBackward backward;
  TensorView c0_view, c_last_view, dc_last_view, dc0_view;  // of the LSTM

  Array x, weight_ih, weight_hh, bias_ih, bias_hh, h0, c0, lengths, dy, dh_last, dc_last;
  Array y, h_last, c_last, dx, dweight_ih, dweight_hh, dbias_ih, dbias_hh, dh0, dc0;
  Array forward_workspace, reserve, backward_workspace;

  std::size_t forward_workspace_bytes() const;
  std::size_t reserve_bytes() const;
  std::size_t backward_workspace_bytes() const;
  void run_forward() const;
  void run_backward() const;
  RecurrentResults results() const;
  std::vector<const Array*> inputs() const;
  std::vector<const Array*> outputs() const;
};

}  // namespace penstock::tests
