"""oneDNN's RNN primitive itself, called through its C interface (version 3).

The library comes with the packages ``onednn-cpu-gomp`` and ``onednn``, or with the system. What is
declared here follows https://uxlfoundation.github.io/oneDNN/dev_guide_rnn.html.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
import importlib.metadata
import math
from pathlib import Path
from typing import Any

import numpy as np

from penstock.bench.cases import Case
from penstock.bench.peer import Peer, one_line
from penstock.bench.problem import Problem

_PACKAGES = ("onednn-cpu-gomp", "onednn-cpu-iomp", "onednn")
_MAJOR = 3

# Values of the interface's enumerations.
_CPU, _IN_ORDER, _FLOAT32, _ANY_LAYOUT, _TANH = 1, 1, 3, 1, 0x21
_TRAINING, _INFERENCE, _BACKWARD = 64, 96, 128
_DIRECTIONS = {"forward": 1, "reverse": 2, "bidirectional": 3}
_QUERY_ARGUMENT, _QUERY_WORKSPACE = 255, 135
_SRC, _DST, _WEIGHTS_LAYER, _WEIGHTS_ITER, _BIAS, _WORKSPACE = 1, 17, 33, 34, 41, 64
_STATES_BEFORE, _STATES_AFTER = (2, 3), (18, 19)  # h, and c of an LSTM
_REORDER_FROM, _REORDER_TO = 1, 17
_DIFF = 128  # from an argument to that of its gradient
_ALLOCATE = ctypes.c_void_p(-1)

_GATES = {"rnn": 1, "gru": 3, "lstm": 4}
# Where each of oneDNN's gates stands among ours; a GRU's are update, reset, output there.
_ORDER = {"rnn": [0], "gru": [1, 0, 2], "lstm": [0, 1, 2, 3]}


class _Argument(ctypes.Structure):
    _fields_ = [("index", ctypes.c_int), ("memory", ctypes.c_void_p)]


@functools.cache
def _library() -> Any:
    """The loaded library.

    Raises:
        OSError: there is none, or one of another major version.
    """
    path = None
    for package in _PACKAGES:
        try:
            files = importlib.metadata.files(package) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        found = [Path(str(f.locate())) for f in files if f.name == f"libdnnl.so.{_MAJOR}"]
        path = next((str(f) for f in found if f.exists()), None)
        if path:
            break
    path = path or ctypes.util.find_library("dnnl")
    if path is None:
        raise OSError("onednn-cpu-gomp is not installed")
    library = ctypes.CDLL(path)
    version = library.dnnl_version
    version.restype = ctypes.POINTER(ctypes.c_int)
    if version()[0] != _MAJOR:
        raise OSError(f"{path}: expected oneDNN {_MAJOR} (actual: {version()[0]})")
    library.dnnl_primitive_desc_query_md.restype = ctypes.c_void_p
    library.dnnl_primitive_desc_query_md.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_int]
    return library


def _call(function: str, *arguments: Any) -> None:
    status = getattr(_library(), function)(*arguments)
    if status != 0:
        raise RuntimeError(f"{function}: status {status}")


def _made(function: str, *arguments: Any) -> ctypes.c_void_p:
    """An object that a function makes through its first argument."""
    made = ctypes.c_void_p()
    _call(function, ctypes.byref(made), *arguments)
    return made


class _Objects:
    """What a network holds in oneDNN: objects are freed with it, in reverse order."""

    def __init__(self) -> None:
        self._held: list[tuple[str, ctypes.c_void_p]] = []
        self.engine = self.keep("engine", _made("dnnl_engine_create", _CPU, ctypes.c_size_t(0)))
        self.stream = self.keep("stream", _made("dnnl_stream_create", self.engine, _IN_ORDER))

    def __del__(self) -> None:
        for kind, made in reversed(self._held):
            getattr(_library(), f"dnnl_{kind}_destroy")(made)

    def keep(self, kind: str, made: ctypes.c_void_p) -> ctypes.c_void_p:
        self._held.append((kind, made))
        return made

    def layout(self, shape: tuple[int, ...], strides: tuple[int, ...] | None) -> ctypes.c_void_p:
        """float32 of a shape, with strides in elements; None for what the primitive likes best."""
        dims = (ctypes.c_int64 * len(shape))(*shape)
        of: Any
        if strides is None:
            arguments = (
                "dnnl_memory_desc_create_with_tag",
                len(shape),
                dims,
                _FLOAT32,
                _ANY_LAYOUT,
            )
        else:
            of = (ctypes.c_int64 * len(shape))(*strides)
            arguments = ("dnnl_memory_desc_create_with_strides", len(shape), dims, _FLOAT32, of)
        return self.keep("memory_desc", _made(*arguments))

    def rows(self, array: np.ndarray) -> ctypes.c_void_p:
        """The layout of a contiguous array."""
        # NumPy's strides of axes of length 1 may be anything, which oneDNN minds.
        strides = tuple(math.prod(array.shape[i + 1 :]) for i in range(array.ndim))
        return self.layout(array.shape, strides)

    def memory(self, layout: Any, array: np.ndarray | None = None) -> ctypes.c_void_p:
        """Memory of a layout: an array's, which must outlive this, or new."""
        at = _ALLOCATE if array is None else array.ctypes.data_as(ctypes.c_void_p)
        return self.keep("memory", _made("dnnl_memory_create", layout, self.engine, at))

    def primitive(self, description: ctypes.c_void_p) -> ctypes.c_void_p:
        return self.keep("primitive", _made("dnnl_primitive_create", description))

    def reorder(self, from_layout: Any, to_layout: Any) -> ctypes.c_void_p:
        description = _made(
            "dnnl_reorder_primitive_desc_create",
            from_layout, self.engine, to_layout, self.engine, None,
        )  # fmt: skip
        return self.primitive(self.keep("primitive_desc", description))

    def execute(self, primitive: ctypes.c_void_p, memories: dict[int, ctypes.c_void_p]) -> None:
        arguments = (_Argument * len(memories))(*(_Argument(i, m) for i, m in memories.items()))
        _call("dnnl_primitive_execute", primitive, self.stream, len(memories), arguments)


