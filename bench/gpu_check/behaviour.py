"""Checks of what callers rely on: agreement, the same bits, graphs, streams and memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from bench.gpu_check import operations
from bench.gpu_check.arrays import Library, Torch, dtype_of, libraries
from bench.gpu_check.expected import expected
from bench.gpu_check.operations import Call, Case, available, differing, errors, host, too_wrong
from bench.gpu_check.stages import Context
from bench.gpu_check.worker import Report, Skip

DTYPES = ("float32", "float64", "float16", "bfloat16")
#: Repetitions of each call that must give the same bits.
REPEATS = 20
EMULATED_REPEATS = 3


def cases(emulated: bool, dtypes: tuple[str, ...] = DTYPES) -> list[Case]:
    """Each operation and element type, both directions and padding among them."""
    sizes = (6, 3, 5, 9) if emulated else (65, 33, 40, 72)
    found = []
    for op, dtype in itertools.product(available(), dtypes):
        options: dict[str, Any] = (
            {"slices": (2, 2) if emulated else (4, 4)} if op == "sliced" else {}
        )
        case = Case(op, *sizes, dtype, **options)
        found.append(replace(case, direction="bidirectional", lengths=True))
        if op == "gru":
            found.append(replace(case, reset="before"))
        if emulated:
            continue
        found.append(case)
        if dtype == "float32":
            # Sizes that kernels are tuned for, on few rows and on many.
            found.append(Case(op, 128, 4, 256, 256, dtype, **options))
            found.append(Case(op, 64, 128, 200, 50, dtype, **options))
    return found


def runs(context: Context, report: Report, chosen: list[Case]) -> Iterator[tuple[Library, Case]]:
    """Every library with every case whose element type it has."""
    left_out = set()
    for library in libraries(context.emulated, report):
        for case in chosen:
            if library.has_dtype(case.dtype):
                yield library, case
            elif (library.name, case.dtype) not in left_out:
                left_out.add((library.name, case.dtype))
                report.line(f"{library.name}: {case.dtype} is left out, it has none")


def attempt(report: Report, library: Library, case: Case, check: Callable[[], str | None]) -> bool:
    """Run one check; what it returns or raises is a failure of this case alone."""
    try:
        problem = check()
    except Skip:
        raise
    except Exception as error:
        problem = f"{type(error).__name__}: {error}"
    if problem:
        report.fail(f"{case.label}, {library.name}: {problem}")
    return not problem


def agreement(context: Context, report: Report) -> None:
    """Stage: outputs and gradients against the CPU's in float64."""
    chosen = cases(context.emulated)
    right: dict[Case, dict[str, np.ndarray]] = {}
    count, worst = 0, dict.fromkeys(DTYPES, 0.0)
    pairs = list(runs(context, report, chosen))
    needed = list(dict.fromkeys(case for _, case in pairs))
    right = dict(zip(needed, expected(needed, context.time_left), strict=True))
    for library, case in pairs:

        def check(library: Library = library, case: Case = case) -> str | None:
            found = errors(host(library, Call(case, library).train()), right[case])
            limit = operations.TOLERANCE[case.dtype]
            shares = [e / limit / (10 if k.startswith("d") else 1) for k, e in found.items()]
            worst[case.dtype] = max(worst[case.dtype], *shares)
            bad = too_wrong(case, found)
            return f"errors {bad}" if bad else None

        count += attempt(report, library, case, check)
    report.put("worst_share_of_tolerance", worst)
    shares = ", ".join(f"{k} {v:.2f}" for k, v in worst.items() if v)
    report.line(f"{count} of {len(pairs)} calls agree; largest error over tolerance: {shares}")


def determinism(context: Context, report: Report) -> None:
    """Stage: the same bits every time, in memory that held something else before."""
    repeats = EMULATED_REPEATS if context.emulated else REPEATS
    count = total = 0
    for library, case in runs(context, report, cases(context.emulated)):

        def check(library: Library = library, case: Case = case) -> str | None:
            call = Call(case, library)
            first = host(library, call.train())
            for number in range(1, repeats):
                library.poison()
                changed = differing(first, host(library, call.train()))
                if changed:
                    return f"other bits at repetition {number} in {', '.join(changed)}"
            return None

        total += 1
        count += attempt(report, library, case, check)
    report.put("repeats", repeats)
    report.line(f"{count} of {total} calls give the same bits {repeats} times")


def device_cases() -> list[Case]:
    return cases(emulated=False, dtypes=("float32", "bfloat16"))


