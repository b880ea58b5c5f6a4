// Copies, conversions and zeros.
#pragma once

#include "core/backend.h"

namespace penstock::cuda {

/// As the Backend members of the same names.
void convert(const Context&, const TensorView& src, const TensorView& dst);
void fill_zero(const Context&, void* data, std::size_t bytes);
void zero_padded(const Context&, void* x, DataType dtype, std::int64_t steps, std::int64_t batch,
                 std::int64_t width, const Padding&);

}  // namespace penstock::cuda
