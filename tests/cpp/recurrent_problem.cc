#include "recurrent_problem.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace penstock::tests {
namespace {

std::size_t at(std::int64_t i) { return static_cast<std::size_t>(i); }

double sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }

double activate(Activation a, double x) {
  if (a == Activation::kTanh) return std::tanh(x);
  if (a == Activation::kRelu) return x > 0 ? x : 0.0;
  return x;
}

/// The derivative, from the activation's value.
double slope(Activation a, double value) {
  if (a == Activation::kTanh) return 1.0 - value * value;
  if (a == Activation::kRelu) return value > 0 ? 1.0 : 0.0;
  return 1.0;
}

double dot(const double* a, const double* b, std::int64_t n) {
  double sum = 0.0;
  for (std::int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}
void add_scaled(const double* from, double factor, std::int64_t n, double* to) {
  for (std::int64_t i = 0; i < n; ++i) to[i] += factor * from[i];
}

const double* data_or_null(const Values& v, std::int64_t offset) {
  return v.empty() ? nullptr : v.data() + offset;
}
double* data_or_null(Values* v, std::int64_t offset) {
  return v->empty() ? nullptr : v->data() + offset;
}

/// Call `run` with the arguments of the shape's cell: of a forward or of a backward pass.
template <class F>
auto with_forward(const RecurrentCall& c, F&& run) {
  const auto fill = [&](auto* a) {
    static_cast<RecurrentInputs&>(*a) = c.forward_inputs;
    static_cast<RecurrentForward&>(*a) = c.forward;
  };
  if (c.shape.cell == Cell::kRnn) {
    RnnForwardArgs a;
    fill(&a);
    a.activation = c.shape.activation;
    return run(a);
  }
  if (c.shape.cell == Cell::kGru) {
    GruForwardArgs a;
    fill(&a);
    a.activation = c.shape.activation;
    a.reset = c.shape.reset;
    return run(a);
  }
  LstmForwardArgs a;
  fill(&a);
  a.c0 = c.c0_view;
  a.c_last = c.c_last_view;
  return run(a);
}
template <class F>
auto with_backward(const RecurrentCall& c, F&& run) {
  const auto fill = [&](auto* a) {
    static_cast<RecurrentInputs&>(*a) = c.backward_inputs;
    static_cast<RecurrentBackward&>(*a) = c.backward;
  };
  if (c.shape.cell == Cell::kRnn) {
    RnnBackwardArgs a;
    fill(&a);
    a.activation = c.shape.activation;
    return run(a);
  }
  if (c.shape.cell == Cell::kGru) {
    GruBackwardArgs a;
    fill(&a);
    a.activation = c.shape.activation;
    a.reset = c.shape.reset;
    return run(a);
  }
  LstmBackwardArgs a;
  fill(&a);
  a.c0 = c.c0_view;
  a.dc_last = c.dc_last_view;
  a.dc0 = c.dc0_view;
  return run(a);
}

// One name for the functions of all cells.
struct ForwardBytes {
  const Context& ctx;
  std::size_t operator()(const RnnForwardArgs& a) { return rnn_forward_workspace_bytes(ctx, a); }
  std::size_t operator()(const GruForwardArgs& a) { return gru_forward_workspace_bytes(ctx, a); }
  std::size_t operator()(const LstmForwardArgs& a) { return lstm_forward_workspace_bytes(ctx, a); }
};
struct ReserveBytes {
  const Context& ctx;
  std::size_t operator()(const RnnForwardArgs& a) { return rnn_reserve_bytes(ctx, a); }
  std::size_t operator()(const GruForwardArgs& a) { return gru_reserve_bytes(ctx, a); }
  std::size_t operator()(const LstmForwardArgs& a) { return lstm_reserve_bytes(ctx, a); }
};
struct BackwardBytes {
  const Context& ctx;
  std::size_t operator()(const RnnBackwardArgs& a) { return rnn_backward_workspace_bytes(ctx, a); }
  std::size_t operator()(const GruBackwardArgs& a) { return gru_backward_workspace_bytes(ctx, a); }
  std::size_t operator()(const LstmBackwardArgs& a) {
    return lstm_backward_workspace_bytes(ctx, a);
  }
};
struct Forward {
  const Context& ctx;
  void operator()(const RnnForwardArgs& a) { rnn_forward(ctx, a); }
  void operator()(const GruForwardArgs& a) { gru_forward(ctx, a); }
  void operator()(const LstmForwardArgs& a) { lstm_forward(ctx, a); }
};
struct Backward {
  const Context& ctx;
  void operator()(const RnnBackwardArgs& a) { rnn_backward(ctx, a); }
  void operator()(const GruBackwardArgs& a) { gru_backward(ctx, a); }
  void operator()(const LstmBackwardArgs& a) { lstm_backward(ctx, a); }
};

}  // namespace

