/* Trains a sliced GRU to tell whether a long sequence of numbers adds up to more than zero, by
   gradient descent with momentum, through penstock's C interface. Ends with status 1 if it does not
   learn. */
#include <math.h>
#include <string.h>

#include "support.h"

/* 64 steps in 4 parts of 4 parts of 4 steps: no state passes through more than 12 of them. */
enum { LEVELS = 3, STEPS = 64, BATCH = 128, INPUT = 2, HIDDEN = 16, UPDATES = 1000 };
static const int64_t kSlices[LEVELS - 1] = {4, 4};

static float x[STEPS * BATCH * INPUT], dx[STEPS * BATCH * INPUT];
static float dlast[BATCH * HIDDEN];

/* A GRU's parameters: three gates, one direction. */
typedef struct gru {
  int64_t input;
  parameter weight_ih, weight_hh, bias;
} gru;

static gru make_gru(size_t input) {
  gru g;
  g.input = (int64_t)input;
  g.weight_ih = make_parameter(3 * HIDDEN * input, 1.0F / sqrtf((float)input));
  g.weight_hh = make_parameter(3 * HIDDEN * HIDDEN, 0.25F);
  g.bias = make_parameter(3 * HIDDEN, 0.0F);
  return g;
}

static penstock_sliced_level level_of(const gru* g, float* ih, float* hh, float* bias) {
  penstock_sliced_level level;
  memset(&level, 0, sizeof level); /* nothing is given */
  level.weight_ih = floats(ih, 3, 1, 3 * HIDDEN, g->input);
  level.weight_hh = floats(hh, 3, 1, 3 * HIDDEN, HIDDEN);
  level.bias_ih = floats(bias, 2, 1, 3 * HIDDEN, 0);
  return level;
}

/* Logistic loss on the sign of the first feature's sum, read off the network's state; its gradients
   go to dlast and to the readout. */
static float loss_and_gradient(const float* state, parameter* readout) {
  float loss = 0.0F;
  size_t b, t, h;
  memset(readout->gradient, 0, readout->n * sizeof(float));
  for (b = 0; b < BATCH; ++b) {
    float sum = 0.0F, score = 0.0F, label, dscore;
    for (t = 0; t < STEPS; ++t) sum += x[(t * BATCH + b) * INPUT];
    for (h = 0; h < HIDDEN; ++h) score += readout->value[h] * state[b * HIDDEN + h];
    label = sum > 0.0F ? 1.0F : 0.0F;
    loss += (log1pf(expf(-fabsf(score))) + fmaxf(score, 0.0F) - label * score) / (float)BATCH;
    dscore = (1.0F / (1.0F + expf(-score)) - label) / (float)BATCH;
    for (h = 0; h < HIDDEN; ++h) {
      readout->gradient[h] += dscore * state[b * HIDDEN + h];
      dlast[b * HIDDEN + h] = dscore * readout->value[h];
    }
  }
  return loss;
}

int main(void) {
  penstock_context* context;
  scratch workspace = {NULL, 0}, reserve = {NULL, 0};
  gru grus[LEVELS];
  parameter readout;
  int64_t steps[LEVELS], parts[LEVELS];
  float* states[LEVELS];
  float first = 0.0F, last = 0.0F;
  int i, step;

  print_library();
  check(penstock_context_create_cpu(&context));
  check(penstock_sliced_shape(STEPS, kSlices, LEVELS - 1, steps, parts));
  for (i = 0; i < LEVELS; ++i) {
    grus[i] = make_gru(i == 0 ? INPUT : HIDDEN);
    states[i] = (float*)allocate((size_t)parts[i] * BATCH * HIDDEN * sizeof(float));
    printf("level %d: %d parts of %d steps\n", i, (int)parts[i], (int)steps[i]);
  }
  readout = make_parameter(HIDDEN, 0.25F);

  for (step = 0; step < UPDATES; ++step) {
    penstock_sliced_level levels[LEVELS], dlevels[LEVELS];
    penstock_tensor outputs[LEVELS], doutputs[LEVELS];
    penstock_sliced_forward_args forward;
    penstock_sliced_backward_args backward;
    size_t bytes;
    float loss;
    fill_uniform(x, STEPS * BATCH * INPUT, 1.0F);
    for (i = 0; i < LEVELS; ++i) {
      gru* g = &grus[i];
      levels[i] = level_of(g, g->weight_ih.value, g->weight_hh.value, g->bias.value);
      dlevels[i] = level_of(g, g->weight_ih.gradient, g->weight_hh.gradient, g->bias.gradient);
      outputs[i] = floats(states[i], 3, parts[i], BATCH, HIDDEN);
    }

    check(penstock_sliced_forward_init(&forward, sizeof forward));
    forward.x = floats(x, 3, STEPS, BATCH, INPUT);
    forward.levels = levels;
    forward.slices = kSlices;
    forward.slice_count = LEVELS - 1;
    forward.outputs = outputs;
    check(penstock_sliced_forward_workspace_bytes(context, &forward, &bytes));
    forward.workspace = scratch_of(&workspace, bytes);
    check(penstock_sliced_reserve_bytes(context, &forward, &bytes));
    forward.reserve = scratch_of(&reserve, bytes);
    check(penstock_sliced_forward(context, &forward));

    loss = loss_and_gradient(states[LEVELS - 1], &readout);

    /* Only the last level's output counts; the others' gradients are not given. */
    memset(doutputs, 0, sizeof doutputs);
    doutputs[LEVELS - 1] = floats(dlast, 3, 1, BATCH, HIDDEN);
    check(penstock_sliced_backward_init(&backward, sizeof backward));
    backward.forward = &forward;
    backward.doutputs = doutputs;
    backward.dx = floats(dx, 3, STEPS, BATCH, INPUT);
    backward.dlevels = dlevels;
    check(penstock_sliced_backward_workspace_bytes(context, &backward, &bytes));
    backward.workspace = scratch_of(&workspace, bytes);
    check(penstock_sliced_backward(context, &backward));

    for (i = 0; i < LEVELS; ++i) {
      descend(&grus[i].weight_ih, 0.05F);
      descend(&grus[i].weight_hh, 0.05F);
      descend(&grus[i].bias, 0.05F);
    }
    descend(&readout, 0.05F);
    if (step == 0) first = last = loss;
    last = 0.9F * last + 0.1F * loss;
    if (step % 200 == 0) printf("step %3d  loss %.5f\n", step, (double)loss);
  }
  printf("loss %.5f, at first %.5f\n", (double)last, (double)first);

  penstock_context_destroy(context);
  for (i = 0; i < LEVELS; ++i) {
    free_parameter(&grus[i].weight_ih);
    free_parameter(&grus[i].weight_hh);
    free_parameter(&grus[i].bias);
    free(states[i]);
  }
  free_parameter(&readout);
  free(workspace.memory);
  free(reserve.memory);
  return last < 0.3F * first ? 0 : 1;
}
