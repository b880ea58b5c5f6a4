// The SRU as a level of a sliced network: recurrent::Level with weight_ih the weight (dirs, K·H,
// D), weight_hh the weight_c (dirs, 2, H) or not given, and bias_ih the bias (dirs, 2, H). A part's
// result is its last valid output h, 0 where it has none.
#pragma once

#include <cstddef>

#include "cells/recurrent.h"
#include "core/checks.h"
#include "penstock/sliced.h"

namespace penstock::sru {

/// Check the shapes of a level whose x has `input` features; returns H.
std::int64_t check_level(checks::Checker& check, const SlicedInputs& in, const SlicedLevel& level,
                         const char* const* names, std::int64_t input, int gates);

std::size_t level_reserve_bytes(const Context& ctx, const recurrent::Level& level);
std::size_t level_forward_workspace_bytes(const Context& ctx, const recurrent::Level& level,
                                          const recurrent::LevelOutputs& out);
std::size_t level_backward_workspace_bytes(const Context& ctx, const recurrent::Level& level,
                                           const recurrent::LevelGradients& grads);
void level_forward(const Context& ctx, const recurrent::Level& level,
                   const recurrent::LevelOutputs& out, void* workspace, void* reserve);
void level_backward(const Context& ctx, const recurrent::Level& level,
                    const recurrent::LevelGradients& grads, void* workspace, const void* reserve);

}  // namespace penstock::sru
