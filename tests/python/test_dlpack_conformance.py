"""DLPack, rule by rule: what a producer may do, what it gets wrong, and what penstock hands out.

test_dlpack.py has what everyday producers do; here are the corners of the protocol, real libraries
in states that have no plain memory, and leaks.
"""

from __future__ import annotations

import ctypes
import gc
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import penstock
import pytest
from dlpack_producers import (
    BFLOAT,
    BOOL,
    CPU,
    CUDA,
    CUDA_HOST,
    FLOAT,
    INT,
    IS_COPIED,
    METAL,
    READ_ONLY,
    ManagedVersioned,
    NativeProducer,
    Producer,
    capsule_name,
    capsule_rename,
    imported,
)  # fmt: skip
from penstock import _core
from reference.problems import FLOATS, random_problem

SOURCE = Path(__file__).resolve().parents[1]


def gru_arrays(dtype: str = "float32", hidden: int = 3) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = dict(
        x=(4, 2, 5), weight_ih=(1, 3 * hidden, 5), weight_hh=(1, 3 * hidden, hidden),
        bias_ih=(1, 3 * hidden), bias_hh=(1, 3 * hidden),
    )  # fmt: skip
    if dtype == "bfloat16":
        import ml_dtypes

        return {n: rng.normal(size=s).astype(ml_dtypes.bfloat16) for n, s in shapes.items()}
    return {n: rng.normal(size=s).astype(dtype) for n, s in shapes.items()}


