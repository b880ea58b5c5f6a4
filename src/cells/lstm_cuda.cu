// Long short-term memory on CUDA.

#include "cells/lstm_cell.h"
#include "cells/recurrent_cuda_table.cuh"

namespace penstock::cuda {
namespace {

struct Lstm {
  using Shape = lstm_cell::Cell;
  static constexpr int kSplit = 4;
  template <class F>
  static __device__ __forceinline__ void with_cell(const recurrent::Options&, F&& f) {
    f(lstm_cell::Cell{});
  }
};

recurrent::Spec spec(const recurrent::Options&) { return Lstm::Shape::spec(); }

}  // namespace

const recurrent::Kernels& lstm_kernels() {
  static constexpr recurrent::Kernels table = mixing::kernels<Lstm>(&spec);
  return table;
}

}  // namespace penstock::cuda
