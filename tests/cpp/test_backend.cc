// What every backend's table offers beside cells: matrix products, copies, zeros, devices.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "array.h"
#include "backends.h"
#include "core/backend.h"
#include "penstock/penstock.h"

namespace penstock::tests {
namespace {

constexpr DataType kTypes[] = {DataType::kFloat32, DataType::kFloat64, DataType::kFloat16,
                               DataType::kBFloat16};

class OnBackend : public BackendTest {};
INSTANTIATE_TEST_SUITE_P(Backends, OnBackend, testing::ValuesIn(backend_names()),
                         [](const auto& test) { return test.param; });

std::size_t at(std::int64_t i) { return static_cast<std::size_t>(i); }

/// One product against a triple loop. Matrices have gaps between rows and between batch items, and
/// what lies there must stay.
void check_gemm(const Context& ctx, DataType dtype, bool trans_a, bool trans_b, std::int64_t m,
                std::int64_t n, std::int64_t k, double beta, std::int64_t batch, std::int64_t gap) {
  const Backend& backend = ctx.backend();
  Numbers numbers(static_cast<std::uint64_t>(m * 31 + n * 7 + k));
  const std::int64_t a_rows = trans_a ? k : m, a_columns = trans_a ? m : k;
  const std::int64_t b_rows = trans_b ? n : k, b_columns = trans_b ? k : n;
  GemmArgs g;
  g.dtype = dtype;
  g.trans_a = trans_a;
  g.trans_b = trans_b;
  g.m = m, g.n = n, g.k = k;
  g.lda = std::max<std::int64_t>(1, a_columns) + gap;
  g.ldb = std::max<std::int64_t>(1, b_columns) + gap;
  g.ldc = n + gap;
  g.stride_a = a_rows * g.lda + gap;
  g.stride_b = b_rows * g.ldb + gap;
  g.stride_c = m * g.ldc + gap;
  g.batch = batch;
  g.beta = beta;
  const Array a(dtype, {batch * g.stride_a}, numbers.take(batch * g.stride_a));
  const Array b(dtype, {batch * g.stride_b}, numbers.take(batch * g.stride_b));
  Array c(dtype, {batch * g.stride_c}, numbers.take(batch * g.stride_c));
  const auto av = a.get(), bv = b.get(), before = c.get();
  std::vector<double> expected = before;
  double magnitude = 1.0;
  for (std::int64_t i = 0; i < batch; ++i) {
    for (std::int64_t row = 0; row < m; ++row) {
      for (std::int64_t column = 0; column < n; ++column) {
        double sum = 0.0, size = 0.0;
        for (std::int64_t p = 0; p < k; ++p) {
          const double term =
              av[at(i * g.stride_a + (trans_a ? p * g.lda + row : row * g.lda + p))] *
              bv[at(i * g.stride_b + (trans_b ? column * g.ldb + p : p * g.ldb + column))];
          sum += term;
          size += std::abs(term);
        }
        const std::int64_t to = i * g.stride_c + row * g.ldc + column;
        expected[at(to)] = sum + beta * before[at(to)];
        magnitude = std::max(magnitude, size);
      }
    }
  }
  if (beta == 0.0) {  // what C held is never read
    auto poisoned = before;
    for (std::int64_t i = 0; i < batch; ++i) {
      for (std::int64_t row = 0; row < m; ++row) {
        for (std::int64_t column = 0; column < n; ++column) {
          poisoned[at(i * g.stride_c + row * g.ldc + column)] = NAN;
        }
      }
    }
    c.set(poisoned);
  }
  const Array workspace = Array::bytes(backend.gemm_workspace_bytes());
  g.workspace = workspace.view().data;
  g.a = a.view().data;
  g.b = b.view().data;
  g.c = c.view().data;
  backend.gemm(ctx, g);
  const auto got = c.get();
  const double unit = dtype == DataType::kFloat64   ? 1e-15
                      : dtype == DataType::kFloat32 ? 1e-6
                      : dtype == DataType::kFloat16 ? 1e-3
                                                    : 8e-3;
  for (std::size_t i = 0; i < got.size(); ++i) {
    ASSERT_LE(std::abs(got[i] - expected[i]), 2.0 * unit * magnitude)
        << name_of(dtype) << " m=" << m << " n=" << n << " k=" << k << " ta=" << trans_a
        << " tb=" << trans_b << " beta=" << beta << " batch=" << batch << " at " << i;
  }
}

TEST_P(OnBackend, GemmAgreesWithTripleLoop) {
  const std::int64_t sizes[][3] = {{1, 1, 1},   {2, 3, 4},     {4, 9, 17},  {5, 8, 3},
                                   {33, 65, 7}, {70, 19, 80},  {1, 64, 64}, {64, 1, 33},
                                   {3, 4, 0},   {130, 100, 70}};
  for (DataType dtype : kTypes) {
    if (backend().compute_dtype(dtype) != dtype) continue;  // never asked for
    for (const auto& s : sizes) {
      for (int trans = 0; trans < 4; ++trans) {
        for (double beta : {0.0, 1.0, 0.5}) {
          for (std::int64_t batch : {1, 3}) {
            for (std::int64_t gap : {0, 3}) {
              check_gemm(ctx(), dtype, trans % 2 == 1, trans / 2 == 1, s[0], s[1], s[2], beta,
                         batch, gap);
              if (HasFatalFailure()) return;
            }
          }
        }
      }
    }
  }
}

TEST_P(OnBackend, GemmOfNothingDoesNothing) {
  GemmArgs g;
  for (const auto& s : {std::pair<int, int>{0, 5}, {5, 0}}) {
    g.m = s.first, g.n = s.second, g.k = 3;
    g.lda = g.ldb = g.ldc = 5;
    EXPECT_NO_THROW(backend().gemm(ctx(), g));
  }
}

TEST_P(OnBackend, ConvertTakesAnyStrides) {
  const std::pair<DataType, DataType> pairs[] = {
      {DataType::kFloat32, DataType::kFloat32},  {DataType::kFloat64, DataType::kFloat64},
      {DataType::kFloat16, DataType::kFloat16},  {DataType::kBFloat16, DataType::kBFloat16},
      {DataType::kFloat16, DataType::kFloat32},  {DataType::kFloat32, DataType::kFloat16},
      {DataType::kBFloat16, DataType::kFloat32}, {DataType::kFloat32, DataType::kBFloat16},
      {DataType::kUInt8, DataType::kUInt8},      {DataType::kBool, DataType::kUInt8},
      {DataType::kInt64, DataType::kInt64},
  };
  const Shape shapes[] = {{},        {1},          {7},       {3, 1, 5},  {4, 5},
                          {2, 3, 4}, {2, 3, 4, 5}, {3, 0, 2}, {1, 300, 2}};
  for (const auto& [from, to] : pairs) {
    for (const Shape& shape : shapes) {
      for (Layout source :
           {Layout::kContiguous, Layout::kFortran, Layout::kNegative, Layout::kGaps}) {
        for (Layout target : {Layout::kContiguous, Layout::kFortran, Layout::kGaps}) {
          Numbers numbers(11);
          std::vector<double> values = numbers.take(product(shape), 100.0);
          if (!is_floating(from)) {
            for (double& v : values) v = std::floor(std::abs(v));
          }
          const Array src(from, shape, values, source);
          Array dst(to, shape, target);
          backend().convert(ctx(), src.view(), dst.view());
          // Rounded as the test's own conversion rounds.
          const Array expected(to, shape, src.get());
          EXPECT_EQ(dst.get(), expected.get())
              << name_of(from) << " to " << name_of(to) << " " << src.view().shape_string();
        }
      }
    }
  }
  const Array narrow(DataType::kInt32, {4}, {5, 0, -7, 2147483647}, Layout::kNegative);
  Array wide(DataType::kInt64, {4});
  backend().convert(ctx(), narrow.view(), wide.view());
  EXPECT_EQ(wide.get(), narrow.get());
}

TEST_P(OnBackend, ConvertNarrowsFloat64) {
  const Shape shape = {3, 1, 45};
  Numbers numbers(12);
  const std::vector<double> values = numbers.take(product(shape), 100.0);
  for (DataType to : {DataType::kFloat32, DataType::kFloat16, DataType::kBFloat16}) {
    for (Layout source : {Layout::kContiguous, Layout::kGaps}) {
      for (Layout target : {Layout::kContiguous, Layout::kNegative}) {
        const Array src(DataType::kFloat64, shape, values, source);
        Array dst(to, shape, target);
        backend().convert(ctx(), src.view(), dst.view());
        EXPECT_EQ(dst.get(), Array(to, shape, values).get()) << name_of(to);
      }
    }
  }
}

TEST_P(OnBackend, AddAddsElements) {
  for (DataType dtype : kTypes) {
    for (std::int64_t n : {0, 1, 17, 1000}) {
      Numbers numbers(13);
      const Array src(dtype, {n}, numbers.take(n));
      Array dst(dtype, {n + 1}, numbers.take(n + 1));
      const auto a = src.get(), b = dst.get();
      backend().add(ctx(), src.view().data, dst.view().data, dtype, n);
      std::vector<double> sums = b;
      for (std::size_t i = 0; i < a.size(); ++i) sums[i] += a[i];
      EXPECT_EQ(dst.get(), Array(dtype, {n + 1}, sums).get()) << name_of(dtype) << " " << n;
    }
  }
}

TEST_P(OnBackend, SumRowsSumsColumns) {
  const std::int64_t sizes[][2] = {{0, 3}, {1, 1}, {3, 129}, {64, 7}, {65, 128}, {300, 260}};
  for (DataType dtype : {DataType::kFloat32, DataType::kFloat64}) {
    for (const auto& size : sizes) {
      const std::int64_t rows = size[0], columns = size[1];
      for (std::int64_t gap : {0, 5}) {
        for (bool accumulate : {false, true}) {
          Numbers numbers(14);
          const std::int64_t lda = columns + gap;
          const Array a(dtype, {rows, lda}, numbers.take(rows * lda));
          Array totals(DataType::kFloat64, {columns + 1});  // NaN
          std::vector<double> expected(at(columns + 1), 0.25);
          if (accumulate) totals.set(expected);
          backend().sum_rows(ctx(), a.view().data, dtype, rows, columns, lda,
                             totals.view().as<double>(), accumulate);
          const auto values = a.get(), got = totals.get();
          for (std::int64_t j = 0; j < columns; ++j) {
            double sum = accumulate ? 0.25 : 0.0;
            for (std::int64_t i = 0; i < rows; ++i) sum += values[at(i * lda + j)];
            const double unit = dtype == DataType::kFloat64 ? 1e-14 : 1e-6;
            ASSERT_NEAR(got[at(j)], sum, unit * static_cast<double>(rows + 1)) << rows << ' ' << j;
          }
          if (accumulate) {
            EXPECT_EQ(got.back(), 0.25);
          } else {
            EXPECT_TRUE(std::isnan(got.back()));
          }
        }
      }
    }
  }
}

TEST_P(OnBackend, ConvertReadsOneElementForMany) {
  const Array one(DataType::kFloat32, {1}, {2.5});
  TensorView spread(one.view().as<float>(), DataType::kFloat32, {3, 4});
  spread.strides[0] = spread.strides[1] = 0;
  Array dst(DataType::kFloat32, {3, 4}, Layout::kFortran);
  backend().convert(ctx(), spread, dst.view());
  EXPECT_EQ(dst.get(), std::vector<double>(12, 2.5));
}

TEST_P(OnBackend, ConvertRefusesOtherPairs) {
  const Array src(DataType::kInt64, {2}, {1, 2});
  Array dst(DataType::kFloat32, {2});
  EXPECT_THROW(backend().convert(ctx(), src.view(), dst.view()), Error);
}

TEST_P(OnBackend, HalfConversionsKeepSpecialValues) {
  const std::vector<double> values = {0.0,    -0.0,     1.0,       65504.0,   65519.0,      65520.0,
                                      1e30,   INFINITY, -INFINITY, 6e-8,      3e-8,         2e-8,
                                      6.1e-5, -6.1e-5,  0.1,       3.3895e38, 1.00048828125};
  const auto n = static_cast<std::int64_t>(values.size());
  for (DataType half : {DataType::kFloat16, DataType::kBFloat16}) {
    const Array wide(DataType::kFloat32, {n}, values);
    Array narrow(half, {n}), back(DataType::kFloat32, {n});
    backend().convert(ctx(), wide.view(), narrow.view());
    backend().convert(ctx(), narrow.view(), back.view());
    EXPECT_EQ(back.get(), Array(half, {n}, values).get());
    Array nan(DataType::kFloat32, {1}, {NAN}), nan_half(half, {1});
    backend().convert(ctx(), nan.view(), nan_half.view());
    EXPECT_TRUE(std::isnan(nan_half.get()[0]));
  }
}

TEST_P(OnBackend, FillZeroWritesItsBytes) {
  Array a(DataType::kFloat32, {100});
  backend().fill_zero(ctx(), a.view().as<float>() + 10, 80 * sizeof(float));
  backend().fill_zero(ctx(), nullptr, 0);
  const auto values = a.get();
  for (std::size_t i = 0; i < 100; ++i) EXPECT_EQ(std::isnan(values[i]), i < 10 || i >= 90);
}

TEST_P(OnBackend, ZeroPaddedZeroesPaddedRowsOnly) {
  const std::int64_t steps = 5, batch = 3;
  const std::int64_t lengths[] = {5, 0, 3};
  for (DataType dtype : kTypes) {
    for (std::int64_t width : {1, 7, 300}) {
      for (int which = 0; which < 3; ++which) {
        std::uint8_t pad[15] = {};
        pad[2] = pad[4] = pad[14] = 1;
        Padding padding;
        if (which != 0) padding.lengths = lengths;
        if (which != 1) padding.pad = pad;
        const Shape shape = {steps, batch, width};
        Array x(dtype, shape, std::vector<double>(at(product(shape)), 3.0));
        backend().zero_padded(ctx(), x.view().data, dtype, steps, batch, width, padding);
        const auto values = x.get();
        for (std::int64_t i = 0; i < product(shape); ++i) {
          const std::int64_t row = i / width;
          const bool padded =
              (which != 1 && pad[row] != 0) || (which != 0 && row / batch >= lengths[row % batch]);
          ASSERT_EQ(values[at(i)], padded ? 0.0 : 3.0) << name_of(dtype) << " row " << row;
        }
      }
    }
  }
}

TEST_P(OnBackend, HasADevice) {
  char why[64] = {};
  EXPECT_EQ(backend().device_count(why, sizeof why), 1) << why;
  EXPECT_EQ(backend().cell_kernels("no such cell"), nullptr);
}

/// A float32 product large enough for the matrix unit, where there is one, against sums in double.
class LargeProduct {
 public:
  LargeProduct(bool trans_a, bool trans_b, std::int64_t m, std::int64_t n, std::int64_t k)
      : trans_a_(trans_a), trans_b_(trans_b), m_(m), n_(n), k_(k) {
    Numbers numbers(static_cast<std::uint64_t>(m + n + k));
    const auto narrow = [](const std::vector<double>& v) {
      return std::vector<float>(v.begin(), v.end());
    };
    a = narrow(numbers.take(m * k));
    b = narrow(numbers.take(k * n));
    c = narrow(numbers.take(m * n));
  }

