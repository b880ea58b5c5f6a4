"""Learning-rate schedules: callables from the update number (0, 1, 2, ...) to a rate.

Schedules hold no state of their own: an optimiser counts its updates and saves that count, so a
resumed run follows the same curve.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from penstock.nn._random import check_number

Schedule = Callable[[int], float]


def _non_negative(name: str, value: float) -> float:
    if not 0 <= check_number(name, value, "a finite number >= 0") < math.inf:
        raise ValueError(f"{name}: expected a finite number >= 0, got {value}")
    return float(value)


def _steps(name: str, value: int, least: int) -> int:
    number = check_number(name, value, f"an int >= {least}")
    if not least <= number < math.inf or number != int(number):
        raise ValueError(f"{name}: expected an int >= {least}, got {value}")
    return int(value)


def constant(lr: float, warmup_steps: int = 0) -> Schedule:
    """``lr``, reached linearly over the first ``warmup_steps`` updates."""
    rate, warmup = _non_negative("lr", lr), _steps("warmup_steps", warmup_steps, 0)

    def schedule(step: int) -> float:
        return rate * min(1.0, (step + 1) / warmup) if warmup else rate

    return schedule


def linear(lr: float, total_steps: int, warmup_steps: int = 0, final_lr: float = 0.0) -> Schedule:
    """A linear rise to ``lr``, then a linear fall to ``final_lr`` at ``total_steps``."""
    rate, last = _non_negative("lr", lr), _non_negative("final_lr", final_lr)
    total, warmup = _steps("total_steps", total_steps, 1), _steps("warmup_steps", warmup_steps, 0)

    def schedule(step: int) -> float:
        if step < warmup:
            return rate * (step + 1) / warmup
        done = min(1.0, (step - warmup) / max(1, total - warmup))
        return rate + (last - rate) * done

    return schedule


def cosine(lr: float, total_steps: int, warmup_steps: int = 0, final_lr: float = 0.0) -> Schedule:
    """A linear rise to ``lr``, then half a cosine down to ``final_lr`` at ``total_steps``.

    Without restarts (Loshchilov and Hutter, arXiv 1608.03983).
    """
    rate, last = _non_negative("lr", lr), _non_negative("final_lr", final_lr)
    total, warmup = _steps("total_steps", total_steps, 1), _steps("warmup_steps", warmup_steps, 0)

    def schedule(step: int) -> float:
        if step < warmup:
            return rate * (step + 1) / warmup
        done = min(1.0, (step - warmup) / max(1, total - warmup))
        return last + (rate - last) * 0.5 * (1.0 + math.cos(math.pi * done))

    return schedule


def step_decay(lr: float, every: int, factor: float = 0.1, warmup_steps: int = 0) -> Schedule:
    """``lr`` times ``factor`` for each ``every`` updates done, after a linear rise."""
    rate, gamma = _non_negative("lr", lr), _non_negative("factor", factor)
    period, warmup = _steps("every", every, 1), _steps("warmup_steps", warmup_steps, 0)

    def schedule(step: int) -> float:
        if step < warmup:
            return rate * (step + 1) / warmup
        return float(rate * gamma ** (step // period))

    return schedule


def inverse_sqrt(lr: float, warmup_steps: int) -> Schedule:
    """A linear rise to ``lr`` over ``warmup_steps``, then ``lr`` * sqrt(warmup_steps / step)."""
    rate, warmup = _non_negative("lr", lr), _steps("warmup_steps", warmup_steps, 1)

    def schedule(step: int) -> float:
        n = step + 1
        return rate * min(n / warmup, math.sqrt(warmup / n))

    return schedule


def noam(model_size: int, warmup_steps: int, scale: float = 1.0) -> Schedule:
    """scale * model_size**-0.5 * min(n**-0.5, n * warmup_steps**-1.5), n = 1, 2, ...

    The schedule of Vaswani et al. (arXiv 1706.03762), also used for SRU stacks in
    arXiv 1709.02755: :func:`inverse_sqrt` with its peak set from the model's width.
    """
    size, warmup = _steps("model_size", model_size, 1), _steps("warmup_steps", warmup_steps, 1)
    return inverse_sqrt(_non_negative("scale", scale) / math.sqrt(size * warmup), warmup)
