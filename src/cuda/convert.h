// Copies, conversions, zeros and sums of two.
#pragma once

#include "core/backend.h"

namespace penstock::cuda {

/// As the Backend members of the same names.
void convert(const Context&, const TensorView& src, const TensorView& dst);
void fill_zero(const Context&, void* data, std::size_t bytes);
void zero_padded(const Context&, void* x, DataType dtype, std::int64_t steps, std::int64_t batch,
                 std::int64_t width, const Padding&);
void add(const Context&, const void* src, void* dst, DataType dtype, std::int64_t n);

}  // namespace penstock::cuda