  std::vector<double> expected(double beta) const {
    std::vector<double> sums(at(m_ * n_));
    for (std::int64_t i = 0; i < m_; ++i) {
      for (std::int64_t p = 0; p < k_; ++p) {
        const double left = a[at(trans_a_ ? p * m_ + i : i * k_ + p)];
        for (std::int64_t j = 0; j < n_; ++j) {
          sums[at(i * n_ + j)] += left * b[at(trans_b_ ? j * k_ + p : p * n_ + j)];
        }
      }
    }
    for (std::size_t i = 0; i < sums.size(); ++i) sums[i] += beta == 0.0 ? 0.0 : beta * c[i];
    return sums;
  }

  std::vector<float> run(double beta, bool packed) const {
    const Context ctx = Context::cpu();
    const Backend& backend = ctx.backend();
    std::vector<float> out = c;
    GemmArgs g;
    g.trans_a = trans_a_;
    g.trans_b = trans_b_;
    g.m = m_, g.n = n_, g.k = k_;
    g.a = a.data();
    g.lda = trans_a_ ? m_ : k_;
    g.b = b.data();
    g.ldb = trans_b_ ? k_ : n_;
    g.beta = beta;
    g.c = out.data();
    g.ldc = n_;
    const std::size_t bytes =
        backend.packed_b_bytes == nullptr ? 0 : backend.packed_b_bytes(g.dtype, n_, k_);
    const Array form = Array::bytes(bytes);
    if (packed && bytes > 0) {
      backend.pack_b(ctx, g, form.view().data);
      g.packed_b = form.view().data;
    }
    backend.gemm(ctx, g);
    return out;
  }

