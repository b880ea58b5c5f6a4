// Whether a row's result may depend on how many rows a call has.
#pragma once

namespace penstock::cpu {

bool batch_invariant();
void set_batch_invariant(bool enabled);

}  // namespace penstock::cpu
