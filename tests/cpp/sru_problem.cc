#include "sru_problem.h"

#include <cmath>
#include <limits>

namespace penstock::tests {
namespace {

std::size_t at(std::int64_t i) { return static_cast<std::size_t>(i); }

double sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }

double activate(Activation a, double c) {
  if (a == Activation::kTanh) return std::tanh(c);
  if (a == Activation::kRelu) return c > 0 ? c : 0.0;
  return c;
}

double slope(Activation a, double c) {
  if (a == Activation::kTanh) return 1.0 - std::tanh(c) * std::tanh(c);
  if (a == Activation::kRelu) return c > 0 ? 1.0 : 0.0;
  return 1.0;
}

void round_to(DataType dtype, Values* v) {
  double element = 0.0;
  for (double& x : *v) {
    write_element(&element, dtype, 0, x);
    x = read_element(&element, dtype, 0);
  }
}

bool padded(const SruShape& s, const SruValues& v, std::int64_t t, std::int64_t b) {
  return (s.mask_pad && v.mask_pad[at(t * s.batch + b)] != 0.0) ||
         (s.lengths && static_cast<double>(t) >= v.lengths[at(b)]);
}

}  // namespace

std::string SruShape::words() const {
  const auto flag = [](bool given, const char* name) {
    return given ? std::string(" ") + name : std::string();
  };
  return "T=" + std::to_string(steps) + " B=" + std::to_string(batch) +
         " D=" + std::to_string(input) + " H=" + std::to_string(hidden) +
         " K=" + std::to_string(blocks) +
         " direction=" + std::to_string(static_cast<int>(direction)) +
         " activation=" + std::to_string(static_cast<int>(activation)) +
         " site=" + std::to_string(static_cast<int>(mask_site)) +
         " layout=" + std::to_string(static_cast<int>(layout)) + flag(!skip, "no-skip") +
         flag(!weight_c, "no-v") + flag(c0, "c0") + flag(mask_pad, "pad") +
         flag(lengths, "lengths") + flag(mask_c, "mask") + flag(x_skip, "x_skip") +
         flag(!dy, "no-dy") + flag(!dc_last, "no-dc");
}

SruValues random_values(const SruShape& s, DataType dtype, std::uint64_t seed) {
  Numbers numbers(seed);
  SruValues v;
  const std::int64_t rows = s.steps * s.batch, w = s.width();
  v.x = numbers.take(rows * s.input);
  v.weight = numbers.take(s.dirs() * s.blocks * s.hidden * s.input,
                          1.5 / std::sqrt(static_cast<double>(s.input > 0 ? s.input : 1)));
  v.bias = numbers.take(s.dirs() * 2 * s.hidden);
  if (s.weight_c) v.weight_c = numbers.take(s.dirs() * 2 * s.hidden);
  if (s.c0) v.c0 = numbers.take(s.batch * w);
  if (s.mask_c) {
    for (std::int64_t i = 0; i < s.batch * w; ++i) {
      v.mask_c.push_back(numbers.next() < -0.4 ? 0.0 : 1.5);
    }
  }
  if (s.mask_pad) {
    for (std::int64_t i = 0; i < rows; ++i) v.mask_pad.push_back(numbers.next() < -0.5 ? 1.0 : 0.0);
  }
  if (s.lengths) {
    for (std::int64_t b = 0; b < s.batch; ++b) {
      v.lengths.push_back(
          static_cast<double>(numbers.bits() % static_cast<std::uint64_t>(s.steps + 1)));
    }
  }
  if (s.x_skip) v.x_skip = numbers.take(rows * w);
  if (s.dy) v.dy = numbers.take(rows * w);
  if (s.dc_last) v.dc_last = numbers.take(s.batch * w);
  for (Values* values :
       {&v.x, &v.weight, &v.weight_c, &v.bias, &v.c0, &v.mask_c, &v.x_skip, &v.dy, &v.dc_last}) {
    round_to(dtype, values);
  }
  for (std::int64_t t = 0; t < s.steps; ++t) {
    for (std::int64_t b = 0; b < s.batch; ++b) {
      if (!padded(s, v, t, b)) continue;
      for (std::int64_t d = 0; d < s.input; ++d) {
        v.x[at((t * s.batch + b) * s.input + d)] = std::numeric_limits<double>::quiet_NaN();
      }
      for (std::int64_t j = 0; s.x_skip && j < w; ++j) {
        v.x_skip[at((t * s.batch + b) * w + j)] = std::numeric_limits<double>::quiet_NaN();
      }
    }
  }
  return v;
}