  /// Largest error over the largest element.
  double error(double beta, bool packed) const {
    const auto want = expected(beta);
    const auto got = run(beta, packed);
    double worst = 0.0, largest = 0.0;
    for (std::size_t i = 0; i < want.size(); ++i) {
      worst = std::max(worst, std::abs(static_cast<double>(got[i]) - want[i]));
      largest = std::max(largest, std::abs(want[i]));
    }
    return worst / largest;
  }

  std::vector<float> a, b, c;

 private:
  bool trans_a_, trans_b_;
  std::int64_t m_, n_, k_;
};

TEST(LargeProducts, AreFloat32ToTheLastBits) {
  const std::int64_t sizes[][3] = {{200, 312, 520}, {97, 401, 200}, {64, 64, 1100}};
  for (const auto& s : sizes) {
    for (int trans = 0; trans < 4; ++trans) {
      const LargeProduct product((trans & 1) != 0, (trans & 2) != 0, s[0], s[1], s[2]);
      for (bool packed : {false, true}) {
        if (packed && (trans & 1) != 0) continue;
        for (double beta : {0.0, 1.0, 0.5}) {
          if (packed && beta == 0.5) continue;
          EXPECT_LE(product.error(beta, packed), 2e-6)
              << s[0] << ' ' << s[1] << ' ' << s[2] << " trans " << trans << " beta " << beta;
        }
      }
    }
  }
}

TEST(LargeProducts, KeepTheirPrecisionAtEveryScale) {
  for (double scale : {1e-37, 1e-30, 1e-20, 1e20, 1e35}) {
    LargeProduct product(false, true, 130, 200, 300);
    for (float& v : product.a) v = static_cast<float>(v * scale);
    for (float& v : product.c) v = static_cast<float>(v * scale);
    for (bool packed : {false, true}) EXPECT_LE(product.error(1.0, packed), 2e-6) << scale;
  }
}

TEST(LargeProducts, KeepInfinityAndNaNInTheirRowsAndColumns) {
  LargeProduct product(false, true, 130, 200, 300);
  product.a[5 * 300 + 7] = INFINITY;
  product.a[100 * 300] = 3e38f;  // finite, and too large to be rounded up
  product.b[42 * 300 + 9] = NAN;
  for (bool packed : {false, true}) {
    const auto want = product.expected(0.0);
    const auto got = product.run(0.0, packed);
    for (std::size_t i = 0; i < want.size(); ++i) {
      const auto narrow = static_cast<float>(want[i]);
      ASSERT_EQ(std::isnan(got[i]), std::isnan(narrow)) << i;
      ASSERT_EQ(std::isinf(got[i]), std::isinf(narrow)) << i;
    }
  }
}

/// A product with a packed B, in the library's own forms. Rows of A and of C have gaps.
template <class T>
class PackedProduct {
 public:
  PackedProduct(bool trans_b, std::int64_t m, std::int64_t n, std::int64_t k)
      : m_(m), n_(n), k_(k) {
    Numbers numbers(static_cast<std::uint64_t>(m + 3 * n + 7 * k));
    const auto narrow = [](const std::vector<double>& v) {
      return std::vector<T>(v.begin(), v.end());
    };
    a = narrow(numbers.take(m * lda()));
    b = narrow(numbers.take(k * n));
    c = narrow(numbers.take(m * ldc()));
    args_.dtype = sizeof(T) == 4 ? DataType::kFloat32 : DataType::kFloat64;
    args_.trans_b = trans_b;
    args_.n = n, args_.k = k;
    args_.lda = lda();
    args_.ldb = trans_b ? std::max<std::int64_t>(1, k) : n;
    args_.ldc = ldc();
  }

