#include "cells/lstm_cpu.h"

#include "cells/lstm_cell.h"

namespace penstock::cpu {
namespace {

recurrent::Spec spec(const recurrent::Options&) { return lstm_cell::Cell::spec(); }
const RecurrentVariant& variant(const recurrent::Options&) { return lstm_steps(); }

}  // namespace

const recurrent::Kernels& lstm_kernels() { return recurrent_kernels<&spec, &variant>(); }

}  // namespace penstock::cpu