def python(code: str, **environment: str) -> str:
    """Run a program that knows the producers and the package that is tested; its output."""
    paths = [str(SOURCE), str(Path(penstock.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONFAULTHANDLER": "1"}
        | environment,
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


# What a producer says of its device


@pytest.mark.parametrize("told", [None, 3, (), (1,), (1, 0, 0), "cpu", ("cpu", 0), (None, 0)])
def test_what_is_no_device(told: Any) -> None:
    arrays = gru_arrays()

    class Odd(Producer):
        def __dlpack_device__(self) -> Any:
            return told

    for name in ("x", "weight_ih"):
        bad = Odd(arrays[name])
        with pytest.raises(BufferError, match=f"{name}: .*(device|tuple)"):
            penstock.gru(**arrays | {name: bad})
        assert not bad.exports, "asked for memory on no device"


def test_a_device_that_cannot_be_told() -> None:
    arrays = gru_arrays()

    class Lost(Producer):
        def __dlpack_device__(self) -> Any:
            raise RuntimeError("the device is gone")

    for name in ("x", "weight_ih", "bias_hh"):
        with pytest.raises((BufferError, RuntimeError), match=f"{name}: .*the device is gone"):
            penstock.gru(**arrays | {name: Lost(arrays[name])})


@pytest.mark.parametrize("device_type", [CUDA, METAL, 0, -1, 99])
@pytest.mark.parametrize("versioned", [True, False])
def test_memory_on_another_device_than_was_told(device_type: int, versioned: bool) -> None:
    """Reading a device's memory as the host's would end the process."""
    arrays = gru_arrays()
    bad = Producer(arrays["weight_ih"], versioned=versioned, device_type=device_type)
    assert bad.__dlpack_device__() == (CPU, 0)
    with pytest.raises(BufferError, match=rf"weight_ih: .*actual: .*{device_type}\)"):
        penstock.gru(**arrays | {"weight_ih": bad})
    gc.collect()
    assert bad.settled()


def test_pinned_memory_may_be_told_as_either() -> None:
    arrays = gru_arrays()
    expected = penstock.gru(**arrays).y
    for told, is_on in ((CPU, CUDA_HOST), (CUDA_HOST, CPU), (CUDA_HOST, CUDA_HOST)):
        x = Producer(arrays["x"], device=(told, 0), device_type=is_on)
        np.testing.assert_array_equal(penstock.gru(**arrays | {"x": x}).y, expected)


def test_cuda_arrays_are_asked_with_a_stream() -> None:
    """1 is CUDA's default stream; 0 and -1 are never given."""
    arrays = gru_arrays()
    bad = Producer(arrays["weight_ih"], device=(CUDA, 0))
    with pytest.raises((BufferError, RuntimeError)):
        penstock.gru(**arrays | {"weight_ih": bad})
    assert [a.get("stream") for a in bad.arguments] == [1]
    gc.collect()
    assert bad.settled()


# Fields


def refused(error: type[Exception], words: str, make: Callable[[np.ndarray], Producer]) -> None:
    """Every argument, of both directions of both kinds of functions, is refused by its name."""
    arrays = gru_arrays()
    producers = []
    for name, array in arrays.items():
        producers.append(make(array))
        with pytest.raises(error, match=rf"\b{name}: .*{words}"):
            penstock.gru(**arrays | {name: producers[-1]})
    output = penstock.gru(**arrays)
    producers.append(make(output.y))
    with pytest.raises(error, match=rf"\bdy: .*{words}"):
        output.backprop(producers[-1])
    problem = random_problem()
    producers.append(make(problem.arrays["x"]))
    with pytest.raises(error, match=rf"\bx: .*{words}"):
        penstock.sru(producers[-1], *(problem.arrays[n] for n in FLOATS[1:4]))
    gc.collect()
    for producer in producers:
        assert producer.exports
        assert producer.settled(), "consumed but not deleted, or deleted twice"


@pytest.mark.parametrize("versioned", [True, False])
@pytest.mark.parametrize("ndim", [-1, -(2**31)])
def test_negative_numbers_of_axes(ndim: int, versioned: bool) -> None:
    refused(BufferError, "axes", lambda a: Producer(a, ndim=ndim, versioned=versioned))


@pytest.mark.parametrize("ndim", [5, 2**31 - 1])
def test_many_axes(ndim: int) -> None:
    refused(ValueError, "axes", lambda a: Producer(a, ndim=ndim))


def test_shape_that_is_not_given() -> None:
    refused(BufferError, "null", lambda a: Producer(a, shape=None))


@pytest.mark.parametrize("value", [-1, -(2**63)])
def test_negative_lengths(value: int) -> None:
    def make(a: np.ndarray) -> Producer:
        return Producer(a, shape=(ctypes.c_int64 * a.ndim)(*a.shape[:-1], value))

    refused(BufferError, "lengths of axes", make)


def test_shapes_whose_size_is_no_number() -> None:
    def make(a: np.ndarray) -> Producer:
        return Producer(a, shape=(ctypes.c_int64 * a.ndim)(2**62, *a.shape[1:-1], 2**62))

    refused(BufferError, r"2\*\*63", make)


def test_no_axes_at_all() -> None:
    """0-d arrays are arrays, of the wrong shape; their shape and strides may be null."""
    arrays = gru_arrays()
    zero = np.zeros((), np.float32)
    for fields in ({}, {"shape": None, "strides": None}):
        for name in arrays:
            given = Producer(zero, **fields)
            with pytest.raises(ValueError, match=rf"{name}: .*\(\)"):
                penstock.gru(**arrays | {name: given})
            gc.collect()
            assert given.settled()
    with pytest.raises(ValueError, match="lengths"):
        penstock.gru(**arrays, lengths=Producer(np.zeros((), np.int64)))


@pytest.mark.parametrize("junk", [0, 2**62, -(2**62), 2**63 - 1, -(2**63)])
def test_strides_and_addresses_of_empty_arrays_do_not_matter(junk: int) -> None:
    arrays = gru_arrays()

    def make(a: np.ndarray) -> Producer:
        return Producer(a, strides=(ctypes.c_int64 * a.ndim)(*[junk] * a.ndim), data=0x1001)

    empty = np.zeros((0, 2, 5), np.float32)
    output = penstock.gru(**arrays | {"x": make(empty)})
    assert output.y.shape == (0, 2, 3)
    assert not output.h_last.any()
    grads = output.backprop(make(output.y))
    assert grads.dx.shape == (0, 2, 5)
    assert not grads.dweight_ih.any()


def test_null_strides_for_every_argument_and_shape() -> None:
    arrays = gru_arrays()
    expected = penstock.gru(**arrays)
    made = {n: Producer(a, has_strides=False) for n, a in arrays.items()}
    actual = penstock.gru(**made)
    for name in ("y", "h_last"):
        np.testing.assert_array_equal(getattr(actual, name), getattr(expected, name))
    dy = Producer(expected.y, has_strides=False)
    np.testing.assert_array_equal(actual.backprop(dy).dx, expected.backprop(expected.y).dx)


def test_zero_and_negative_strides() -> None:
    arrays = gru_arrays()
    x = np.broadcast_to(arrays["x"][:1, :, ::-1], (4, 2, 5))
    assert x.strides[0] == 0 and x.strides[2] < 0
    expected = penstock.gru(**arrays | {"x": x.copy()}).y
    np.testing.assert_array_equal(penstock.gru(**arrays | {"x": Producer(x)}).y, expected)


@pytest.mark.parametrize("offset", [1, 2, 3, 5])
def test_elements_between_addresses(offset: int) -> None:
    arrays = gru_arrays()
    room = np.zeros(arrays["x"].nbytes + 8, np.uint8)
    for fields in (
        {"data": room.ctypes.data + offset},
        {"data": room.ctypes.data, "byte_offset": offset},
    ):
        bad = Producer(arrays["x"], **fields)
        with pytest.raises(BufferError, match=r"x: .*aligned"):
            penstock.gru(**arrays | {"x": bad})
        gc.collect()
        assert bad.settled()


@pytest.mark.parametrize("step", [4, 8, 12, 20])
def test_alignment_to_an_element_is_enough(step: int) -> None:
    arrays = gru_arrays()
    expected = penstock.gru(**arrays).y

    def make(a: np.ndarray) -> Producer:
        room = np.zeros(a.nbytes + 128, np.uint8)
        start = -room.ctypes.data % 64 + step
        room[start : start + a.nbytes] = np.frombuffer(a.tobytes(), np.uint8)
        made = Producer(a, data=room.ctypes.data, byte_offset=start)
        made.room = room  # type: ignore[attr-defined]
        return made

    made = {n: make(a) for n, a in arrays.items()}
    np.testing.assert_array_equal(penstock.gru(**made).y, expected)


@pytest.mark.parametrize("code", range(7, 18))
def test_the_many_short_floats(code: int) -> None:
    """FP8, FP6 and FP4, each with a code of its own."""
    refused(TypeError, f"code {code}", lambda a: Producer(a, code=code, bits=8))


@pytest.mark.parametrize(
    ("code", "bits"), [(BOOL, 1), (BOOL, 32), (FLOAT, 0), (BFLOAT, 8), (INT, 128), (255, 255)]
)
@pytest.mark.parametrize("versioned", [True, False])
def test_sizes_that_no_type_has(code: int, bits: int, versioned: bool) -> None:
    refused(
        TypeError, f"{bits} bits", lambda a: Producer(a, code=code, bits=bits, versioned=versioned)
    )


@pytest.mark.parametrize("lanes", [0, 2, 4, 65535])
def test_vectors_of_elements(lanes: int) -> None:
    refused(TypeError, f"{lanes} lanes", lambda a: Producer(a, lanes=lanes))


@pytest.mark.parametrize("major", [0, 2, 3, 2**32 - 1])
def test_major_versions(major: int) -> None:
    """Also 0, which has no capsules of this kind; the rest of the struct is not looked at."""
    refused(
        BufferError,
        f"version 1 .*actual: {major}",
        lambda a: Producer(
            a, version=(major, 0), max_version="ignore", ndim=-7, data=None, shape=None, code=99
        ),
    )


def test_flags_of_inputs_do_not_matter() -> None:
    arrays = gru_arrays()
    expected = penstock.gru(**arrays).y
    for flags in (READ_ONLY, IS_COPIED, READ_ONLY | IS_COPIED, 4, 2**63):
        made = {n: Producer(a, flags=flags) for n, a in arrays.items()}
        np.testing.assert_array_equal(penstock.gru(**made).y, expected)


def test_inputs_are_never_written() -> None:
    arrays = gru_arrays()
    before = {n: a.copy() for n, a in arrays.items()}
    output = penstock.gru(**{n: Producer(a) for n, a in arrays.items()})
    output.backprop(Producer(output.y))
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, before[name])


# Capsules


@pytest.mark.parametrize("name", [b"used_dltensor", b"used_dltensor_versioned", b"other", b""])
@pytest.mark.parametrize("versioned", [True, False])
def test_capsules_of_other_names_are_left_to_their_owner(name: bytes, versioned: bool) -> None:
    arrays = gru_arrays()

    class Renamed(Producer):
        def __dlpack__(self, **arguments: Any) -> Any:
            capsule = super().__dlpack__(**arguments)
            capsule_rename(capsule, name)
            return capsule

    bad = Renamed(arrays["x"], versioned=versioned)
    with pytest.raises(BufferError, match=r"x: .*capsule"):
        penstock.gru(**arrays | {"x": bad})
    gc.collect()
    assert capsule_name(bad.capsules[0]) == name, "renamed a capsule that it did not consume"
    assert not bad.deleted, "deleted what it did not own"


def test_one_export_for_each_use() -> None:
    """The same object in two places is exported, and deleted, twice."""
    arrays = gru_arrays()
    bias = Producer(arrays["bias_ih"])
    output = penstock.gru(**arrays | {"bias_ih": bias, "bias_hh": bias})
    expected = penstock.gru(**arrays | {"bias_hh": arrays["bias_ih"]})
    np.testing.assert_array_equal(output.y, expected.y)
    assert len(bias.exports) == 2
    del output
    gc.collect()
    assert bias.settled()


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt, MemoryError, StopIteration, SystemExit, ZeroDivisionError]
)
def test_other_exceptions_pass_unchanged_and_free_what_came_before(
    error: type[BaseException],
) -> None:
    arrays = gru_arrays()

    class Stops(Producer):
        def __dlpack__(self, **arguments: Any) -> Any:
            raise error("stopped")

    names = list(arrays)
    for i, name in enumerate(names):
        made: dict[str, Any] = {n: Producer(a) for n, a in arrays.items()}
        made[name] = Stops(arrays[name])
        with pytest.raises(error) as raised:
            penstock.gru(**made)
        assert str(raised.value) == "stopped"
        del raised
        gc.collect()
        for j, other in enumerate(names):
            if j != i:
                assert made[other].settled()


