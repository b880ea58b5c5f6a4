"""What the device can do, and what each operation and its peers make of it.

Over the emulated backend the same code runs on tiny shapes with the host's clock, without ceilings,
shares and ratios: that shows that it works, and measures nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from bench.gpu_check import peers
from bench.gpu_check.arrays import CuPy, Host, Library, Torch, dtype_of
from bench.gpu_check.operations import Call, Case, as_json, available
from bench.gpu_check.stages import Context
from bench.gpu_check.timing import Sampler, measure, sampler
from bench.gpu_check.worker import Report, Skip

OURS = "penstock"
MODES = {"forward": False, "forward+backward": True}
#: Part of a stage's time that is spent on samples; the rest is for setting up.
SAMPLED = 0.5
#: With less than this part of its time left, a stage starts no further case.
LEAST_LEFT = 0.1
#: Distinct sets of arrays that calls take in turn, so that inputs come from memory.
MOST_SETS = 8
#: Kernels that are listed for a case, those that take longest.
MOST_KERNELS = 12
#: Of longer calls no graph is made: launches do not count there, and the graph would be huge.
LONGEST_CAPTURED_MS = 50.0
#: Bytes moved to measure the copy, and size of the square product: both fill any device.
COPY_BYTES = 2**31
PRODUCT_SIZE = 8192
PRODUCT_DTYPES = ("float32", "float64", "float16", "bfloat16")


def library_to_measure(context: Context, report: Report) -> Library:
    """PyTorch where it is there, since peers are, and all then share its allocator; else CuPy."""
    if context.emulated:
        return Host()
    for kind in (Torch, CuPy):
        try:
            return kind()
        except Exception as error:
            report.line(f"{kind.name}: left out ({error})")
    raise Skip("neither PyTorch nor CuPy has the device")


# Ceilings


def ceilings(context: Context, report: Report) -> None:
    """Stage: bandwidth of a copy on the device, and the rate of cuBLAS by element type."""
    if context.emulated:
        raise Skip("not a measurement: the emulated backend has no ceilings")
    library = library_to_measure(context, report)
    seconds = min(1.0, context.seconds * SAMPLED / (1 + len(PRODUCT_DTYPES)))
    copy = copy_of(library, COPY_BYTES)
    found = measure({"copy": (sampler(library, [copy]), 1)}, seconds)["copy"]
    rate = 2 * COPY_BYTES / found["ms"] / 1e6
    report.put("copy", found | {"bytes": 2 * COPY_BYTES, "gb_per_s": rate})
    report.line(f"copy: {rate:.0f} GB/s (read and written)")
    del copy
    for dtype in PRODUCT_DTYPES:
        try:
            multiply = product(library, dtype, PRODUCT_SIZE)
            found = measure({"product": (sampler(library, [multiply]), 1)}, seconds)["product"]
        except Exception as error:
            report.line(f"product in {dtype}: left out ({type(error).__name__}: {error})")
            continue
        tera = 2 * PRODUCT_SIZE**3 / found["ms"] / 1e9
        report.data.setdefault("products", {})[dtype] = found | {"tflop_per_s": tera}
        report.line(f"product in {dtype}: {tera:.1f} TFLOP/s")


def copy_of(library: Library, size: int) -> Callable[[], None]:
    """A copy of ``size`` bytes on the device."""
    strip = np.random.default_rng(0).standard_normal(2**20, np.float32)
    source = library.array(np.tile(strip, size // strip.nbytes))
    target = library.array(np.zeros(size // 4, np.float32))

    def copy() -> None:
        target[...] = source

    return copy


def product(library: Library, dtype: str, size: int) -> Callable[[], Any]:
    """A square product of random matrices; float32 in full float32, as penstock's are."""
    rng = np.random.default_rng(0)
    strip = rng.standard_normal((64, size), np.float32)
    # Rolled copies of a strip: random enough, and cheap to make.
    matrix = np.concatenate([np.roll(strip, 131 * i, axis=1) for i in range(size // 64)])
    a, b = (library.array(m.astype(dtype_of(dtype))) for m in (matrix, matrix.T))
    if isinstance(library, Torch):
        library.torch.backends.cuda.matmul.allow_tf32 = False
        out = library.torch.empty((size, size), dtype=a.dtype, device=a.device)
        return lambda: library.torch.mm(a, b, out=out)
    return lambda: a @ b


def limits_of(context: Context, dtype: str) -> tuple[float, float] | None:
    """Bytes and floating-point operations a second, as measured by the stage before."""
    found = context.earlier.get("ceilings", {})
    if "copy" not in found or dtype not in found.get("products", {}):
        return None
    return found["copy"]["gb_per_s"] * 1e9, found["products"][dtype]["tflop_per_s"] * 1e12


# Operations


def cases(op: str, emulated: bool) -> list[Case]:
    if emulated:
        slices = (2, 2) if op == "sliced" else ()
        return [Case(op, 8, 2, 6, 6, d, slices=slices) for d in ("float32", "bfloat16")]
    if op == "sliced":
        sizes = [
            ((512, 100, 200, 50), (8, 8)),
            ((4096, 16, 200, 50), (8, 8)),
            ((4096, 16, 200, 50), (16, 16)),
            ((4096, 100, 200, 50), (8, 8)),
            ((512, 64, 256, 256), (8, 8)),
        ]
        found = [
            Case(op, *size, dtype, slices=parts, initial=False)
            for size, parts in sizes
            for dtype in ("float32", "bfloat16")
        ]
        # The paper's longest sequences, which take a plain layer most of a second.
        return [*found, Case(op, 32768, 16, 200, 50, slices=(8, 8, 8), initial=False)]
    shapes = {
        "sru": [
            (32, 32, 256, 256), (128, 32, 512, 512), (512, 100, 200, 200), (256, 64, 1024, 1024),
            (4096, 16, 256, 256), (1, 1, 256, 256),
        ],
        "rnn": [(128, 32, 512, 512), (512, 100, 200, 50)],
    }.get(op, [
        (32, 32, 256, 256), (128, 32, 512, 512), (512, 100, 200, 50), (1024, 16, 768, 768),
        (4096, 16, 200, 50), (1, 1, 256, 256),
    ])  # fmt: skip
    found = [Case(op, *s, d, initial=False) for s in shapes for d in ("float32", "float16")]
    if op != "rnn":
        found.append(Case(op, *shapes[1], "bfloat16", initial=False))
        found.append(Case(op, *shapes[1], "float32", "bidirectional", initial=False))
    return found


def captured(library: Library, calls: list[Callable[[], Any]]) -> Sampler:
    """The same calls as a CUDA graph, which leaves the launches' cost out.

    Raises:
        Skip: the library has no graphs.
    """
    replay, outputs = library.capture(lambda: [call() for call in calls])

    def sample(n: int) -> float:
        assert outputs is not None  # whose memory replays write to
        return library.elapsed(lambda: [replay() for _ in range(n // len(calls))])

    return sample


def kernels_of(library: Library, function: Callable[[], Any]) -> list[dict[str, Any]]:
    """Kernels that a function runs on the device: name, number and microseconds a call."""
    if not isinstance(library, Torch) or not library.has_streams:
        return []
    profiler = library.torch.profiler
    repeats = 5
    with profiler.profile(activities=[profiler.ProfilerActivity.CUDA]) as found:
        for _ in range(repeats):
            function()
        library.synchronize()
    rows = []
    for event in found.key_averages():
        total = getattr(event, "self_device_time_total", 0)
        if total > 0:
            rows.append(
                {
                    "name": kernel_name(event.key),
                    "us": total / repeats,
                    "count": event.count / repeats,
                }
            )
    return sorted(rows, key=lambda row: -row["us"])[:MOST_KERNELS]


def kernel_name(full: str) -> str:
    """A kernel's name as the profiler gives it, without what all of ours share."""
    return re.sub(r"^void |\(anonymous namespace\)::|penstock::cuda::", "", full)[:120]


def scan_share(
    case: Case, training: bool, kernels: list[dict[str, Any]], bytes_per_s: float
) -> dict[str, float] | None:
    """An SRU's recurrence alone beside the copy's bandwidth, from its kernels' times."""
    scans = [k["us"] for k in kernels if re.match(r"sru_\w+_kernel", k["name"])]
    if case.op != "sru" or not scans:
        return None
    rate = case.scan_bytes(training) / sum(scans) * 1e6
    return {"us": sum(scans), "gb_per_s": rate / 1e9, "share": rate / bytes_per_s}


def contenders(
    case: Case,
    library: Library,
    training: bool,
    others: dict[str, peers.Maker],
    left_out: dict[str, str],
) -> tuple[dict[str, list[Callable[[], Any]]], int]:
    """Calls of ours and of each peer, and the bytes that one must move.

    Each has as many sets of arrays as are twice the size of the device's cache.
    """
    l2 = 0
    if isinstance(library, Torch) and library.has_streams:
        l2 = int(library.torch.cuda.get_device_properties(0).L2_cache_size)
    elif isinstance(library, CuPy):
        l2 = int(library.cupy.cuda.Device().attributes["L2CacheSize"])
    first = Call(case, library)
    least_bytes = first.least_bytes(training)
    count = max(1, min(MOST_SETS, -(-2 * l2 // max(1, least_bytes))))
    calls = [first, *(Call(case, library, seed) for seed in range(1, count))]
    found: dict[str, list[Callable[[], Any]]] = {OURS: [c.mode(training) for c in calls]}
    if isinstance(library, Torch):
        library.torch.backends.cudnn.allow_tf32 = False
        library.torch.backends.cuda.matmul.allow_tf32 = False
        for name, make in others.items():
            try:
                functions = [make(case, library, c.arrays["x"], training) for c in calls]
                functions[0]()
                found[name] = functions
            except Exception as error:
                left_out[name] = f"{type(error).__name__}: {error}".split("\n")[0][:200]
    return found, least_bytes


def measure_case(
    case: Case, context: Context, library: Library, others: dict[str, peers.Maker], seconds: float
) -> list[dict[str, Any]]:
    """Rows of results for one case: forward, and forward with backward."""
    rows = []
    for mode, training in MODES.items():
        left_out: dict[str, str] = {}
        calls_of, least_bytes = contenders(case, library, training, others, left_out)
        samplers = {name: (sampler(library, calls), len(calls)) for name, calls in calls_of.items()}
        times = measure(samplers, seconds / len(MODES) / 2)
        replays: dict[str, tuple[Sampler, int]] = {}
        for name, calls in calls_of.items():
            if times[name]["ms"] > LONGEST_CAPTURED_MS:
                continue
            try:
                replays[name] = captured(library, calls), len(calls)
            except Skip:
                break
            except Exception as error:
                reason = f"{type(error).__name__}: {error}".split("\n")[0][:200]
                left_out[f"{name}, as a graph"] = reason
        graph_times = measure(replays, seconds / len(MODES) / 2) if replays else {}
        row: dict[str, Any] = {
            "label": case.label,
            "case": as_json(case),
            "mode": mode,
            "library": library.name,
            "sets": len(calls_of[OURS]),
            "times": times,
            "graph_times": graph_times,
            "left_out": left_out,
        }
        rows.append(row)
        if context.emulated:
            continue
        row["ratios"] = ratios(times)
        row["graph_ratios"] = ratios(graph_times)
        best = min(t[OURS]["ms"] for t in (times, graph_times) if OURS in t)
        try:
            row["kernels"] = kernels_of(library, calls_of[OURS][0])
        except Exception as error:  # the profiler does not work on every machine
            row["kernels"] = []
            left_out["kernels' times"] = f"{type(error).__name__}: {error}".split("\n")[0][:200]
        row |= rates(case, training, least_bytes, best)
        limits = limits_of(context, case.dtype)
        if limits is not None:
            row["floor_ms"] = floor_ms(row["bytes"], row["operations"], limits)
            row["share"] = row["floor_ms"] / best
            row["scan"] = scan_share(case, training, row["kernels"], limits[0])
    return rows


def ratios(times: dict[str, dict[str, float]]) -> dict[str, float]:
    """Times of the peers over ours: above 1, ours is faster."""
    if OURS not in times:
        return {}
    return {k: v["ms"] / times[OURS]["ms"] for k, v in times.items() if k != OURS}


def rates(case: Case, training: bool, least_bytes: int, ms: float) -> dict[str, Any]:
    operations = case.product_operations() * (3 if training else 1)
    return {
        "bytes": least_bytes,
        "operations": operations,
        "gb_per_s": least_bytes / ms / 1e6,
        "tflop_per_s": operations / ms / 1e9,
        "us_per_step": ms * 1e3 / sum(steps for _, steps, _, _ in case.levels()),
    }


def floor_ms(least_bytes: int, operations: int, limits: tuple[float, float]) -> float:
    """The time below which no version can come: the slower of memory and arithmetic."""
    return max(least_bytes / limits[0], operations / limits[1]) * 1e3


def measure_op(
    op: str,
    context: Context,
    report: Report,
    chosen: list[Case] | None = None,
    others: dict[str, peers.Maker] | None = None,
) -> None:
    if op not in available():
        raise Skip(f"this penstock has no {op}")
    chosen = cases(op, context.emulated) if chosen is None else chosen
    others = peers.PEERS[op] if others is None else others
    library = library_to_measure(context, report)
    if context.emulated:
        report.line("not a measurement: emulated CUDA, tiny shapes, the host's clock")
    seconds = 0.02 if context.emulated else context.seconds * SAMPLED / len(chosen)
    left_out: dict[str, str] = {}
    for number, case in enumerate(chosen):
        if context.time_left < LEAST_LEFT * context.seconds:
            report.line(f"out of time: the last {len(chosen) - number} cases are left out")
            break
        if not library.has_dtype(case.dtype):
            report.line(f"{case.label}: left out, {library.name} has no {case.dtype}")
            continue
        try:
            rows = measure_case(case, context, library, others, seconds)
        except Exception as error:
            report.fail(f"{case.label}: {type(error).__name__}: {error}")
            continue
        for row in rows:
            report.append("rows", row)
            left_out |= row["left_out"]
    for name, reason in left_out.items():
        report.line(f"{name}: left out at least once ({reason})")
    report.line(f"{len(report.data.get('rows', []))} rows")


def sru(context: Context, report: Report) -> None:
    """Stage: the SRU beside torch's LSTM and convolution and the sru package."""
    measure_op("sru", context, report)


def gru(context: Context, report: Report) -> None:
    """Stage: the GRU beside cuDNN's."""
    measure_op("gru", context, report)


def lstm(context: Context, report: Report) -> None:
    """Stage: the LSTM beside cuDNN's."""
    measure_op("lstm", context, report)


def rnn(context: Context, report: Report) -> None:
    """Stage: the plain recurrence beside cuDNN's."""
    measure_op("rnn", context, report)


def sliced(context: Context, report: Report) -> None:
    """Stage: the sliced GRU beside torch's over the whole sequence, and sliced by hand."""
    measure_op("sliced", context, report)


def flash_rnn(context: Context, report: Report) -> None:
    """Stage: GRU, LSTM and the plain recurrence beside FlashRNN."""
    if context.emulated:
        raise Skip("FlashRNN needs a device")
    try:
        import flashrnn  # noqa: F401
    except Exception as error:
        raise Skip(f"flashrnn does not import here ({error})") from None
    for op in ("lstm", "gru", "rnn"):
        if op in available():
            case = Case(op, 1024, 16, 768, 768, "bfloat16", initial=False)
            measure_op(op, context, report, [case], {"flashrnn": peers.flash_rnn})
