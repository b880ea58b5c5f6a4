// The plain recurrent cell on CUDA.

#include "cells/recurrent_cuda_table.cuh"
#include "cells/rnn_cell.h"

namespace penstock::cuda {
namespace {

struct Rnn {
  using Shape = rnn_cell::Cell<Activation::kTanh>;
  static constexpr int kSplit = 1;
  template <class F>
  static __device__ __forceinline__ void with_cell(const recurrent::Options& o, F&& f) {
    switch (o.activation) {
      case Activation::kTanh: return f(rnn_cell::Cell<Activation::kTanh>{});
      case Activation::kRelu: return f(rnn_cell::Cell<Activation::kRelu>{});
      case Activation::kIdentity: return f(rnn_cell::Cell<Activation::kIdentity>{});
    }
  }
};

recurrent::Spec spec(const recurrent::Options&) { return Rnn::Shape::spec(); }

}  // namespace

const recurrent::Kernels& rnn_kernels() {
  static constexpr recurrent::Kernels table = mixing::kernels<Rnn>(&spec);
  return table;
}

}  // namespace penstock::cuda