const char* cell_name(Cell cell) {
  return cell == Cell::kRnn ? "rnn" : cell == Cell::kGru ? "gru" : "lstm";
}
std::int64_t gates_of(Cell cell) { return cell == Cell::kRnn ? 1 : cell == Cell::kGru ? 3 : 4; }

void round_values(DataType dtype, Values* v) {
  double element = 0.0;
  for (double& x : *v) {
    write_element(&element, dtype, 0, x);
    x = read_element(&element, dtype, 0);
  }
}

std::string RecurrentShape::words() const {
  const auto flag = [](bool given, const char* name) {
    return given ? std::string(" ") + name : std::string();
  };
  return std::string(cell_name(cell)) + " T=" + std::to_string(steps) +
         " B=" + std::to_string(batch) + " D=" + std::to_string(input) +
         " H=" + std::to_string(hidden) +
         " direction=" + std::to_string(static_cast<int>(direction)) +
         " activation=" + std::to_string(static_cast<int>(activation)) +
         " reset=" + std::to_string(static_cast<int>(reset)) +
         " layout=" + std::to_string(static_cast<int>(layout)) + flag(!bias_ih, "no-bias_ih") +
         flag(!bias_hh, "no-bias_hh") + flag(!h0, "no-h0") + flag(!c0, "no-c0") +
         flag(lengths, "lengths") + flag(!dy, "no-dy") + flag(!dh_last, "no-dh_last") +
         flag(!dc_last, "no-dc_last") + flag(!state_gradients, "no-dh0") +
         flag(recompute, "recompute");
}

void ReferenceSequence::forward(const std::vector<const double*>& steps, const Values& h0,
                                const Values& c0) {
  const std::int64_t gates = gates_of(cell_), n = hidden_;
  x_ = steps;
  h_.assign(1, h0);
  c_.assign(1, c0);
  gates_.clear();
  sums_.clear();
  for (const double* x : steps) {
    const Values& before = h_.back();
    // Sums of W x + b_ih, and of R h + b_hh.
    Values a(at(gates * n)), s(at(gates * n));
    for (std::int64_t i = 0; i < gates * n; ++i) {
      a[at(i)] = dot(p_.weight_ih + i * input_, x, input_);
      if (p_.bias_ih != nullptr) a[at(i)] += p_.bias_ih[i];
      s[at(i)] = dot(p_.weight_hh + i * n, before.data(), n);
      if (p_.bias_hh != nullptr) s[at(i)] += p_.bias_hh[i];
    }
    Values g(at(gates * n)), h(at(n)), c(at(n));
    const auto sigmoid_of = [&](std::int64_t gate) {
      for (std::int64_t i = gate * n; i < (gate + 1) * n; ++i) {
        g[at(i)] = sigmoid(a[at(i)] + s[at(i)]);
      }
    };
    if (cell_ == Cell::kRnn) {
      for (std::int64_t j = 0; j < n; ++j) {
        h[at(j)] = g[at(j)] = activate(activation_, a[at(j)] + s[at(j)]);
      }
    } else if (cell_ == Cell::kGru) {
      sigmoid_of(0);
      sigmoid_of(1);
      if (reset_ == ResetMode::kBefore) {
        Values q(at(n));
        for (std::int64_t j = 0; j < n; ++j) q[at(j)] = g[at(j)] * before[at(j)];
        for (std::int64_t i = 2 * n; i < 3 * n; ++i) {
          s[at(i)] = dot(p_.weight_hh + i * n, q.data(), n);
          if (p_.bias_hh != nullptr) s[at(i)] += p_.bias_hh[i];
        }
      }
      for (std::int64_t j = 0; j < n; ++j) {
        const double r = reset_ == ResetMode::kAfter ? g[at(j)] : 1.0, z = g[at(n + j)];
        const double value = activate(activation_, a[at(2 * n + j)] + r * s[at(2 * n + j)]);
        g[at(2 * n + j)] = value;
        h[at(j)] = (1.0 - z) * value + z * before[at(j)];
      }
    } else {
      sigmoid_of(0);
      sigmoid_of(1);
      sigmoid_of(3);
      for (std::int64_t j = 0; j < n; ++j) {
        const double value = std::tanh(a[at(2 * n + j)] + s[at(2 * n + j)]);
        g[at(2 * n + j)] = value;
        c[at(j)] = g[at(n + j)] * c_.back()[at(j)] + g[at(j)] * value;
        h[at(j)] = g[at(3 * n + j)] * std::tanh(c[at(j)]);
      }
    }
    h_.push_back(h);
    c_.push_back(c);
    gates_.push_back(g);
    sums_.push_back(s);
  }
}

