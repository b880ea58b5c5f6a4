#include "c/call.h"

#include <cstdio>
#include <exception>
#include <new>

namespace penstock::c {
namespace {

// Plain memory, so that it needs neither allocation nor destruction.
constexpr std::size_t kLongest = 2048;
thread_local char last_error[kLongest];

penstock_status remember(penstock_status status, const char* words) noexcept {
  std::snprintf(last_error, sizeof last_error, "%s", words);
  return status;
}

penstock_status status_of(ErrorCode code) noexcept {
  switch (code) {
    case ErrorCode::kValue: return PENSTOCK_ERROR_VALUE;
    case ErrorCode::kType: return PENSTOCK_ERROR_TYPE;
    case ErrorCode::kBuffer: return PENSTOCK_ERROR_BUFFER;
    case ErrorCode::kRuntime: return PENSTOCK_ERROR_RUNTIME;
  }
  return PENSTOCK_ERROR_INTERNAL;
}

}  // namespace

penstock_status status_of_exception() noexcept {
  try {
    throw;
  } catch (const Error& error) {
    return remember(status_of(error.code()), error.what());
  } catch (const std::bad_alloc&) {
    return remember(PENSTOCK_ERROR_RUNTIME, "out of memory");
  } catch (const std::exception& error) {
    return remember(PENSTOCK_ERROR_INTERNAL, error.what());
  } catch (...) {
    return remember(PENSTOCK_ERROR_INTERNAL, "unknown exception");
  }
}

void fail(ErrorCode code, const char* op, const std::string& name, const std::string& expected,
          const std::string& actual) {
  std::string words = op;
  words += ": ";
  words += name;
  words += ": ";
  words += expected;
  words += " (actual: ";
  words += actual;
  words += ')';
  throw Error(code, words);
}

TensorView view_of(const char* op, const char* name, const penstock_tensor& tensor) {
  TensorView view;
  if (tensor.rank == 0 && tensor.data == nullptr) return view;
  const auto wrong = [&](ErrorCode code, const std::string& field, const std::string& expected,
                         std::int64_t actual) {
    fail(code, op, name + ("." + field), expected, std::to_string(actual));
  };
  if (tensor.rank < 1 || tensor.rank > PENSTOCK_MAX_RANK) {
    wrong(ErrorCode::kValue, "rank", "expected 1 to " + std::to_string(PENSTOCK_MAX_RANK),
          tensor.rank);
  }
  if (penstock_size_of(tensor.dtype) == 0) {
    wrong(ErrorCode::kType, "dtype", "expected 0 to " + std::to_string(PENSTOCK_UINT8),
          tensor.dtype);
  }
  if (tensor.device_type < 0 || tensor.device_type > PENSTOCK_DEVICE_CUDA) {
    wrong(ErrorCode::kValue, "device_type", "expected 0 or 1", tensor.device_type);
  }
  if (tensor.reserved != 0) wrong(ErrorCode::kValue, "reserved", "expected 0", tensor.reserved);
  for (int axis = 0; axis < tensor.rank; ++axis) {
    if (tensor.shape[axis] < 0) {
      wrong(ErrorCode::kValue, "shape[" + std::to_string(axis) + "]", "expected 0 or more",
            tensor.shape[axis]);
    }
    view.shape[axis] = tensor.shape[axis];
    view.strides[axis] = tensor.strides[axis];
  }
  view.data = tensor.data;
  view.dtype = static_cast<DataType>(tensor.dtype);
  view.device = Device{static_cast<DeviceType>(tensor.device_type), tensor.device_index};
  view.rank = tensor.rank;
  view.read_only = tensor.read_only != 0;
  return view;
}

}  // namespace penstock::c

const char* penstock_last_error(void) { return penstock::c::last_error; }

const char* penstock_status_name(penstock_status status) {
  switch (status) {
    case PENSTOCK_OK: return "ok";
    case PENSTOCK_ERROR_VALUE: return "value error";
    case PENSTOCK_ERROR_TYPE: return "type error";
    case PENSTOCK_ERROR_BUFFER: return "buffer error";
    case PENSTOCK_ERROR_RUNTIME: return "runtime error";
    case PENSTOCK_ERROR_INTERNAL: return "internal error";
    default: return "unknown status";
  }
}