def test_a_type_error_of_the_second_attempt_is_the_one_that_is_told() -> None:
    arrays = gru_arrays()

    class Old(Producer):
        def __dlpack__(self, **arguments: Any) -> Any:
            if arguments:
                raise TypeError("no keywords")
            raise TypeError("the true reason")

    with pytest.raises(TypeError, match=r"x: .*the true reason"):
        penstock.gru(**arrays | {"x": Old(arrays["x"])})


def test_a_deleter_may_call_back() -> None:
    """Nothing is half done when it runs."""
    arrays = gru_arrays()
    expected = penstock.gru(**arrays).y
    seen = []

    class Again(Producer):
        def __init__(self, array: np.ndarray) -> None:
            super().__init__(array)
            append = self.deleted.append

            def delete(address: int) -> None:
                append(address)
                seen.append(penstock.gru(**arrays).y)

            self._deleter = type(self._deleter)(delete)

    x = Again(arrays["x"])
    penstock.gru(**arrays | {"x": x}, need_grad=False)
    gc.collect()
    assert x.settled()
    with pytest.raises(ValueError, match="weight_ih"):
        penstock.gru(**arrays | {"x": x, "weight_ih": arrays["weight_hh"]})
    gc.collect()
    assert x.settled()
    assert len(seen) == 2
    for y in seen:
        np.testing.assert_array_equal(y, expected)


def test_deleted_from_the_thread_that_drops_it_last() -> None:
    arrays = gru_arrays()
    x = Producer(arrays["x"])
    held = [penstock.gru(**arrays | {"x": x})]
    where: list[int] = []
    append = x.deleted.append
    threads = []

    def delete(address: int) -> None:
        append(address)
        where.append(threading.get_ident())

    x2 = Producer(arrays["x"])
    append = x2.deleted.append
    x2._deleter = type(x2._deleter)(delete)
    held.append(penstock.gru(**arrays | {"x": x2}))

    def drop() -> None:
        held.clear()
        gc.collect()

    thread = threading.Thread(target=drop)
    thread.start()
    threads.append(thread.ident)
    thread.join()
    assert x.settled() and x2.settled()
    assert where == threads


def test_many_threads() -> None:
    arrays = gru_arrays()
    expected = penstock.gru(**arrays)
    dx = expected.backprop(expected.y).dx
    made = {n: NativeProducer(a) for n, a in arrays.items()}
    wrong: list[str] = []

    def work() -> None:
        for _ in range(50):
            output = penstock.gru(**made)
            if not (output.y == expected.y).all():
                wrong.append("y")
            if not (output.backprop(NativeProducer(output.y)).dx == dx).all():
                wrong.append("dx")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_what_is_alive_at_interpreter_exit() -> None:
    """Nothing crashes, whichever way the interpreter takes its modules apart."""
    code = """
import sys, threading, time
import numpy as np, penstock
from dlpack_producers import NativeProducer

shapes = dict(x=(4, 2, 5), weight_ih=(1, 9, 5), weight_hh=(1, 9, 3))
arrays = {n: NativeProducer(np.ones(s, np.float32)) for n, s in shapes.items()}
output = penstock.gru(**arrays)
cycle = [output, arrays]
cycle.append(cycle)
sys.kept = output.backprop           # outlives this module
sys.unused = arrays["x"].__dlpack__()  # never consumed

def forever():
    while True:
        penstock.gru(**arrays)

threading.Thread(target=forever, daemon=True).start()
time.sleep(0.05)
print("done")
"""
    for _ in range(10):  # the thread may be anywhere: in Python, in the kernel, in a producer
        assert python(code).strip() == "done"