SruResults reference(const SruShape& s, const SruValues& v) {
  const std::int64_t rows = s.steps * s.batch, w = s.width(), h = s.hidden;
  SruResults r;
  r.y.resize(at(rows * w));
  r.c_last.resize(at(s.batch * w));
  r.dx.resize(at(rows * s.input));
  r.dweight.resize(v.weight.size());
  r.dweight_c.resize(at(s.dirs() * 2 * h));
  r.dbias.resize(v.bias.size());
  r.dc0.resize(at(s.batch * w));
  r.dmask_c.resize(at(s.mask_c ? s.batch * w : 0));
  r.dx_skip.resize(v.x_skip.size());
  // What the skip term reads, and its gradient.
  const Values& skipped = s.x_skip ? v.x_skip : v.x;
  Values& dskipped = s.x_skip ? r.dx_skip : r.dx;
  for (std::int64_t dir = 0; dir < s.dirs(); ++dir) {
    const bool reversed = s.direction == Direction::kReverse || dir == 1;
    for (std::int64_t b = 0; b < s.batch; ++b) {
      for (std::int64_t j = 0; j < h; ++j) {
        const std::int64_t column = b * w + dir * h + j;
        const std::int64_t param = dir * 2 * h + j;
        const double v_f = s.weight_c ? v.weight_c[at(param)] : 0.0;
        const double v_r = s.weight_c ? v.weight_c[at(param + h)] : 0.0;
        const double b_f = v.bias[at(param)], b_r = v.bias[at(param + h)];
        const double m = s.mask_c ? v.mask_c[at(column)] : 1.0;
        const double n = s.mask_site == MaskSite::kOutput ? m : 1.0;
        const auto u = [&](std::int64_t row, std::int64_t block) {
          double sum = 0.0;
          for (std::int64_t d = 0; d < s.input; ++d) {
            sum += v.weight[at(((dir * s.blocks + block) * h + j) * s.input + d)] *
                   v.x[at(row * s.input + d)];
          }
          return sum;
        };
        const auto skip = [&](std::int64_t row) {
          if (s.skip_from_input()) return s.scale_x * skipped[at(row * w + dir * h + j)];
          return s.skip ? u(row, 3) : 0.0;
        };
        // states[k]: before the k-th step in processing order.
        Values states(at(s.steps + 1));
        states[0] = s.c0 ? v.c0[at(column)] : 0.0;
        for (std::int64_t k = 0; k < s.steps; ++k) {
          const std::int64_t t = reversed ? s.steps - 1 - k : k;
          const std::int64_t row = t * s.batch + b;
          const double before = states[at(k)];
          states[at(k + 1)] = before;
          if (padded(s, v, t, b)) continue;
          const double f = sigmoid(u(row, 1) + v_f * before + b_f);
          const double g = sigmoid(u(row, 2) + v_r * before + b_r);
          const double c = f * before + (1.0 - f) * u(row, 0);
          states[at(k + 1)] = c;
          const double x = skip(row);
          r.y[at(row * w + dir * h + j)] = g * (m * activate(s.activation, c) - n * x) + x;
        }
        r.c_last[at(column)] = states[at(s.steps)];

        double dc = s.dc_last ? v.dc_last[at(column)] : 0.0;
        for (std::int64_t k = s.steps - 1; k >= 0; --k) {
          const std::int64_t t = reversed ? s.steps - 1 - k : k;
          const std::int64_t row = t * s.batch + b;
          if (padded(s, v, t, b)) continue;
          const double before = states[at(k)], c = states[at(k + 1)];
          const double u0 = u(row, 0), x = skip(row);
          const double f = sigmoid(u(row, 1) + v_f * before + b_f);
          const double gate = sigmoid(u(row, 2) + v_r * before + b_r);
          const double a = activate(s.activation, c);
          const double dh = s.dy ? v.dy[at(row * w + dir * h + j)] : 0.0;
          dc += dh * gate * m * slope(s.activation, c);
          const double df = dc * (before - u0) * f * (1.0 - f);
          const double dr = dh * (m * a - n * x) * gate * (1.0 - gate);
          const double dskip = dh * (1.0 - gate * n);
          if (s.mask_c) {
            r.dmask_c[at(column)] += dh * gate * (s.mask_site == MaskSite::kOutput ? a - x : a);
          }
          r.dweight_c[at(param)] += df * before;
          r.dweight_c[at(param + h)] += dr * before;
          r.dbias[at(param)] += df;
          r.dbias[at(param + h)] += dr;
          const double du[4] = {dc * (1.0 - f), df, dr, dskip};
          for (std::int64_t block = 0; block < s.blocks; ++block) {
            for (std::int64_t d = 0; d < s.input; ++d) {
              const std::int64_t weight = ((dir * s.blocks + block) * h + j) * s.input + d;
              r.dweight[at(weight)] += du[block] * v.x[at(row * s.input + d)];
              r.dx[at(row * s.input + d)] += du[block] * v.weight[at(weight)];
            }
          }
          if (s.skip_from_input()) dskipped[at(row * w + dir * h + j)] += s.scale_x * dskip;
          dc = dc * f + df * v_f + dr * v_r;
        }
        r.dc0[at(column)] = dc;
      }
    }
  }
  return r;
}

