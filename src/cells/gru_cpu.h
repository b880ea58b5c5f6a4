// The gated recurrent unit on the CPU, one table per instruction set.
#pragma once

#include "cells/recurrent_cpu.h"

namespace penstock::cpu {

struct GruSteps {
  RecurrentVariant after[3], before[3];  // by activation
};

PENSTOCK_CPU_KERNEL_TABLE(GruSteps, gru_steps)

}  // namespace penstock::cpu