# Lengths, which NumPy reads


def test_lengths_through_dlpack() -> None:
    arrays = gru_arrays()
    expected = penstock.gru(**arrays, lengths=np.array([3, 1])).y
    for dtype in (np.int64, np.int32, np.uint8):
        for versioned in (True, False):
            for max_version in ("honour", "reject"):
                lengths = Producer(
                    np.array([3, 1], dtype), versioned=versioned, max_version=max_version
                )
                actual = penstock.gru(**arrays, lengths=lengths).y
                np.testing.assert_array_equal(actual, expected)
                gc.collect()
                assert lengths.settled()


@pytest.mark.parametrize(
    "how", [{"version": (2, 0), "max_version": "ignore"}, {"lanes": 2}, {"code": 3}, {"ndim": 99}]
)
def test_lengths_that_cannot_be_read(how: dict[str, Any]) -> None:
    lengths = Producer(np.array([3, 1]), **how)
    with pytest.raises((BufferError, ValueError), match="lengths: "):
        penstock.gru(**gru_arrays(), lengths=lengths)


# Outputs


def forward_into(arrays: dict[str, Any], empty: Callable[[Any], Any]) -> Any:
    """The extension module's call, with outputs that ``empty(shape)`` makes."""
    return _core.gru_forward(
        *arrays.values(), None, None, None, "forward", "tanh", "after", False, False, empty, None, 0
    )


def test_outputs_written_through_dlpack() -> None:
    arrays = gru_arrays()
    expected = penstock.gru(**arrays)
    for how in ({}, {"versioned": False}, {"max_version": "reject"}, {"flags": 4}):
        made: list[np.ndarray] = []

        def empty(shape: Any, how: Any = how, made: Any = made) -> Producer:
            made.append(np.full(shape, np.nan, np.float32))
            return Producer(made[-1], **how)

        forward_into(arrays, empty)
        np.testing.assert_array_equal(made[0], expected.y)
        np.testing.assert_array_equal(made[1], expected.h_last)


@pytest.mark.parametrize(("flags", "words"), [(READ_ONLY, "read-only"), (IS_COPIED, "a copy")])
def test_outputs_that_would_be_lost(flags: int, words: str) -> None:
    made: list[tuple[np.ndarray, Producer]] = []

    def empty(shape: Any) -> Producer:
        array = np.full(shape, 7, np.float32)
        made.append((array, Producer(array, flags=flags)))
        return made[-1][1]

    with pytest.raises(BufferError, match=f"y: .*{words}"):
        forward_into(gru_arrays(), empty)
    gc.collect()
    for array, producer in made:
        assert (array == 7).all()
        assert producer.settled()


@pytest.mark.parametrize("through", [lambda a: a, Producer], ids=["NumPy", "DLPack"])
def test_outputs_over_inputs(through: Callable[[np.ndarray], Any]) -> None:
    """An output that shares memory with an input, or with another output, is refused untouched."""
    arrays = gru_arrays(hidden=5)
    before = {n: a.copy() for n, a in arrays.items()}
    with pytest.raises(BufferError, match="overlaps x"):
        forward_into(arrays, lambda s: through(arrays["x"].ravel()[: np.prod(s)].reshape(s)))
    room = np.full(arrays["x"].size + 1, 7, np.float32)
    room[:-1] = arrays["x"].ravel()
    moved = arrays | {"x": through(room[:-1].reshape(4, 2, 5))}
    with pytest.raises(BufferError, match="overlaps x"):
        forward_into(moved, lambda s: through(room[-np.prod(s) :].reshape(s)))
    assert room[-1] == 7
    same = np.full(100, 7, np.float32)
    with pytest.raises(BufferError, match=r"overlaps (y|h_last)"):
        forward_into(arrays, lambda s: through(same[: np.prod(s)].reshape(s)))
    assert (same == 7).all()
    for name, array in before.items():
        np.testing.assert_array_equal(arrays[name], array)


def test_outputs_of_the_wrong_kind() -> None:
    arrays = gru_arrays()
    with pytest.raises(ValueError, match="y: "):
        forward_into(arrays, lambda s: np.zeros((*s[:-1], s[-1] + 1), np.float32))
    with pytest.raises(TypeError, match="y: "):
        forward_into(arrays, lambda s: np.zeros(s, np.float64))
    with pytest.raises(TypeError, match="y: "):
        forward_into(arrays, lambda s: [0])


# penstock as a producer: what it makes for libraries that it knows by DLPack alone


class Namespace:
    """An array library whose arrays are what came through DLPack."""

    def __init__(self, versions: list[Any]) -> None:
        self.versions, self.got = versions, []

    def from_dlpack(self, array: Any) -> Any:
        self.got.append(array)
        return array


class Foreign(Producer):
    namespace = Namespace([])

    def __array_namespace__(self) -> Namespace:
        return self.namespace


def handed_out(dtype: str = "float32", batch: int = 2) -> tuple[Any, np.ndarray]:
    """An output as penstock hands it to a library, and its values."""
    arrays = gru_arrays(dtype)
    arrays["x"] = np.repeat(arrays["x"], batch, axis=1)[:, :batch]
    given = penstock.gru(**arrays | {"x": Foreign(arrays["x"])}, need_grad=False).y
    return given, penstock.gru(**arrays, need_grad=False).y


