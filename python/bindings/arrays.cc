#include "arrays.h"

#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

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

}  // namespace

Array::Array(const char* name, py::handle object, std::uintptr_t stream) {
  if (object.is_none()) return;
  if (Py_TYPE(object.ptr()) == numpy_array_type()) {
    from_numpy(name, object);
  } else if (is_cupy(object)) {
    from_cupy(name, object);
  } else if (PyObject_TypeCheck(object.ptr(), numpy_array_type())) {
    if (py::hasattr(object, "mask") && py::hasattr(object, "filled")) {
      fail(ErrorCode::kType, name,
           "expected an array without a mask, which would be lost; use .filled() (actual: "
           "MaskedArray)");
    }
    from_numpy(name, py::module_::import("numpy").attr("asarray")(object));
  } else if (py::hasattr(object, "__dlpack__") && py::hasattr(object, "__dlpack_device__")) {
    try {
      from_dlpack(name, object, stream);
    } catch (...) {
      release();  // consumed but of no use: a constructor that throws runs no destructor
      throw;
    }
  } else {
    fail(ErrorCode::kType, name,
         "expected an array of NumPy, CuPy or any library with __dlpack__ (actual: " +
             type_name(object) + ")");
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

void Array::from_dlpack(const char* name, py::handle object, std::uintptr_t stream) {
  const py::tuple device = object.attr("__dlpack_device__")();
  const int type = py::int_(device[0]);
  const bool cuda = type == dlpack::kCuda || type == dlpack::kCudaManaged;
  if (!cuda && type != dlpack::kCpu && type != dlpack::kCudaHost) {
    fail(ErrorCode::kBuffer, name,
         "expected memory of the CPU or of a CUDA device (actual: DLPack device type " +
             std::to_string(type) + ")");
  }
  py::dict arguments;
  // In DLPack's convention 1 is CUDA's default stream, and 0 is not allowed.
  if (cuda) arguments["stream"] = py::int_(stream == 0 ? 1 : stream);
  const py::object export_ = object.attr("__dlpack__");
  py::object capsule;
  try {
    try {
      arguments["max_version"] = py::make_tuple(dlpack::kMajorVersion, 0);
      capsule = export_(**arguments);
    } catch (py::error_already_set& e) {
      if (!e.matches(PyExc_TypeError)) throw;
      // A producer older than version 1.
      PyDict_DelItemString(arguments.ptr(), "max_version");
      capsule = export_(**arguments);
    }
  } catch (py::error_already_set& e) {
    // A refusal, for example of an array that requires a gradient: say which array.
    const std::string words = std::string("expected an array that can be exported (actual: ") +
                              std::string(py::str(e.value())) + ")";
    if (e.matches(PyExc_BufferError)) fail(ErrorCode::kBuffer, name, words);
    if (e.matches(PyExc_ValueError)) fail(ErrorCode::kValue, name, words);
    if (e.matches(PyExc_TypeError)) fail(ErrorCode::kType, name, words);
    if (e.matches(PyExc_RuntimeError)) fail(ErrorCode::kRuntime, name, words);
    throw;
  }
  if (PyCapsule_IsValid(capsule.ptr(), "dltensor_versioned") != 0) {
    auto* managed = static_cast<dlpack::ManagedTensorVersioned*>(
        PyCapsule_GetPointer(capsule.ptr(), "dltensor_versioned"));
    if (PyCapsule_SetName(capsule.ptr(), "used_dltensor_versioned") != 0) {
      throw py::error_already_set();
    }
    versioned_ = managed;
    if (managed->version.major > dlpack::kMajorVersion) {
      fail(ErrorCode::kBuffer, name,
           "expected DLPack version 1 or older (actual: " + std::to_string(managed->version.major) +
               ")");
    }
    view_.read_only = (managed->flags & dlpack::kFlagReadOnly) != 0;
    set(name, managed->tensor);
  } else if (PyCapsule_IsValid(capsule.ptr(), "dltensor") != 0) {
    auto* managed =
        static_cast<dlpack::ManagedTensor*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor"));
    if (PyCapsule_SetName(capsule.ptr(), "used_dltensor") != 0) throw py::error_already_set();
    managed_ = managed;
    view_.read_only = true;  // an unversioned export cannot say that it may be written
    set(name, managed->tensor);
  } else {
    fail(ErrorCode::kBuffer, name,
         "expected __dlpack__ to return a capsule that nobody has consumed (actual: " +
             std::string(py::repr(capsule)) + ")");
  }
  owner_ = py::reinterpret_borrow<py::object>(object);
}

void Array::set(const char* name, const dlpack::Tensor& tensor) {
  view_.dtype = dtype_of(name, tensor.dtype.code, tensor.dtype.bits, tensor.dtype.lanes);
  set_rank(name, &view_, tensor.ndim);
  std::int64_t stride = 1;
  for (int axis = view_.rank - 1; axis >= 0; --axis) {
    view_.shape[axis] = tensor.shape[axis];
    view_.strides[axis] = tensor.strides == nullptr ? stride : tensor.strides[axis];
    stride *= tensor.shape[axis];
  }
  tidy_strides(&view_);
  view_.data =
      tensor.data == nullptr ? nullptr : static_cast<char*>(tensor.data) + tensor.byte_offset;
  const bool cuda =
      tensor.device.type == dlpack::kCuda || tensor.device.type == dlpack::kCudaManaged;
  view_.device = cuda ? Device{DeviceType::kCuda, tensor.device.id} : Device{};
  if (reinterpret_cast<std::uintptr_t>(view_.data) % size_of(view_.dtype) != 0) {
    fail(ErrorCode::kBuffer, name,
         std::string("expected memory aligned to the size of ") + name_of(view_.dtype) +
             " (actual: address " + std::to_string(reinterpret_cast<std::uintptr_t>(view_.data)) +
             ")");
  }
}

void Array::release() noexcept {
  if (versioned_ != nullptr && versioned_->deleter != nullptr) versioned_->deleter(versioned_);
  if (managed_ != nullptr && managed_->deleter != nullptr) managed_->deleter(managed_);
  versioned_ = nullptr;
  managed_ = nullptr;
}

Array& Array::operator=(Array&& other) noexcept {
  std::swap(view_, other.view_);
  std::swap(owner_, other.owner_);
  std::swap(managed_, other.managed_);
  std::swap(versioned_, other.versioned_);
  return *this;
}

namespace {

// The system takes large blocks back as soon as they are freed, so each new one would be faulted in
// page by page. From this size on, arrays made here live in the pool of host blocks instead.
constexpr std::size_t kLargeOutput = std::size_t{4} << 20;

// NumPy's element type of an array, which need not be NumPy's.
py::dtype dtype_like(const Array& array) {
  if (PyObject_TypeCheck(array.object().ptr(), numpy_array_type())) {
    return py::reinterpret_borrow<py::array>(array.object()).dtype();
  }
  switch (array.view().dtype) {
    case DataType::kFloat32: return py::dtype::of<float>();
    case DataType::kFloat64: return py::dtype::of<double>();
    case DataType::kFloat16: return py::dtype("float16");
    case DataType::kBFloat16:
      return py::dtype::from_args(py::module_::import("ml_dtypes").attr("bfloat16"));
    default: throw Error(ErrorCode::kType, "expected a floating type");
  }
}

}  // namespace

Array Allocator::array(const char* name, std::initializer_list<std::int64_t> shape) const {
  if (!empty_.is_none()) {
    py::tuple dims(shape.size());
    std::size_t axis = 0;
    for (std::int64_t n : shape) dims[axis++] = n;
    Array made(name, empty_(dims), stream_);
    made.make_writable();
    return made;
  }
  const py::dtype dtype = dtype_like(like_);
  const std::vector<py::ssize_t> dims(shape.begin(), shape.end());
  std::size_t bytes = static_cast<std::size_t>(dtype.itemsize());
  for (std::int64_t n : shape) bytes *= static_cast<std::size_t>(n);
  if (bytes < kLargeOutput) return Array(name, py::array(dtype, dims), stream_);
  auto block = std::make_unique<HostBlock>(bytes);
  void* data = block->data();
  const py::capsule owner(block.get(), [](void* b) { delete static_cast<HostBlock*>(b); });
  block.release();
  return Array(name, py::array(dtype, dims, data, owner), stream_);
}

Bytes::Bytes(const Allocator& allocator, std::size_t bytes) {
  const auto n = static_cast<std::int64_t>(bytes);
  if (allocator.ctx_.device().type == DeviceType::kCpu) {
    block_ = HostBlock(bytes);
    view_ = TensorView(block_.data(), DataType::kUInt8, {n});
    return;
  }
  array_ = Array("workspace", allocator.empty_bytes_(n), allocator.stream_);
  array_.make_writable();
  view_ = array_.view();
}

Context context_for(const TensorView& x, std::uintptr_t stream) {
  if (x.device.type == DeviceType::kCuda) {
    return Context::cuda(x.device.index, reinterpret_cast<void*>(stream));
  }
  return Context::cpu();
}

}  // namespace penstock::python
