#include "arrays.h"

#include <algorithm>
#include <cstring>
#include <initializer_list>
#include <iterator>
#include <limits>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "gil.h"
#include "penstock/error.h"

namespace penstock::python {
namespace {

[[noreturn]] void fail(ErrorCode code, const char* name, const std::string& what) {
  throw Error(code, std::string(name) + ": " + what);
}

std::string type_name(py::handle object) {
  return py::str(py::type::handle_of(object).attr("__name__"));
}

// Looked up once; CuPy's without importing it.
PyTypeObject* numpy_array_type() {
  static PyTypeObject* type = reinterpret_cast<PyTypeObject*>(
      py::object(py::module_::import("numpy").attr("ndarray")).release().ptr());
  return type;
}

bool is_cupy(py::handle object) {
  static PyTypeObject* type = nullptr;
  PyTypeObject* actual = Py_TYPE(object.ptr());
  if (type != nullptr) return actual == type;
  // A class made in Python has its name alone in tp_name.
  const char* dot = std::strrchr(actual->tp_name, '.');
  if (std::strcmp(dot == nullptr ? actual->tp_name : dot + 1, "ndarray") != 0) return false;
  const py::object module = py::getattr(py::type::handle_of(object), "__module__", py::str(""));
  if (!py::isinstance<py::str>(module)) return false;
  const auto name = module.cast<std::string>();
  if (name != "cupy" && name.rfind("cupy.", 0) != 0) return false;
  type = actual;
  return true;
}

DataType dtype_of(const char* name, std::uint8_t code, int bits, int lanes) {
  if (lanes == 1) {
    if (code == dlpack::kFloat && bits == 32) return DataType::kFloat32;
    if (code == dlpack::kFloat && bits == 64) return DataType::kFloat64;
    if (code == dlpack::kFloat && bits == 16) return DataType::kFloat16;
    if (code == dlpack::kBfloat && bits == 16) return DataType::kBFloat16;
    if (code == dlpack::kBool && bits == 8) return DataType::kBool;
    if (code == dlpack::kInt && bits == 32) return DataType::kInt32;
    if (code == dlpack::kInt && bits == 64) return DataType::kInt64;
    if (code == dlpack::kUInt && bits == 8) return DataType::kUInt8;
  }
  fail(ErrorCode::kType, name,
       "expected float32, float64, float16, bfloat16, bool, int32 or int64 (actual: DLPack type "
       "code " +
           std::to_string(code) + ", " + std::to_string(bits) + " bits, " + std::to_string(lanes) +
           " lanes)");
}

// NumPy's description of an element type; false where it has none of ours.
bool numpy_dtype(const py::dtype& dtype, DataType* out) {
  const char kind = dtype.kind();
  const auto size = dtype.itemsize();
  if (dtype.byteorder() == '>') return false;
  if (kind == 'f' && size == 4) return *out = DataType::kFloat32, true;
  if (kind == 'f' && size == 8) return *out = DataType::kFloat64, true;
  if (kind == 'f' && size == 2) return *out = DataType::kFloat16, true;
  if (kind == 'b') return *out = DataType::kBool, true;
  if (kind == 'i' && size == 4) return *out = DataType::kInt32, true;
  if (kind == 'i' && size == 8) return *out = DataType::kInt64, true;
  if (kind == 'u' && size == 1) return *out = DataType::kUInt8, true;
  if (size == 2) {  // ml_dtypes registers bfloat16 with NumPy as a type of its own
    const std::string type = py::str(dtype.attr("name"));
    if (type == "bfloat16") return *out = DataType::kBFloat16, true;
  }
  return false;
}

void set_rank(const char* name, TensorView* view, std::int64_t rank) {
  if (rank > TensorView::kMaxRank) {
    fail(ErrorCode::kValue, name, "expected at most 4 axes (actual: " + std::to_string(rank) + ")");
  }
  view->rank = static_cast<int>(rank);
}

// Axes of length 1 may carry any stride; give them one that indexing cannot notice.
void tidy_strides(TensorView* view) {
  for (int axis = 0; axis < view->rank; ++axis) {
    if (view->shape[axis] <= 1) view->strides[axis] = 1;
  }
}

bool is_cuda(long type) { return type == dlpack::kCuda || type == dlpack::kCudaManaged; }

void check_device(const char* name, long type) {
  if (!is_cuda(type) && type != dlpack::kCpu && type != dlpack::kCudaHost) {
    fail(ErrorCode::kBuffer, name,
         "expected memory of the CPU or of a CUDA device (actual: DLPack device type " +
             std::to_string(type) + ")");
  }
}

dlpack::DataType dlpack_dtype(DataType dtype) {
  const auto bits = static_cast<std::uint8_t>(8 * size_of(dtype));
  switch (dtype) {
    case DataType::kFloat32:
    case DataType::kFloat64:
    case DataType::kFloat16: return {dlpack::kFloat, bits, 1};
    case DataType::kBFloat16: return {dlpack::kBfloat, bits, 1};
    case DataType::kBool: return {dlpack::kBool, bits, 1};
    case DataType::kInt32:
    case DataType::kInt64: return {dlpack::kInt, bits, 1};
    case DataType::kUInt8: return {dlpack::kUInt, bits, 1};
  }
  throw Error(ErrorCode::kType, "an element type that DLPack does not know");
}

PyTypeObject* host_array_type() {
  static PyTypeObject* type =
      reinterpret_cast<PyTypeObject*>(py::type::of<HostArray>().release().ptr());
  return type;
}

PyObject* type_object(py::handle object) {
  return reinterpret_cast<PyObject*>(Py_TYPE(object.ptr()));
}

/// Whether a call's result, which is taken over, is True.
bool is_true(PyObject* result) {
  if (result == nullptr) throw py::error_already_set();
  Py_DECREF(result);  // True and False outlive this
  return result == Py_True;
}

/// Do what may fail in the library of an array; its refusal, for example of an array that requires
/// a gradient, comes with the array's name.
template <class F>
auto exported(const char* name, F function) -> decltype(function()) {
  try {
    return function();
  } catch (py::error_already_set& e) {
    const std::string words = std::string("expected an array that can be exported (actual: ") +
                              std::string(py::str(e.value())) + ")";
    if (e.matches(PyExc_BufferError)) fail(ErrorCode::kBuffer, name, words);
    if (e.matches(PyExc_ValueError)) fail(ErrorCode::kValue, name, words);
    if (e.matches(PyExc_TypeError)) fail(ErrorCode::kType, name, words);
    if (e.matches(PyExc_RuntimeError)) fail(ErrorCode::kRuntime, name, words);
    throw;
  }
}

/// PyTorch negates some views when they are read, which DLPack cannot say and its export forgets.
[[noreturn]] void refuse_negated(const char* name) {
  fail(ErrorCode::kBuffer, name,
       "expected memory that holds the values (actual: their negatives; use .resolve_neg())");
}

/// A type of arrays whose library exchanges them in C, and what that does not look at.
struct Exchange {
  PyTypeObject* type;
  const dlpack::ExchangeApi* api;
  // The type's own descriptors, or null; they live as long as it does.
  PyObject *requires_grad, *is_neg;
};

/// Whether `type` is torch.nn.Parameter: a tensor like any other, which subclasses need not be.
bool is_torch_parameter(PyTypeObject* type) {
  const char* dot = std::strrchr(type->tp_name, '.');
  if (std::strcmp(dot == nullptr ? type->tp_name : dot + 1, "Parameter") != 0) return false;
  const py::object module =
      py::getattr(reinterpret_cast<PyObject*>(type), "__module__", py::str(""));
  return py::isinstance<py::str>(module) &&
         PyUnicode_CompareWithASCIIString(module.ptr(), "torch.nn.parameter") == 0;
}

/// The exchange that the library of `type` offers for it; null where it offers none. One that is
/// inherited does not count: an instance of a subclass may have no memory (as PyTorch's fake
/// tensors), or not say all with it.
const Exchange* exchange_of(PyTypeObject* type) {
  static Exchange known[8];
  static std::size_t count = 0;
  for (std::size_t i = 0; i < count; ++i) {
    if (known[i].type == type) return &known[i];
  }
  if (count == std::size(known)) return nullptr;
  const py::handle handle(reinterpret_cast<PyObject*>(type));
  const py::object capsule = py::getattr(handle, "__dlpack_c_exchange_api__", py::none());
  if (PyCapsule_IsValid(capsule.ptr(), "dlpack_exchange_api") == 0) return nullptr;
  if (type->tp_base != nullptr && !is_torch_parameter(type)) {
    const py::handle base(reinterpret_cast<PyObject*>(type->tp_base));
    if (py::getattr(base, "__dlpack_c_exchange_api__", py::none()).is(capsule)) return nullptr;
  }
  const auto* api = static_cast<const dlpack::ExchangeApi*>(
      PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
  while (api != nullptr && api->version.major > dlpack::kMajorVersion) api = api->previous;
  if (api == nullptr || api->version.major != dlpack::kMajorVersion ||
      api->from_object == nullptr || api->to_object == nullptr || api->allocate == nullptr ||
      api->current_stream == nullptr) {
    return nullptr;
  }
  handle.inc_ref();  // so that no other type gets its address
  const auto descriptor = [&](const char* name) {
    return py::getattr(handle, name, py::object()).release().ptr();
  };
  known[count] = {type, api, descriptor("requires_grad"), descriptor("is_neg")};
  return &known[count++];
}

}  // namespace

Array::Array(const char* name, py::handle object, std::uintptr_t stream) {
  if (object.is_none()) return;
  if (Py_TYPE(object.ptr()) == numpy_array_type()) {
    from_numpy(name, object);
  } else if (is_cupy(object)) {
    from_cupy(name, object);
  } else if (PyObject_TypeCheck(object.ptr(), numpy_array_type())) {
    if (has_attribute(object, "mask") && has_attribute(object, "filled")) {
      fail(ErrorCode::kType, name,
           "expected an array without a mask, which would be lost; use .filled() (actual: "
           "MaskedArray)");
    }
    from_numpy(name, py::module_::import("numpy").attr("asarray")(object));
  } else if (PyObject_TypeCheck(object.ptr(), host_array_type())) {
    view_ = object.cast<const HostArray&>().view();
    owner_ = py::reinterpret_borrow<py::object>(object);
  } else {
    try {
      if (from_exchange(name, object, stream)) return;
      if (!has_attribute(object, "__dlpack__") || !has_attribute(object, "__dlpack_device__")) {
        fail(ErrorCode::kType, name,
             "expected an array of NumPy, CuPy or any library with __dlpack__ (actual: " +
                 type_name(object) + ")");
      }
      from_dlpack(name, object, stream);
    } catch (...) {
      release();  // consumed but of no use: a constructor that throws runs no destructor
      throw;
    }
  }
}

void Array::from_numpy(const char* name, py::handle object) {
  owner_ = py::reinterpret_borrow<py::object>(object);
  auto array = py::reinterpret_borrow<py::array>(object);
  const py::dtype dtype = array.dtype();
  const auto itemsize = array.itemsize();
  bool direct = numpy_dtype(dtype, &view_.dtype);
  if (!direct && dtype.byteorder() != '>') {
    fail(ErrorCode::kType, name,
         "expected float32, float64, float16, bfloat16, bool, int32 or int64 (actual: " +
             std::string(py::str(dtype)) + ")");
  }
  direct =
      direct &&
      reinterpret_cast<std::uintptr_t>(array.data()) % static_cast<std::uintptr_t>(itemsize) == 0;
  for (py::ssize_t axis = 0; direct && axis < array.ndim(); ++axis) {
    direct = array.strides(axis) % itemsize == 0;
  }
  if (!direct) {
    // Foreign byte order, or elements that do not lie at multiples of their size: a native copy.
    owner_ = py::module_::import("numpy").attr("array")(object, dtype.attr("newbyteorder")("="));
    array = py::reinterpret_borrow<py::array>(owner_);
    if (!numpy_dtype(array.dtype(), &view_.dtype)) {
      fail(ErrorCode::kType, name,
           "expected a floating type (actual: " + std::string(py::str(dtype)) + ")");
    }
  }
  set_rank(name, &view_, array.ndim());
  view_.data = const_cast<void*>(array.data());
  view_.read_only = !array.writeable();
  for (int axis = 0; axis < view_.rank; ++axis) {
    view_.shape[axis] = array.shape(axis);
    view_.strides[axis] = array.strides(axis) / itemsize;
  }
  tidy_strides(&view_);
}

void Array::from_cupy(const char* name, py::handle object) {
  owner_ = py::reinterpret_borrow<py::object>(object);
  const auto dtype = py::reinterpret_borrow<py::dtype>(object.attr("dtype"));
  if (!numpy_dtype(dtype, &view_.dtype)) {
    fail(ErrorCode::kType, name,
         "expected float32, float64, float16, bfloat16, bool, int32 or int64 (actual: " +
             std::string(py::str(dtype)) + ")");
  }
  const py::tuple shape = object.attr("shape"), strides = object.attr("strides");
  set_rank(name, &view_, static_cast<std::int64_t>(shape.size()));
  bool aligned = true;
  for (int axis = 0; axis < view_.rank; ++axis) {
    const auto at = static_cast<std::size_t>(axis);
    view_.shape[axis] = shape[at].cast<std::int64_t>();
    const auto stride = strides[at].cast<std::int64_t>();
    view_.strides[axis] = stride / dtype.itemsize();
    aligned = aligned && (stride % dtype.itemsize() == 0 || view_.shape[axis] <= 1);
  }
  tidy_strides(&view_);
  const auto address = object.attr("data").attr("ptr").cast<std::uintptr_t>();
  if (!aligned || address % static_cast<std::uintptr_t>(dtype.itemsize()) != 0) {
    fail(ErrorCode::kBuffer, name,
         "expected elements at multiples of their size (actual: a view between them)");
  }
  view_.data = reinterpret_cast<void*>(address);
  view_.device = {DeviceType::kCuda, object.attr("device").attr("id").cast<std::int32_t>()};
}

bool Array::from_exchange(const char* name, py::handle object, std::uintptr_t stream) {
  const Exchange* exchange = exchange_of(Py_TYPE(object.ptr()));
  if (exchange == nullptr) return false;
  if (PyObject* own = exchange->requires_grad; own != nullptr) {
    const descrgetfunc get = Py_TYPE(own)->tp_descr_get;
    if (get != nullptr && is_true(get(own, object.ptr(), type_object(object)))) {
      fail(ErrorCode::kBuffer, name,
           "expected an array without a gradient to follow (actual: one that requires grad; use "
           ".detach())");
    }
  }
  if (exchange->is_neg != nullptr && is_true(PyObject_CallOneArg(exchange->is_neg, object.ptr()))) {
    refuse_negated(name);
  }
  // A view suffices where there is one: the tensor is held, and owning its export holds no more.
  dlpack::Tensor seen{};
  const bool views = exchange->api->view_object != nullptr;
  const int status = views ? exchange->api->view_object(object.ptr(), &seen)
                           : exchange->api->from_object(object.ptr(), &versioned_);
  if (status != 0 || (!views && versioned_ == nullptr)) {
    // __dlpack__ may know more, and if not, says so in words for users.
    PyErr_Clear();
    versioned_ = nullptr;
    return false;
  }
  const dlpack::Device device = views ? seen.device : versioned_->tensor.device;
  if (is_cuda(device.type)) {
    // The exchange orders nothing: it does where the library works on the stream of this call.
    void* current = nullptr;
    if (exchange->api->current_stream(device.type, device.id, &current) != 0) {
      throw py::error_already_set();
    }
    if (reinterpret_cast<std::uintptr_t>(current) != stream) {
      release();
      return false;
    }
  }
  if (views) {
    set(name, seen);
  } else {
    set(name, *versioned_);
  }
  owner_ = py::reinterpret_borrow<py::object>(object);
  exchange_ = exchange->api;
  return true;
}

void Array::from_dlpack(const char* name, py::handle object, std::uintptr_t stream) {
  const py::object told =
      exported(name, [&] { return call(attribute(object, "__dlpack_device__"), py::tuple()); });
  long type = -1;
  if (PyTuple_Check(told.ptr()) && PyTuple_GET_SIZE(told.ptr()) == 2) {
    type = PyLong_AsLong(PyTuple_GET_ITEM(told.ptr(), 0));
    if (type == -1) PyErr_Clear();
  }
  if (type < 0) {
    fail(ErrorCode::kBuffer, name,
         "expected __dlpack_device__ to return a device's type and number (actual: " +
             std::string(py::repr(told)) + ")");
  }
  check_device(name, type);
  const bool cuda = is_cuda(type);
  if (has_attribute(object, "is_neg") && has_attribute(object, "resolve_neg") &&
      exported(name,
               [&] { return call(attribute(object, "is_neg"), py::tuple()).ptr() == Py_True; })) {
    refuse_negated(name);
  }
  py::dict arguments;
  // In DLPack's convention 1 is CUDA's default stream, and 0 is not allowed.
  if (cuda) arguments["stream"] = py::int_(stream == 0 ? 1 : stream);
  const py::object capsule = exported(name, [&] {
    const py::object export_ = attribute(object, "__dlpack__");
    try {
      arguments["max_version"] = py::make_tuple(dlpack::kMajorVersion, 0);
      return call(export_, py::tuple(), arguments);
    } catch (py::error_already_set& e) {
      if (!e.matches(PyExc_TypeError)) throw;
      // A producer older than version 1.
      PyDict_DelItemString(arguments.ptr(), "max_version");
      return call(export_, py::tuple(), arguments);
    }
  });
  dlpack::Device device;
  if (PyCapsule_IsValid(capsule.ptr(), "dltensor_versioned") != 0) {
    auto* managed = static_cast<dlpack::ManagedTensorVersioned*>(
        PyCapsule_GetPointer(capsule.ptr(), "dltensor_versioned"));
    if (PyCapsule_SetName(capsule.ptr(), "used_dltensor_versioned") != 0) {
      throw py::error_already_set();
    }
    versioned_ = managed;
    set(name, *managed);
    device = managed->tensor.device;
  } else if (PyCapsule_IsValid(capsule.ptr(), "dltensor") != 0) {
    auto* managed =
        static_cast<dlpack::ManagedTensor*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor"));
    if (PyCapsule_SetName(capsule.ptr(), "used_dltensor") != 0) throw py::error_already_set();
    managed_ = managed;
    view_.read_only = true;  // an unversioned export cannot say that it may be written
    set(name, managed->tensor);
    device = managed->tensor.device;
  } else {
    fail(ErrorCode::kBuffer, name,
         "expected __dlpack__ to return a capsule that nobody has consumed (actual: " +
             std::string(py::repr(capsule)) + ")");
  }
  // The stream was chosen by what __dlpack_device__ told.
  if (is_cuda(device.type) != cuda) {
    fail(ErrorCode::kBuffer, name,
         "expected memory of DLPack device type " + std::to_string(type) +
             ", as __dlpack_device__ tells (actual: " + std::to_string(device.type) + ")");
  }
  owner_ = py::reinterpret_borrow<py::object>(object);
}

void Array::set(const char* name, const dlpack::ManagedTensorVersioned& managed) {
  if (managed.version.major != dlpack::kMajorVersion) {
    // Nothing behind the version and the deleter has a meaning that is known here.
    fail(ErrorCode::kBuffer, name,
         "expected DLPack version 1 (actual: " + std::to_string(managed.version.major) + ")");
  }
  view_.read_only = (managed.flags & dlpack::kFlagReadOnly) != 0;
  set(name, managed.tensor);
}

void Array::set(const char* name, const dlpack::Tensor& tensor) {
  check_device(name, tensor.device.type);
  view_.dtype = dtype_of(name, tensor.dtype.code, tensor.dtype.bits, tensor.dtype.lanes);
  if (tensor.ndim < 0) {
    fail(ErrorCode::kBuffer, name,
         "expected a number of axes (actual: " + std::to_string(tensor.ndim) + ")");
  }
  set_rank(name, &view_, tensor.ndim);
  if (view_.rank > 0 && tensor.shape == nullptr) {
    fail(ErrorCode::kBuffer, name, "expected a shape (actual: a null pointer)");
  }
  std::int64_t count = 1;  // of elements; it and every row-major stride fit if the bytes do
  bool empty = false, fits = true;
  for (int axis = view_.rank - 1; axis >= 0; --axis) {
    const std::int64_t n = tensor.shape[axis];
    if (n < 0) {
      fail(ErrorCode::kBuffer, name,
           "expected lengths of axes from 0 (actual: " + std::to_string(n) + ")");
    }
    view_.shape[axis] = n;
    view_.strides[axis] = tensor.strides == nullptr ? count : tensor.strides[axis];
    empty = empty || n == 0;
    const std::int64_t most =
        std::numeric_limits<std::int64_t>::max() / static_cast<std::int64_t>(size_of(view_.dtype));
    fits = fits && (n == 0 || count <= most / n);
    if (n > 0 && fits) count *= n;
  }
  if (!fits) {
    fail(ErrorCode::kBuffer, name,
         "expected fewer than 2**63 bytes (actual: shape " + view_.shape_string() + ")");
  }
  tidy_strides(&view_);
  view_.data =
      tensor.data == nullptr ? nullptr : static_cast<char*>(tensor.data) + tensor.byte_offset;
  view_.device =
      is_cuda(tensor.device.type) ? Device{DeviceType::kCuda, tensor.device.id} : Device{};
  if (!empty && reinterpret_cast<std::uintptr_t>(view_.data) % size_of(view_.dtype) != 0) {
    fail(ErrorCode::kBuffer, name,
         std::string("expected memory aligned to the size of ") + name_of(view_.dtype) +
             " (actual: address " + std::to_string(reinterpret_cast<std::uintptr_t>(view_.data)) +
             ")");
  }
}

void Array::make_writable(const char* name) {
  if (versioned_ != nullptr && versioned_->flags != 0) {
    const bool copied = (versioned_->flags & dlpack::kFlagIsCopied) != 0;
    if (copied || (versioned_->flags & dlpack::kFlagReadOnly) != 0) {
      fail(ErrorCode::kBuffer, name,
           std::string("expected an output that can be written through DLPack (actual: ") +
               (copied ? "a copy of it)" : "read-only memory)"));
    }
  }
  view_.read_only = false;
}

Array Array::allocated(const char* name, const dlpack::ExchangeApi& api, DataType dtype,
                       std::initializer_list<std::int64_t> shape) {
  std::int64_t dims[TensorView::kMaxRank] = {};
  std::copy(shape.begin(), shape.end(), dims);
  dlpack::Tensor prototype{};
  prototype.device = {dlpack::kCpu, 0};
  prototype.ndim = static_cast<std::int32_t>(shape.size());
  prototype.dtype = dlpack_dtype(dtype);
  prototype.shape = dims;
  dlpack::ManagedTensorVersioned* managed = nullptr;
  std::string words;
  const auto keep_words = [](void* context, const char*, const char* message) {
    try {
      *static_cast<std::string*>(context) = message;
    } catch (...) {  // out of memory: without words, then
    }
  };
  if (api.allocate(&prototype, &managed, &words, keep_words) != 0 || managed == nullptr) {
    PyErr_Clear();
    fail(ErrorCode::kRuntime, name, "expected to get memory (actual: " + words + ")");
  }
  Array array;
  array.versioned_ = managed;
  try {
    array.set(name, *managed);
  } catch (...) {
    array.release();
    throw;
  }
  array.view_.read_only = false;
  array.versioned_ = nullptr;
  void* object = nullptr;
  if (api.to_object(managed, &object) != 0) throw py::error_already_set();
  array.owner_ = py::reinterpret_steal<py::object>(static_cast<PyObject*>(object));
  return array;
}

Array Array::host(DataType dtype, std::initializer_list<std::int64_t> shape) {
  Array array;
  auto made = std::make_unique<HostArray>(dtype, shape);
  array.view_ = made->view();
  array.owner_ = py::cast(std::move(made));
  return array;
}

void Array::release() noexcept {
  if (versioned_ != nullptr && versioned_->deleter != nullptr) {
    survive_shutdown([this] { versioned_->deleter(versioned_); });
  }
  if (managed_ != nullptr && managed_->deleter != nullptr) {
    survive_shutdown([this] { managed_->deleter(managed_); });
  }
  versioned_ = nullptr;
  managed_ = nullptr;
}

Array& Array::operator=(Array&& other) noexcept {
  std::swap(view_, other.view_);
  std::swap(owner_, other.owner_);
  std::swap(exchange_, other.exchange_);
  std::swap(managed_, other.managed_);
  std::swap(versioned_, other.versioned_);
  return *this;
}

namespace {

// The system takes large blocks back as soon as they are freed, so each new one would be faulted in
// page by page. From this size on, arrays made here live in the pool of host blocks instead.
constexpr std::size_t kLargeOutput = std::size_t{4} << 20;

py::dtype bfloat16_of_numpy() {
  try {
    return py::dtype::from_args(py::module_::import("ml_dtypes").attr("bfloat16"));
  } catch (py::error_already_set& e) {
    if (!e.matches(PyExc_ImportError)) throw;
    throw Error(ErrorCode::kType,
                "x: expected the package ml_dtypes, by which NumPy's arrays hold bfloat16 (actual: "
                "it is not installed)");
  }
}

// NumPy's element type of an array, which need not be NumPy's.
py::dtype dtype_like(const Array& array) {
  if (PyObject_TypeCheck(array.object().ptr(), numpy_array_type())) {
    return py::reinterpret_borrow<py::array>(array.object()).dtype();
  }
  switch (array.view().dtype) {
    case DataType::kFloat32: return py::dtype::of<float>();
    case DataType::kFloat64: return py::dtype::of<double>();
    case DataType::kFloat16: return py::dtype("float16");
    case DataType::kBFloat16: return bfloat16_of_numpy();
    default: throw Error(ErrorCode::kType, "expected a floating type");
  }
}

/// As py::array(dtype, shape), which works out strides in containers of its own.
py::object empty_numpy(py::dtype dtype, std::initializer_list<std::int64_t> shape) {
  const auto& api = py::detail::npy_api::get();
  Py_intptr_t dims[TensorView::kMaxRank] = {};
  std::copy(shape.begin(), shape.end(), dims);
  PyObject* made =
      api.PyArray_NewFromDescr_(api.PyArray_Type_, dtype.release().ptr(),
                                static_cast<int>(shape.size()), dims, nullptr, nullptr, 0, nullptr);
  if (made == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(made);
}

}  // namespace

Array Allocator::array(const char* name, std::initializer_list<std::int64_t> shape) const {
  if (like_.exchange() != nullptr && like_.view().device.type == DeviceType::kCpu) {
    return Array::allocated(name, *like_.exchange(), like_.view().dtype, shape);
  }
  if (empty_.ptr() == reinterpret_cast<PyObject*>(host_array_type())) {
    return Array::host(like_.view().dtype, shape);
  }
  if (!empty_.is_none()) {
    py::tuple dims(shape.size());
    std::size_t axis = 0;
    for (std::int64_t n : shape) dims[axis++] = n;
    Array made(name, call(empty_, py::make_tuple(dims)), stream_);
    made.make_writable(name);
    return made;
  }
  const py::dtype dtype = dtype_like(like_);
  std::size_t bytes = static_cast<std::size_t>(dtype.itemsize());
  for (std::int64_t n : shape) bytes *= static_cast<std::size_t>(n);
  if (bytes < kLargeOutput) return Array(name, empty_numpy(dtype, shape), stream_);
  const std::vector<py::ssize_t> dims(shape.begin(), shape.end());
  auto block = std::make_unique<HostBlock>(bytes);
  void* data = block->data();
  const py::capsule owner(block.get(), [](void* b) { delete static_cast<HostBlock*>(b); });
  block.release();
  return Array(name, py::array(dtype, dims, data, owner), stream_);
}

HostArray::HostArray(DataType dtype, std::initializer_list<std::int64_t> shape) {
  std::int64_t bytes = static_cast<std::int64_t>(size_of(dtype));
  for (std::int64_t n : shape) bytes *= n;
  // Some libraries take no null pointer, not even for an empty array.
  block_ = std::make_shared<HostBlock>(static_cast<std::size_t>(std::max<std::int64_t>(bytes, 1)));
  view_ = TensorView(block_->data(), dtype, shape);
}

namespace {

/// An export with what it points to. Its deleter needs no Python: consumers call it from any
/// thread, also when the interpreter is gone.
template <class Managed>
struct Export {
  Managed managed{};
  std::shared_ptr<HostBlock> block;
  std::int64_t shape[TensorView::kMaxRank], strides[TensorView::kMaxRank];
};

template <class Managed>
py::capsule export_host(const std::shared_ptr<HostBlock>& block, const TensorView& view,
                        const char* name) {
  auto made = std::make_unique<Export<Managed>>();
  made->block = block;
  std::copy_n(view.shape, view.rank, made->shape);
  std::copy_n(view.strides, view.rank, made->strides);
  dlpack::Tensor& tensor = made->managed.tensor;
  tensor.data = view.data;
  tensor.device = {dlpack::kCpu, 0};
  tensor.ndim = view.rank;
  tensor.dtype = dlpack_dtype(view.dtype);
  tensor.shape = made->shape;
  tensor.strides = made->strides;
  if constexpr (std::is_same_v<Managed, dlpack::ManagedTensorVersioned>) {
    made->managed.version = {dlpack::kMajorVersion, 0};
  }
  made->managed.manager_ctx = made.get();
  made->managed.deleter = [](Managed* managed) {
    delete static_cast<Export<Managed>*>(managed->manager_ctx);
  };
  py::capsule capsule(&made->managed, name, [](PyObject* dropped) {
    // A consumer has renamed it. Runs perhaps while an exception is on its way: leave that alone.
    for (const char* kind : {"dltensor", "dltensor_versioned"}) {
      if (PyCapsule_IsValid(dropped, kind) == 0) continue;
      auto* managed = static_cast<Managed*>(PyCapsule_GetPointer(dropped, kind));
      managed->deleter(managed);
    }
  });
  made.release();
  return capsule;
}

}  // namespace

py::capsule HostArray::dlpack(py::handle stream, py::handle max_version, py::handle dl_device,
                              py::handle copy) const {
  if (!stream.is_none()) {
    fail(ErrorCode::kValue, "stream",
         "expected None for memory of the host (actual: " + std::string(py::repr(stream)) + ")");
  }
  if (!dl_device.is_none() && !dl_device.equal(py::make_tuple(int{dlpack::kCpu}, 0))) {
    fail(ErrorCode::kBuffer, "dl_device",
         "expected the host, (1, 0) (actual: " + std::string(py::repr(dl_device)) + ")");
  }
  if (copy.ptr() == Py_True) {
    fail(ErrorCode::kBuffer, "copy", "expected False or None (actual: True)");
  }
  bool versioned = false;
  if (!max_version.is_none()) {
    if (!PyTuple_Check(max_version.ptr()) || PyTuple_GET_SIZE(max_version.ptr()) != 2 ||
        !PyLong_Check(PyTuple_GET_ITEM(max_version.ptr(), 0))) {
      fail(ErrorCode::kType, "max_version",
           "expected None or (major, minor) (actual: " + std::string(py::repr(max_version)) + ")");
    }
    int overflow = 0;  // of a number that is larger than any version
    versioned = PyLong_AsLongAndOverflow(PyTuple_GET_ITEM(max_version.ptr(), 0), &overflow) >= 1 ||
                overflow > 0;
  }
  if (versioned) {
    return export_host<dlpack::ManagedTensorVersioned>(block_, view_, "dltensor_versioned");
  }
  return export_host<dlpack::ManagedTensor>(block_, view_, "dltensor");
}

void bind_arrays(py::module_& m) {
  py::class_<HostArray>(m, "HostArray")
      .def("__dlpack__", &HostArray::dlpack, py::kw_only(), py::arg("stream") = py::none(),
           py::arg("max_version") = py::none(), py::arg("dl_device") = py::none(),
           py::arg("copy") = py::none())
      .def("__dlpack_device__",
           [](const HostArray&) { return py::make_tuple(int{dlpack::kCpu}, 0); });
}

Bytes::Bytes(const Allocator& allocator, std::size_t bytes) {
  const auto n = static_cast<std::int64_t>(bytes);
  if (allocator.ctx_.device().type == DeviceType::kCpu) {
    block_ = HostBlock(bytes);
    view_ = TensorView(block_.data(), DataType::kUInt8, {n});
    return;
  }
  array_ = Array("workspace", call(allocator.empty_bytes_, py::make_tuple(n)), allocator.stream_);
  array_.make_writable("workspace");
  view_ = array_.view();
}

Context context_for(const TensorView& x, std::uintptr_t stream) {
  if (x.device.type == DeviceType::kCuda) {
    return Context::cuda(x.device.index, reinterpret_cast<void*>(stream));
  }
  return Context::cpu();
}

}  // namespace penstock::python