VERSIONS = [
    ({}, False),
    ({"max_version": None}, False),
    ({"max_version": (0, 8)}, False),
    ({"max_version": (1, 0)}, True),
    ({"max_version": (1, 3)}, True),
    ({"max_version": (2, 0)}, True),
]


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize(("arguments", "versioned"), VERSIONS)
def test_exports(arguments: dict[str, Any], versioned: bool, dtype: str) -> None:
    y, expected = handed_out(dtype)
    assert tuple(y.__dlpack_device__()) == (CPU, 0)
    tensor, managed, delete = imported(y, stream=None, **arguments)
    assert isinstance(managed, ManagedVersioned) == versioned
    if versioned:
        assert managed.major == 1
        assert managed.flags == 0, "writable, and no copy"
    assert (tensor.device_type, tensor.device_id, tensor.ndim) == (CPU, 0, 3)
    assert tensor.lanes == 1
    assert (tensor.code, tensor.bits) == (
        BFLOAT if dtype == "bfloat16" else FLOAT, 8 * expected.itemsize
    )  # fmt: skip
    assert tuple(tensor.shape[:3]) == expected.shape
    steps = tuple(s // expected.itemsize for s in expected.strides)
    assert tensor.strides and tuple(tensor.strides[:3]) == steps, "filled, in elements"
    assert (tensor.data + tensor.byte_offset) % 64 == 0
    del y
    gc.collect()  # the memory belongs to the export too
    found = ctypes.string_at(tensor.data + tensor.byte_offset, expected.nbytes)
    assert found == expected.tobytes()
    delete(ctypes.addressof(managed))


def test_exports_of_one_array_share_memory() -> None:
    y, expected = handed_out()
    one, two = imported(y), imported(y, max_version=(1, 0))
    assert one[0].data == two[0].data
    one[2](ctypes.addressof(one[1]))
    assert ctypes.string_at(two[0].data, expected.nbytes) == expected.tobytes()
    two[2](ctypes.addressof(two[1]))
    np.testing.assert_array_equal(np.from_dlpack(y), expected)


def test_exports_for_nobody() -> None:
    """A capsule that is dropped frees what it holds; the pool of host memory shows it."""
    penstock.release_memory()
    steps = 4096
    arrays = gru_arrays()
    arrays["x"] = np.zeros((steps, 64, 5), np.float32)
    for arguments, _ in VERSIONS:
        y = penstock.gru(**arrays | {"x": Foreign(arrays["x"])}, need_grad=False).y
        Foreign.namespace.got.clear()
        capsules = [y.__dlpack__(**arguments) for _ in range(3)]
        penstock.release_memory()
        del y
        gc.collect()
        assert _core.host_pool_bytes() < steps * 64 * 3 * 4, "still held by the capsules"
        del capsules
        gc.collect()
        assert _core.host_pool_bytes() >= steps * 64 * 3 * 4
        penstock.release_memory()


@pytest.mark.parametrize("arguments", [{}, {"max_version": (1, 0)}])
def test_deleters_need_no_python(arguments: dict[str, Any]) -> None:
    """Called without the interpreter's lock, from a thread that Python does not know."""
    y, _ = handed_out()
    _, managed, delete = imported(y, **arguments)
    del y
    address = ctypes.cast(delete, ctypes.c_void_p).value
    libc = ctypes.CDLL(None)
    thread = ctypes.c_ulong()
    # `void f(void*)` where a function that returns something is expected: nobody reads that.
    libc.pthread_create.argtypes = [ctypes.c_void_p] * 4
    libc.pthread_join.argtypes = [ctypes.c_ulong, ctypes.c_void_p]
    status = libc.pthread_create(ctypes.byref(thread), None, address, ctypes.addressof(managed))
    assert status == 0
    assert libc.pthread_join(thread.value, None) == 0


def test_deleters_after_the_interpreter() -> None:
    """The C library calls it when Python is gone."""
    code = """
import ctypes, atexit
import numpy as np, penstock
from dlpack_producers import Producer, imported

class Foreign(Producer):
    def __array_namespace__(self):
        return self
    def from_dlpack(self, array):
        return array

shapes = dict(x=(4, 2, 5), weight_ih=(1, 9, 5), weight_hh=(1, 9, 3))
arrays = {n: Foreign(np.ones(s, np.float32)) for n, s in shapes.items()}
y = penstock.gru(**arrays, need_grad=False).y
tensor, managed, delete = imported(y, max_version=(1, 0))
libc = ctypes.CDLL(None)
libc.__cxa_atexit.argtypes = [ctypes.c_void_p] * 3
libc.__cxa_atexit(ctypes.cast(delete, ctypes.c_void_p), ctypes.addressof(managed), None)
print("done")
"""
    assert python(code).strip() == "done"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"stream": 1}, ValueError),
        ({"dl_device": (CUDA, 0)}, BufferError),
        ({"dl_device": (CPU, 1)}, BufferError),
        ({"copy": True}, BufferError),
        ({"max_version": 1}, TypeError),
        ({"max_version": ()}, TypeError),
        ({"max_version": ("1", 0)}, TypeError),
        ({"unknown": 1}, TypeError),
    ],
)
def test_exports_that_are_refused(arguments: dict[str, Any], error: type[Exception]) -> None:
    y, _ = handed_out()
    with pytest.raises(error, match=next(iter(arguments))):
        y.__dlpack__(**arguments)


def test_what_an_export_may_be_asked() -> None:
    y, expected = handed_out()
    for arguments in ({"dl_device": (CPU, 0)}, {"copy": False}, {"stream": None, "copy": None}):
        _, managed, delete = imported(y, **arguments)
        delete(ctypes.addressof(managed))
    np.testing.assert_array_equal(np.from_dlpack(y), expected)


