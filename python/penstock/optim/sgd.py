"""Stochastic gradient descent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from penstock._arrays import array_module
from penstock.nn._random import check_number
from penstock.optim.optimizer import Optimizer
from penstock.optim.schedules import Schedule


class SGD(Optimizer):
    """p <- p - lr * d, with d = g, or with momentum b <- momentum * b + g, d = b.

    With ``nesterov``, d = g + momentum * b. Weight decay adds weight_decay * p to g first
    (an L2 penalty). The buffer b starts at 0.

    Args:
        parameters: name -> array, changed in place.
        lr: learning rate or schedule.
        momentum: 0 <= momentum < 1.
        nesterov: look ahead; needs momentum > 0.
        weight_decay: strength of the L2 penalty.
        decay: for which names it holds; all by default.
    """

    def __init__(
        self,
        parameters: Mapping[str, Any],
        lr: float | Schedule = 0.1,
        *,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        decay: Callable[[str], bool] | None = None,
    ) -> None:
        if not 0.0 <= check_number("momentum", momentum, "a float in [0, 1)") < 1.0:
            raise ValueError(f"momentum: expected a float in [0, 1), got {momentum}")
        if nesterov and momentum == 0.0:
            raise ValueError("nesterov: expected momentum > 0 with nesterov=True, got momentum 0")
        self.momentum = float(momentum)
        self.nesterov = bool(nesterov)
        self.slots = ("momentum",) if momentum else ()
        super().__init__(parameters, lr, weight_decay=weight_decay, decay=decay)

    def _update(self, arrays: tuple[Any, ...], rate: float, decay: float) -> None:
        p, g, *slots = arrays
        xp = array_module(p)
        t = self._temporary(p)
        if decay:
            xp.multiply(p, decay, out=t)
            t += g
            g = t
        if slots:
            b = slots[0]
            b *= self.momentum
            b += g
            if self.nesterov:
                ahead = self._temporary(p, 1)
                xp.multiply(b, self.momentum, out=ahead)
                ahead += g
                g = ahead
            else:
                g = b
        xp.multiply(g, rate, out=t)
        p -= t
