// penstock for C, and for every language that can call C: the operations of the C++ headers beside
// this one, over plain structures (C99). Equations, options and shapes stand there (sru.h, rnn.h,
// gru.h, lstm.h, recurrent.h, sliced.h); a field here means what its namesake means there.
//
// Every function that can fail returns a status, PENSTOCK_OK or which kind of mistake it was, and
// penstock_last_error() then says in words which argument was wrong, what was expected and what
// came. Nothing is written when an argument is wrong, and no exception leaves the library.
//
//   penstock_context* context;
//   penstock_context_create_cpu(&context);
//   penstock_gru_forward_args args;
//   penstock_gru_forward_init(&args, sizeof args);       // defaults; no array is given
//   args.x = ..., args.weight_ih = ..., args.weight_hh = ..., args.y = ..., args.h_last = ...
//   penstock_gru_forward_workspace_bytes(context, &args, &bytes);      // then args.workspace = ...
//   penstock_gru_reserve_bytes(context, &args, &bytes);                // then args.reserve = ...
//   penstock_gru_forward(context, &args);
//
// The library never allocates in a call: whoever calls gives outputs, workspace and reserve.
// Structures grow at their end alone, and `size` says which of their versions a program was
// compiled with, so a program goes on working with a newer library. penstock_tensor and
// penstock_sliced_level, which lie in others and in arrays, never change.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "penstock/export.h"

