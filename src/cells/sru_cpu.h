// The SRU's scans on the CPU, one table per instruction set.
#pragma once

#include "cells/sru_kernels.h"
#include "cpu/isa.h"

namespace penstock::cpu {

struct SruScans {
  void (*forward_f32)(const sru::ForwardScan&);
  void (*forward_f64)(const sru::ForwardScan&);
  void (*backward_f32)(const sru::BackwardScan&);
  void (*backward_f64)(const sru::BackwardScan&);
};

PENSTOCK_CPU_KERNEL_TABLE(SruScans, sru_scans)

const sru::Kernels& sru_kernels();

}  // namespace penstock::cpu
