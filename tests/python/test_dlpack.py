"""Arrays of libraries that penstock has never heard of, through DLPack alone.

The producers here build their capsules by hand, so they can say anything the protocol allows, and
some of what it does not.
"""

from __future__ import annotations

import ctypes
import gc
import weakref
from typing import Any

import numpy as np
import penstock
import pytest
from dlpack_producers import (
    BFLOAT,
    COMPLEX,
    CPU,
    CUDA_HOST,
    FLOAT,
    INT,
    METAL,
    READ_ONLY,
    UINT,
    Producer,
)
from reference.problems import FLOATS, KEYWORDS, dtype_of, error, random_problem


class WithAttributes(Producer):
    """A producer whose class also tells shape and dtype, as most libraries' arrays do."""

    @property
    def shape(self) -> tuple[int, ...]:
        return self._array.shape

    @property
    def dtype(self) -> np.dtype:
        return self._array.dtype


PROBLEM = dict(form="k4", inputs=6, direction="bidirectional", mask_site="output", padding="both")


def call(arrays: dict[str, Any], options: dict[str, Any], dy: Any, dc_last: Any) -> dict[str, Any]:
    """Forward and backward."""
    rest = {n: arrays[n] for n in KEYWORDS if arrays.get(n) is not None}
    output = penstock.sru(*(arrays[n] for n in FLOATS[:4]), **rest, **options)
    assert output.backprop is not None
    grads = output.backprop(dy, dc_last)._asdict()
    return {"y": output.y, "c_last": output.c_last} | grads


def agree(problem: Any, make: Any) -> list[Producer]:
    """The result with every array replaced by ``make(array)`` is that of NumPy's arrays."""
    expected = call(problem.arrays, problem.options, problem.dy, problem.dc_last)
    made = {n: None if a is None else make(a) for n, a in problem.arrays.items()}
    dy, dc_last = make(problem.dy), make(problem.dc_last)
    actual = call(made, problem.options, dy, dc_last)
    for name, value in expected.items():
        if value is not None:
            found = actual[name]
            assert isinstance(found, np.ndarray)
            assert found.dtype == value.dtype
            np.testing.assert_array_equal(found, value, err_msg=name)
    return [*(m for m in made.values() if m is not None), dy, dc_last]


@pytest.mark.parametrize("has_deleter", [True, False])
@pytest.mark.parametrize("max_version", ["honour", "reject", "ignore"])
@pytest.mark.parametrize("versioned", [True, False])
@pytest.mark.parametrize("kind", [Producer, WithAttributes])
def test_both_kinds_of_capsule(
    kind: type[Producer], versioned: bool, max_version: str, has_deleter: bool
) -> None:
    producers = agree(
        random_problem(**PROBLEM),
        lambda a: kind(a, versioned=versioned, max_version=max_version, has_deleter=has_deleter),
    )
    gc.collect()
    for p in producers:
        assert p.exports, "never asked for its data"
        assert p.settled() if has_deleter else not p.deleted
        for arguments in p.arguments:
            assert "stream" not in arguments or arguments["stream"] is None, "no stream on a CPU"


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_every_dtype(dtype: str) -> None:
    pytest.importorskip("ml_dtypes")
    agree(random_problem(**PROBLEM, dtype=dtype), Producer)


def test_deleted_only_when_the_last_user_is_gone() -> None:
    problem = random_problem()
    x = Producer(problem.arrays["x"])
    weight, bias = problem.arrays["weight"], problem.arrays["bias"]
    output = penstock.sru(x, weight, None, bias)
    assert output.backprop is not None
    gc.collect()
    assert not x.deleted, "backprop reads x again"
    dx = output.backprop(problem.dy).dx
    np.testing.assert_array_equal(
        dx, penstock.sru(problem.arrays["x"], weight, None, bias).backprop(problem.dy).dx
    )
    assert not x.deleted
    del output
    gc.collect()
    assert x.settled()


def test_without_need_grad_nothing_is_held() -> None:
    problem = random_problem()
    x = Producer(problem.arrays["x"])
    output = penstock.sru(x, *(problem.arrays[n] for n in FLOATS[1:4]), need_grad=False)
    gc.collect()
    assert output.backprop is None
    assert x.settled()
    alive = weakref.ref(x)
    del x
    gc.collect()
    assert alive() is None