def test_empty_exports() -> None:
    y, expected = handed_out(batch=0)
    tensor, managed, delete = imported(y)
    assert tuple(tensor.shape[:3]) == expected.shape == (4, 0, 3)
    delete(ctypes.addressof(managed))
    assert np.from_dlpack(y).shape == (4, 0, 3)


def test_every_output_is_handed_over() -> None:
    arrays = gru_arrays()
    Foreign.namespace.got.clear()
    output = penstock.gru(**{n: Foreign(a) for n, a in arrays.items()})
    grads = output.backprop(output.y)
    expected = penstock.gru(**arrays)
    assert len(Foreign.namespace.got) == 2 + 6
    np.testing.assert_array_equal(np.from_dlpack(grads.dx), expected.backprop(expected.y).dx)
    # They are inputs like any other.
    again = penstock.gru(**arrays | {"h0": output.h_last})
    np.testing.assert_array_equal(again.y, penstock.gru(**arrays, h0=expected.h_last).y)


# Real libraries


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_jax(dtype: str) -> None:
    jax = pytest.importorskip("jax")
    arrays = gru_arrays(dtype)
    expected = penstock.gru(**arrays)
    output = penstock.gru(**{n: jax.numpy.asarray(a) for n, a in arrays.items()})
    grads = output.backprop(output.y, None)
    for name, value in [*expected._asdict().items()][:2]:
        found = getattr(output, name)
        assert isinstance(found, jax.Array)
        assert found.dtype == value.dtype
        np.testing.assert_array_equal(np.asarray(found), value)
    for name, value in expected.backprop(expected.y)._asdict().items():
        assert isinstance(getattr(grads, name), jax.Array)
        np.testing.assert_array_equal(np.asarray(getattr(grads, name)), value)
    # Memory that JAX holds on to is not reused.
    y = np.asarray(output.y).copy()
    kept = output.y
    del output, grads
    for _ in range(20):
        penstock.gru(**{n: jax.numpy.asarray(-a) for n, a in arrays.items()})
    np.testing.assert_array_equal(np.asarray(kept), y)


def test_jax_arrays_without_memory() -> None:
    """Tracers, deleted and sharded arrays: refused by name, in every place."""
    code = """
import jax, numpy as np, penstock, re
from jax.sharding import Mesh, NamedSharding, PartitionSpec
shapes = dict(x=(4, 2, 6), weight_ih=(1, 9, 6), weight_hh=(1, 9, 3))
arrays = {n: np.ones(s, np.float32) for n, s in shapes.items()}

def refuse(name, array, words):
    try:
        penstock.gru(**arrays | {name: array})
    except (TypeError, BufferError) as e:
        assert str(e).startswith(f"{name}: "), e
        assert re.search(words, str(e)), e
    else:
        raise AssertionError(f"{name} was taken")
    return 0.0

mesh = Mesh(np.array(jax.devices()), ("a",))
assert len(jax.devices()) == 2
everywhere = PartitionSpec(None, None, None)

def mapped(f):
    return jax.vmap(lambda a: jax.numpy.float32(f(a[None])))

for name, array in arrays.items():
    for transform in (jax.jit, jax.grad, mapped):
        transform(lambda a: refuse(name, a, "Tracer"))(array)
    gone = jax.numpy.asarray(array) + 0
    gone.delete()
    refuse(name, gone, "device|exported")
    for spec in (PartitionSpec("a" if array.shape[0] > 1 else None), everywhere):
        refuse(name, jax.device_put(array, NamedSharding(mesh, spec)), "sharded")
    other = jax.device_put(array, jax.devices()[1])  # the host's memory all the same
    penstock.gru(**arrays | {name: other})
print("done")
"""
    pytest.importorskip("jax")
    flags = "--xla_force_host_platform_device_count=2"
    assert python(code, XLA_FLAGS=flags, JAX_PLATFORMS="cpu").strip() == "done"


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_array_api_strict(dtype: str) -> None:
    xp = pytest.importorskip("array_api_strict")
    arrays = gru_arrays(dtype)
    expected = penstock.gru(**arrays)
    output = penstock.gru(**{n: xp.asarray(a) for n, a in arrays.items()})
    grads = output.backprop(output.y)
    for found, value in (
        (output.y, expected.y),
        (output.h_last, expected.h_last),
        *zip(grads, expected.backprop(expected.y), strict=True),
    ):
        assert type(found) is type(xp.asarray([0.0]))
        np.testing.assert_array_equal(np.from_dlpack(found), value)
    output.y[0, 0, 0] = 3.0  # writable


def torch_arrays(dtype: str = "float32") -> dict[str, Any]:
    import torch

    arrays = gru_arrays("float32").items()
    return {n: torch.from_numpy(a).to(getattr(torch, dtype)) for n, a in arrays}


