// Checks and order of work shared by the cells whose steps mix the state through a matrix, for
// plain and for sliced sequences and for every backend.
#pragma once

#include <cstddef>

#include "cells/recurrent_kernels.h"
#include "core/checks.h"
#include "core/operands.h"
#include "penstock/recurrent.h"

namespace penstock::recurrent {

/// One level: a cell over the rows of a Cut. Arguments are checked by the caller.
struct Level {
  const char* cell = nullptr;  // name of its kernels
  Options options;
  TensorView x;  // (cut.time, B, D)
  TensorView weight_ih, weight_hh, bias_ih, bias_hh;
  TensorView h0, c0;   // (rows, dirs·H), or not given
  TensorView lengths;  // (B,) int32 or int64, or not given
  Cut cut;             // without lengths
  Direction direction = Direction::kForward;
  bool recompute = false;
  bool need_grad = true;
  bool skip = true;      // of the SRU
  double scale_x = 1.0;  // of the SRU
};

struct LevelOutputs {
  TensorView y;               // (cut.time, B, dirs·H), or not given
  TensorView h_last, c_last;  // (rows, dirs·H); c_last may be missing
};

struct LevelGradients {
  TensorView dy, dh_last, dc_last;  // of the outputs; those not given are zeros
  TensorView dx, dweight_ih, dweight_hh;
  TensorView dbias_ih, dbias_hh, dh0, dc0;  // may be missing
};

std::size_t level_reserve_bytes(const Context& ctx, const Level& level);
std::size_t level_forward_workspace_bytes(const Context& ctx, const Level& level,
                                          const LevelOutputs& out);
std::size_t level_backward_workspace_bytes(const Context& ctx, const Level& level,
                                           const LevelGradients& grads);
void level_forward(const Context& ctx, const Level& level, const LevelOutputs& out, void* workspace,
                   void* reserve);
void level_backward(const Context& ctx, const Level& level, const LevelGradients& grads,
                    void* workspace, const void* reserve);

/// Of the levels of a sliced network, from the lowest on, the first of those that the context's
/// backend takes at once; `count`: it takes all by themselves. The same for all that a call asks.
int first_joint_level(const Context& ctx, const Level* levels, int count, bool backward);
std::size_t joint_forward_workspace_bytes(const Context& ctx, const Level* levels,
                                          const LevelOutputs* out, int count);
std::size_t joint_backward_workspace_bytes(const Context& ctx, const Level* levels,
                                           const LevelGradients* grads, int count);
/// Levels at once; of their outputs and gradients none but those of slicing. `from_input`: the
/// first one is the network's lowest. `kept`: places for a copy of each level's outputs, or null.
void joint_forward(const Context& ctx, const Level* levels, const LevelOutputs* out, int count,
                   bool from_input, void* workspace, void* const* reserves, void* const* kept);
/// Of the gradients dx is the first level's alone, and dh_last lacks what comes from the level
/// above.
void joint_backward(const Context& ctx, const Level* levels, const LevelGradients* grads, int count,
                    void* workspace, const void* const* reserves);

/// Check lengths (B,) against [0, time].
void check_lengths(checks::Checker& check, const Context& ctx, const TensorView& lengths,
                   std::int64_t batch, std::int64_t time);
/// Check what plain cells have in common; `gates` is G.
Level check_inputs(checks::Checker& check, const Context& ctx, const char* cell,
                   const RecurrentInputs& in, int gates, const Options& options);
/// The forward operation of a plain cell: checks of outputs and buffers, then the work. c_last only
/// for cells that have it.
void forward(checks::Checker& check, const Context& ctx, Level level, const RecurrentForward& a,
             const TensorView* c_last);
void backward(checks::Checker& check, const Context& ctx, const Level& level,
              const RecurrentBackward& a, const TensorView* dc_last, const TensorView* dc0);
std::size_t forward_workspace_bytes(const Context& ctx, Level level, const RecurrentForward& a,
                                    const TensorView* c_last);
std::size_t backward_workspace_bytes(const Context& ctx, const Level& level,
                                     const RecurrentBackward& a, const TensorView* dc_last,
                                     const TensorView* dc0);

}  // namespace penstock::recurrent
