"""Whether results are right, before they are timed."""

from __future__ import annotations

import math

import numpy as np

from penstock.bench import reference
from penstock.bench.cases import Case
from penstock.bench.ours import Ours
from penstock.bench.problem import Problem

#: max|a - b| / max|b| of an output against float64; gradients may have ten times that.
_TOLERANCE = {"float64": 1e-12, "float32": 1e-5, "float16": 2e-3, "bfloat16": 1.6e-2}
#: Rounding adds up over steps: as much again for each so many of them.
_STEPS = 2048
_GRADIENTS = 10.0
#: A peer's roundings and ours may both be off, and it may keep states in a half type.
_PEERS = 10.0
_MOST = 0.25
#: Numbers of x that the float64 run takes; of larger cases it takes the first sequences alone.
_MOST_NUMBERS = 24_000_000


class WrongResult(Exception):
    """A contender's result is not what it should be; the message says where and by how much."""


def tolerance(case: Case, name: str, of_peer: bool = False) -> float:
    """The largest error allowed of one result, "y" or a gradient."""
    limit = _TOLERANCE[case.dtype] * max(1.0, case.T / _STEPS)
    if name != "y":
        limit *= _GRADIENTS
    return min(_MOST, limit * (_PEERS if of_peer else 1.0))


def error_of(found: np.ndarray, right: np.ndarray) -> float:
    """max|a - b| / max|b|, or max|a - b| where b is zero; inf where either is not finite."""
    if found.size != right.size:
        raise WrongResult(f"has shape {found.shape}, ours has {right.shape}")
    if not right.size:
        return 0.0
    a = found.astype(np.float64).reshape(right.shape)
    b = right.astype(np.float64)
    off = float(np.abs(a - b).max())
    scale = float(np.abs(b).max())
    if not (math.isfinite(off) and math.isfinite(scale)):
        return math.inf
    return off / scale if scale else off


def rows_checked(case: Case) -> int:
    """How many of a case's sequences the float64 run takes."""
    return max(1, min(case.B, _MOST_NUMBERS // (case.T * (case.D + case.width))))


def right_results(problem: Problem) -> dict[str, np.ndarray]:
    """What a case gives in float64, by name.

    The output is a plain NumPy loop's, which shares nothing with the library; gradients are the
    library's own in float64, which its tests hold to finite differences. Of large cases only the
    first sequences are computed, and then gradients of parameters are left out.
    """
    case = problem.case
    rows = rows_checked(case)
    part = problem.in_float64(rows)
    right = {"y": reference.forward(part.case, part.parameters, part.x)}
    if case.training:
        run = Ours()
        run.prepare(part, "cpu")
        gradients = run.values()
        gradients.pop("y")
        if rows < case.B:
            gradients = {"dx": gradients["dx"]}
        right |= gradients
    return right


def errors_of(
    case: Case, values: dict[str, np.ndarray], right: dict[str, np.ndarray]
) -> dict[str, float]:
    """Errors by name of what both have; of some sequences alone, if those are right's."""
    rows = rows_checked(case)
    errors = {}
    for name, value in right.items():
        if name in values:
            mine = values[name]
            if rows < case.B:
                mine = mine[:rows] if name == "y" and case.slices else mine[:, :rows]
            errors[name] = error_of(mine, value)
    return errors


def check_ours(
    problem: Problem, values: dict[str, np.ndarray], right: dict[str, np.ndarray]
) -> dict[str, float]:
    """Errors of our results against :func:`right_results`, by name.

    Raises:
        WrongResult: an error is above its tolerance.
    """
    errors = errors_of(problem.case, values, right)
    _refuse(problem.case, errors, of_peer=False)
    return errors


def check_peer(
    problem: Problem,
    values: dict[str, np.ndarray],
    ours: dict[str, np.ndarray],
    right: dict[str, np.ndarray],
) -> dict[str, float]:
    """Errors of a peer's results against :func:`right_results`, by name.

    Raises:
        WrongResult: a result, of all sequences, differs from ours by more than the tolerance.
    """
    against = {name: error_of(value, ours[name]) for name, value in values.items() if name in ours}
    _refuse(problem.case, against, of_peer=True)
    return errors_of(problem.case, values, right)


def _refuse(case: Case, errors: dict[str, float], of_peer: bool) -> None:
    for name, error in errors.items():
        limit = tolerance(case, name, of_peer)
        if not error <= limit:
            against = "ours" if of_peer else "float64"
            raise WrongResult(
                f"{name} differs from {against} by {error:.1e} (allowed: {limit:.1e})"
            )
