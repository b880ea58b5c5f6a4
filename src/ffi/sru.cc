// The SRU for XLA.

#include "penstock/sru.h"

#include "ffi/operations.h"
#include "ffi/options.h"

namespace penstock::ffi {
namespace {

void read_inputs(Frame& frame, SruInputs& in) {
  in.x = frame.operand("x");
  in.weight = frame.operand("weight");
  in.weight_c = frame.operand("weight_c");
  in.bias = frame.operand("bias");
  in.c0 = frame.operand("c0");
  in.mask_pad = frame.operand("mask_pad");
  in.lengths = frame.operand("lengths");
  in.x_skip = frame.operand("x_skip");
  in.mask_c = frame.operand("mask_c");
  in.activation = activation_of(frame);
  in.skip = frame.flag("skip");
  in.scale_x = frame.number("scale_x");
  in.mask_site = frame.choice<MaskSite>(
      "mask_site", {{"output", MaskSite::kOutput}, {"state", MaskSite::kState}});
  in.direction = direction_of(frame);
}

}  // namespace

void sru_forward(Frame& frame) {
  SruForwardArgs args;
  read_inputs(frame, args);
  args.y = frame.result("y");
  args.c_last = frame.result("c_last");
  args.reserve = frame.result("reserve");
  args.need_grad = args.reserve.given();
  args.workspace = frame.workspace();
  frame.no_others();
  penstock::sru_forward(frame.context(), args);
}

void sru_backward(Frame& frame) {
  SruBackwardArgs args;
  read_inputs(frame, args);
  args.reserve = frame.operand("reserve");
  args.dy = frame.operand("dy");
  args.dc_last = frame.operand("dc_last");
  args.dx = frame.result("dx");
  args.dweight = frame.result("dweight");
  args.dweight_c = frame.result("dweight_c");
  args.dbias = frame.result("dbias");
  args.dc0 = frame.result("dc0");
  args.dmask_c = frame.result("dmask_c");
  args.dx_skip = frame.result("dx_skip");
  args.workspace = frame.workspace();
  frame.no_others();
  penstock::sru_backward(frame.context(), args);
}

}  // namespace penstock::ffi
