"""Name the machine and the versions that a result belongs to."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
from typing import Any


def describe(*packages: str) -> dict[str, Any]:
    """Processor, cores, system, and the versions of `packages` that are installed."""
    model = platform.processor()
    try:
        with open("/proc/cpuinfo") as f:
            model = next(line.split(":")[1].strip() for line in f if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    versions = {}
    for name in packages:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "processor": model,
        "cores": len(os.sched_getaffinity(0)),
        "system": platform.platform(),
        "python": platform.python_version(),
        "date": datetime.date.today().isoformat(),
        "versions": versions,
        "openblas_environment": {k: v for k, v in os.environ.items() if k.startswith("OPENBLAS_")},
    }
