// Everything.
#pragma once

#include "penstock/config.h"
#include "penstock/context.h"
#include "penstock/error.h"
#include "penstock/sru.h"
#include "penstock/tensor_view.h"
#include "penstock/types.h"
