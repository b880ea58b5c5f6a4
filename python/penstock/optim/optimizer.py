"""What all optimisers share: named parameters, float32 state and master weights, checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from penstock._arrays import array_module
from penstock.nn._random import check_number
from penstock.nn.row_gradient import RowGradient
from penstock.optim.schedules import Schedule

Array = Any  # numpy.ndarray or cupy.ndarray

# Elements updated at a time on the CPU: parameter, gradient, two moments and a temporary of this
# length stay in the L2 cache, so memory is read and written once however many steps an update has.
_BLOCK = 16384


class Optimizer:
    """Base class of optimisers. They change parameters in place, by name.

    For float16 and bfloat16 parameters, state and a master copy of the weights are kept in
    float32: the update is added to the master copy, which is then rounded into the parameter.
    Changing such a parameter by other means needs :meth:`sync_master_weights`.

    Args:
        parameters: name -> array, as ``layer.parameters()`` returns; C-contiguous and writeable.
        lr: learning rate, or a schedule from the number of updates done to the rate.
        weight_decay: strength of the decay; each class says which kind.
        decay: for which names the decay holds; all by default.
    """

    #: names of the arrays kept for each parameter
    slots: tuple[str, ...] = ()

    def __init__(
        self,
        parameters: Mapping[str, Array],
        lr: float | Schedule,
        *,
        weight_decay: float = 0.0,
        decay: Callable[[str], bool] | None = None,
    ) -> None:
        if not isinstance(parameters, Mapping):
            raise TypeError(
                f"parameters: expected a dict name -> array, got {type(parameters).__name__}"
            )
        if not callable(lr) and not check_number("lr", lr, "a number >= 0 or a schedule") >= 0:
            raise ValueError(f"lr: expected a number >= 0 or a schedule, got {lr}")
        if not check_number("weight_decay", weight_decay, "a number >= 0") >= 0:
            raise ValueError(f"weight_decay: expected a number >= 0, got {weight_decay}")
        self.lr = lr
        self.weight_decay = float(weight_decay)
        self.steps = 0
        self._parameters = dict(parameters)
        self._decayed = {n for n in parameters if decay is None or decay(n)}
        self._state: dict[str, dict[str, Array]] = {slot: {} for slot in self.slots}
        self._master: dict[str, Array] = {}
        self._scratch: dict[np.dtype[Any], tuple[npt.NDArray[Any], ...]] = {}
        for name, p in self._parameters.items():
            xp = array_module(p)
            if not isinstance(p, xp.ndarray):
                raise TypeError(f"parameters[{name!r}]: expected an array, got {type(p).__name__}")
            if p.dtype.kind in "biucmMOSU":
                raise TypeError(f"parameters[{name!r}]: expected a floating dtype, got {p.dtype}")
            if not p.flags.c_contiguous or (xp is np and not p.flags.writeable):
                raise ValueError(
                    f"parameters[{name!r}]: expected a writeable C-contiguous array, got strides "
                    f"{p.strides} for shape {tuple(p.shape)}"
                )
            wide = np.dtype(np.float32) if p.dtype.itemsize < 4 else p.dtype
            for slot in self.slots:
                self._state[slot][name] = xp.zeros_like(p, dtype=wide)
            if wide != p.dtype:
                self._master[name] = p.astype(wide)

    @property
    def current_lr(self) -> float:
        """The rate that the next update will use."""
        return float(self.lr(self.steps)) if callable(self.lr) else float(self.lr)

    def step(self, gradients: Mapping[str, Array]) -> None:
        """Update every parameter from its gradient; gradients are not changed.

        Args:
            gradients: arrays under exactly the parameters' names, with their shapes. For a
                :class:`penstock.nn.RowGradient` only its rows are updated, and their state
                alone: momentum of other rows waits, and weight decay does not reach them.

        Raises ValueError or TypeError, before anything changes, if names, shapes, types or array
        libraries differ.
        """
        self._check(gradients)
        rate = self.current_lr
        self.steps += 1
        self._begin(rate)
        for name, parameter in self._parameters.items():
            target = self._master.get(name, parameter)
            decay = self.weight_decay if name in self._decayed else 0.0
            kept = (target, *(self._state[slot][name] for slot in self.slots))
            gradient = gradients[name]
            if isinstance(gradient, RowGradient):
                rows = gradient.rows
                picked = tuple(a[rows] for a in kept)
                for block in self._blocks((picked[0], gradient.values, *picked[1:])):
                    self._update(block, rate, decay)
                for whole, part in zip(kept, picked, strict=True):
                    whole[rows] = part
                if target is not parameter:
                    parameter[rows] = picked[0].astype(parameter.dtype)
                continue
            for block in self._blocks((kept[0], gradient, *kept[1:])):
                self._update(block, rate, decay)
            if target is not parameter:
                parameter[...] = target

    def _begin(self, rate: float) -> None:
        """Prepare what is common to all parameters; ``steps`` is already the new count."""

    def _update(self, arrays: tuple[Array, ...], rate: float, decay: float) -> None:
        """Update one block in place: ``arrays`` are parameter, gradient, then the slots."""
        raise NotImplementedError

    def _temporary(self, like: Array, which: int = 0) -> Array:
        """An uninitialised array like ``like``, reused between blocks on the CPU."""
        if not isinstance(like, np.ndarray):
            return array_module(like).empty_like(like)
        if like.dtype not in self._scratch:
            self._scratch[like.dtype] = tuple(np.empty(_BLOCK, like.dtype) for _ in range(2))
        return self._scratch[like.dtype][which][: like.size]

    @staticmethod
    def _blocks(arrays: tuple[Array, ...]) -> Iterator[tuple[Array, ...]]:
        target = arrays[0]
        flat = tuple(a.reshape(-1) for a in arrays)
        size = flat[0].size
        step = _BLOCK if isinstance(target, np.ndarray) else max(size, 1)
        for start in range(0, size, step):
            parts = tuple(a[start : start + step] for a in flat)
            if parts[1].dtype != target.dtype:
                parts = (parts[0], parts[1].astype(target.dtype), *parts[2:])
            yield parts

    def _check(self, gradients: Mapping[str, Array]) -> None:
        if not isinstance(gradients, Mapping):
            raise TypeError(
                f"gradients: expected a dict name -> array, got {type(gradients).__name__}"
            )
        if gradients.keys() != self._parameters.keys():
            missing = sorted(self._parameters.keys() - gradients.keys())
            unexpected = sorted(gradients.keys() - self._parameters.keys())
            raise ValueError(
                "gradients: expected exactly the parameters' names; "
                f"missing: {missing or 'none'}, unexpected: {unexpected or 'none'}"
            )
        for name, p in self._parameters.items():
            g = gradients[name]
            values = g.values if isinstance(g, RowGradient) else g
            if not isinstance(values, array_module(p).ndarray):
                raise TypeError(
                    f"gradients[{name!r}]: expected a {type(p).__module__}.ndarray, "
                    f"got {type(values).__module__}.{type(values).__name__}"
                )
            if tuple(g.shape) != tuple(p.shape):
                raise ValueError(
                    f"gradients[{name!r}]: expected shape {tuple(p.shape)}, got {tuple(g.shape)}"
                )
            if values.dtype.kind in "biucmMOSU":
                raise TypeError(
                    f"gradients[{name!r}]: expected a floating dtype, got {values.dtype}"
                )

    def sync_master_weights(self) -> None:
        """Copy half-type parameters into their float32 masters, after changing them elsewhere."""
        for name, master in self._master.items():
            master[...] = self._parameters[name]

    def state_dict(self) -> dict[str, npt.NDArray[Any]]:
        """Copies, on the host, of all state: ``steps``, ``slot.name`` and ``master.name``.

        Restoring it together with the parameters resumes exactly. Rates and other settings are
        the constructor's and are not part of it.
        """
        state = {"steps": np.asarray(self.steps, dtype=np.int64)}
        for group, arrays in (*self._state.items(), ("master", self._master)):
            for name, a in arrays.items():
                state[f"{group}.{name}"] = a.copy() if isinstance(a, np.ndarray) else a.get()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned.

        Raises ValueError, before anything changes, if names or shapes differ.
        """
        targets = {
            f"{group}.{name}": a
            for group, arrays in (*self._state.items(), ("master", self._master))
            for name, a in arrays.items()
        }
        if state.keys() != targets.keys() | {"steps"}:
            missing = sorted((targets.keys() | {"steps"}) - state.keys())
            unexpected = sorted(state.keys() - targets.keys() - {"steps"})
            raise ValueError(
                "state: expected the names of this optimiser; "
                f"missing: {missing or 'none'}, unexpected: {unexpected or 'none'}"
            )
        for name, target in targets.items():
            if tuple(np.shape(state[name])) != tuple(target.shape):
                raise ValueError(
                    f"state[{name!r}]: expected shape {tuple(target.shape)}, "
                    f"got {tuple(np.shape(state[name]))}"
                )
        for name, target in targets.items():
            if isinstance(target, np.ndarray):
                target[...] = state[name]
            else:
                target.set(np.ascontiguousarray(state[name], dtype=target.dtype))
        self.steps = int(np.asarray(state["steps"]).reshape(()))