#ifdef __cplusplus
extern "C" {
#endif

// ---- errors -------------------------------------------------------------------------------------

typedef int32_t penstock_status;
enum {
  PENSTOCK_OK = 0,
  PENSTOCK_ERROR_VALUE = 1,    // an argument has the wrong shape, range or layout, or is missing
  PENSTOCK_ERROR_TYPE = 2,     // an argument has the wrong element type
  PENSTOCK_ERROR_BUFFER = 3,   // memory that cannot be used: wrong device, read-only, overlapping
  PENSTOCK_ERROR_RUNTIME = 4,  // the machine failed: no driver, no memory, a launch error
  PENSTOCK_ERROR_INTERNAL = 5  // a mistake in the library
};

// What went wrong in this thread's last call that failed; "" before the first. The text is the
// library's, and lasts until the next call of this thread that fails.
PENSTOCK_EXPORT const char* penstock_last_error(void);
// "ok", "value error", ...; "unknown status" for any other number.
PENSTOCK_EXPORT const char* penstock_status_name(penstock_status status);

// ---- arrays -------------------------------------------------------------------------------------

// Element types. float16 and bfloat16 are two bytes, bool is one, of which zero is false.
enum {
  PENSTOCK_FLOAT32 = 0,
  PENSTOCK_FLOAT64 = 1,
  PENSTOCK_FLOAT16 = 2,
  PENSTOCK_BFLOAT16 = 3,
  PENSTOCK_BOOL = 4,
  PENSTOCK_INT32 = 5,
  PENSTOCK_INT64 = 6,
  PENSTOCK_UINT8 = 7  // workspace and reserve
};
enum { PENSTOCK_DEVICE_CPU = 0, PENSTOCK_DEVICE_CUDA = 1 };
enum { PENSTOCK_MAX_RANK = 4 };

// Bytes of one element; 0 for a number that is no element type.
PENSTOCK_EXPORT size_t penstock_size_of(int32_t dtype);

// An array that somebody else owns. All zeros, which is what {0} and memset make, stand for "not
// given". For a size query, `data` may be null where everything else is filled in.
typedef struct penstock_tensor {
  void* data;
  int32_t dtype;        // PENSTOCK_FLOAT32, ...
  int32_t device_type;  // PENSTOCK_DEVICE_CPU or PENSTOCK_DEVICE_CUDA
  int32_t device_index;
  int32_t rank;       // number of axes; 0: not given
  int32_t read_only;  // not 0: the library refuses it as an output
  int32_t reserved;   // 0
  int64_t shape[PENSTOCK_MAX_RANK];
  int64_t strides[PENSTOCK_MAX_RANK];  // in elements, of any sign
} penstock_tensor;

// A row-major array without gaps on the CPU; `shape` has `rank` numbers, 1 to PENSTOCK_MAX_RANK.
PENSTOCK_EXPORT penstock_status penstock_tensor_init(penstock_tensor* tensor, void* data,
                                                     int32_t dtype, int32_t rank,
                                                     const int64_t* shape);
// The same, read-only.
PENSTOCK_EXPORT penstock_status penstock_tensor_init_read_only(penstock_tensor* tensor,
                                                               const void* data, int32_t dtype,
                                                               int32_t rank, const int64_t* shape);

// ---- where work runs ----------------------------------------------------------------------------

// A device and, on CUDA, a borrowed stream. Any thread may use it, several at once too; calls that
// share outputs, workspace or reserve must not overlap.
typedef struct penstock_context penstock_context;

PENSTOCK_EXPORT penstock_status penstock_context_create_cpu(penstock_context** context);
// `stream` is a cudaStream_t; null: the default stream. Loads the CUDA plugin when it is the first;
// PENSTOCK_ERROR_RUNTIME says why CUDA cannot be used. Not while a stream is being captured.
PENSTOCK_EXPORT penstock_status penstock_context_create_cuda(int32_t device_index, void* stream,
                                                             penstock_context** context);
// Null is allowed. Work that has been put on the stream goes on.
PENSTOCK_EXPORT void penstock_context_destroy(penstock_context* context);

// ---- the library --------------------------------------------------------------------------------

// "major.minor.patch"
PENSTOCK_EXPORT const char* penstock_version(void);

// What this build is, and what it found on this machine. The texts are the library's, and last
// until the thread's next call of penstock_get_config.
typedef struct penstock_config {
  size_t size;
  const char* version;
  const char* compiler;
  const char* cpu_isa;       // instruction set in use, for example "avx512"
  const char* cpu_warning;   // "" or which setting of the environment has no meaning
  const char* blas;          // name and version of the BLAS
  const char* blas_core;     // the processor for which that BLAS chose its kernels
  const char* blas_warning;  // "" or why that choice looks slow
  const char* cuda_status;   // devices found, or why CUDA is off
  int32_t cuda_available;
  int32_t num_threads;
} penstock_config;

// `size` is sizeof(penstock_config). Loads the CUDA plugin to find out whether it works.
PENSTOCK_EXPORT penstock_status penstock_get_config(penstock_config* config, size_t size);
// Number of threads that CPU work is spread over; results do not depend on it.
PENSTOCK_EXPORT int32_t penstock_num_threads(void);
// `n` is at least 1.
PENSTOCK_EXPORT penstock_status penstock_set_num_threads(int32_t n);
// 1 where, on the CPU, a sequence's result never depends on what else is in the batch, bit for bit;
// see penstock::batch_invariant in config.h.
PENSTOCK_EXPORT int32_t penstock_batch_invariant(void);
PENSTOCK_EXPORT void penstock_set_batch_invariant(int32_t enabled);

// ---- operations ---------------------------------------------------------------------------------

enum { PENSTOCK_IDENTITY = 0, PENSTOCK_TANH = 1, PENSTOCK_RELU = 2 };             // activation
enum { PENSTOCK_FORWARD = 0, PENSTOCK_REVERSE = 1, PENSTOCK_BIDIRECTIONAL = 2 };  // direction
enum { PENSTOCK_MASK_OUTPUT = 0, PENSTOCK_MASK_STATE = 1 };                       // mask_site
enum { PENSTOCK_RESET_AFTER = 0, PENSTOCK_RESET_BEFORE = 1 };                     // reset
enum { PENSTOCK_PAD_LEFT = 0, PENSTOCK_PAD_RIGHT = 1 };                           // pad
enum { PENSTOCK_SKIP_PADDING = 0, PENSTOCK_PADDING_IS_DATA = 1 };                 // mask
enum { PENSTOCK_MAX_SLICES = 15 };

// Seven functions each, of the same meaning for every operation X:
//   penstock_X_forward_init    defaults, and no array given; `size` is sizeof *args
//   penstock_X_backward_init   the same; `forward` is null
//   penstock_X_forward_workspace_bytes, penstock_X_reserve_bytes,
//   penstock_X_backward_workspace_bytes
//                              what `workspace` and `reserve` must hold, at 256-byte alignment.
//                              Outputs, workspace and reserve need not be given yet, except that
//                              for the backward pass it counts which of its outputs are given
//   penstock_X_forward         outputs are overwritten, contiguous, and overlap nothing else
//   penstock_X_backward        gradients of what `forward` describes, with the reserve that the
//                              forward pass filled. `forward` and its inputs must be as they were;
//                              its outputs and workspace are not looked at. May be called again
// Integers that stand for yes or no: 0 is no, everything else yes.

// The Simple Recurrent Unit: sru.h.
typedef struct penstock_sru_forward_args {
  size_t size;
  int32_t activation;      // of the state; PENSTOCK_IDENTITY
  int32_t skip;            // 1
  int32_t mask_site;       // PENSTOCK_MASK_OUTPUT
  int32_t direction;       // PENSTOCK_FORWARD
  int32_t need_grad;       // 1: keep what the backward pass needs in `reserve`
  double scale_x;          // 1
  penstock_tensor x;       // (T, B, D)
  penstock_tensor weight;  // (dirs, K*H, D), rows in blocks of H: candidate, forget, reset[, skip]
  penstock_tensor weight_c;  // (dirs, 2, H), or not given
  penstock_tensor bias;      // (dirs, 2, H)
  penstock_tensor c0;        // (B, dirs*H), or not given: zeros
  penstock_tensor mask_pad;  // (T, B) bool, or not given
  penstock_tensor lengths;   // (B,) int32 or int64, or not given
  penstock_tensor x_skip;    // (T, B, dirs*H), or not given: x
  penstock_tensor mask_c;    // (B, dirs*H), or not given: ones
  penstock_tensor y;         // output: (T, B, dirs*H)
  penstock_tensor c_last;    // output: (B, dirs*H)
  penstock_tensor workspace;
  penstock_tensor reserve;
} penstock_sru_forward_args;

typedef struct penstock_sru_backward_args {
  size_t size;
  const penstock_sru_forward_args* forward;
  penstock_tensor dy;       // (T, B, dirs*H), or not given: zeros
  penstock_tensor dc_last;  // (B, dirs*H), or not given: zeros
  penstock_tensor dx;       // outputs, shaped as what they are the gradients of. dx and dweight
  penstock_tensor dweight;  // must be given; the others, where not given, are not computed
  penstock_tensor dweight_c;
  penstock_tensor dbias;
  penstock_tensor dc0;
  penstock_tensor dmask_c;
  penstock_tensor dx_skip;
  penstock_tensor workspace;
} penstock_sru_backward_args;

PENSTOCK_EXPORT penstock_status penstock_sru_forward_init(penstock_sru_forward_args* args,
                                                          size_t size);
PENSTOCK_EXPORT penstock_status penstock_sru_backward_init(penstock_sru_backward_args* args,
                                                           size_t size);
PENSTOCK_EXPORT penstock_status penstock_sru_forward_workspace_bytes(
    const penstock_context* context, const penstock_sru_forward_args* args, size_t* bytes);
PENSTOCK_EXPORT penstock_status penstock_sru_reserve_bytes(const penstock_context* context,
                                                           const penstock_sru_forward_args* args,
                                                           size_t* bytes);
PENSTOCK_EXPORT penstock_status penstock_sru_backward_workspace_bytes(
    const penstock_context* context, const penstock_sru_backward_args* args, size_t* bytes);
PENSTOCK_EXPORT penstock_status penstock_sru_forward(const penstock_context* context,
                                                     const penstock_sru_forward_args* args);
PENSTOCK_EXPORT penstock_status penstock_sru_backward(const penstock_context* context,
                                                      const penstock_sru_backward_args* args);

// The plain recurrent layer: rnn.h, recurrent.h.
typedef struct penstock_rnn_forward_args {
  size_t size;
  int32_t activation;         // PENSTOCK_TANH
  int32_t direction;          // PENSTOCK_FORWARD
  int32_t recompute;          // 0; 1: a smaller reserve, for more arithmetic
  int32_t need_grad;          // 1: keep what the backward pass needs in `reserve`
  penstock_tensor x;          // (T, B, D)
  penstock_tensor weight_ih;  // (dirs, H, D)
  penstock_tensor weight_hh;  // (dirs, H, H)
  penstock_tensor bias_ih;    // (dirs, H), or not given: zeros
  penstock_tensor bias_hh;    // (dirs, H), or not given: zeros
  penstock_tensor h0;         // (B, dirs*H), or not given: zeros
  penstock_tensor lengths;    // (B,) int32 or int64, or not given
  penstock_tensor y;          // output: (T, B, dirs*H)
  penstock_tensor h_last;     // output: (B, dirs*H)
  penstock_tensor workspace;
  penstock_tensor reserve;
} penstock_rnn_forward_args;

typedef struct penstock_rnn_backward_args {
  size_t size;
  const penstock_rnn_forward_args* forward;
  penstock_tensor dy;          // (T, B, dirs*H), or not given: zeros
  penstock_tensor dh_last;     // (B, dirs*H), or not given: zeros
  penstock_tensor dx;          // outputs, shaped as what they are the gradients of. dx,
  penstock_tensor dweight_ih;  // dweight_ih and dweight_hh must be given; the others, where not
  penstock_tensor dweight_hh;  // given, are not computed
  penstock_tensor dbias_ih;
  penstock_tensor dbias_hh;
  penstock_tensor dh0;
  penstock_tensor workspace;
} penstock_rnn_backward_args;

PENSTOCK_EXPORT penstock_status penstock_rnn_forward_init(penstock_rnn_forward_args* args,
                                                          size_t size);
PENSTOCK_EXPORT penstock_status penstock_rnn_backward_init(penstock_rnn_backward_args* args,
                                                           size_t size);
PENSTOCK_EXPORT penstock_status penstock_rnn_forward_workspace_bytes(
    const penstock_context* context, const penstock_rnn_forward_args* args, size_t* bytes);
PENSTOCK_EXPORT penstock_status penstock_rnn_reserve_bytes(const penstock_context* context,
                                                           const penstock_rnn_forward_args* args,
                                                           size_t* bytes);
PENSTOCK_EXPORT penstock_status penstock_rnn_backward_workspace_bytes(
    const penstock_context* context, const penstock_rnn_backward_args* args, size_t* bytes);
PENSTOCK_EXPORT penstock_status penstock_rnn_forward(const penstock_context* context,
                                                     const penstock_rnn_forward_args* args);
PENSTOCK_EXPORT penstock_status penstock_rnn_backward(const penstock_context* context,
                                                      const penstock_rnn_backward_args* args);

// The gated recurrent unit: gru.h, recurrent.h.
typedef struct penstock_gru_forward_args {
  size_t size;
  int32_t activation;         // PENSTOCK_TANH
  int32_t reset;              // PENSTOCK_RESET_AFTER
  int32_t direction;          // PENSTOCK_FORWARD
  int32_t recompute;          // 0; 1: a smaller reserve, for more arithmetic
  int32_t need_grad;          // 1: keep what the backward pass needs in `reserve`
  penstock_tensor x;          // (T, B, D)
  penstock_tensor weight_ih;  // (dirs, 3*H, D)
  penstock_tensor weight_hh;  // (dirs, 3*H, H)
  penstock_tensor bias_ih;    // (dirs, 3*H), or not given: zeros
  penstock_tensor bias_hh;    // (dirs, 3*H), or not given: zeros
  penstock_tensor h0;         // (B, dirs*H), or not given: zeros
  penstock_tensor lengths;    // (B,) int32 or int64, or not given
  penstock_tensor y;          // output: (T, B, dirs*H)
  penstock_tensor h_last;     // output: (B, dirs*H)
  penstock_tensor workspace;
  penstock_tensor reserve;
} penstock_gru_forward_args;

typedef struct penstock_gru_backward_args {
  size_t size;
  const penstock_gru_forward_args* forward;
  penstock_tensor dy;          // (T, B, dirs*H), or not given: zeros
  penstock_tensor dh_last;     // (B, dirs*H), or not given: zeros
  penstock_tensor dx;          // outputs, shaped as what they are the gradients of. dx,
  penstock_tensor dweight_ih;  // dweight_ih and dweight_hh must be given; the others, where not
  penstock_tensor dweight_hh;  // given, are not computed
  penstock_tensor dbias_ih;
  penstock_tensor dbias_hh;
  penstock_tensor dh0;
  penstock_tensor workspace;
} penstock_gru_backward_args;

PENSTOCK_EXPORT penstock_status penstock_gru_forward_init(penstock_gru_forward_args* args,
                                                          size_t size);
PENSTOCK_EXPORT penstock_status penstock_gru_backward_init(penstock_gru_backward_args* args,
                                                           size_t size);
PENSTOCK_EXPORT penstock_status penstock_gru_forward_workspace_bytes(
    const penstock_context* context, const penstock_gru_forward_args* args, size_t* bytes);
PENSTOCK_EXPORT penstock_status penstock_gru_reserve_bytes(const penstock_context* context,
                                                           const penstock_gru_forward_args* args,
                                                           size_t* bytes);
PENSTOCK_EXPORT penstock_status penstock_gru_backward_workspace_bytes(
    const penstock_context* context, const penstock_gru_backward_args* args, size_t* bytes);
PENSTOCK_EXPORT penstock_status penstock_gru_forward(const penstock_context* context,
                                                     const penstock_gru_forward_args* args);
PENSTOCK_EXPORT penstock_status penstock_gru_backward(const penstock_context* context,
                                                      const penstock_gru_backward_args* args);

// Long short-term memory: lstm.h, recurrent.h.
typedef struct penstock_lstm_forward_args {
  size_t size;
  int32_t direction;          // PENSTOCK_FORWARD
  int32_t recompute;          // 0; 1: a smaller reserve, for more arithmetic
  int32_t need_grad;          // 1: keep what the backward pass needs in `reserve`
  penstock_tensor x;          // (T, B, D)
  penstock_tensor weight_ih;  // (dirs, 4*H, D)
  penstock_tensor weight_hh;  // (dirs, 4*H, H)
  penstock_tensor bias_ih;    // (dirs, 4*H), or not given: zeros
  penstock_tensor bias_hh;    // (dirs, 4*H), or not given: zeros
  penstock_tensor h0;         // (B, dirs*H), or not given: zeros
  penstock_tensor c0;         // (B, dirs*H), or not given: zeros
  penstock_tensor lengths;    // (B,) int32 or int64, or not given
  penstock_tensor y;          // output: (T, B, dirs*H)
  penstock_tensor h_last;     // output: (B, dirs*H)
  penstock_tensor c_last;     // output: (B, dirs*H)
  penstock_tensor workspace;
  penstock_tensor reserve;
} penstock_lstm_forward_args;

typedef struct penstock_lstm_backward_args {
  size_t size;
  const penstock_lstm_forward_args* forward;
  penstock_tensor dy;          // (T, B, dirs*H), or not given: zeros
  penstock_tensor dh_last;     // (B, dirs*H), or not given: zeros
  penstock_tensor dc_last;     // (B, dirs*H), or not given: zeros
  penstock_tensor dx;          // outputs, shaped as what they are the gradients of. dx,
  penstock_tensor dweight_ih;  // dweight_ih and dweight_hh must be given; the others, where not
  penstock_tensor dweight_hh;  // given, are not computed
  penstock_tensor dbias_ih;
  penstock_tensor dbias_hh;
  penstock_tensor dh0;
  penstock_tensor dc0;
  penstock_tensor workspace;
} penstock_lstm_backward_args;

PENSTOCK_EXPORT penstock_status penstock_lstm_forward_init(penstock_lstm_forward_args* args,
                                                           size_t size);
PENSTOCK_EXPORT penstock_status penstock_lstm_backward_init(penstock_lstm_backward_args* args,
                                                            size_t size);
PENSTOCK_EXPORT penstock_status penstock_lstm_forward_workspace_bytes(
    const penstock_context* context, const penstock_lstm_forward_args* args, size_t* bytes);
PENSTOCK_EXPORT penstock_status penstock_lstm_reserve_bytes(const penstock_context* context,
                                                            const penstock_lstm_forward_args* args,
                                                            size_t* bytes);
PENSTOCK_EXPORT penstock_status penstock_lstm_backward_workspace_bytes(
    const penstock_context* context, const penstock_lstm_backward_args* args, size_t* bytes);
PENSTOCK_EXPORT penstock_status penstock_lstm_forward(const penstock_context* context,
                                                      const penstock_lstm_forward_args* args);
PENSTOCK_EXPORT penstock_status penstock_lstm_backward(const penstock_context* context,
                                                       const penstock_lstm_backward_args* args);

// Sliced recurrence over any of the cells: sliced.h.

// Parameters of one level, or their gradients. For the cell "sru": weight_ih is its weight,
// weight_hh its weight_c and bias_ih its bias.
typedef struct penstock_sliced_level {
  penstock_tensor weight_ih;
  penstock_tensor weight_hh;
  penstock_tensor bias_ih;
  penstock_tensor bias_hh;
} penstock_sliced_level;

typedef struct penstock_sliced_forward_args {
  size_t size;
  const char* cell;                     // "gru"; or "rnn", "lstm", "sru"
  const penstock_sliced_level* levels;  // slice_count + 1, level 0 first
  const int64_t* slices;                // slice_count numbers
  int32_t slice_count;             // 0 to PENSTOCK_MAX_SLICES; 0, the default, is the plain cell
  int32_t pad;                     // PENSTOCK_PAD_LEFT
  int32_t mask;                    // PENSTOCK_SKIP_PADDING
  int32_t direction;               // PENSTOCK_FORWARD
  int32_t activation;              // PENSTOCK_TANH
  int32_t reset;                   // PENSTOCK_RESET_AFTER
  int32_t skip;                    // 1
  int32_t recompute;               // 0
  int32_t need_grad;               // 1: keep what the backward pass needs in `reserve`
  double scale_x;                  // 1
  penstock_tensor x;               // (T, B, D)
  penstock_tensor lengths;         // (B,) int32 or int64, or not given
  const penstock_tensor* outputs;  // outputs, slice_count + 1: (parts of level i, B, dirs*H)
  penstock_tensor workspace;
  penstock_tensor reserve;
} penstock_sliced_forward_args;

typedef struct penstock_sliced_backward_args {
  size_t size;
  const penstock_sliced_forward_args* forward;
  const penstock_tensor* doutputs;  // slice_count + 1, any of them not given; or null
  penstock_tensor dx;               // output: (T, B, D)
  const penstock_sliced_level*
      dlevels;  // outputs, slice_count + 1 sets; the weights' must be given
  penstock_tensor workspace;
} penstock_sliced_backward_args;

// Steps and parts of each level for sequences of `time` steps; both have room for slice_count + 1.
PENSTOCK_EXPORT penstock_status penstock_sliced_shape(int64_t time, const int64_t* slices,
                                                      int32_t slice_count, int64_t* steps,
                                                      int64_t* parts);
PENSTOCK_EXPORT penstock_status penstock_sliced_forward_init(penstock_sliced_forward_args* args,
                                                             size_t size);
PENSTOCK_EXPORT penstock_status penstock_sliced_backward_init(penstock_sliced_backward_args* args,
                                                              size_t size);
PENSTOCK_EXPORT penstock_status penstock_sliced_forward_workspace_bytes(
    const penstock_context* context, const penstock_sliced_forward_args* args, size_t* bytes);
PENSTOCK_EXPORT penstock_status penstock_sliced_reserve_bytes(
    const penstock_context* context, const penstock_sliced_forward_args* args, size_t* bytes);
PENSTOCK_EXPORT penstock_status penstock_sliced_backward_workspace_bytes(
    const penstock_context* context, const penstock_sliced_backward_args* args, size_t* bytes);
PENSTOCK_EXPORT penstock_status penstock_sliced_forward(const penstock_context* context,
                                                        const penstock_sliced_forward_args* args);
PENSTOCK_EXPORT penstock_status penstock_sliced_backward(const penstock_context* context,
                                                         const penstock_sliced_backward_args* args);

#ifdef __cplusplus
}  // extern "C"
#endif