  T& b_at(std::int64_t p, std::int64_t j) { return b[at(args_.trans_b ? j * k_ + p : p * n_ + j)]; }

  /// C after the product of rows [begin, begin + rows) alone.
  std::vector<T> run(double beta, std::int64_t begin, std::int64_t rows) const {
    const Context ctx = Context::cpu();
    const Backend& backend = ctx.backend();
    const Array form = Array::bytes(backend.packed_b_bytes(args_.dtype, n_, k_));
    std::vector<T> out = c;
    GemmArgs g = args_;
    g.m = rows;
    g.a = a.data() + begin * lda();
    g.b = b.data();
    g.c = out.data() + begin * ldc();
    g.beta = beta;
    // Where there is nothing to pack, products take B itself.
    if (form.view().numel() > 0) {
      backend.pack_b(ctx, g, form.view().data);
      g.packed_b = form.view().data;
    }
    backend.gemm(ctx, g);
    return out;
  }
  std::vector<T> run(double beta) const { return run(beta, 0, m_); }

  /// Largest error of a row's elements, in units of what the contract allows.
  double error(const std::vector<T>& got, double beta, std::int64_t row) {
    // Magnitudes by which A's columns count.
    std::vector<double> weight(at(k_), 1.0);
    for (std::int64_t p = 0; p < k_; ++p) {
      double largest = 0.0;
      for (std::int64_t j = 0; j < n_; ++j) {
        largest = std::max(largest, std::abs(static_cast<double>(b_at(p, j))));
      }
      weight[at(p)] = largest;
    }
    const bool in_fixed_point = sizeof(T) == 4 && config().cpu_isa.find("amx") != std::string::npos;
    double largest_a = 0.0, worst = 0.0;
    for (std::int64_t p = 0; p < k_; ++p) {
      const double left = a[at(row * lda() + p)];
      largest_a = std::max(largest_a, std::abs(left) * weight[at(p)]);
    }
    for (std::int64_t j = 0; j < n_; ++j) {
      const double before = beta * c[at(row * ldc() + j)];
      double sum = before, terms = std::abs(before), column = 0.0;
      for (std::int64_t p = 0; p < k_; ++p) {
        const double left = a[at(row * lda() + p)], right = b_at(p, j);
        sum += left * right;
        terms += std::abs(left * right);
        if (right != 0.0) column += std::abs(right) / weight[at(p)];
      }
      const double allowed = terms + (in_fixed_point ? largest_a * column : 0.0);
      const double off = std::abs(static_cast<double>(got[at(row * ldc() + j)]) - sum);
      worst = std::isnan(off) ? INFINITY : std::max(worst, allowed > 0.0 ? off / allowed : off);
    }
    return worst / std::numeric_limits<T>::epsilon();
  }

