// Vector maths and cell maths of each instruction set, for test_vec.cc.
#pragma once

#include <cstdint>

#include "penstock/types.h"

namespace penstock::tests {

/// Arrays of n elements each.
template <class T>
struct CellArrays {
  const T *u0, *u1, *u2, *skip, *mask, *mask_skip, *v_f, *v_r, *b_f, *b_r, *c_prev, *c, *dh, *dc;
  T *c_out, *h_out, *du0, *du1, *du2, *dskip, *dmask, *dc_prev;
};

template <class T>
struct Probe {
  int lanes;
  void (*exp)(std::int64_t n, const T* x, T* y);
  void (*sigmoid)(std::int64_t n, const T* x, T* y);
  void (*tanh)(std::int64_t n, const T* x, T* y);
  T (*horizontal_sum)(const T* lanes);
  void (*cell)(Activation, T site, std::int64_t n, const CellArrays<T>&);
};

struct CellProbe {
  Probe<float> f32;
  Probe<double> f64;
};

}  // namespace penstock::tests

namespace penstock::cpu {
namespace isa_base {
const tests::CellProbe& cell_probe();
}
#if defined(__x86_64__)
namespace isa_avx2 {
const tests::CellProbe& cell_probe();
}
namespace isa_avx512 {
const tests::CellProbe& cell_probe();
}
#endif
}  // namespace penstock::cpu
