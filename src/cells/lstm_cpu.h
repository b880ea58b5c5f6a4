// Long short-term memory on the CPU, one table per instruction set.
#pragma once

#include "cells/recurrent_cpu.h"

namespace penstock::cpu {

PENSTOCK_CPU_KERNEL_TABLE(RecurrentVariant, lstm_steps)

}  // namespace penstock::cpu