void ReferenceSequence::backward(const std::vector<const double*>& dy, Values* dh, Values* dc,
                                 const std::vector<double*>& dx,
                                 const CellParameters<double>& gradients) const {
  const std::int64_t gates = gates_of(cell_), n = hidden_;
  for (std::size_t k = x_.size(); k-- > 0;) {
    if (dy[k] != nullptr) add_scaled(dy[k], 1.0, n, dh->data());
    const Values &before = h_[k], &g = gates_[k], &s = sums_[k];
    Values da(at(gates * n)), ds, operand = before, dh_before(at(n)), dc_before(at(n));
    if (cell_ == Cell::kRnn) {
      for (std::int64_t j = 0; j < n; ++j) {
        da[at(j)] = (*dh)[at(j)] * slope(activation_, g[at(j)]);
      }
      ds = da;
    } else if (cell_ == Cell::kGru) {
      for (std::int64_t j = 0; j < n; ++j) {
        const double z = g[at(n + j)], value = g[at(2 * n + j)], d = (*dh)[at(j)];
        da[at(n + j)] = d * (before[at(j)] - value) * z * (1.0 - z);
        da[at(2 * n + j)] = d * (1.0 - z) * slope(activation_, value);
        dh_before[at(j)] = d * z;
      }
      ds = da;
      Values dr(at(n));
      if (reset_ == ResetMode::kAfter) {
        for (std::int64_t j = 0; j < n; ++j) {
          dr[at(j)] = da[at(2 * n + j)] * s[at(2 * n + j)];
          ds[at(2 * n + j)] *= g[at(j)];
        }
      } else {
        Values dq(at(n));
        for (std::int64_t j = 0; j < n; ++j) {
          operand[at(j)] = g[at(j)] * before[at(j)];
          add_scaled(p_.weight_hh + (2 * n + j) * n, ds[at(2 * n + j)], n, dq.data());
        }
        for (std::int64_t j = 0; j < n; ++j) {
          dr[at(j)] = dq[at(j)] * before[at(j)];
          dh_before[at(j)] += dq[at(j)] * g[at(j)];
        }
      }
      for (std::int64_t j = 0; j < n; ++j) {
        ds[at(j)] = da[at(j)] = dr[at(j)] * g[at(j)] * (1.0 - g[at(j)]);
      }
    } else {
      for (std::int64_t j = 0; j < n; ++j) {
        const double i = g[at(j)], f = g[at(n + j)], value = g[at(2 * n + j)];
        const double o = g[at(3 * n + j)], t = std::tanh(c_[k + 1][at(j)]), d = (*dh)[at(j)];
        const double total = (*dc)[at(j)] + d * o * (1.0 - t * t);
        da[at(j)] = total * value * i * (1.0 - i);
        da[at(n + j)] = total * c_[k][at(j)] * f * (1.0 - f);
        da[at(2 * n + j)] = total * i * (1.0 - value * value);
        da[at(3 * n + j)] = d * t * o * (1.0 - o);
        dc_before[at(j)] = total * f;
      }
      ds = da;
    }
    const bool before_product = cell_ == Cell::kGru && reset_ == ResetMode::kBefore;
    for (std::int64_t i = 0; i < gates * n; ++i) {
      const bool apart = before_product && i >= 2 * n;
      add_scaled(x_[k], da[at(i)], input_, gradients.weight_ih + i * input_);
      add_scaled(p_.weight_ih + i * input_, da[at(i)], input_, dx[k]);
      add_scaled(apart ? operand.data() : before.data(), ds[at(i)], n, gradients.weight_hh + i * n);
      if (!apart) add_scaled(p_.weight_hh + i * n, ds[at(i)], n, dh_before.data());
      if (gradients.bias_ih != nullptr) gradients.bias_ih[i] += da[at(i)];
      if (gradients.bias_hh != nullptr) gradients.bias_hh[i] += ds[at(i)];
    }
    *dh = dh_before;
    *dc = dc_before;
  }
}