def test_byte_offset() -> None:
    problem = random_problem()
    x = problem.arrays["x"]
    room = np.full(x.size + 5, np.nan)
    room[5:] = x.ravel()
    given = Producer(x, data=room.ctypes.data, byte_offset=40)
    expected = penstock.sru(x, *(problem.arrays[n] for n in FLOATS[1:4]))
    actual = penstock.sru(given, *(problem.arrays[n] for n in FLOATS[1:4]))
    np.testing.assert_array_equal(actual.y, expected.y)


@pytest.mark.parametrize("offset", [1, 2, 3])
def test_elements_need_not_be_aligned(offset: int) -> None:
    problem = random_problem(dtype="float32")
    x = problem.arrays["x"]
    room = np.zeros(x.nbytes + offset, np.uint8)
    room[offset:] = np.frombuffer(x.tobytes(), np.uint8)
    rest = [problem.arrays[n] for n in FLOATS[1:4]]
    given = Producer(x, data=room.ctypes.data, byte_offset=offset)
    try:
        actual = penstock.sru(given, *rest)
    except BufferError as e:  # refusing is allowed as well
        assert "x" in str(e) and "align" in str(e)
    else:
        np.testing.assert_array_equal(actual.y, penstock.sru(x, *rest).y)
    del given
    gc.collect()


def test_null_strides_are_row_major() -> None:
    agree(random_problem(**PROBLEM), lambda a: Producer(a, has_strides=False))


def test_strides_of_any_kind() -> None:
    problem = random_problem(**PROBLEM)
    agree(problem, lambda a: Producer(np.asfortranarray(a)))
    # Backwards along every axis; the data pointer is that of the first element.
    agree(
        problem, lambda a: Producer(np.flip(np.ascontiguousarray(np.flip(a)))) if a.ndim else None
    )
    # Room between elements.
    agree(problem, lambda a: Producer(np.repeat(a, 2, axis=-1)[..., ::2]))
    # The same element everywhere.
    problem.arrays["bias"] = np.broadcast_to(problem.arrays["bias"][:, :, :1], (2, 2, 5))
    agree(problem, Producer)