def test_torch_outputs_are_ordinary_tensors() -> None:
    torch = pytest.importorskip("torch")
    arrays = torch_arrays()
    output = penstock.gru(**arrays)
    grads = output.backprop(output.y)
    for tensor in (*output[:2], *grads):
        assert type(tensor) is torch.Tensor
        assert tensor.is_contiguous() and not tensor.requires_grad
        assert tensor.device.type == "cpu" and tensor.dtype == torch.float32
        assert tensor.data_ptr() % 64 == 0
        tensor.clone().mul_(2)
        tensor.add_(1)
        assert tensor.numpy().flags.writeable
    leaf = grads.dx.requires_grad_()
    leaf.sum().backward()
    assert (leaf.grad == 1).all()
    y = output.y.clone()
    kept = output.y
    del output, grads
    gc.collect()
    for _ in range(10):
        penstock.gru(**{n: -a for n, a in arrays.items()})
    assert torch.equal(kept, y)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_torch_in_both_ways(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A subclass goes through __dlpack__, a plain tensor through the exchange in C: same bits."""
    torch = pytest.importorskip("torch")

    class Sub(torch.Tensor):
        pass

    arrays = torch_arrays(dtype)
    asked: list[Any] = []
    plain = torch.Tensor.__dlpack__

    def spy(self: Any, **arguments: Any) -> Any:
        asked.append(type(self))
        return plain(self, **arguments)

    monkeypatch.setattr(torch.Tensor, "__dlpack__", spy)
    expected = penstock.gru(**arrays)
    if hasattr(torch.Tensor, "__dlpack_c_exchange_api__"):
        assert not asked, "a plain tensor was exported through Python"
    asked.clear()
    actual = penstock.gru(**{n: a.as_subclass(Sub) for n, a in arrays.items()})
    assert asked.count(Sub) >= 5
    for one, two in zip(expected[:2], actual[:2], strict=True):
        assert torch.equal(one, two)
    grads = expected.backprop(expected.y), actual.backprop(expected.y.as_subclass(Sub))
    for one, two in zip(*grads, strict=True):
        assert torch.equal(one, two)


def test_torch_parameters() -> None:
    torch = pytest.importorskip("torch")
    arrays = torch_arrays()
    expected = penstock.gru(**arrays).y
    weight = torch.nn.Parameter(arrays["weight_ih"].clone(), requires_grad=False)
    assert torch.equal(penstock.gru(**arrays | {"weight_ih": weight}).y, expected)
    weight.requires_grad_()
    with pytest.raises(BufferError, match=r"weight_ih: .*grad.*detach"):
        penstock.gru(**arrays | {"weight_ih": weight})
    detached = arrays | {"weight_ih": weight.detach()}
    assert torch.equal(penstock.gru(**detached).y, expected)


@pytest.mark.parametrize("name", ["x", "weight_ih", "bias_hh", "h0"])
def test_memory_of_torch_that_is_gone_is_not_read(name: str) -> None:
    """A tensor may be given other memory, as optimisers and loaders do, and its export, though it
    holds the tensor, does not keep the old one alive: backprop must see that."""
    torch = pytest.importorskip("torch")
    arrays = torch_arrays() | {"h0": torch.ones(2, 3)}
    words = f"{name}: expected the memory"
    for replace in (
        lambda a: setattr(a, "data", torch.zeros(a.shape)),
        lambda a: a.set_(torch.zeros(a.shape)),
    ):
        given = {n: a.clone() for n, a in arrays.items()}
        output = penstock.gru(**given)
        replace(given[name])
        with pytest.raises(BufferError, match=words):
            output.backprop(output.y)
    if name in ("x", "weight_ih"):
        others = [arrays["weight_ih"], arrays["weight_hh"]]
        given = {n: arrays[n].clone() for n in ("x", "weight_ih")}
        sliced = penstock.sliced("gru", given["x"], [(given["weight_ih"], *others[1:])], slices=())
        given[name].data = torch.zeros(given[name].shape)
        with pytest.raises(BufferError, match="x: expected the memory" if name == "x" else words):
            sliced.backprop(sliced.y)


def odd_torch_tensors() -> dict[str, Callable[[Any], Any]]:
    def fake(a: Any) -> Any:
        from torch._subclasses.fake_tensor import FakeTensorMode

        return FakeTensorMode(allow_non_fake_inputs=True).from_tensor(a)

    def zero(a: Any) -> Any:
        import torch

        return torch._efficientzerotensor(a.shape)

    def negated(a: Any) -> Any:
        import torch

        view = torch.complex(a, -a).conj().imag
        assert view.is_neg() and torch.equal(view, a)
        return view

    def quantised(a: Any) -> Any:
        import torch

        return torch.quantize_per_tensor(a, 1.0, 0, torch.qint8)

    return {
        "meta": lambda a: a.to("meta"),
        "sparse": lambda a: a.to_sparse(),
        "complex": lambda a: a.to_dense().cfloat(),
        "fake": fake,
        "zero": zero,
        "negated": negated,
        "quantised": quantised,
        "mkldnn": lambda a: a.contiguous().to_mkldnn(),
        "gradient": lambda a: a.clone().requires_grad_(),
        "result": lambda a: a.clone().requires_grad_() * 1,
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", odd_torch_tensors())
@pytest.mark.parametrize("name", ["x", "weight_ih", "bias_hh"])
def test_torch_tensors_without_plain_memory(kind: str, name: str) -> None:
    pytest.importorskip("torch")
    arrays = torch_arrays()
    bad = odd_torch_tensors()[kind](arrays[name])
    with pytest.raises((BufferError, TypeError, ValueError, RuntimeError), match=rf"\b{name}: "):
        penstock.gru(**arrays | {name: bad})


def test_torch_functions_that_trace() -> None:
    torch = pytest.importorskip("torch")
    arrays = torch_arrays()

    def f(x: Any) -> Any:
        return penstock.gru(**arrays | {"x": x}).y.sum()

    words = r"\bx: "
    with pytest.raises((RuntimeError, BufferError), match=words):
        torch.func.vmap(f)(arrays["x"][None])
    with pytest.raises((RuntimeError, BufferError), match=words):
        torch.func.grad(f)(arrays["x"])


def test_torch_under_fake_mode() -> None:
    """Real inputs, but what torch allocates then has no memory."""
    pytest.importorskip("torch")
    from torch._subclasses.fake_tensor import FakeTensorMode

    arrays = torch_arrays()
    with FakeTensorMode(), pytest.raises((BufferError, RuntimeError, TypeError)):
        penstock.gru(**arrays)


# Exchange in C: a library of its own, so that every field can be wrong


class ExchangeApi(ctypes.Structure):
    _fields_: ClassVar = [
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("previous", ctypes.c_void_p),
        ("functions", ctypes.c_void_p * 5),
    ]


def exchanging(torch: Any, **changes: Any) -> tuple[type, ExchangeApi]:
    """A type whose own exchange is PyTorch's, but for some fields, and no ``__dlpack__``."""
    from dlpack_producers import capsule_pointer, new_capsule

    name = b"dlpack_exchange_api"
    capsule = torch.Tensor.__dlpack_c_exchange_api__
    api = ExchangeApi.from_buffer_copy(
        (ctypes.c_char * ctypes.sizeof(ExchangeApi)).from_address(capsule_pointer(capsule, name))
    )
    missing = changes.pop("missing", None)
    if missing is not None:
        api.functions[missing] = None
    own_name = changes.pop("name", name)
    for field, value in changes.items():
        setattr(api, field, value)
    members = {"__dlpack_c_exchange_api__": new_capsule(ctypes.addressof(api), own_name, None)}
    return type("Own", (torch.Tensor,), members), api


@pytest.fixture(scope="module")
def exchange() -> Any:
    torch = pytest.importorskip("torch")
    if not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"):
        pytest.skip("this PyTorch has no exchange in C")
    return torch


KEPT: list[Any] = []  # types whose exchange is in use live as long as the process


@pytest.mark.parametrize(
    ("changes", "used"),
    [
        ({}, True),
        ({"minor": 99}, True),
        ({"major": 2}, False),
        ({"major": 0}, False),
        ({"name": b"another_name"}, False),
        ({"missing": 0}, False),
        ({"missing": 1}, False),
        ({"missing": 2}, False),
        ({"missing": 3}, True),  # the one that may be null
        ({"missing": 4}, False),
    ],
    ids=str,
)
def test_versions_of_the_exchange(exchange: Any, changes: dict[str, Any], used: bool) -> None:
    kind, api = exchanging(exchange, **changes)
    asked = []
    plain = exchange.Tensor.__dlpack__

    def spy(self: Any, **arguments: Any) -> Any:
        asked.append(self)
        return plain(self, **arguments)

    kind.__dlpack__ = spy  # type: ignore[attr-defined]
    KEPT.append((kind, api, changes.get("name")))
    arrays = torch_arrays()
    bias = arrays["bias_ih"].as_subclass(kind)
    assert type(bias) is kind
    y = penstock.gru(**arrays | {"bias_ih": bias}).y
    assert exchange.equal(y, penstock.gru(**arrays).y)
    assert (not asked) == used


def test_older_versions_of_the_exchange(exchange: Any) -> None:
    kind, api = exchanging(exchange)
    newer = ExchangeApi(major=2, previous=ctypes.addressof(api))  # of which nothing else is known
    from dlpack_producers import new_capsule

    kind.__dlpack_c_exchange_api__ = new_capsule(  # type: ignore[attr-defined]
        ctypes.addressof(newer), b"dlpack_exchange_api", None
    )
    kind.__dlpack__ = None  # type: ignore[attr-defined]
    KEPT.append((kind, api, newer))
    arrays = torch_arrays()
    y = penstock.gru(**arrays | {"bias_ih": arrays["bias_ih"].as_subclass(kind)}).y
    assert exchange.equal(y, penstock.gru(**arrays).y)


# Leaks

LEAK = """
import gc, sys
import numpy as np
import penstock
from dlpack_producers import NativeProducer, Producer

def resident():
    gc.collect()
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * 4096

shapes = dict(x=(2, 1, 3), weight_ih=(1, 6, 3), weight_hh=(1, 6, 2), bias_ih=(1, 6))
arrays = {n: np.ones(s, np.float32) for n, s in shapes.items()}
penstock.set_num_threads(1)
SETUP
def run(n):
    for _ in range(n):
        CALL

run(2000)
before = resident()
run(COUNT)
print(resident() - before)
"""
LEAKS = {
    "NumPy": ("", "penstock.gru(**arrays)", 100_000),
    "NumPy, backwards": ("dy = np.ones((2, 1, 2), np.float32)",
                         "penstock.gru(**arrays).backprop(dy)", 100_000),
    "torch": ("import torch; arrays = {n: torch.from_numpy(a) for n, a in arrays.items()}",
              "penstock.gru(**arrays).backprop(None)", 100_000),
    "torch, refused": (
        "import torch; arrays = {n: torch.from_numpy(a) for n, a in arrays.items()}\n"
        "arrays['bias_ih'] = arrays['bias_ih'][:, :4]",
        "\n        try: penstock.gru(**arrays)\n        except ValueError: pass", 30_000),
    "DLPack": ("made = NativeProducer(arrays['bias_ih'])",
               "penstock.gru(**arrays | {'bias_ih': made})", 100_000),
    "DLPack, refused": (
        "made = NativeProducer(arrays['bias_ih'], lanes=2)",
        "\n        try: penstock.gru(**arrays | {'bias_ih': made})\n        except TypeError: pass",
        15_000),
    "array API": (
        "class Foreign(NativeProducer):\n"
        "    def __array_namespace__(self): return np\n"
        "arrays['x'] = Foreign(arrays['x'])", "penstock.gru(**arrays).backprop(None)", 15_000),
}  # fmt: skip


@pytest.mark.parametrize("kind", LEAKS)
def test_leaks(kind: str) -> None:
    """Memory grows by less than 1 MB over many calls."""
    if not sys.platform.startswith("linux"):
        pytest.skip("reads /proc")
    if "asan" in os.environ.get("LD_PRELOAD", ""):
        pytest.skip("the address sanitizer keeps what is freed")
    if kind.startswith("torch"):
        pytest.importorskip("torch")
    setup, call, count = LEAKS[kind]
    code = LEAK.replace("SETUP", setup).replace("CALL", call).replace("COUNT", str(count))
    grown = int(python(code))
    assert grown < 1_000_000, f"{grown} bytes more after {count} calls"