def graphs(context: Context, report: Report) -> None:
    """Stage: capture forward and backward in a CUDA graph, and replay it with other inputs."""
    if context.emulated:
        raise Skip("needs a device: arrays on the host have no stream to capture")
    count = total = 0
    for library, case in runs(context, report, device_cases()):

        def check(library: Library = library, case: Case = case) -> str | None:
            call, eager = Call(case, library), Call(case, library)
            replay, outputs = library.capture(call.train)
            for seed in (1, 2, 1):
                call.assign(seed)
                eager.assign(seed)
                library.synchronize()
                replay()
                library.synchronize()
                changed = differing(host(library, outputs), host(library, eager.train()))
                if changed:
                    return f"a replay differs from a call in {', '.join(changed)}"
            return None

        total += 1
        count += attempt(report, library, case, check)
    report.line(f"{count} of {total} calls can be captured and replayed with changed inputs")


def streams(context: Context, report: Report) -> None:
    """Stage: work is ordered on the caller's stream, and the call does not wait for it."""
    if context.emulated:
        raise Skip("needs a device: arrays on the host have no streams")
    count = total = 0
    for library, case in runs(context, report, device_cases()):

        def check(library: Library = library, case: Case = case) -> str | None:
            right = host(library, Call(case, library, seed=1).train())
            call = Call(case, library, seed=1)
            library.busy(1)  # which measures itself the first time
            source = library.array(operations.values(case, 1)["x"])
            junk = np.full(source.shape, np.nan, dtype_of(case.dtype))
            for stream in (library.stream(), library.lent_stream()):
                if stream is None:
                    continue
                library.assign(call.arrays["x"], junk)
                library.synchronize()
                with stream:
                    call.train()  # so that this stream has memory of its own, and nothing allocates
                    library.synchronize()
                    # Only work that waits for what is before it on this stream sees no NaN in x.
                    library.busy(30)
                    call.arrays["x"][...] = source
                    found = call.train()
                    waited = library.is_idle()
                    result = host(library, found)
                library.synchronize()
                changed = differing(result, right)
                if changed:
                    return f"on another stream {', '.join(changed)} came out differently"
                if waited:
                    return "the call waits for the stream"
            return None

        total += 1
        count += attempt(report, library, case, check)
    report.line(f"{count} of {total} calls are ordered on a stream of their own and do not wait")


def memory(context: Context, report: Report) -> None:
    """Stage: arrays of each library in and out, between libraries, and none of it kept."""
    found: list[Library] = libraries(context.emulated, report)
    if context.emulated:
        try:
            found.append(Torch("cpu"))
        except ImportError:
            report.line("torch: not installed, its tensors are left out")
    chosen = cases(context.emulated, dtypes=("float32",))
    outputs: dict[Case, dict[str, np.ndarray]] = {}
    count = total = 0
    for library, case in itertools.product(found, chosen):

        def check(library: Library = library, case: Case = case) -> str | None:
            call = Call(case, library)
            result = call.train()
            foreign = [name for name, value in result.items() if not library.owns(value)]
            if foreign:
                return f"{', '.join(foreign)}: not an array of the caller's library"
            on_host = host(library, result)
            other = outputs.setdefault(case, on_host)
            changed = differing(on_host, other)
            if changed:
                return f"other bits than with the first library in {', '.join(changed)}"
            views = view_of_every_second(library, call)
            changed = differing(on_host, views)
            if changed:
                return f"other bits from arrays that are not contiguous in {', '.join(changed)}"
            return kept(library, call)

        total += 1
        count += attempt(report, library, case, check)
    names = ", ".join(library.name for library in found)
    report.put("libraries", [library.name for library in found])
    report.line(f"{count} of {total} calls take and give arrays of {names}, and keep no memory")


def view_of_every_second(library: Library, call: Call) -> dict[str, np.ndarray]:
    """The same call with its arguments as every second element of larger arrays."""
    contiguous = dict(call.arrays)
    for name, value in contiguous.items():
        if name == "lengths":
            continue
        on_host = library.numpy(value)
        wide = np.full((*on_host.shape[:-1], 2 * on_host.shape[-1]), np.nan, on_host.dtype)
        wide[..., ::2] = on_host
        call.arrays[name] = library.array(wide)[..., ::2]
    found = host(library, call.train())
    call.arrays = contiguous
    return found


def kept(library: Library, call: Call, repeats: int = 10) -> str | None:
    """Whether memory in use on the device grows from call to call."""
    before = library.used_bytes()
    if before is None:
        return None
    for _ in range(repeats):
        call.train()
    after = library.used_bytes()
    assert after is not None
    return f"{after - before} bytes stay in use after {repeats} calls" if after > before else None