class _Weight:
    """A matrix of parameters in our layout and, where that is another, in a primitive's.

    ``array``: (dirs, G, H, inputs), G gates in oneDNN's order, which oneDNN sees as (layers, dirs,
    inputs, G, H).
    """

    def __init__(self, objects: _Objects, array: np.ndarray) -> None:
        self.objects, self.array = objects, array
        dirs, gates, hidden, inputs = array.shape
        self.shape = (1, dirs, inputs, gates, hidden)
        block = gates * hidden * inputs
        self.ours = objects.layout(self.shape, (dirs * block, block, 1, hidden * inputs, inputs))
        self.memory = objects.memory(self.ours, array)
        self.any = objects.layout(self.shape, None)

    def convert(self, description: ctypes.c_void_p, argument: int, *, back: bool = False) -> Any:
        """(memory, a function that brings it up to date from ours, or with ``back`` ours from it).

        The memory is of the layout that a primitive wants for one of its arguments.
        """
        wanted = ctypes.c_void_p(
            _library().dnnl_primitive_desc_query_md(description, _QUERY_ARGUMENT, argument)
        )
        memory = self.objects.memory(wanted)
        ends = (wanted, self.ours) if back else (self.ours, wanted)
        reorder = self.objects.reorder(*ends)
        pair = (memory, self.memory) if back else (self.memory, memory)
        memories = dict(zip((_REORDER_FROM, _REORDER_TO), pair, strict=True))
        return memory, lambda: self.objects.execute(reorder, memories)