RecurrentValues random_values(const RecurrentShape& s, DataType dtype, std::uint64_t seed) {
  Numbers numbers(seed);
  RecurrentValues v;
  const std::int64_t entries = s.steps * s.batch, w = s.width(), parameters = s.dirs() * s.rows();
  const auto scale = [](std::int64_t n) { return 1.5 / std::sqrt(static_cast<double>(n + 1)); };
  v.x = numbers.take(entries * s.input);
  v.weight_ih = numbers.take(parameters * s.input, scale(s.input));
  v.weight_hh = numbers.take(parameters * s.hidden, scale(s.hidden));
  if (s.bias_ih) v.bias_ih = numbers.take(parameters, 0.5);
  if (s.bias_hh) v.bias_hh = numbers.take(parameters, 0.5);
  if (s.h0) v.h0 = numbers.take(s.batch * w);
  if (s.has_c() && s.c0) v.c0 = numbers.take(s.batch * w);
  for (std::int64_t b = 0; s.lengths && b < s.batch; ++b) {
    v.lengths.push_back(
        static_cast<double>(numbers.bits() % static_cast<std::uint64_t>(s.steps + 1)));
  }
  if (s.dy) v.dy = numbers.take(entries * w);
  if (s.dh_last) v.dh_last = numbers.take(s.batch * w);
  if (s.has_c() && s.dc_last) v.dc_last = numbers.take(s.batch * w);
  for (Values* values : {&v.x, &v.weight_ih, &v.weight_hh, &v.bias_ih, &v.bias_hh, &v.h0, &v.c0,
                         &v.dy, &v.dh_last, &v.dc_last}) {
    round_values(dtype, values);
  }
  for (std::int64_t i = 0; s.lengths && i < entries; ++i) {
    if (static_cast<double>(i / s.batch) < v.lengths[at(i % s.batch)]) continue;
    std::fill_n(v.x.begin() + i * s.input, s.input, std::numeric_limits<double>::quiet_NaN());
    if (s.dy) std::fill_n(v.dy.begin() + i * w, w, std::numeric_limits<double>::quiet_NaN());
  }
  return v;
}

