// The plain recurrent cell on the CPU, one table per instruction set.
#pragma once

#include "cells/recurrent_cpu.h"

namespace penstock::cpu {

struct RnnSteps {
  RecurrentVariant by_activation[3];
};

PENSTOCK_CPU_KERNEL_TABLE(RnnSteps, rnn_steps)

}  // namespace penstock::cpu
