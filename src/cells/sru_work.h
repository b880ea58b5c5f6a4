// The SRU's order of work for arguments that are checked: sequences in one part (sru.cc) or in
// many, as a level of a sliced network (sru_level.cc).
#pragma once

#include <cstddef>

#include "cells/sru_kernels.h"
#include "core/checks.h"
#include "penstock/sru.h"

namespace penstock::sru {

/// Check weight, weight_c and bias, of these names, for x of `input` features, and whether x_skip
/// or x can be the skip term; returns H.
std::int64_t check_parameters(checks::Checker& check, const SruInputs& in, const char* const* names,
                              std::int64_t input);
/// The dimensions of a call whose x and parameters are checked.
Dims dims_of(const Context& ctx, const SruInputs& in, const recurrent::Cut& cut);

/// x is (cut.time, B, D). c0, mask_pad, mask_c and x_skip only with one part.
struct ForwardWork : SruForwardArgs {
  Dims dims;
  recurrent::Cut cut;         // without lengths
  bool part_outputs = false;  // the output is h_last; otherwise y and c_last
  TensorView h_last;          // (parts·B, dirs·H): each part's last valid output in processing
                              // order, 0 where it has none
};

struct BackwardWork : SruBackwardArgs {
  Dims dims;
  recurrent::Cut cut;
  TensorView dh_last;  // of h_last; not with dy or mask_pad
};

std::size_t reserve_bytes(const Context& ctx, const Dims& dims);
std::size_t workspace_bytes(const Context& ctx, const ForwardWork& work);
std::size_t workspace_bytes(const Context& ctx, const BackwardWork& work);
void forward(const Context& ctx, const ForwardWork& work, void* workspace, void* reserve);
void backward(const Context& ctx, const BackwardWork& work, void* workspace, const void* reserve);

}  // namespace penstock::sru