RecurrentResults reference(const RecurrentShape& s, const RecurrentValues& v) {
  const std::int64_t n = s.hidden, w = s.width();
  RecurrentResults r;
  r.y.resize(at(s.steps * s.batch * w));
  r.h_last.resize(at(s.batch * w));
  r.dx.resize(v.x.size());
  r.dweight_ih.resize(v.weight_ih.size());
  r.dweight_hh.resize(v.weight_hh.size());
  r.dbias_ih.resize(v.bias_ih.size());
  r.dbias_hh.resize(v.bias_hh.size());
  r.dh0.resize(at(s.batch * w));
  r.c_last.resize(at(s.has_c() ? s.batch * w : 0));
  r.dc0.resize(r.c_last.size());
  for (std::int64_t dir = 0; dir < s.dirs(); ++dir) {
    const std::int64_t rows = dir * s.rows();
    const CellParameters<const double> parameters = {
        v.weight_ih.data() + rows * s.input, v.weight_hh.data() + rows * n,
        data_or_null(v.bias_ih, rows), data_or_null(v.bias_hh, rows)};
    const CellParameters<double> gradients = {
        r.dweight_ih.data() + rows * s.input, r.dweight_hh.data() + rows * n,
        data_or_null(&r.dbias_ih, rows), data_or_null(&r.dbias_hh, rows)};
    for (std::int64_t b = 0; b < s.batch; ++b) {
      const std::int64_t state = b * w + dir * n;
      const auto state_of = [&](const Values& from) {
        return from.empty() ? Values(at(n))
                            : Values(from.begin() + state, from.begin() + state + n);
      };
      std::vector<std::int64_t> entries;
      const std::int64_t length = s.lengths ? static_cast<std::int64_t>(v.lengths[at(b)]) : s.steps;
      for (std::int64_t t = 0; t < length; ++t) entries.push_back(t * s.batch + b);
      if (s.direction == Direction::kReverse || dir == 1) {
        std::reverse(entries.begin(), entries.end());
      }
      std::vector<const double*> x, dy;
      std::vector<double*> dx;
      for (std::int64_t entry : entries) {
        x.push_back(v.x.data() + entry * s.input);
        dx.push_back(r.dx.data() + entry * s.input);
        dy.push_back(data_or_null(v.dy, entry * w + dir * n));
      }
      ReferenceSequence sequence(s.cell, s.activation, s.reset, s.input, n, parameters);
      sequence.forward(x, state_of(v.h0), state_of(v.c0));
      for (std::size_t k = 0; k < entries.size(); ++k) {
        std::copy_n(sequence.h(k + 1).begin(), n, r.y.begin() + entries[k] * w + dir * n);
      }
      Values dh = state_of(v.dh_last), dc = state_of(v.dc_last);
      sequence.backward(dy, &dh, &dc, dx, gradients);
      std::copy_n(sequence.h(entries.size()).begin(), n, r.h_last.begin() + state);
      std::copy_n(dh.begin(), n, r.dh0.begin() + state);
      if (!s.has_c()) continue;
      std::copy_n(sequence.c(entries.size()).begin(), n, r.c_last.begin() + state);
      std::copy_n(dc.begin(), n, r.dc0.begin() + state);
    }
  }
  if (!s.state_gradients) {
    r.dh0.clear();
    r.dc0.clear();
  }
  return r;
}

