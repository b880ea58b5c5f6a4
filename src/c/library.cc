// The C interface to arrays, contexts and the library itself.

#include "c/call.h"
#include "c/context.h"
#include "penstock/config.h"

namespace c = penstock::c;

static_assert(sizeof(void*) != 8 || sizeof(penstock_tensor) == 96, "it never changes");
static_assert(sizeof(penstock_sliced_level) == 4 * sizeof(penstock_tensor), "it never changes");

size_t penstock_size_of(int32_t dtype) {
  if (dtype < PENSTOCK_FLOAT32 || dtype > PENSTOCK_UINT8) return 0;
  return penstock::size_of(static_cast<penstock::DataType>(dtype));
}

penstock_status penstock_tensor_init(penstock_tensor* tensor, void* data, int32_t dtype,
                                     int32_t rank, const int64_t* shape) {
  return c::guarded([&] {
    c::required("tensor_init", "tensor", tensor);
    c::required("tensor_init", "shape", shape);
    penstock_tensor t = {};
    t.data = data;
    t.dtype = dtype;
    t.rank = rank;
    for (int axis = std::min<int>(rank, PENSTOCK_MAX_RANK) - 1, last = axis; axis >= 0; --axis) {
      t.shape[axis] = shape[axis];
      t.strides[axis] = axis == last ? 1 : t.strides[axis + 1] * t.shape[axis + 1];
    }
    if (rank == 0)
      c::fail(penstock::ErrorCode::kValue, "tensor_init", "rank", "expected 1 to 4", "0");
    c::view_of("tensor_init", "tensor", t);
    *tensor = t;
  });
}

penstock_status penstock_tensor_init_read_only(penstock_tensor* tensor, const void* data,
                                               int32_t dtype, int32_t rank, const int64_t* shape) {
  const penstock_status status =
      penstock_tensor_init(tensor, const_cast<void*>(data), dtype, rank, shape);
  if (status == PENSTOCK_OK) tensor->read_only = 1;
  return status;
}

penstock_status penstock_context_create_cpu(penstock_context** context) {
  return c::guarded([&] {
    c::required("context_create_cpu", "context", context);
    *context = new penstock_context{penstock::Context::cpu()};
  });
}

penstock_status penstock_context_create_cuda(int32_t device_index, void* stream,
                                             penstock_context** context) {
  return c::guarded([&] {
    c::required("context_create_cuda", "context", context);
    *context = new penstock_context{penstock::Context::cuda(device_index, stream)};
  });
}

void penstock_context_destroy(penstock_context* context) { delete context; }

const char* penstock_version(void) { return penstock::version(); }

penstock_status penstock_get_config(penstock_config* config, size_t size) {
  return c::guarded([&] {
    static thread_local penstock::Config texts;
    texts = penstock::config();
    penstock_config known = {};
    known.version = texts.version.c_str();
    known.compiler = texts.compiler.c_str();
    known.cpu_isa = texts.cpu_isa.c_str();
    known.cpu_warning = texts.cpu_warning.c_str();
    known.blas = texts.blas.c_str();
    known.blas_core = texts.blas_core.c_str();
    known.blas_warning = texts.blas_warning.c_str();
    known.cuda_status = texts.cuda_status.c_str();
    known.cuda_available = texts.cuda_available ? 1 : 0;
    known.num_threads = texts.num_threads;
    c::initialise("get_config", "config", config, size, known);
  });
}

int32_t penstock_num_threads(void) { return penstock::num_threads(); }

penstock_status penstock_set_num_threads(int32_t n) {
  return c::guarded([&] { penstock::set_num_threads(n); });
}

int32_t penstock_batch_invariant(void) { return penstock::batch_invariant() ? 1 : 0; }

void penstock_set_batch_invariant(int32_t enabled) { penstock::set_batch_invariant(enabled != 0); }
