"""Adam (Kingma and Ba, arXiv 1412.6980) and AdamW (Loshchilov and Hutter, arXiv 1711.05101)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from penstock._arrays import array_module
from penstock.nn._random import check_number
from penstock.optim.optimizer import Optimizer
from penstock.optim.schedules import Schedule


class Adam(Optimizer):
    """m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g²;  p <- p - lr m' / (sqrt(v') + eps).

    m' = m / (1 - b1^n) and v' = v / (1 - b2^n) after n updates. Weight decay adds
    weight_decay * p to g first (an L2 penalty); see :class:`AdamW` for the decoupled kind.

    Args:
        parameters: name -> array, changed in place.
        lr: learning rate or schedule.
        betas: (b1, b2), each in [0, 1).
        eps: added to the root; positive.
        weight_decay: strength of the decay.
        decay: for which names it holds; all by default.
    """

    slots = ("m", "v")
    decoupled = False

    def __init__(
        self,
        parameters: Mapping[str, Any],
        lr: float | Schedule = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        decay: Callable[[str], bool] | None = None,
    ) -> None:
        if not isinstance(betas, (tuple, list)):
            raise TypeError(f"betas: expected two floats in [0, 1), got {betas!r}")
        values = [check_number("betas", b, "two floats in [0, 1)") for b in betas]
        if len(values) != 2 or not all(0.0 <= b < 1.0 for b in values):
            raise ValueError(f"betas: expected two floats in [0, 1), got {betas}")
        if not check_number("eps", eps, "a float > 0") > 0.0:
            raise ValueError(f"eps: expected a float > 0, got {eps}")
        self.betas = (values[0], values[1])
        self.eps = float(eps)
        self._rate = self._eps = 0.0
        super().__init__(parameters, lr, weight_decay=weight_decay, decay=decay)

    def _begin(self, rate: float) -> None:
        # lr m' / (sqrt(v') + eps) = lr root / (1 - b1^n) * m / (sqrt(v) + eps root),
        # root = sqrt(1 - b2^n): the corrections cost no pass over the arrays
        root = math.sqrt(1.0 - self.betas[1] ** self.steps)
        self._rate = rate * root / (1.0 - self.betas[0] ** self.steps)
        self._eps = self.eps * root

    def _update(self, arrays: tuple[Any, ...], rate: float, decay: float) -> None:
        p, g, m, v = arrays
        b1, b2 = self.betas
        xp = array_module(p)
        t = self._temporary(p)
        if decay and self.decoupled:
            p *= 1.0 - rate * decay
        elif decay:
            penalised = self._temporary(p, 1)
            xp.multiply(p, decay, out=penalised)
            penalised += g
            g = penalised
        m *= b1
        xp.multiply(g, 1.0 - b1, out=t)
        m += t
        v *= b2
        xp.multiply(g, g, out=t)
        t *= 1.0 - b2
        v += t
        xp.sqrt(v, out=t)
        t += self._eps
        xp.divide(m, t, out=t)
        t *= self._rate
        p -= t


class AdamW(Adam):
    """Adam with decoupled weight decay: p <- p (1 - lr * weight_decay) before each update.

    Args:
        parameters: name -> array, changed in place.
        lr: learning rate or schedule.
        betas: (b1, b2), each in [0, 1).
        eps: added to the root; positive.
        weight_decay: strength of the decay.
        decay: for which names it holds; all by default.
    """

    decoupled = True

    def __init__(
        self,
        parameters: Mapping[str, Any],
        lr: float | Schedule = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        decay: Callable[[str], bool] | None = None,
    ) -> None:
        super().__init__(
            parameters, lr, betas=betas, eps=eps, weight_decay=weight_decay, decay=decay
        )