SruCall::SruCall(const Context& ctx, const SruShape& s, const SruValues& v, DataType dtype) {
  const std::int64_t w = s.width();
  const Shape per_step = {s.steps, s.batch, w}, per_row = {s.batch, w},
              params = {s.dirs(), 2, s.hidden};
  x = Array(dtype, {s.steps, s.batch, s.input}, v.x, s.layout);
  weight = Array(dtype, {s.dirs(), s.blocks * s.hidden, s.input}, v.weight, s.layout);
  bias = Array(dtype, params, v.bias, s.layout);
  if (s.weight_c) weight_c = Array(dtype, params, v.weight_c, s.layout);
  if (s.c0) c0 = Array(dtype, per_row, v.c0, s.layout);
  if (s.mask_pad) mask_pad = Array(DataType::kBool, {s.steps, s.batch}, v.mask_pad, s.layout);
  if (s.lengths) lengths = Array(DataType::kInt32, {s.batch}, v.lengths, s.layout);
  if (s.mask_c) mask_c = Array(dtype, per_row, v.mask_c, s.layout);
  if (s.x_skip) x_skip = Array(dtype, per_step, v.x_skip, s.layout);
  if (s.dy) dy = Array(dtype, per_step, v.dy, s.layout);
  if (s.dc_last) dc_last = Array(dtype, per_row, v.dc_last, s.layout);

  SruInputs& in = forward;
  in.x = x.view();
  in.weight = weight.view();
  in.weight_c = weight_c.view();
  in.bias = bias.view();
  in.c0 = c0.view();
  in.mask_pad = mask_pad.view();
  in.lengths = lengths.view();
  in.mask_c = mask_c.view();
  in.x_skip = x_skip.view();
  in.activation = s.activation;
  in.skip = s.skip;
  in.scale_x = s.scale_x;
  in.mask_site = s.mask_site;
  in.direction = s.direction;
  static_cast<SruInputs&>(backward) = in;

  y = Array(dtype, per_step);
  c_last = Array(dtype, per_row);
  forward_workspace = Array::bytes(sru_forward_workspace_bytes(ctx, forward));
  reserve = Array::bytes(sru_reserve_bytes(ctx, forward));
  forward.y = y.view();
  forward.c_last = c_last.view();
  forward.workspace = forward_workspace.view();
  forward.reserve = reserve.view();

  dx = Array(dtype, {s.steps, s.batch, s.input});
  dweight = Array(dtype, {s.dirs(), s.blocks * s.hidden, s.input});
  dweight_c = Array(dtype, params);
  dbias = Array(dtype, params);
  dc0 = Array(dtype, per_row);
  if (s.mask_c) dmask_c = Array(dtype, per_row);
  if (s.x_skip) dx_skip = Array(dtype, per_step);
  backward.reserve = reserve.view();
  backward.dy = dy.view();
  backward.dc_last = dc_last.view();
  backward.dx = dx.view();
  backward.dweight = dweight.view();
  backward.dweight_c = dweight_c.view();
  backward.dbias = dbias.view();
  backward.dc0 = dc0.view();
  backward.dmask_c = dmask_c.view();
  backward.dx_skip = dx_skip.view();
  backward_workspace = Array::bytes(sru_backward_workspace_bytes(ctx, backward));
  backward.workspace = backward_workspace.view();
}

SruResults SruCall::results() const {
  return {y.get(),     c_last.get(), dx.get(),      dweight.get(), dweight_c.get(),
          dbias.get(), dc0.get(),    dmask_c.get(), dx_skip.get()};
}

std::vector<const Array*> SruCall::outputs() const {
  return {&y, &c_last, &dx, &dweight, &dweight_c, &dbias, &dc0, &dmask_c, &dx_skip};
}

SruResults compute(const Context& ctx, const SruShape& s, const SruValues& v, DataType dtype) {
  SruCall call(ctx, s, v, dtype);
  sru_forward(ctx, call.forward);
  sru_backward(ctx, call.backward);
  return call.results();
}

}  // namespace penstock::tests
