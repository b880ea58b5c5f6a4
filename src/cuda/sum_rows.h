// Sums over the rows of a matrix.
#pragma once

#include "core/backend.h"

namespace penstock::cuda {

/// As the Backend member of the same name.
void sum_rows(const Context&, const void* a, DataType dtype, std::int64_t rows,
              std::int64_t columns, std::int64_t lda, double* totals, bool accumulate);

}  // namespace penstock::cuda
