"""Operations and bytes of a case, by formula; ``docs/benchmarks.md`` has them in words."""

from __future__ import annotations

from penstock.bench.cases import GATES, Case

_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}


def blocks(case: Case, width: int) -> int:
    """Blocks of H rows in the input weight of a layer that reads ``width`` features."""
    if case.op == "sru" and width != case.width:
        return 4  # the skip term has a product of its own
    return GATES[case.op]


def operations(case: Case) -> int:
    """Operations of the matrix products alone, two for a multiplication with its sum.

    Backward has two products for each of forward: for the gradients of either factor.
    """
    total = 0
    for steps, rows, width in case.parts():
        depth = width if case.op == "sru" else width + case.H
        total += 2 * case.dirs * steps * rows * blocks(case, width) * case.H * depth
    return total * (3 if case.training else 1)


def parameters(case: Case) -> int:
    """Numbers of all weights and biases."""
    total = 0
    for _, _, width in case.parts():
        rows = blocks(case, width) * case.H
        mixing = 4 * case.H if case.op == "sru" else rows * (case.H + 2)
        total += case.dirs * (rows * width + mixing)
    return total


def least_bytes(case: Case) -> int:
    """Bytes that any version must move between memory and processor.

    Forward reads input and weights of each layer or level and writes its output. Training reads
    them again for the backward pass, with the output's gradient, and writes the gradients of
    input and weights. What a version keeps between the two is not counted.
    """
    inputs = outputs = 0
    for steps, rows, width in case.parts():
        inputs += steps * rows * width
        # A level of a sliced network gives one row for all its steps.
        outputs += (rows if case.slices else steps * rows) * case.width
    numbers = inputs + outputs + parameters(case)
    if case.training:
        numbers = 3 * inputs + 2 * outputs + 3 * parameters(case)
    return numbers * _BYTES[case.dtype]
