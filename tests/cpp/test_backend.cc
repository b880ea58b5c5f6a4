// What every backend's table offers beside cells: matrix products, copies, zeros, devices.

#include <gtest/gtest.h>

#include <cmath>
#include <string>

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
        backend.packed_b_bytes == nullptr ? 0 : backend.packed_b_bytes(g.dtype, n_, k_, g.scaled);
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
        for (double beta : {0.0, 1.0, 0.5}) {
          EXPECT_LE(product.error(beta, packed), 1e-6)
              << s[0] << ' ' << s[1] << ' ' << s[2] << " trans " << trans << " beta " << beta;
        }
        EXPECT_EQ(product.run(1.0, packed), product.run(1.0, !packed));
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
