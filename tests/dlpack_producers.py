"""Arrays of libraries that nobody has heard of: their capsules are built by hand, field by field.

They can say anything that DLPack allows, and some of what it does not. What the fields mean stands
in DLPack's specification, https://dmlc.github.io/dlpack/latest/c_api.html.
"""

from __future__ import annotations

import ctypes
from typing import Any, ClassVar

import numpy as np

CPU, CUDA, CUDA_HOST, METAL = 1, 2, 3, 8
INT, UINT, FLOAT, BFLOAT, COMPLEX, BOOL = 0, 1, 2, 4, 5, 6
READ_ONLY, IS_COPIED = 1, 2


class DLTensor(ctypes.Structure):
    _fields_: ClassVar = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


DELETER = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class Managed(ctypes.Structure):
    """DLManagedTensor."""

    _fields_: ClassVar = [
        ("tensor", DLTensor),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
    ]


class ManagedVersioned(ctypes.Structure):
    """DLManagedTensorVersioned."""

    _fields_: ClassVar = [
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", DLTensor),
    ]


new_capsule = ctypes.pythonapi.PyCapsule_New
new_capsule.restype = ctypes.py_object
new_capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
capsule_name = ctypes.pythonapi.PyCapsule_GetName
capsule_name.restype = ctypes.c_char_p
capsule_name.argtypes = [ctypes.py_object]
capsule_rename = ctypes.pythonapi.PyCapsule_SetName
capsule_rename.argtypes = [ctypes.py_object, ctypes.c_char_p]
capsule_pointer = ctypes.pythonapi.PyCapsule_GetPointer
capsule_pointer.restype = ctypes.c_void_p
capsule_pointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
# A capsule keeps a pointer to its name.
NAMES = {False: b"dltensor", True: b"dltensor_versioned"}
USED = {False: b"used_dltensor", True: b"used_dltensor_versioned"}

CODES = {"f": FLOAT, "i": INT, "u": UINT, "b": BOOL, "c": COMPLEX}


class Producer:
    """An array that offers ``__dlpack__`` and ``__dlpack_device__``, and nothing else."""

    def __init__(
        self,
        array: np.ndarray,
        *,
        versioned: bool = True,
        max_version: str = "honour",
        version: tuple[int, int] = (1, 0),
        flags: int = 0,
        device: tuple[int, int] = (CPU, 0),
        has_deleter: bool = True,
        has_strides: bool = True,
        **fields: Any,
    ) -> None:
        """``max_version``: "honour", "reject" (TypeError) or "ignore"; ``fields`` of DLTensor."""
        self._array = array
        self._versioned, self._max_version = versioned, max_version
        self._version, self._flags, self._device = version, flags, device
        self._has_deleter, self._has_strides, self._fields = has_deleter, has_strides, fields
        self.exports: list[Any] = []
        self.capsules: list[Any] = []
        self.deleted: list[int] = []
        self.arguments: list[dict[str, Any]] = []
        self._deleter = DELETER(self.deleted.append)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._device

    def __dlpack__(self, **arguments: Any) -> Any:
        self.arguments.append(arguments)
        if self._max_version == "reject" and "max_version" in arguments:
            raise TypeError("__dlpack__() got an unexpected keyword argument 'max_version'")
        wanted = arguments.get("max_version") or (0, 0)
        versioned = self._versioned and (self._max_version == "ignore" or wanted[0] >= 1)
        a = self._array
        tensor = DLTensor(
            data=a.ctypes.data,
            device_type=self._device[0],
            device_id=self._device[1],
            ndim=a.ndim,
            code=BFLOAT if a.dtype.name == "bfloat16" else CODES[a.dtype.kind],
            bits=8 * a.dtype.itemsize,
            lanes=1,
        )
        shape = (ctypes.c_int64 * a.ndim)(*a.shape)
        strides = (ctypes.c_int64 * a.ndim)(*(s // a.itemsize for s in a.strides))
        tensor.shape = shape
        if self._has_strides:
            tensor.strides = strides
        for name, value in self._fields.items():
            setattr(tensor, name, value)
        deleter = ctypes.cast(self._deleter, ctypes.c_void_p) if self._has_deleter else None
        managed: Any = (
            ManagedVersioned(*self._version, None, deleter, self._flags, tensor)
            if versioned
            else Managed(tensor, None, deleter)
        )
        self.exports.append((managed, shape, strides))  # as long as anybody may look
        capsule = new_capsule(ctypes.addressof(managed), NAMES[versioned], None)
        self.capsules.append(capsule)
        return capsule

    def settled(self) -> bool:
        """Every export was consumed (so renamed), and its deleter was called exactly once."""
        consumed = all(capsule_name(c).startswith(b"used_") for c in self.capsules)
        addresses = sorted(ctypes.addressof(e[0]) for e in self.exports)
        return consumed and sorted(self.deleted) == addresses


class NativeProducer(Producer):
    """One whose exports need no Python once they are made: freed by the C library's ``free``.

    Who deletes one twice ends the process, or is seen by the address sanitizer; so is who reads it
    afterwards.
    """

    def __dlpack__(self, **arguments: Any) -> Any:
        libc = ctypes.CDLL(None)
        libc.malloc.restype = ctypes.c_void_p
        libc.malloc.argtypes = [ctypes.c_size_t]
        capsule = super().__dlpack__(**arguments)
        managed, shape, strides = self.exports.pop()
        self.capsules.pop()
        self.arguments.pop()
        versioned = isinstance(managed, ManagedVersioned)
        # The struct, then its shape, strides and data, in one block.
        axes, data = ctypes.sizeof(shape), self._array.tobytes()
        head = ctypes.sizeof(managed)
        start = -(-(head + 2 * axes) // 64) * 64
        address = libc.malloc(start + len(data))
        managed.tensor.shape = ctypes.cast(address + head, ctypes.POINTER(ctypes.c_int64))
        managed.tensor.strides = ctypes.cast(address + head + axes, ctypes.POINTER(ctypes.c_int64))
        managed.tensor.data = address + start
        managed.deleter = ctypes.cast(libc.free, ctypes.c_void_p)
        steps = np.ascontiguousarray(self._array).strides
        strides = (ctypes.c_int64 * len(steps))(*(s // self._array.itemsize for s in steps))
        ctypes.memmove(address, ctypes.byref(managed), head)
        ctypes.memmove(address + head, shape, axes)
        ctypes.memmove(address + head + axes, strides, axes)
        ctypes.memmove(address + start, data, len(data))
        capsule_rename(capsule, b"dropped")
        return new_capsule(address, NAMES[versioned], None)


def imported(array: Any, **arguments: Any) -> tuple[Any, Any, Any]:
    """Consume what ``array.__dlpack__(**arguments)`` gives: DLTensor, managed struct and deleter.

    The caller calls ``deleter(ctypes.addressof(managed))``.
    """
    capsule = array.__dlpack__(**arguments)
    name = capsule_name(capsule)
    kind: Any = {NAMES[False]: Managed, NAMES[True]: ManagedVersioned}[name]
    managed = kind.from_address(capsule_pointer(capsule, name))
    used = {NAMES[False]: USED[False], NAMES[True]: USED[True]}[name]
    assert capsule_rename(capsule, used) == 0
    return managed.tensor, managed, ctypes.CFUNCTYPE(None, ctypes.c_void_p)(managed.deleter)
