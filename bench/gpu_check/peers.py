"""What else computes such layers on this machine, through PyTorch."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

from bench.gpu_check.arrays import Array, Torch
from bench.gpu_check.operations import GATES, Case

Function = Callable[[], Any]
#: Builds a peer's function for a case: (case, torch library, x, training) -> function.
Maker = Callable[[Case, Torch, Array, bool], Function]


def random_like(library: Torch, like: Array, *shape: int) -> Array:
    return library.torch.randn(shape, dtype=like.dtype, device=like.device)


def differentiated(
    library: Torch, forward: Callable[[], Array], inputs: list[Array], training: bool
) -> Function:
    """The forward pass without gradients, or forward and backward."""
    torch = library.torch
    with torch.no_grad():
        dy = torch.randn_like(forward())

    def infer() -> Array:
        with torch.no_grad():
            return forward()

    def train() -> Any:
        return torch.autograd.grad(forward(), inputs, dy, allow_unused=True)

    return train if training else infer


def of_module(
    library: Torch, module: Any, x: Array, training: bool, first: bool = True
) -> Function:
    """A module's pass; ``first``: its output is the first of several."""
    module = module.to(x.device, x.dtype)
    module.train(training)
    if hasattr(module, "flatten_parameters"):
        module.flatten_parameters()
    x = x.detach().clone().requires_grad_(training)
    inputs = [x, *module.parameters()]

    def forward() -> Array:
        output = module(x)
        return output[0] if first else output

    return differentiated(library, forward, inputs, training)


def recurrent(name: str) -> Maker:
    """torch.nn.GRU and so on, which run in cuDNN."""

    def make(case: Case, library: Torch, x: Array, training: bool) -> Function:
        module = getattr(library.torch.nn, name)(
            case.inputs, case.hidden, bidirectional=case.dirs == 2
        )
        return of_module(library, module, x, training)

    return make


def conv1d(case: Case, library: Torch, x: Array, training: bool) -> Function:
    """A convolution over three steps with as many outputs, which the SRU's paper compares with."""
    module = library.torch.nn.Conv1d(case.inputs, case.width, 3, padding=1)
    across = x.permute(1, 2, 0).contiguous()
    return of_module(library, module, across, training, first=False)


def sru_package(case: Case, library: Torch, x: Array, training: bool) -> Function:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import sru

    module = sru.SRU(case.inputs, case.hidden, num_layers=1, bidirectional=case.dirs == 2)
    return of_module(library, module, x, training)


def flash_rnn(case: Case, library: Torch, x: Array, training: bool) -> Function:
    """FlashRNN with one head; it takes the input's product, so that is made here."""
    from flashrnn import flashrnn

    if case.dirs == 2:
        raise ValueError("it has no second direction")
    function = {"rnn": "elman"}.get(case.op, case.op)
    gates, states = GATES[case.op], 2 if case.op == "lstm" else 1
    biases = 4 if case.op == "gru" else gates  # R_n's is kept apart from W_n's
    t, b, h = case.steps, case.batch, case.hidden
    scale = 1 / math.sqrt(h)
    x = x.detach().clone().requires_grad_(training)
    weight = (scale * random_like(library, x, gates * h, case.inputs)).requires_grad_(training)
    recurrent_weight = (scale * random_like(library, x, gates, 1, h, h)).requires_grad_(training)
    bias = random_like(library, x, biases, 1, h).requires_grad_(training)
    initial = library.torch.zeros((states, b, 1, 1, h), dtype=x.dtype, device=x.device)
    backend = "cuda_fused" if case.dtype in ("float16", "bfloat16") else "cuda"

    def forward() -> Array:
        product = library.torch.nn.functional.linear(x.transpose(0, 1), weight)
        out, _ = flashrnn(
            product.reshape(b, t, gates, 1, h), recurrent_weight, bias, states=initial,
            function=function, backend=backend, dtype=case.dtype,
        )  # fmt: skip
        return out[0]

    return differentiated(library, forward, [x, weight, recurrent_weight, bias], training)


def whole_sequence(case: Case, library: Torch, x: Array, training: bool) -> Function:
    """The plain layer over the whole sequence, which slicing is to be faster than."""
    module = getattr(library.torch.nn, case.cell.upper())(
        case.inputs, case.hidden, bidirectional=case.dirs == 2
    )
    return of_module(library, module, x, training)


def composed(case: Case, library: Torch, x: Array, training: bool) -> Function:
    """The sliced network put together from torch's plain layers."""
    nn = library.torch.nn
    levels = list(case.levels())
    steps, rows = levels[0][1], levels[0][2]
    if case.dirs == 2 or steps * rows != case.steps * case.batch:
        raise ValueError("only one direction, and lengths that divide")
    modules = [
        getattr(nn, cell.upper())(features, case.hidden).to(x.device, x.dtype)
        for cell, _, _, features in levels
    ]
    for module in modules:
        module.train(training)
    x = x.detach().clone().requires_grad_(training)
    parameters = [p for module in modules for p in module.parameters()]

    def forward() -> Array:
        parts = rows // case.batch
        value = x.reshape(parts, steps, case.batch, case.inputs).transpose(0, 1)
        value = value.reshape(steps, rows, case.inputs)
        for module, (_, count, width, _) in zip(modules, levels, strict=True):
            if value.shape[0] != count:
                outer = width // case.batch
                value = value.reshape(outer, count, case.batch, case.hidden).transpose(0, 1)
                value = value.reshape(count, width, case.hidden)
            value = module(value)[0][-1].reshape(1, width, case.hidden)
        return value[0]

    return differentiated(library, forward, [x, *parameters], training)


PEERS: dict[str, dict[str, Maker]] = {
    "sru": {"torch.nn.LSTM": recurrent("LSTM"), "torch.nn.Conv1d": conv1d, "sru": sru_package},
    "gru": {"torch.nn.GRU": recurrent("GRU")},
    "lstm": {"torch.nn.LSTM": recurrent("LSTM")},
    "rnn": {"torch.nn.RNN": recurrent("RNN")},
    "sliced": {"torch, whole sequence": whole_sequence, "torch, sliced": composed},
}
