// What a penstock_context is.
#pragma once

#include "penstock/context.h"

struct penstock_context {
  penstock::Context context;
};
