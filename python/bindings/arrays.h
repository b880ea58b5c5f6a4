// Python arrays as TensorViews: NumPy's and CuPy's by their own interfaces, those of libraries with
// DLPack's exchange in C (PyTorch) through that, any other through __dlpack__.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>

#include "dlpack.h"
#include "host_pool.h"
#include "penstock/context.h"
#include "penstock/tensor_view.h"

namespace penstock::python {

namespace py = pybind11;

/// A view and what keeps its memory alive. Must be destroyed with the GIL held.
class Array {
 public:
  Array() = default;
  /// View `object`; None gives a view that is not given. `stream` (a cudaStream_t as an integer) is
  /// handed to producers of CUDA memory. Throws TypeError or BufferError naming `name`.
  Array(const char* name, py::handle object, std::uintptr_t stream);
  Array(Array&& other) noexcept { *this = std::move(other); }
  Array& operator=(Array&& other) noexcept;
  ~Array() { release(); }

  const TensorView& view() const { return view_; }
  const py::object& object() const { return owner_; }
  /// The array's library's exchange in C; null for one that came another way.
  const dlpack::ExchangeApi* exchange() const { return exchange_; }
  /// Write to it all the same: for arrays that were made for this call, whose producer's DLPack
  /// export may be too old to say that they may be written. Throws BufferError naming `name` if it
  /// says that they may not, or that it is a copy.
  void make_writable(const char* name = "out");
  /// What `api` allocates, on the host, as an array of its library.
  static Array allocated(const char* name, const dlpack::ExchangeApi& api, DataType dtype,
                         std::initializer_list<std::int64_t> shape);
  /// A new HostArray.
  static Array host(DataType dtype, std::initializer_list<std::int64_t> shape);

 private:
  void from_numpy(const char* name, py::handle object);
  void from_cupy(const char* name, py::handle object);
  bool from_exchange(const char* name, py::handle object, std::uintptr_t stream);
  void from_dlpack(const char* name, py::handle object, std::uintptr_t stream);
  void set(const char* name, const dlpack::ManagedTensorVersioned& managed);
  void set(const char* name, const dlpack::Tensor& tensor);
  void release() noexcept;

  TensorView view_;
  py::object owner_;
  const dlpack::ExchangeApi* exchange_ = nullptr;
  dlpack::ManagedTensor* managed_ = nullptr;
  dlpack::ManagedTensorVersioned* versioned_ = nullptr;
};

/// Host memory of our own on its way to a library that is known by DLPack alone: Python sees
/// `__dlpack__` and `__dlpack_device__`, and nothing else.
class HostArray {
 public:
  HostArray(DataType dtype, std::initializer_list<std::int64_t> shape);

  const TensorView& view() const { return view_; }
  /// A capsule of the kind that `max_version` asks for, of memory that outlives this object.
  py::capsule dlpack(py::handle stream, py::handle max_version, py::handle dl_device,
                     py::handle copy) const;

 private:
  std::shared_ptr<HostBlock> block_;
  TensorView view_;
};

void bind_arrays(py::module_& m);

/// Makes a call's outputs in the caller's own library: NumPy's here, on the host also those of
/// libraries with an exchange in C, others through Python callables.
class Allocator {
 public:
  /// `like`: the input whose library, element type and device outputs share. `empty(shape)` makes
  /// an uninitialised array and `empty_bytes(n)` a device buffer; both None for NumPy's arrays.
  /// The class HostArray as `empty` stands for arrays of that kind.
  Allocator(const Array& like, const Context& ctx, py::handle empty, py::handle empty_bytes,
            std::uintptr_t stream)
      : like_(like), ctx_(ctx), empty_(empty), empty_bytes_(empty_bytes), stream_(stream) {}

  Array array(const char* name, std::initializer_list<std::int64_t> shape) const;

 private:
  friend class Bytes;
  const Array& like_;
  const Context& ctx_;
  py::handle empty_, empty_bytes_;
  std::uintptr_t stream_;
};

/// Workspace or reserve: host memory from the pool, or an array of the caller's library.
class Bytes {
 public:
  Bytes() = default;
  Bytes(const Allocator& allocator, std::size_t bytes);
  const TensorView& view() const { return view_; }

 private:
  HostBlock block_;
  Array array_;
  TensorView view_;
};

/// The context for arrays on x's device.
Context context_for(const TensorView& x, std::uintptr_t stream);

}  // namespace penstock::python
