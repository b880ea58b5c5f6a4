/* Trains one SRU to follow a fading average of its input, by gradient descent with momentum,
   through penstock's C interface. Ends with status 1 if it does not learn. */
#include <math.h>
#include <string.h>

#include "support.h"

enum { STEPS = 32, BATCH = 16, INPUT = 4, HIDDEN = 32 };

static float x[STEPS * BATCH * INPUT], dx[STEPS * BATCH * INPUT];
static float y[STEPS * BATCH * HIDDEN], dy[STEPS * BATCH * HIDDEN], c_last[BATCH * HIDDEN];

/* Half the mean square of y[t, b, i] - average[t, b, i], for the first INPUT features, and its
   gradient. */
static float loss_and_gradient(void) {
  const float scale = 1.0F / (float)(STEPS * BATCH * INPUT);
  float average[BATCH * INPUT] = {0.0F};
  float loss = 0.0F;
  size_t row, i;
  memset(dy, 0, sizeof dy);
  for (row = 0; row < STEPS * BATCH; ++row) {
    for (i = 0; i < INPUT; ++i) {
      float* target = &average[row % BATCH * INPUT + i];
      float error;
      *target = 0.8F * *target + 0.2F * x[row * INPUT + i];
      error = y[row * HIDDEN + i] - *target;
      loss += 0.5F * error * error * scale;
      dy[row * HIDDEN + i] = error * scale;
    }
  }
  return loss;
}

int main(void) {
  penstock_context* context;
  scratch workspace = {NULL, 0}, reserve = {NULL, 0};
  /* K = 4 row blocks, for D != H: candidate, forget, reset, skip. */
  parameter weight = make_parameter(4 * HIDDEN * INPUT, sqrtf(3.0F / (float)INPUT));
  parameter weight_c = make_parameter(2 * HIDDEN, sqrtf(1.5F));
  parameter bias = make_parameter(2 * HIDDEN, 0.0F);
  float first = 0.0F, last = 0.0F;
  penstock_sru_forward_args wrong;
  int step;

  print_library();
  check(penstock_context_create_cpu(&context));
  for (step = 0; step < 300; ++step) {
    penstock_sru_forward_args forward;
    penstock_sru_backward_args backward;
    size_t bytes;
    fill_uniform(x, STEPS * BATCH * INPUT, 1.0F);

    check(penstock_sru_forward_init(&forward, sizeof forward));
    forward.x = floats(x, 3, STEPS, BATCH, INPUT);
    forward.weight = floats(weight.value, 3, 1, 4 * HIDDEN, INPUT);
    forward.weight_c = floats(weight_c.value, 3, 1, 2, HIDDEN);
    forward.bias = floats(bias.value, 3, 1, 2, HIDDEN);
    forward.y = floats(y, 3, STEPS, BATCH, HIDDEN);
    forward.c_last = floats(c_last, 2, BATCH, HIDDEN, 0);
    check(penstock_sru_forward_workspace_bytes(context, &forward, &bytes));
    forward.workspace = scratch_of(&workspace, bytes);
    check(penstock_sru_reserve_bytes(context, &forward, &bytes));
    forward.reserve = scratch_of(&reserve, bytes);
    check(penstock_sru_forward(context, &forward));

    last = loss_and_gradient();
    if (step == 0) first = last;

    check(penstock_sru_backward_init(&backward, sizeof backward));
    backward.forward = &forward;
    backward.dy = floats(dy, 3, STEPS, BATCH, HIDDEN);
    backward.dx = floats(dx, 3, STEPS, BATCH, INPUT);
    backward.dweight = floats(weight.gradient, 3, 1, 4 * HIDDEN, INPUT);
    backward.dweight_c = floats(weight_c.gradient, 3, 1, 2, HIDDEN);
    backward.dbias = floats(bias.gradient, 3, 1, 2, HIDDEN);
    check(penstock_sru_backward_workspace_bytes(context, &backward, &bytes));
    backward.workspace = scratch_of(&workspace, bytes);
    check(penstock_sru_backward(context, &backward));

    descend(&weight, 0.3F);
    descend(&weight_c, 0.3F);
    descend(&bias, 0.3F);
    if (step % 50 == 0) printf("step %3d  loss %.5f\n", step, (double)last);
  }
  printf("loss %.5f, at first %.5f\n", (double)last, (double)first);

  /* A mistake is a status, and words that name the argument; nothing has been written then. */
  check(penstock_sru_forward_init(&wrong, sizeof wrong));
  if (penstock_sru_forward(context, &wrong) == PENSTOCK_ERROR_VALUE) {
    printf("as expected: %s\n", penstock_last_error());
  }

  penstock_context_destroy(context);
  free_parameter(&weight);
  free_parameter(&weight_c);
  free_parameter(&bias);
  free(workspace.memory);
  free(reserve.memory);
  return last < 0.1F * first ? 0 : 1;
}