  bool gaps_kept(const std::vector<T>& got) const {
    for (std::int64_t i = 0; i < m_; ++i) {
      for (std::int64_t j = n_; j < ldc(); ++j) {
        if (got[at(i * ldc() + j)] != c[at(i * ldc() + j)]) return false;
      }
    }
    return true;
  }
  std::int64_t lda() const { return k_ + 3; }
  std::int64_t ldc() const { return n_ + 2; }

  std::vector<T> a, b, c;

 private:
  std::int64_t m_, n_, k_;
  GemmArgs args_;
};

// So many columns of B that they are taken in turns.
TEST(LargeProducts, TakeManyColumns) {
  const LargeProduct product(true, false, 40, 4120, 70);
  for (double beta : {0.0, 1.0}) EXPECT_LE(product.error(beta, false), 4e-6) << beta;
}

// Both sides of every boundary: vectors, panels, tiles of the matrix unit, its rounds of k.
constexpr std::int64_t kPackedSizes[][3] = {
    {1, 1, 1},    {3, 5, 2},     {5, 17, 0},    {7, 47, 48},     {33, 49, 65},
    {50, 64, 16}, {5, 200, 321}, {64, 48, 320}, {100, 130, 700}, {2, 400, 64}};

template <class T>
void check_packed() {
  for (const auto& s : kPackedSizes) {
    for (bool trans_b : {false, true}) {
      PackedProduct<T> product(trans_b, s[0], s[1], s[2]);
      for (double beta : {0.0, 1.0}) {
        const auto got = product.run(beta);
        for (std::int64_t i = 0; i < s[0]; ++i) {
          ASSERT_LE(product.error(got, beta, i), 8.0)
              << s[0] << ' ' << s[1] << ' ' << s[2] << " trans " << trans_b << " beta " << beta
              << " row " << i;
        }
        EXPECT_TRUE(product.gaps_kept(got)) << s[0] << ' ' << s[1] << ' ' << s[2];
      }
    }
  }
}

TEST(PackedProducts, AgreeWithSumsInDouble) {
  check_packed<float>();
  check_packed<double>();
}

// Every row alone, and among others of which some are hopeless, bit for bit.
TEST(PackedProducts, RowsAreIndependent) {
  for (const auto& s : kPackedSizes) {
    const std::int64_t m = 100, n = s[1];
    PackedProduct<float> product(true, m, n, s[2]);
    const auto all = product.run(1.0);
    PackedProduct<float> broken = product;
    for (std::int64_t i = 0; i < m; i += 3) {
      for (std::int64_t p = 0; p < s[2]; ++p) {
        broken.a[at(i * product.lda() + p)] = i % 2 == 0 ? NAN : 3e38f;
      }
    }
    const auto among = broken.run(1.0);
    for (std::int64_t i = 0; i < m; ++i) {
      const auto row = [&](const std::vector<float>& v) {
        const auto begin = v.begin() + i * product.ldc();
        return std::vector<float>(begin, begin + n);
      };
      if (i % 7 == 0) {
        ASSERT_EQ(row(product.run(1.0, i, 1)), row(all)) << n << ' ' << s[2] << " row " << i;
      }
      if (i % 3 != 0) {
        ASSERT_EQ(row(among), row(all)) << n << ' ' << s[2] << " row " << i;
      }
    }
  }
}

TEST(PackedProducts, TakeRowsOfAnyMagnitude) {
  const std::int64_t m = 40, n = 130, k = 400;
  PackedProduct<float> product(true, m, n, k);
  const auto row = [&](std::int64_t i) { return product.a.data() + i * product.lda(); };
  for (std::int64_t p = 0; p < k; ++p) {
    row(3)[p] *= 1e-35f;
    row(4)[p] *= 1e36f;
    row(5)[p] = 0.0f;
    row(6)[p] *= 1e-20f;
    row(7)[p] *= p == 350 ? 1.0f : 1e-33f;  // tiny but in one of the rounds
  }
  row(20)[399] = NAN;
  row(21)[0] = -INFINITY;
  row(22)[7] = INFINITY, row(22)[390] = -INFINITY;
  const auto got = product.run(0.0);
  for (std::int64_t i = 0; i < m; ++i) {
    const float* out = got.data() + i * product.ldc();
    for (std::int64_t j = 0; j < n; ++j) {
      if (i == 20 || i == 21 || i == 22) {
        ASSERT_FALSE(std::isfinite(out[j])) << i << ' ' << j;
        ASSERT_EQ(std::isinf(out[j]), i == 21 || (i == 22 && !std::isnan(out[j]))) << i;
        if (i == 21) {
          ASSERT_EQ(out[j] < 0, product.b_at(0, j) > 0) << j;
        } else if (i == 22) {
          const bool up = product.b_at(7, j) > 0, down = product.b_at(390, j) > 0;
          ASSERT_EQ(std::isnan(out[j]), up == down) << j;
        }
      } else if (i == 5) {
        ASSERT_EQ(out[j], 0.0f) << j;
      }
    }
    if (i >= 20 && i <= 22) continue;
    EXPECT_LE(product.error(got, 0.0, i), 8.0) << i;
  }
}

TEST(PackedProducts, TakeInfinityNaNAndTinyColumnsOfB) {
  const std::int64_t m = 40, n = 130, k = 400;
  PackedProduct<float> product(true, m, n, k);
  for (std::int64_t p = 0; p < k; ++p) {
    product.b_at(p, 5) *= 1e-36f;
    product.b_at(p, 6) = 0.0f;
  }
  product.b_at(17, 50) = NAN;
  product.b_at(390, 129) = INFINITY;
  const auto got = product.run(0.0);
  for (std::int64_t i = 0; i < m; ++i) {
    for (std::int64_t j = 0; j < n; ++j) {
      const float out = got[at(i * product.ldc() + j)];
      ASSERT_EQ(std::isnan(out), j == 50) << i << ' ' << j;
      ASSERT_EQ(std::isinf(out), j == 129) << i << ' ' << j;
      if (j == 6) {
        ASSERT_EQ(out, 0.0f);
      }
      if (j != 5) continue;
      double sum = 0.0, terms = 0.0;
      for (std::int64_t p = 0; p < k; ++p) {
        const double term = static_cast<double>(product.a[at(i * product.lda() + p)]) *
                            static_cast<double>(product.b_at(p, 5));
        sum += term;
        terms += std::abs(term);
      }
      ASSERT_NEAR(out, sum, 1e-5 * terms) << i;
    }
  }
}

// Features in units of their own, whose weights make up for it: all count alike, so none may lose
// its precision beside the others.
TEST(PackedProducts, KeepThePrecisionOfFeaturesOfAnyScale) {
  const std::int64_t m = 40, n = 130, k = 400;
  for (double span : {3.0, 6.0, 15.0}) {
    PackedProduct<float> product(true, m, n, k);
    Numbers numbers(15);
    for (std::int64_t p = 0; p < k; ++p) {
      const auto unit = static_cast<float>(std::pow(10.0, span * numbers.next()));
      for (std::int64_t i = 0; i < m; ++i) product.a[at(i * product.lda() + p)] *= unit;
      for (std::int64_t j = 0; j < n; ++j) product.b_at(p, j) /= unit;
    }
    const auto got = product.run(0.0);
    for (std::int64_t i = 0; i < m; ++i) {
      ASSERT_LE(product.error(got, 0.0, i), 8.0) << span;
    }
  }
  // One feature's own part of the result, small as it is: the others' cancel.
  PackedProduct<float> product(true, m, n, k);
  for (std::int64_t p = 1; p < k; ++p) {
    for (std::int64_t i = 0; i < m; ++i) product.a[at(i * product.lda() + p)] *= 1e6f;
    for (std::int64_t j = 0; j < n; ++j) product.b_at(p, j) = 0.0f;
  }
  const auto got = product.run(0.0);
  for (std::int64_t i = 0; i < m; ++i) {
    for (std::int64_t j = 0; j < n; ++j) {
      const float want = product.a[at(i * product.lda())] * product.b_at(0, j);
      ASSERT_NEAR(got[at(i * product.ldc() + j)], want, 1e-6);
    }
  }
}

TEST(CudaPlugin, SaysInWordsWhyItIsOff) {
  const Config c = config();
  EXPECT_FALSE(c.cuda_status.empty());
  if (c.cuda_available) GTEST_SKIP() << c.cuda_status;
  try {
    Context::cuda(0, nullptr);
    ADD_FAILURE() << "no error";
  } catch (const Error& e) {
    EXPECT_EQ(static_cast<int>(e.code()), static_cast<int>(ErrorCode::kRuntime));
    EXPECT_NE(std::string(e.what()).find(c.cuda_status), std::string::npos) << e.what();
  }
}

}  // namespace
}  // namespace penstock::tests
