/* The C interface as C sees it: every operation runs, and every mistake has its status and words,
   and writes nothing. C99 that is C++ too, and compiled as both. */
#include "penstock/c.h"

#include <stdint.h>
#include <stdio.h>
#include <string.h>

#ifndef TEST_NAME
#define TEST_NAME test_c_api
#endif

static int failures = 0;

#define CHECK(condition)                                     \
  do {                                                       \
    if (!(condition)) {                                      \
      ++failures;                                            \
      printf("%s:%d: %s\n", __FILE__, __LINE__, #condition); \
      printf("  last error: %s\n", penstock_last_error());   \
    }                                                        \
  } while (0)

/* That `call` fails with `status`, and says `words`. */
#define FAILS(call, status, words)                                                           \
  do {                                                                                       \
    const penstock_status got = (call);                                                      \
    if (got != (status) || strstr(penstock_last_error(), (words)) == NULL) {                 \
      ++failures;                                                                            \
      printf("%s:%d: %s\n  expected %s: %s\n  actual   %s: %s\n", __FILE__, __LINE__, #call, \
             penstock_status_name(status), (words), penstock_status_name(got),               \
             penstock_last_error());                                                         \
    }                                                                                        \
  } while (0)

/* ---- memory: one block, handed out in pieces at 256-byte alignment ----------------------------
 */

enum { kPool = 1 << 20, kAlignment = 256 };
static unsigned char pool[kPool];
static size_t used = 0;

static unsigned char* take(size_t bytes) {
  const uintptr_t at = (uintptr_t)(pool + used);
  const size_t gap = (size_t)((kAlignment - at % kAlignment) % kAlignment);
  unsigned char* p = pool + used + gap;
  used += gap + bytes;
  if (used > kPool) {
    ++failures;
    printf("the pool is too small\n");
    used = 0;
    return pool;
  }
  return p;
}

static penstock_tensor tensor(int32_t rank, int64_t a, int64_t b, int64_t c) {
  const int64_t shape[3] = {a, b, c};
  penstock_tensor t;
  size_t n = 1;
  int32_t i;
  for (i = 0; i < rank; ++i) n *= (size_t)shape[i];
  CHECK(penstock_tensor_init(&t, take(n * sizeof(float)), PENSTOCK_FLOAT32, rank, shape) ==
        PENSTOCK_OK);
  for (i = 0; i < (int32_t)n; ++i) ((float*)t.data)[i] = 0.01F * (float)(i % 17) - 0.05F;
  return t;
}

static penstock_tensor bytes_of(size_t n) {
  const int64_t shape[1] = {(int64_t)n};
  penstock_tensor t;
  CHECK(penstock_tensor_init(&t, take(n), PENSTOCK_UINT8, 1, shape) == PENSTOCK_OK);
  return t;
}

static const penstock_tensor kNotGiven = {NULL, 0, 0, 0, 0, 0, 0, {0, 0, 0, 0}, {0, 0, 0, 0}};

/* Whether y is what the caller filled it with. */
static void fill(penstock_tensor t, size_t n) { memset(t.data, 0x33, n * sizeof(float)); }
static int untouched(penstock_tensor t, size_t n) {
  const unsigned char* p = (const unsigned char*)t.data;
  size_t i;
  for (i = 0; i < n * sizeof(float); ++i) {
    if (p[i] != 0x33) return 0;
  }
  return 1;
}

enum { T = 4, B = 2, D = 3, H = 5, ALL = T * B * H };

/* ---- what every operation refuses --------------------------------------------------------------
 */

/* `f` and `b` are arguments that work, `op` the operation's name. A structure of another version is
   the same with bytes behind it. */
#define COMMON(op, f, b)                                                                           \
  do {                                                                                             \
    penstock_##op##_forward_args f2;                                                               \
    penstock_##op##_backward_args b2;                                                              \
    struct {                                                                                       \
      penstock_##op##_forward_args args;                                                           \
      unsigned char more[16];                                                                      \
    } newer;                                                                                       \
    size_t n = 0;                                                                                  \
    FAILS(penstock_##op##_forward_init(NULL, sizeof f2), PENSTOCK_ERROR_VALUE,                     \
          "args: expected a pointer (actual: null)");                                              \
    FAILS(penstock_##op##_forward_init(&f2, sizeof f2 - 1), PENSTOCK_ERROR_VALUE,                  \
          #op "_forward_init: size: expected at least");                                           \
    FAILS(penstock_##op##_backward_init(NULL, sizeof b2), PENSTOCK_ERROR_VALUE, "args: expected"); \
    FAILS(penstock_##op##_backward_init(&b2, 0), PENSTOCK_ERROR_VALUE,                             \
          #op "_backward_init: size: expected at least");                                          \
    memset(&newer, 0x5a, sizeof newer);                                                            \
    CHECK(penstock_##op##_forward_init(&newer.args, sizeof newer) == PENSTOCK_OK);                 \
    CHECK(newer.args.size == sizeof newer && newer.more[0] == 0 && newer.more[15] == 0);           \
    newer.args = (f);                                                                              \
    newer.args.size = sizeof newer;                                                                \
    CHECK(penstock_##op##_forward(context, &newer.args) == PENSTOCK_OK);                           \
    newer.more[15] = 1;                                                                            \
    FAILS(penstock_##op##_forward(context, &newer.args), PENSTOCK_ERROR_VALUE,                     \
          #op ": args.size: expected zeros beyond");                                               \
    f2 = (f);                                                                                      \
    f2.size -= 8;                                                                                  \
    FAILS(penstock_##op##_forward(context, &f2), PENSTOCK_ERROR_VALUE,                             \
          #op ": args.size: expected at least");                                                   \
    FAILS(penstock_##op##_forward(context, NULL), PENSTOCK_ERROR_VALUE, #op ": args: expected");   \
    FAILS(penstock_##op##_forward(NULL, &(f)), PENSTOCK_ERROR_VALUE, #op ": context: expected");   \
    FAILS(penstock_##op##_backward(context, NULL), PENSTOCK_ERROR_VALUE,                           \
          #op ".backprop: args: expected");                                                        \
    FAILS(penstock_##op##_backward(NULL, &(b)), PENSTOCK_ERROR_VALUE,                              \
          #op ".backprop: context: expected");                                                     \
    FAILS(penstock_##op##_forward_workspace_bytes(context, &(f), NULL), PENSTOCK_ERROR_VALUE,      \
          #op ": bytes: expected");                                                                \
    FAILS(penstock_##op##_forward_workspace_bytes(NULL, &(f), &n), PENSTOCK_ERROR_VALUE,           \
          "context: expected");                                                                    \
    FAILS(penstock_##op##_forward_workspace_bytes(context, NULL, &n), PENSTOCK_ERROR_VALUE,        \
          "args: expected");                                                                       \
    FAILS(penstock_##op##_reserve_bytes(context, &(f), NULL), PENSTOCK_ERROR_VALUE,                \
          "bytes: expected");                                                                      \
    FAILS(penstock_##op##_reserve_bytes(NULL, &(f), &n), PENSTOCK_ERROR_VALUE,                     \
          "context: expected");                                                                    \
    FAILS(penstock_##op##_reserve_bytes(context, NULL, &n), PENSTOCK_ERROR_VALUE,                  \
          "args: expected");                                                                       \
    FAILS(penstock_##op##_backward_workspace_bytes(context, &(b), NULL), PENSTOCK_ERROR_VALUE,     \
          "bytes: expected");                                                                      \
    FAILS(penstock_##op##_backward_workspace_bytes(NULL, &(b), &n), PENSTOCK_ERROR_VALUE,          \
          "context: expected");                                                                    \
    FAILS(penstock_##op##_backward_workspace_bytes(context, NULL, &n), PENSTOCK_ERROR_VALUE,       \
          "args: expected");                                                                       \
    CHECK(n == 0);                                                                                 \
    b2 = (b);                                                                                      \
    b2.size = 1;                                                                                   \
    FAILS(penstock_##op##_backward(context, &b2), PENSTOCK_ERROR_VALUE,                            \
          #op ".backprop: args.size: expected at least");                                          \
    b2 = (b);                                                                                      \
    b2.forward = NULL;                                                                             \
    FAILS(penstock_##op##_backward(context, &b2), PENSTOCK_ERROR_VALUE,                            \
          #op ".backprop: forward: expected a pointer (actual: null)");                            \
    f2 = (f);                                                                                      \
    f2.size = 0;                                                                                   \
    b2.forward = &f2;                                                                              \
    FAILS(penstock_##op##_backward(context, &b2), PENSTOCK_ERROR_VALUE,                            \
          #op ".backprop: forward.size: expected at least");                                       \
    f2 = (f);                                                                                      \
    f2.reserve = kNotGiven;                                                                        \
    FAILS(penstock_##op##_forward(context, &f2), PENSTOCK_ERROR_VALUE, #op ": reserve: expected"); \
    FAILS(penstock_##op##_backward(context, &b2), PENSTOCK_ERROR_VALUE,                            \
          #op ".backprop: reserve: expected");                                                     \
    b2 = (b);                                                                                      \
    b2.dx = kNotGiven;                                                                             \
    FAILS(penstock_##op##_backward(context, &b2), PENSTOCK_ERROR_VALUE,                            \
          #op ".backprop: dx: expected");                                                          \
    f2 = (f);                                                                                      \
    f2.need_grad = 0;                                                                              \
    f2.reserve = kNotGiven;                                                                        \
    n = 1;                                                                                         \
    CHECK(penstock_##op##_reserve_bytes(context, &f2, &n) == PENSTOCK_OK && n == 0);               \
    CHECK(penstock_##op##_forward_workspace_bytes(context, &f2, &n) == PENSTOCK_OK && n > 0);      \
    f2.workspace = kNotGiven;                                                                      \
    FAILS(penstock_##op##_forward(context, &f2), PENSTOCK_ERROR_VALUE,                             \
          #op ": workspace: expected an array");                                                   \
    f2.workspace = bytes_of(n - 1);                                                                \
    FAILS(penstock_##op##_forward(context, &f2), PENSTOCK_ERROR_VALUE,                             \
          #op ": workspace: expected at least");                                                   \
    f2.workspace = bytes_of(n);                                                                    \
    CHECK(penstock_##op##_forward(context, &f2) == PENSTOCK_OK);                                   \
    TENSORS(op, f, x)                                                                              \
  } while (0)

/* Every field of a tensor that may be wrong, in the input `name`. */
#define TENSORS(op, f, name)                                                               \
  {                                                                                        \
    f2 = (f);                                                                              \
    f2.name = kNotGiven;                                                                   \
    FAILS(penstock_##op##_forward(context, &f2), PENSTOCK_ERROR_VALUE,                     \
          #op ": " #name ": expected");                                                    \
    f2 = (f);                                                                              \
    f2.name.rank = PENSTOCK_MAX_RANK + 1;                                                  \
    FAILS(penstock_##op##_forward(context, &f2), PENSTOCK_ERROR_VALUE,                     \
          #op ": " #name ".rank: expected 1 to 4 (actual: 5)");                            \
    f2.name.rank = 0;                                                                      \
    FAILS(penstock_##op##_forward(context, &f2), PENSTOCK_ERROR_VALUE,                     \
          #op ": " #name ".rank: expected 1 to 4 (actual: 0)");                            \
    f2.name.rank = -1;                                                                     \
    FAILS(penstock_##op##_forward(context, &f2), PENSTOCK_ERROR_VALUE, ".rank: expected"); \
    f2 = (f);                                                                              \
    f2.name.dtype = 8;                                                                     \
    FAILS(penstock_##op##_forward(context, &f2), PENSTOCK_ERROR_TYPE,                      \
          #op ": " #name ".dtype: expected 0 to 7 (actual: 8)");                           \
    f2.name.dtype = -1;                                                                    \
    FAILS(penstock_##op##_forward(context, &f2), PENSTOCK_ERROR_TYPE, ".dtype: expected"); \
    f2.name.dtype = PENSTOCK_INT32;                                                        \
    FAILS(penstock_##op##_forward(context, &f2), PENSTOCK_ERROR_TYPE, #op ": " #name);     \
    f2 = (f);                                                                              \
    f2.name.device_type = 2;                                                               \
    FAILS(penstock_##op##_forward(context, &f2), PENSTOCK_ERROR_VALUE,                     \
          #op ": " #name ".device_type: expected 0 or 1 (actual: 2)");                     \
    f2.name.device_type = PENSTOCK_DEVICE_CUDA;                                            \
    FAILS(penstock_##op##_forward(context, &f2), PENSTOCK_ERROR_BUFFER,                    \
          #op ": " #name ": expected an array on cpu");                                    \
    f2 = (f);                                                                              \
    f2.name.reserved = 7;                                                                  \
    FAILS(penstock_##op##_forward(context, &f2), PENSTOCK_ERROR_VALUE,                     \
          #op ": " #name ".reserved: expected 0 (actual: 7)");                             \
    f2 = (f);                                                                              \
    f2.name.shape[1] = -2;                                                                 \
    FAILS(penstock_##op##_forward(context, &f2), PENSTOCK_ERROR_VALUE,                     \
          #op ": " #name ".shape[1]: expected 0 or more (actual: -2)");                    \
    f2 = (f);                                                                              \
    f2.name.data = NULL;                                                                   \
    FAILS(penstock_##op##_forward(context, &f2), PENSTOCK_ERROR_BUFFER,                    \
          #op ": " #name ": expected memory (actual: a null pointer)");                    \
  }

/* A wrong option, in all five functions that look at it. */
#define OPTION(op, f, b, name, value, words)                                                      \
  do {                                                                                            \
    penstock_##op##_forward_args f2 = (f);                                                        \
    penstock_##op##_backward_args b2 = (b);                                                       \
    size_t n = 0;                                                                                 \
    f2.name = (value);                                                                            \
    b2.forward = &f2;                                                                             \
    FAILS(penstock_##op##_forward(context, &f2), PENSTOCK_ERROR_VALUE, #op ": " words);           \
    FAILS(penstock_##op##_backward(context, &b2), PENSTOCK_ERROR_VALUE, #op ".backprop: " words); \
    FAILS(penstock_##op##_forward_workspace_bytes(context, &f2, &n), PENSTOCK_ERROR_VALUE,        \
          #op ": " words);                                                                        \
    FAILS(penstock_##op##_reserve_bytes(context, &f2, &n), PENSTOCK_ERROR_VALUE, #op ": " words); \
    FAILS(penstock_##op##_backward_workspace_bytes(context, &b2, &n), PENSTOCK_ERROR_VALUE,       \
          #op ".backprop: " words);                                                               \
  } while (0)

/* What may be wrong with y and the reserve; not of `sliced`, whose outputs are a list. */
#define OUTPUTS(op, f)                                                                             \
  do {                                                                                             \
    penstock_##op##_forward_args f2 = (f);                                                         \
    f2.y.read_only = 1;                                                                            \
    FAILS(penstock_##op##_forward(context, &f2), PENSTOCK_ERROR_BUFFER,                            \
          #op ": y: expected a writable array (actual: read-only)");                               \
    f2 = (f);                                                                                      \
    f2.y.data = f2.x.data;                                                                         \
    FAILS(penstock_##op##_forward(context, &f2), PENSTOCK_ERROR_BUFFER,                            \
          #op ": y: expected memory of its own (actual: overlaps");                                \
    f2 = (f);                                                                                      \
    f2.y.strides[0] *= 2;                                                                          \
    FAILS(penstock_##op##_forward(context, &f2), PENSTOCK_ERROR_BUFFER,                            \
          #op ": y: expected a contiguous output");                                                \
    f2 = (f);                                                                                      \
    f2.y.shape[2] += 1;                                                                            \
    FAILS(penstock_##op##_forward(context, &f2), PENSTOCK_ERROR_VALUE, #op ": y: expected shape"); \
    f2 = (f);                                                                                      \
    f2.y.dtype = 42;                                                                               \
    FAILS(penstock_##op##_forward(context, &f2), PENSTOCK_ERROR_TYPE, #op ": y.dtype: expected");  \
    f2 = (f);                                                                                      \
    f2.reserve.data = (char*)f2.reserve.data + 1;                                                  \
    FAILS(penstock_##op##_forward(context, &f2), PENSTOCK_ERROR_BUFFER,                            \
          #op ": reserve: expected memory aligned to");                                            \
  } while (0)

/* Asks for scratch memory, then runs forward and backward. */
#define RUN(op, f, b)                                                                  \
  do {                                                                                 \
    size_t n = 0;                                                                      \
    CHECK(penstock_##op##_forward_workspace_bytes(context, &(f), &n) == PENSTOCK_OK);  \
    (f).workspace = bytes_of(n + 1);                                                   \
    CHECK(penstock_##op##_reserve_bytes(context, &(f), &n) == PENSTOCK_OK && n > 0);   \
    (f).reserve = bytes_of(n);                                                         \
    CHECK(penstock_##op##_backward_workspace_bytes(context, &(b), &n) == PENSTOCK_OK); \
    (b).workspace = bytes_of(n + 1);                                                   \
    CHECK(penstock_##op##_forward(context, &(f)) == PENSTOCK_OK);                      \
    CHECK(penstock_##op##_backward(context, &(b)) == PENSTOCK_OK);                     \
  } while (0)

static void test_sru(const penstock_context* context) {
  penstock_sru_forward_args f;
  penstock_sru_backward_args b;
  CHECK(penstock_sru_forward_init(&f, sizeof f) == PENSTOCK_OK);
  CHECK(penstock_sru_backward_init(&b, sizeof b) == PENSTOCK_OK && b.forward == NULL);
  f.x = tensor(3, T, B, D);
  f.weight = tensor(3, 1, 4 * H, D);
  f.weight_c = tensor(3, 1, 2, H);
  f.bias = tensor(3, 1, 2, H);
  f.y = tensor(3, T, B, H);
  f.c_last = tensor(2, B, H, 0);
  b.forward = &f;
  b.dy = tensor(3, T, B, H);
  b.dx = tensor(3, T, B, D);
  b.dweight = tensor(3, 1, 4 * H, D);
  b.dweight_c = tensor(3, 1, 2, H);
  b.dbias = tensor(3, 1, 2, H);
  fill(f.y, ALL);
  fill(b.dx, T * B * D);
  RUN(sru, f, b);
  CHECK(!untouched(f.y, ALL));
  CHECK(!untouched(b.dx, T * B * D));

  COMMON(sru, f, b);
  fill(f.y, ALL);
  fill(b.dx, T * B * D);
  OPTION(sru, f, b, activation, 3, "activation: expected 0 to 2 (actual: 3)");
  OPTION(sru, f, b, activation, -1, "activation: expected 0 to 2 (actual: -1)");
  OPTION(sru, f, b, mask_site, 2, "mask_site: expected 0 to 1 (actual: 2)");
  OPTION(sru, f, b, direction, 3, "direction: expected 0 to 2 (actual: 3)");
  OPTION(sru, f, b, bias, kNotGiven, "bias: expected");
  OUTPUTS(sru, f);
  {
    penstock_sru_backward_args b2 = b;
    b2.dweight = kNotGiven;
    FAILS(penstock_sru_backward(context, &b2), PENSTOCK_ERROR_VALUE, "dweight: expected");
    b2 = b;
    b2.dx_skip.rank = 9;
    FAILS(penstock_sru_backward(context, &b2), PENSTOCK_ERROR_VALUE, "dx_skip.rank: expected");
  }
  CHECK(untouched(f.y, ALL));
  CHECK(untouched(b.dx, T * B * D));
}

#define RECURRENT_ARRAYS(f, b, gates)            \
  do {                                           \
    (f).x = tensor(3, T, B, D);                  \
    (f).weight_ih = tensor(3, 1, gates * H, D);  \
    (f).weight_hh = tensor(3, 1, gates * H, H);  \
    (f).bias_ih = tensor(2, 1, gates * H, 0);    \
    (f).y = tensor(3, T, B, H);                  \
    (f).h_last = tensor(2, B, H, 0);             \
    (b).forward = &(f);                          \
    (b).dy = tensor(3, T, B, H);                 \
    (b).dx = tensor(3, T, B, D);                 \
    (b).dweight_ih = tensor(3, 1, gates * H, D); \
    (b).dweight_hh = tensor(3, 1, gates * H, H); \
    (b).dbias_ih = tensor(2, 1, gates * H, 0);   \
    fill((f).y, ALL);                            \
    fill((b).dx, T * B * D);                     \
  } while (0)

#define RECURRENT_MISTAKES(op, f, b)                                                             \
  do {                                                                                           \
    penstock_##op##_backward_args b3 = (b);                                                      \
    CHECK(!untouched((f).y, ALL));                                                               \
    CHECK(!untouched((b).dx, T * B * D));                                                        \
    COMMON(op, f, b);                                                                            \
    fill((f).y, ALL);                                                                            \
    fill((b).dx, T * B * D);                                                                     \
    OPTION(op, f, b, direction, 7, "direction: expected 0 to 2 (actual: 7)");                    \
    OPTION(op, f, b, weight_hh, kNotGiven, "weight_hh: expected");                               \
    OPTION(op, f, b, h0, (f).x, "h0: expected");                                                 \
    OUTPUTS(op, f);                                                                              \
    b3.dweight_hh = kNotGiven;                                                                   \
    FAILS(penstock_##op##_backward(context, &b3), PENSTOCK_ERROR_VALUE, "dweight_hh: expected"); \
    b3 = (b);                                                                                    \
    b3.dh0.device_type = -1;                                                                     \
    b3.dh0.rank = 2;                                                                             \
    FAILS(penstock_##op##_backward(context, &b3), PENSTOCK_ERROR_VALUE,                          \
          #op ".backprop: dh0.device_type: expected 0 or 1 (actual: -1)");                       \
    CHECK(untouched((f).y, ALL));                                                                \
    CHECK(untouched((b).dx, T * B * D));                                                         \
  } while (0)

static void test_rnn(const penstock_context* context) {
  penstock_rnn_forward_args f;
  penstock_rnn_backward_args b;
  CHECK(penstock_rnn_forward_init(&f, sizeof f) == PENSTOCK_OK);
  CHECK(penstock_rnn_backward_init(&b, sizeof b) == PENSTOCK_OK);
  RECURRENT_ARRAYS(f, b, 1);
  RUN(rnn, f, b);
  RECURRENT_MISTAKES(rnn, f, b);
  OPTION(rnn, f, b, activation, 3, "activation: expected 0 to 2 (actual: 3)");
}

static void test_gru(const penstock_context* context) {
  penstock_gru_forward_args f;
  penstock_gru_backward_args b;
  CHECK(penstock_gru_forward_init(&f, sizeof f) == PENSTOCK_OK);
  CHECK(penstock_gru_backward_init(&b, sizeof b) == PENSTOCK_OK);
  RECURRENT_ARRAYS(f, b, 3);
  RUN(gru, f, b);
  RECURRENT_MISTAKES(gru, f, b);
  OPTION(gru, f, b, activation, -7, "activation: expected 0 to 2 (actual: -7)");
  OPTION(gru, f, b, reset, 2, "reset: expected 0 to 1 (actual: 2)");
}

static void test_lstm(const penstock_context* context) {
  penstock_lstm_forward_args f;
  penstock_lstm_backward_args b;
  CHECK(penstock_lstm_forward_init(&f, sizeof f) == PENSTOCK_OK);
  CHECK(penstock_lstm_backward_init(&b, sizeof b) == PENSTOCK_OK);
  f.c_last = tensor(2, B, H, 0);
  RECURRENT_ARRAYS(f, b, 4);
  RUN(lstm, f, b);
  RECURRENT_MISTAKES(lstm, f, b);
  OPTION(lstm, f, b, c0, f.x, "c0: expected");
}

static void test_sliced(const penstock_context* context) {
  enum { kLevels = 2 };
  const int64_t slices[1] = {2}, no_slice[1] = {0};
  int64_t steps[kLevels], parts[kLevels];
  penstock_sliced_level levels[kLevels], dlevels[kLevels], wrong[kLevels];
  penstock_tensor outputs[kLevels], doutputs[kLevels], wrong_outputs[kLevels];
  penstock_sliced_forward_args f, g;
  penstock_sliced_backward_args b, c;
  int i;
  CHECK(penstock_sliced_forward_init(&f, sizeof f) == PENSTOCK_OK);
  CHECK(penstock_sliced_backward_init(&b, sizeof b) == PENSTOCK_OK);
  CHECK(penstock_sliced_shape(T, slices, 1, steps, parts) == PENSTOCK_OK);
  CHECK(steps[0] == 2 && steps[1] == 2 && parts[0] == 2 && parts[1] == 1);
  for (i = 0; i < kLevels; ++i) {
    levels[i].weight_ih = dlevels[i].weight_ih = tensor(3, 1, 3 * H, i == 0 ? D : H);
    levels[i].weight_hh = dlevels[i].weight_hh = tensor(3, 1, 3 * H, H);
    levels[i].bias_ih = dlevels[i].bias_ih = tensor(2, 1, 3 * H, 0);
    levels[i].bias_hh = dlevels[i].bias_hh = kNotGiven;
    dlevels[i].weight_ih = tensor(3, 1, 3 * H, i == 0 ? D : H);
    dlevels[i].weight_hh = tensor(3, 1, 3 * H, H);
    dlevels[i].bias_ih = tensor(2, 1, 3 * H, 0);
    outputs[i] = tensor(3, parts[i], B, H);
    doutputs[i] = kNotGiven;
  }
  doutputs[1] = tensor(3, 1, B, H);
  f.levels = levels;
  f.slices = slices;
  f.slice_count = 1;
  f.x = tensor(3, T, B, D);
  f.outputs = outputs;
  b.forward = &f;
  b.doutputs = doutputs;
  b.dx = tensor(3, T, B, D);
  b.dlevels = dlevels;
  fill(outputs[1], B * H);
  fill(b.dx, T * B * D);
  RUN(sliced, f, b);
  CHECK(!untouched(outputs[1], B * H));
  CHECK(!untouched(b.dx, T * B * D));
  b.doutputs = NULL; /* none is given */
  CHECK(penstock_sliced_backward(context, &b) == PENSTOCK_OK);
  b.doutputs = doutputs;

  COMMON(sliced, f, b);
  fill(outputs[1], B * H);
  fill(b.dx, T * B * D);
  OPTION(sliced, f, b, cell, NULL, "cell: expected a pointer (actual: null)");
  OPTION(sliced, f, b, cell, "tree", "cell: expected");
  OPTION(sliced, f, b, slice_count, -1, "slice_count: expected 0 to 15 (actual: -1)");
  OPTION(sliced, f, b, slice_count, 16, "slice_count: expected 0 to 15 (actual: 16)");
  OPTION(sliced, f, b, slices, NULL, "slices: expected");
  g = f;
  g.slices = no_slice;
  FAILS(penstock_sliced_forward(context, &g), PENSTOCK_ERROR_VALUE, "sliced: slices: expected");
  c = b;
  c.forward = &g;
  FAILS(penstock_sliced_backward(context, &c), PENSTOCK_ERROR_VALUE, "sliced: slices: expected");
  OPTION(sliced, f, b, levels, NULL, "levels: expected");
  OPTION(sliced, f, b, pad, 2, "pad: expected 0 to 1 (actual: 2)");
  OPTION(sliced, f, b, mask, -1, "mask: expected 0 to 1 (actual: -1)");
  OPTION(sliced, f, b, direction, 3, "direction: expected 0 to 2 (actual: 3)");
  OPTION(sliced, f, b, activation, 3, "activation: expected 0 to 2 (actual: 3)");
  OPTION(sliced, f, b, reset, 2, "reset: expected 0 to 1 (actual: 2)");
  memcpy(wrong, levels, sizeof wrong);
  wrong[1].bias_ih.rank = 5;
  OPTION(sliced, f, b, levels, wrong, "levels.bias_ih.rank: expected 1 to 4 (actual: 5)");
  wrong[1] = levels[1];
  wrong[0].weight_hh.shape[0] = 3;
  OPTION(sliced, f, b, levels, wrong, "levels");
  g = f;
  g.outputs = NULL;
  FAILS(penstock_sliced_forward(context, &g), PENSTOCK_ERROR_VALUE, "sliced: outputs: expected");
  memcpy(wrong_outputs, outputs, sizeof wrong_outputs);
  wrong_outputs[1].dtype = PENSTOCK_FLOAT64;
  g.outputs = wrong_outputs;
  FAILS(penstock_sliced_forward(context, &g), PENSTOCK_ERROR_TYPE, "sliced: outputs: expected");
  wrong_outputs[1].dtype = -3;
  FAILS(penstock_sliced_forward(context, &g), PENSTOCK_ERROR_TYPE, "sliced: outputs.dtype");
  c = b;
  c.dlevels = NULL;
  FAILS(penstock_sliced_backward(context, &c), PENSTOCK_ERROR_VALUE, "dlevels: expected");
  memcpy(wrong, dlevels, sizeof wrong);
  wrong[0].weight_hh = kNotGiven;
  c.dlevels = wrong;
  FAILS(penstock_sliced_backward(context, &c), PENSTOCK_ERROR_VALUE, "dlevels.weight_hh: expected");
  wrong[0].weight_hh = dlevels[0].weight_hh;
  wrong[1].bias_hh.reserved = 1;
  wrong[1].bias_hh.rank = 2;
  FAILS(penstock_sliced_backward(context, &c), PENSTOCK_ERROR_VALUE, "dlevels.bias_hh.reserved");
  c = b;
  c.doutputs = wrong_outputs;
  FAILS(penstock_sliced_backward(context, &c), PENSTOCK_ERROR_TYPE, "doutputs.dtype");
  CHECK(untouched(outputs[1], B * H));
  CHECK(untouched(b.dx, T * B * D));

  FAILS(penstock_sliced_shape(-1, slices, 1, steps, parts), PENSTOCK_ERROR_VALUE,
        "sliced_shape: time: expected 0 or more (actual: -1)");
  FAILS(penstock_sliced_shape(T, slices, 16, steps, parts), PENSTOCK_ERROR_VALUE, "slice_count");
  FAILS(penstock_sliced_shape(T, NULL, 1, steps, parts), PENSTOCK_ERROR_VALUE, "slices");
  FAILS(penstock_sliced_shape(T, slices, 1, NULL, parts), PENSTOCK_ERROR_VALUE, "steps");
  FAILS(penstock_sliced_shape(T, slices, 1, steps, NULL), PENSTOCK_ERROR_VALUE, "parts");
  FAILS(penstock_sliced_shape(T, no_slice, 1, steps, parts), PENSTOCK_ERROR_VALUE, "slices");
  CHECK(penstock_sliced_shape(T, NULL, 0, steps, parts) == PENSTOCK_OK && steps[0] == T);
}

static void test_library(void) {
  const int64_t shape[4] = {2, 3, 4, 5};
  penstock_tensor t;
  penstock_config config;
  float x[24] = {0};
  int32_t i, threads;
  const size_t sizes[8] = {4, 8, 2, 2, 1, 4, 8, 1};

  CHECK(strcmp(penstock_status_name(PENSTOCK_OK), "ok") == 0);
  for (i = PENSTOCK_OK; i <= PENSTOCK_ERROR_INTERNAL; ++i) {
    CHECK(strcmp(penstock_status_name(i), "unknown status") != 0);
  }
  CHECK(strcmp(penstock_status_name(-1), "unknown status") == 0);
  CHECK(strcmp(penstock_status_name(99), "unknown status") == 0);
  for (i = 0; i < 8; ++i) CHECK(penstock_size_of(i) == sizes[i]);
  CHECK(penstock_size_of(-1) == 0 && penstock_size_of(8) == 0);

  CHECK(penstock_tensor_init(&t, x, PENSTOCK_FLOAT32, 3, shape) == PENSTOCK_OK);
  CHECK(t.data == x && t.rank == 3 && t.dtype == PENSTOCK_FLOAT32 && t.read_only == 0);
  CHECK(t.device_type == PENSTOCK_DEVICE_CPU && t.device_index == 0 && t.reserved == 0);
  CHECK(t.shape[0] == 2 && t.shape[1] == 3 && t.shape[2] == 4 && t.shape[3] == 0);
  CHECK(t.strides[0] == 12 && t.strides[1] == 4 && t.strides[2] == 1 && t.strides[3] == 0);
  CHECK(penstock_tensor_init(&t, NULL, PENSTOCK_FLOAT64, 4, shape) == PENSTOCK_OK);
  CHECK(t.strides[0] == 60 && t.strides[3] == 1);
  CHECK(penstock_tensor_init_read_only(&t, x, PENSTOCK_FLOAT32, 1, shape) == PENSTOCK_OK);
  CHECK(t.read_only == 1 && t.rank == 1 && t.shape[0] == 2 && t.strides[0] == 1);
  t.rank = 77;
  FAILS(penstock_tensor_init(NULL, x, 0, 1, shape), PENSTOCK_ERROR_VALUE, "tensor: expected");
  FAILS(penstock_tensor_init(&t, x, 0, 1, NULL), PENSTOCK_ERROR_VALUE, "shape: expected");
  FAILS(penstock_tensor_init(&t, x, 0, 5, shape), PENSTOCK_ERROR_VALUE,
        "tensor_init: tensor.rank: expected 1 to 4 (actual: 5)");
  FAILS(penstock_tensor_init(&t, x, 0, 0, shape), PENSTOCK_ERROR_VALUE, "rank: expected 1 to 4");
  FAILS(penstock_tensor_init(&t, NULL, 0, -1, shape), PENSTOCK_ERROR_VALUE,
        "rank: expected 1 to 4");
  FAILS(penstock_tensor_init(&t, x, 8, 1, shape), PENSTOCK_ERROR_TYPE, "dtype: expected 0 to 7");
  FAILS(penstock_tensor_init_read_only(&t, x, 8, 1, shape), PENSTOCK_ERROR_TYPE, "dtype");
  CHECK(t.rank == 77);

  FAILS(penstock_get_config(NULL, sizeof config), PENSTOCK_ERROR_VALUE, "config: expected");
  FAILS(penstock_get_config(&config, 8), PENSTOCK_ERROR_VALUE, "get_config: size: expected");
  CHECK(penstock_get_config(&config, sizeof config) == PENSTOCK_OK);
  CHECK(strcmp(config.version, penstock_version()) == 0);
  threads = penstock_num_threads();
  CHECK(threads == config.num_threads && threads >= 1);
  CHECK(penstock_set_num_threads(2) == PENSTOCK_OK && penstock_num_threads() == 2);
  FAILS(penstock_set_num_threads(0), PENSTOCK_ERROR_VALUE, "set_num_threads: n: expected");
  CHECK(penstock_num_threads() == 2);
  CHECK(penstock_set_num_threads(threads) == PENSTOCK_OK);

  FAILS(penstock_context_create_cpu(NULL), PENSTOCK_ERROR_VALUE, "context: expected");
  FAILS(penstock_context_create_cuda(0, NULL, NULL), PENSTOCK_ERROR_VALUE, "context: expected");
  penstock_context_destroy(NULL);
}

#ifdef __cplusplus
extern "C" int TEST_NAME(void);
#else
int TEST_NAME(void);
#endif

/* How many checks fail. */
int TEST_NAME(void) {
  penstock_context* context = NULL;
  test_library();
  CHECK(penstock_context_create_cpu(&context) == PENSTOCK_OK && context != NULL);
  test_sru(context);
  test_rnn(context);
  test_gru(context);
  test_lstm(context);
  test_sliced(context);
  penstock_context_destroy(context);
  return failures;
}