def test_junk_strides_on_axes_of_length_one() -> None:
    problem = random_problem(1, 1, 4)
    plain = call(problem.arrays, problem.options, problem.dy, problem.dc_last)

    def junk(a: np.ndarray) -> Producer:
        strides = [s if n > 1 else 2**62 + 1 for n, s in zip(a.shape, a.strides, strict=True)]
        strides = [s // a.itemsize if s < 2**62 else -s for s in strides]
        values = (ctypes.c_int64 * a.ndim)(*strides)
        return Producer(a, strides=values)

    made = {n: None if a is None else junk(a) for n, a in problem.arrays.items()}
    actual = call(made, problem.options, junk(problem.dy), junk(problem.dc_last))
    for name, value in plain.items():
        if value is not None:
            np.testing.assert_array_equal(actual[name], value)


@pytest.mark.parametrize(("steps", "batch"), [(0, 3), (4, 0)])
def test_empty_arrays_may_have_no_memory(steps: int, batch: int) -> None:
    problem = random_problem(steps, batch, 4, mask_site="output", padding="both")
    agree(problem, lambda a: Producer(a, **({} if a.size else {"data": None})))


def test_pinned_host_memory_is_host_memory() -> None:
    agree(random_problem(**PROBLEM), lambda a: Producer(a, device=(CUDA_HOST, 0)))


def test_read_only_inputs() -> None:
    agree(random_problem(**PROBLEM), lambda a: Producer(a, flags=READ_ONLY))


# What is refused: with an error that names the argument, and nothing leaked


def refused(error_type: type[Exception], *words: str, **how: Any) -> None:
    problem = random_problem(**PROBLEM)
    for name in ("x", "weight", "weight_c", "bias", "c0", "mask_c"):
        bad = Producer(problem.arrays[name], **how)
        arrays = problem.arrays | {name: bad}
        others = {n: Producer(a) for n, a in arrays.items() if n != name and a is not None}
        with pytest.raises(error_type) as raised:
            call(others | {name: bad}, problem.options, None, None)
        message = str(raised.value)
        assert f"{name}:" in message, message
        for word in words:
            assert word in message, message
        del raised, message
        gc.collect()
        for producer in (bad, *others.values()):
            assert producer.settled(), f"{name}: consumed but not deleted, or deleted twice"


def test_other_major_versions() -> None:
    refused(BufferError, "version 1", "actual: 2", version=(2, 0), max_version="ignore")


def test_newer_minor_versions_are_fine() -> None:
    agree(random_problem(**PROBLEM), lambda a: Producer(a, version=(1, 99)))


@pytest.mark.parametrize("versioned", [True, False])
def test_lanes(versioned: bool) -> None:
    refused(TypeError, "2 lanes", lanes=2, versioned=versioned)


@pytest.mark.parametrize(
    ("code", "bits"),
    [
        (3, 64),
        (BFLOAT, 32),
        (COMPLEX, 64),
        (FLOAT, 8),
        (FLOAT, 128),
        (INT, 4),
        (UINT, 16),
        (99, 32),
    ],
)
def test_unknown_element_types(code: int, bits: int) -> None:
    refused(TypeError, f"code {code}", f"{bits} bits", code=code, bits=bits)


def test_integers_are_no_floats() -> None:
    refused(TypeError, "float64", code=INT, bits=64)


def test_null_memory_of_an_array_that_is_not_empty() -> None:
    refused(BufferError, "null", data=None)


def test_devices_of_other_kinds() -> None:
    problem = random_problem()
    weight = Producer(problem.arrays["weight"], device=(METAL, 0))
    with pytest.raises(BufferError, match=r"weight: .*device type 8"):
        penstock.sru(problem.arrays["x"], weight, *(problem.arrays[n] for n in FLOATS[2:4]))
    assert not weight.exports, "asked for memory that is of no use"
    x = Producer(problem.arrays["x"], device=(METAL, 0))
    with pytest.raises((BufferError, TypeError), match="x: "):
        penstock.sru(x, *(problem.arrays[n] for n in FLOATS[1:4]))


class Twice(Producer):
    """Returns one capsule again and again."""

    def __dlpack__(self, **arguments: Any) -> Any:
        return self.capsules[0] if self.capsules else super().__dlpack__(**arguments)


@pytest.mark.parametrize("versioned", [True, False])
def test_a_consumed_capsule(versioned: bool) -> None:
    problem = random_problem()
    x = Twice(problem.arrays["x"], versioned=versioned)
    rest = [problem.arrays[n] for n in FLOATS[1:4]]
    output = penstock.sru(x, *rest)
    with pytest.raises(BufferError, match=r"x: .*capsule"):
        penstock.sru(x, *rest)
    del output
    gc.collect()
    assert x.settled()


class Returns:
    """Has the methods; returns something else."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __dlpack_device__(self) -> tuple[int, int]:
        return (CPU, 0)

    def __dlpack__(self, **arguments: Any) -> Any:
        return self._value


@pytest.mark.parametrize("value", [None, 3, "dltensor", object(), np.zeros((2, 2))])
def test_what_is_no_capsule(value: Any) -> None:
    problem = random_problem()
    with pytest.raises(BufferError, match=r"weight: .*capsule"):
        penstock.sru(problem.arrays["x"], Returns(value), *(problem.arrays[n] for n in FLOATS[2:4]))


class Raises(Returns):
    def __dlpack__(self, **arguments: Any) -> Any:
        raise self._value


@pytest.mark.parametrize("error_type", [BufferError, RuntimeError, TypeError, KeyError])
def test_errors_of_the_producer_come_through(error_type: type[Exception]) -> None:
    problem = random_problem()
    with pytest.raises(error_type, match="the producer's own words"):
        penstock.sru(
            problem.arrays["x"],
            Raises(error_type("the producer's own words")),
            *(problem.arrays[n] for n in FLOATS[2:4]),
        )


def test_too_many_axes() -> None:
    refused(ValueError, "axes", ndim=5)


def test_what_the_call_before_left_is_freed_when_a_later_argument_is_wrong() -> None:
    problem = random_problem()
    x = Producer(problem.arrays["x"])
    for _ in range(3):
        with pytest.raises(ValueError, match="weight"):
            penstock.sru(x, problem.arrays["weight"][:, :4], None, problem.arrays["bias"])
    gc.collect()
    assert len(x.exports) == 3
    assert x.settled()


def test_backprop_takes_and_frees_capsules() -> None:
    problem = random_problem()
    output = penstock.sru(*(problem.arrays[n] for n in FLOATS[:4]))
    assert output.backprop is not None
    dy = Producer(problem.dy)
    expected = output.backprop(problem.dy)
    for _ in range(3):
        np.testing.assert_array_equal(output.backprop(dy).dx, expected.dx)
    bad = Producer(problem.dy[:, :, :2])
    with pytest.raises(ValueError, match="dy"):
        output.backprop(bad)
    gc.collect()
    assert dy.settled()
    assert bad.settled()


# Libraries that may be there


def test_array_api_strict() -> None:
    xp = pytest.importorskip("array_api_strict")
    problem = random_problem(**PROBLEM)
    expected = call(problem.arrays, problem.options, problem.dy, problem.dc_last)
    made = {n: None if a is None else xp.asarray(a) for n, a in problem.arrays.items()}
    actual = call(made, problem.options, xp.asarray(problem.dy), xp.asarray(problem.dc_last))
    for name, value in expected.items():
        if value is not None:
            assert type(actual[name]) is type(made["x"])
            np.testing.assert_array_equal(np.from_dlpack(actual[name]), value)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_torch(dtype: str) -> None:
    torch = pytest.importorskip("torch")
    problem = random_problem(**PROBLEM, dtype=dtype)
    expected = call(problem.arrays, problem.options, problem.dy, problem.dc_last)

    def make(a: np.ndarray) -> Any:
        if a.dtype == dtype_of("bfloat16"):
            return torch.from_numpy(a.astype(np.float32)).to(torch.bfloat16)
        return torch.from_numpy(a)

    made = {n: None if a is None else make(a) for n, a in problem.arrays.items()}
    actual = call(made, problem.options, make(problem.dy), make(problem.dc_last))
    for name, value in expected.items():
        if value is not None:
            assert isinstance(actual[name], torch.Tensor)
            assert actual[name].dtype == getattr(torch, dtype)
            np.testing.assert_array_equal(actual[name].double().numpy(), value.astype(np.float64))


def test_torch_views_and_mixtures() -> None:
    torch = pytest.importorskip("torch")
    problem = random_problem(6, 3, 5)
    args = [problem.arrays[n] for n in FLOATS[:4]]
    expected = penstock.sru(*args).y
    x = torch.from_numpy(args[0])
    for view in (
        x.permute(1, 0, 2).contiguous().permute(1, 0, 2),
        torch.cat([x, x], 2)[:, :, 5:],
        x.flip(0).flip(0),
    ):
        np.testing.assert_array_equal(penstock.sru(view, *args[1:]).y.numpy(), expected)
    # NumPy's x with torch's weights: results are of x's library.
    y = penstock.sru(args[0], *(torch.from_numpy(a) for a in args[1:])).y
    assert type(y) is np.ndarray
    np.testing.assert_array_equal(y, expected)
    expanded = x[:1].expand(6, 3, 5)
    same = np.broadcast_to(args[0][:1], (6, 3, 5))
    assert error(penstock.sru(expanded, *args[1:]).y.numpy(), penstock.sru(same, *args[1:]).y) == 0


def test_torch_tensors_that_require_grad_are_refused_in_words() -> None:
    """The function knows no autograd, and a silent break in the graph would be worse."""
    torch = pytest.importorskip("torch")
    problem = random_problem()
    args = [torch.from_numpy(problem.arrays[n]) for n in FLOATS[:4]]
    for i in range(4):
        bad = [a.clone().requires_grad_(j == i) for j, a in enumerate(args)]
        with pytest.raises((BufferError, RuntimeError), match="grad"):
            penstock.sru(*bad)
