// Everything.
#pragma once

#include "penstock/config.h"
#include "penstock/context.h"
#include "penstock/error.h"
#include "penstock/gru.h"
#include "penstock/lstm.h"
#include "penstock/recurrent.h"
#include "penstock/rnn.h"
#include "penstock/sliced.h"
#include "penstock/sru.h"
#include "penstock/tensor_view.h"
#include "penstock/types.h"
