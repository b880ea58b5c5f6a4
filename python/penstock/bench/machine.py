"""The machine that a result belongs to, its versions, and who else keeps it busy."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import math
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

#: Packages whose versions a result names, where they are installed.
PACKAGES = (
    "penstock", "numpy", "torch", "onednn-cpu-gomp", "onednn-cpu-iomp", "onednn", "sru", "jax",
    "jaxlib", "keras", "cupy-cuda13x", "cupy-cuda12x", "flashrnn", "accelerated-scan",
)  # fmt: skip
#: What two results must share to be of one machine.
IDENTITY = ("processor", "cores", "memory_gib", "os", "gpu")


def describe(device: str = "cpu", packages: Sequence[str] = PACKAGES) -> dict[str, Any]:
    """Processor, cores, memory, system, versions, date, and the GPU where one is measured.

    Of ``packages``, those that are installed are in ``versions``.
    """
    import penstock

    config = penstock.config()
    return {
        "processor": _processor(),
        "cores": available_cores(),
        "memory_gib": _memory_gib(),
        "os": f"{platform.system()} {platform.machine()}",
        "system": platform.platform(),
        "gpu": _gpu() if device == "cuda" else None,
        "python": platform.python_version(),
        "versions": _versions(packages),
        "penstock": {key: config[key] for key in ("cpu_isa", "blas", "blas_core", "compiler")},
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def available_cores() -> int:
    """Processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def in_words(machine: dict[str, Any]) -> str:
    """The machine in a few words."""
    words = f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB"
    return f"{machine['gpu']}; {words}" if machine.get("gpu") else words


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """In words, how two results' machines differ; empty if they are one."""
    return [
        f"{name}: {old.get(name)} and {new.get(name)}"
        for name in IDENTITY
        if old.get(name) != new.get(name)
    ]


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            return next(
                line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
            )
    except (OSError, StopIteration):
        pass
    if sys.platform == "darwin":
        try:
            found = subprocess.run(
                ["sysctl", "-n", "machdep.cpu.brand_string"],
                capture_output=True, text=True, check=True,
            )  # fmt: skip
            return found.stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            pass
    return platform.processor() or platform.machine()


def _memory_gib() -> int | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)
    except (ValueError, OSError):
        return None


def _gpu() -> str | None:
    try:
        import torch

        if torch.cuda.is_available():
            return str(torch.cuda.get_device_name())
    except ImportError:
        pass
    try:
        import cupy

        name = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)["name"]
        return str(name.decode() if isinstance(name, bytes) else name)
    except Exception:  # CuPy's errors have no common base that can be named without it
        return None


def _versions(packages: Sequence[str]) -> dict[str, str]:
    found = {}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    import penstock

    found["penstock"] = penstock.__version__
    return found


def _commit() -> str | None:
    """The commit of the source tree that penstock runs from, with a + if files differ from it."""
    import penstock

    folder = Path(penstock.__file__).resolve().parent
    try:
        commands = (
            ["ls-files", "--error-unmatch", "__init__.py"],  # this tree's, not one around it
            ["rev-parse", "HEAD"],
            ["status", "--porcelain", "--untracked-files=no"],
        )
        outputs = [
            subprocess.run(
                ["git", "-C", str(folder), *command],
                capture_output=True, text=True, check=True, timeout=20,
            ).stdout.strip()
            for command in commands
        ]  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return outputs[1] + ("+" if outputs[2] else "")


def busy_seconds() -> float:
    """Processor time spent on this machine so far, by anyone; nan where it cannot be known."""
    try:
        with open("/proc/stat", encoding="ascii") as lines:
            user, nice, system, _, _, irq, soft, steal = map(int, lines.readline().split()[1:9])
    except (OSError, ValueError):
        return math.nan
    return (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK")


def own_seconds() -> float:
    """Processor time of this process, all threads."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def resident_bytes() -> int | None:
    """Memory that this process has now; None where the system does not say."""
    return _status("VmRSS")


def forget_peak() -> None:
    """Start :func:`peak_bytes` anew, where the system can."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_bytes() -> int | None:
    """The most memory that this process has had since :func:`forget_peak`."""
    return _status("VmHWM")


def _status(field: str) -> int | None:
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as lines:
            line = next(line for line in lines if line.startswith(field))
    except (OSError, StopIteration):
        return None
    return int(line.split()[1]) * 1024
