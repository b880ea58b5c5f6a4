// Each operation for a call of XLA's: its arguments read by name, then the library's own function.
//
// Operands and results carry the names of the members of the argument structs in
// include/penstock/*.h, those of a sliced network "levels[i].weight_ih" and so on for parameters,
// "levels[i]" for a level's output, "dlevels[i]" for its gradient and "dlevels[i].weight_ih" for
// the parameters'. Forward keeps what backward needs where `reserve` is among the results.
#pragma once

#include "ffi/frame.h"

namespace penstock::ffi {

void rnn_forward(Frame&);
void rnn_backward(Frame&);
void gru_forward(Frame&);
void gru_backward(Frame&);
void lstm_forward(Frame&);
void lstm_backward(Frame&);
void sru_forward(Frame&);
void sru_backward(Frame&);
void sliced_forward(Frame&);
void sliced_backward(Frame&);

}  // namespace penstock::ffi