RecurrentCall::RecurrentCall(const Context& context, const RecurrentShape& s,
                             const RecurrentValues& v, DataType dtype)
    : ctx(context), shape(s) {
  const Shape per_step = {s.steps, s.batch, s.width()}, per_row = {s.batch, s.width()},
              in = {s.dirs(), s.rows(), s.input}, rec = {s.dirs(), s.rows(), s.hidden},
              bias = {s.dirs(), s.rows()};
  x = Array(dtype, {s.steps, s.batch, s.input}, v.x, s.layout);
  weight_ih = Array(dtype, in, v.weight_ih, s.layout);
  weight_hh = Array(dtype, rec, v.weight_hh, s.layout);
  if (s.bias_ih) bias_ih = Array(dtype, bias, v.bias_ih, s.layout);
  if (s.bias_hh) bias_hh = Array(dtype, bias, v.bias_hh, s.layout);
  if (s.h0) h0 = Array(dtype, per_row, v.h0, s.layout);
  if (s.lengths) lengths = Array(s.lengths_type, {s.batch}, v.lengths, s.layout);
  if (s.dy) dy = Array(dtype, per_step, v.dy, s.layout);
  if (s.dh_last) dh_last = Array(dtype, per_row, v.dh_last, s.layout);
  if (s.has_c() && s.c0) c0 = Array(dtype, per_row, v.c0, s.layout);
  if (s.has_c() && s.dc_last) dc_last = Array(dtype, per_row, v.dc_last, s.layout);

  forward_inputs.x = x.view();
  forward_inputs.weight_ih = weight_ih.view();
  forward_inputs.weight_hh = weight_hh.view();
  forward_inputs.bias_ih = bias_ih.view();
  forward_inputs.bias_hh = bias_hh.view();
  forward_inputs.h0 = h0.view();
  forward_inputs.lengths = lengths.view();
  forward_inputs.direction = s.direction;
  forward_inputs.recompute = s.recompute;
  backward_inputs = forward_inputs;
  c0_view = c0.view();
  dc_last_view = dc_last.view();

  y = Array(dtype, per_step);
  h_last = Array(dtype, per_row);
  if (s.has_c()) c_last = Array(dtype, per_row);
  // Measured before the outputs are given.
  forward_workspace = Array::bytes(forward_workspace_bytes());
  reserve = Array::bytes(reserve_bytes());
  forward.y = y.view();
  forward.h_last = h_last.view();
  c_last_view = c_last.view();
  forward.workspace = forward_workspace.view();
  forward.reserve = reserve.view();

  dx = Array(dtype, {s.steps, s.batch, s.input});
  dweight_ih = Array(dtype, in);
  dweight_hh = Array(dtype, rec);
  if (s.bias_ih) dbias_ih = Array(dtype, bias);
  if (s.bias_hh) dbias_hh = Array(dtype, bias);
  if (s.state_gradients) dh0 = Array(dtype, per_row);
  if (s.state_gradients && s.has_c()) dc0 = Array(dtype, per_row);
  backward.reserve = reserve.view();
  backward.dy = dy.view();
  backward.dh_last = dh_last.view();
  backward.dx = dx.view();
  backward.dweight_ih = dweight_ih.view();
  backward.dweight_hh = dweight_hh.view();
  backward.dbias_ih = dbias_ih.view();
  backward.dbias_hh = dbias_hh.view();
  backward.dh0 = dh0.view();
  dc0_view = dc0.view();
  backward_workspace = Array::bytes(backward_workspace_bytes());
  backward.workspace = backward_workspace.view();
}

std::size_t RecurrentCall::forward_workspace_bytes() const {
  return with_forward(*this, ForwardBytes{ctx});
}
std::size_t RecurrentCall::reserve_bytes() const { return with_forward(*this, ReserveBytes{ctx}); }
std::size_t RecurrentCall::backward_workspace_bytes() const {
  return with_backward(*this, BackwardBytes{ctx});
}
void RecurrentCall::run_forward() const { with_forward(*this, Forward{ctx}); }
void RecurrentCall::run_backward() const { with_backward(*this, Backward{ctx}); }

RecurrentResults RecurrentCall::results() const {
  return {y.get(),          h_last.get(),   c_last.get(),   dx.get(),  dweight_ih.get(),
          dweight_hh.get(), dbias_ih.get(), dbias_hh.get(), dh0.get(), dc0.get()};
}

std::vector<const Array*> RecurrentCall::inputs() const {
  return {&x,  &weight_ih, &weight_hh, &bias_ih, &bias_hh, &h0,
          &c0, &lengths,   &dy,        &dh_last, &dc_last};
}
std::vector<const Array*> RecurrentCall::outputs() const {
  return {&y, &h_last, &c_last, &dx, &dweight_ih, &dweight_hh, &dbias_ih, &dbias_hh, &dh0, &dc0};
}

RecurrentResults compute(const Context& ctx, const RecurrentShape& s, const RecurrentValues& v,
                         DataType dtype) {
  const RecurrentCall call(ctx, s, v, dtype);
  call.run_forward();
  call.run_backward();
  return call.results();
}

}  // namespace penstock::tests