class OneDnn(Peer):
    """oneDNN's own GRU, LSTM or RNN."""

    key = "onednn"
    name = "oneDNN"
    note = (
        "oneDNN's RNN primitive without a framework; a training step brings weights into its "
        "layout and their gradients out of it, as a framework has to"
    )
    devices = ("cpu",)

    @classmethod
    def available(cls, device: str) -> tuple[bool, str]:
        found = super().available(device)
        if found[0]:
            try:
                _library()
            except OSError as error:
                return False, one_line(f"oneDNN's library: {error}")
        return found

    @classmethod
    def applies(cls, case: Case) -> str:
        if case.op not in _GATES:
            return f"oneDNN has no {case.op.upper()}"
        if case.slices:
            return "it does not slice"
        if case.layers != 1:
            return "measured for one layer"
        return "" if case.dtype == "float32" else "measured in float32"

    def prepare(self, problem: Problem, device: str) -> None:
        self.case = case = problem.case
        self.objects = objects = _Objects()
        self.order = _ORDER[case.op]
        gates = _GATES[case.op]
        weights = {
            name: _Weight(objects, self._by_gate(problem.parameters[f"layers.0.{name}"], gates))
            for name in ("weight_ih", "weight_hh")
        }
        self.x = np.ascontiguousarray(problem.x)
        self.y = np.empty(case.output_shape, np.float32)
        self.bias = self._bias(problem.parameters, gates)
        self.weights = weights

        # States are given, zeros at first: left out, they make the gradient of weight_hh of a
        # left-to-right RNN or LSTM wrong (oneDNN 3.2).
        count = 2 if case.op == "lstm" else 1
        self.states = np.zeros((2, count, 1, case.dirs, case.B, case.H), np.float32)
        state = objects.rows(self.states[0, 0])
        x, y, bias = (objects.rows(a) for a in (self.x, self.y, self.bias))
        matrices = [weights[name].any for name in ("weight_ih", "weight_hh")]
        layouts = (x, (state,) * count, matrices, bias, y)
        forward = self._describe(
            "forward", _TRAINING if case.training else _INFERENCE, layouts, (), None
        )
        self.forward = objects.primitive(forward)
        arguments = {
            _SRC: objects.memory(x, self.x),
            _BIAS: objects.memory(bias, self.bias),
            _DST: objects.memory(y, self.y),
            **self._states(_STATES_BEFORE, state, self.states[0]),
            **self._states(_STATES_AFTER, state, self.states[1]),
        }
        self.before: list[Any] = []
        self.after: list[Any] = []
        self.given = {**arguments, **self._weights_for(forward)}
        for bring in self.before:
            bring()
        if not case.training:
            self.before = []
            return
        workspace = _library().dnnl_primitive_desc_query_md(forward, _QUERY_WORKSPACE, 0)
        arguments[_WORKSPACE] = self.given[_WORKSPACE] = objects.memory(ctypes.c_void_p(workspace))
        self._prepare_backward(problem, forward, arguments, layouts)

    def _prepare_backward(
        self, problem: Problem, forward: Any, arguments: dict[int, Any], layouts: Any
    ) -> None:
        objects = self.objects
        self.dy = np.ascontiguousarray(problem.dy)
        self.dx = np.empty_like(self.x)
        self.dbias = np.empty_like(self.bias)
        self.gradients = {
            name: _Weight(objects, np.empty_like(w.array)) for name, w in self.weights.items()
        }
        x, states, _, bias, y = layouts
        matrices = [g.any for g in self.gradients.values()]
        like = (x, states, matrices, bias, y)
        backward = self._describe("backward", _BACKWARD, layouts, like, forward)
        self.dstates = np.zeros_like(self.states)
        self.backward = objects.primitive(backward)
        self.given_back = {
            **arguments,
            **self._weights_for(backward),
            _SRC + _DIFF: objects.memory(x, self.dx),
            _BIAS + _DIFF: objects.memory(bias, self.dbias),
            _DST + _DIFF: objects.memory(y, self.dy),
            **self._states([a + _DIFF for a in _STATES_BEFORE], states[0], self.dstates[0]),
            **self._states([a + _DIFF for a in _STATES_AFTER], states[0], self.dstates[1]),
        }
        zeros = []
        for argument, gradient in zip(
            (_WEIGHTS_LAYER + _DIFF, _WEIGHTS_ITER + _DIFF), self.gradients.values(), strict=True
        ):
            memory, bring = gradient.convert(backward, argument, back=True)
            self.given_back[argument] = memory
            self.after.append(bring)
            zeros.append(self._bytes_of(memory, backward, argument))
        # oneDNN adds to the gradients of parameters.
        self.zeros = [*zeros, self.dbias.view(np.uint8).reshape(-1)]

    def _states(self, arguments: Any, layout: Any, arrays: np.ndarray) -> dict[int, Any]:
        return {a: self.objects.memory(layout, s) for a, s in zip(arguments, arrays, strict=False)}

    def _bytes_of(self, memory: Any, description: Any, argument: int) -> np.ndarray:
        at = ctypes.c_void_p()
        _call("dnnl_memory_get_data_handle", memory, ctypes.byref(at))
        library = _library()
        wanted = library.dnnl_primitive_desc_query_md(description, _QUERY_ARGUMENT, argument)
        library.dnnl_memory_desc_get_size.restype = ctypes.c_size_t
        size = library.dnnl_memory_desc_get_size(ctypes.c_void_p(wanted))
        assert at.value is not None
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(at.value))

    def _weights_for(self, description: Any) -> dict[int, Any]:
        """Both matrices as a primitive wants them; ``before`` brings them up to date."""
        found = {}
        for argument, weight in zip(
            (_WEIGHTS_LAYER, _WEIGHTS_ITER), self.weights.values(), strict=True
        ):
            found[argument], bring = weight.convert(description, argument)
            self.before.append(bring)
        return found

    def _describe(
        self, what: str, kind: int, layouts: Any, gradients: Any, forward: Any
    ) -> ctypes.c_void_p:
        """The primitive descriptor, from layouts of arguments and those of their gradients."""

        def flat(x: Any, states: Any, matrices: Any, bias: Any, y: Any) -> tuple[Any, ...]:
            extra = (None, None) if self.case.op == "lstm" else ()  # peephole and projection
            return (x, *states, *matrices, *extra, bias, y, *states)

        cell = {"rnn": "vanilla_rnn", "gru": "lbr_gru", "lstm": "lstm"}[self.case.op]
        activation = (_TANH,) if self.case.op == "rnn" else ()
        slopes = (ctypes.c_float(0), ctypes.c_float(0)) if self.case.op == "rnn" else ()
        hint = (forward,) if forward is not None else ()
        described = _made(
            f"dnnl_{cell}_{what}_primitive_desc_create", self.objects.engine, kind, *activation,
            _DIRECTIONS[self.case.direction], *flat(*layouts),
            *(flat(*gradients) if gradients else ()), 0, *slopes, *hint, None,
        )  # fmt: skip
        return self.objects.keep("primitive_desc", described)

    def _by_gate(self, array: np.ndarray, gates: int) -> np.ndarray:
        """(dirs, G · H, …) as (dirs, G, H, …) with gates in oneDNN's order."""
        shape = (array.shape[0], gates, self.case.H, *array.shape[2:])
        return np.ascontiguousarray(array.reshape(shape)[:, self.order])

    def _bias(self, parameters: dict[str, np.ndarray], gates: int) -> np.ndarray:
        """(1, dirs, G, H), the sum of both; a GRU's product with the state has one of its own."""
        ih, hh = (
            self._by_gate(parameters[f"layers.0.{name}"], gates) for name in ("bias_ih", "bias_hh")
        )
        if self.case.op != "gru":
            return np.ascontiguousarray((ih + hh)[None])
        both = np.concatenate([ih + hh, hh[:, 2:]], axis=1)
        both[:, 2] = ih[:, 2]
        return np.ascontiguousarray(both[None])

    def run(self) -> Any:
        for bring in self.before:
            bring()
        self.objects.execute(self.forward, self.given)
        if self.case.training:
            for array in self.zeros:
                array[:] = 0
            self.objects.execute(self.backward, self.given_back)
            for bring in self.after:
                bring()
        _call("dnnl_stream_wait", self.objects.stream)
        return self.y

    def values(self) -> dict[str, np.ndarray]:
        self.run()
        found = {"y": self.y.copy()}
        if not self.case.training:
            return found
        found["dx"] = self.dx.copy()
        back = np.argsort(self.order)

        def flat(array: np.ndarray) -> np.ndarray:
            return array[:, back].reshape(
                array.shape[0], math.prod(array.shape[1:3]), *array.shape[3:]
            )

        for name, gradient in self.gradients.items():
            found[f"dlayers.0.{name}"] = flat(gradient.array)
        dbias = self.dbias[0]
        ih = dbias[:, :3] if self.case.op == "gru" else dbias
        hh = dbias[:, [0, 1, 3]] if self.case.op == "gru" else dbias
        found["dlayers.0.bias_ih"], found["dlayers.0.bias_hh"] = flat(ih), flat(hh)
        return found


PEERS = (OneDnn,)
