/* What both examples need beside penstock: memory, random numbers, parameters with momentum. */
#ifndef SUPPORT_H
#define SUPPORT_H

#include <penstock/c.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

/* Every call says whether it worked; here, one that did not ends the program. */
static inline void check(penstock_status status) {
  if (status != PENSTOCK_OK) {
    fprintf(stderr, "%s: %s\n", penstock_status_name(status), penstock_last_error());
    exit(1);
  }
}

static inline void* allocate(size_t bytes) {
  void* p = calloc(bytes == 0 ? 1 : bytes, 1);
  if (p == NULL) {
    fprintf(stderr, "out of memory\n");
    exit(1);
  }
  return p;
}

/* A contiguous float32 array of up to three axes. */
static inline penstock_tensor floats(float* data, int32_t rank, int64_t a, int64_t b, int64_t c) {
  const int64_t shape[3] = {a, b, c};
  penstock_tensor tensor;
  check(penstock_tensor_init(&tensor, data, PENSTOCK_FLOAT32, rank, shape));
  return tensor;
}

/* Scratch memory. The library never allocates: it says how much it needs, and gets it. */
typedef struct scratch {
  void* memory;
  size_t size;
} scratch;

static inline penstock_tensor scratch_of(scratch* s, size_t bytes) {
  const size_t alignment = 256;
  const int64_t shape[1] = {(int64_t)bytes};
  penstock_tensor tensor;
  char* start;
  if (s->memory == NULL || bytes > s->size) {
    free(s->memory);
    s->memory = allocate(bytes + alignment);
    s->size = bytes;
  }
  start = (char*)s->memory;
  start += (alignment - (uintptr_t)start % alignment) % alignment;
  check(penstock_tensor_init(&tensor, start, PENSTOCK_UINT8, 1, shape));
  return tensor;
}

/* Uniform in (-limit, limit), the same on every run. */
static inline float uniform(float limit) {
  static uint64_t state = 1;
  state = state * 6364136223846793005U + 1442695040888963407U;
  return limit * ((float)(state >> 40) * (1.0F / 8388608.0F) - 1.0F);
}

static inline void fill_uniform(float* values, size_t n, float limit) {
  size_t i;
  for (i = 0; i < n; ++i) values[i] = uniform(limit);
}

/* An array with its gradient and momentum. */
typedef struct parameter {
  size_t n;
  float *value, *gradient, *velocity;
} parameter;

static inline parameter make_parameter(size_t n, float limit) {
  parameter p;
  p.n = n;
  p.value = (float*)allocate(n * sizeof(float));
  p.gradient = (float*)allocate(n * sizeof(float));
  p.velocity = (float*)allocate(n * sizeof(float));
  fill_uniform(p.value, n, limit);
  return p;
}

static inline void descend(parameter* p, float rate) {
  size_t i;
  for (i = 0; i < p->n; ++i) {
    p->velocity[i] = 0.9F * p->velocity[i] + p->gradient[i];
    p->value[i] -= rate * p->velocity[i];
  }
}

static inline void free_parameter(parameter* p) {
  free(p->value);
  free(p->gradient);
  free(p->velocity);
}

static inline void print_library(void) {
  penstock_config config;
  check(penstock_get_config(&config, sizeof config));
  printf("penstock %s on %s, %d threads\n", config.version, config.cpu_isa,
         (int)config.num_threads);
}

#endif
