"""What an operation should give: the CPU's own, in float64, by a process without any plugin.

``python -m bench.gpu_check.expected CASES.json OUT.npz``; arrays are named "number/name".
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from bench.gpu_check.arrays import Host
from bench.gpu_check.operations import Call, Case, as_json, host


def expected(cases: list[Case], seconds: float = 120) -> list[dict[str, np.ndarray]]:
    """Outputs and gradients of each case, in float64.

    The tests compare small shapes with a reference of their own; this is for shapes that it would
    be slow for, and over which the CPU's code has been tested.
    """
    env = {k: v for k, v in os.environ.items() if k != "PENSTOCK_HOST_PLUGIN"}
    with tempfile.TemporaryDirectory() as folder:
        told, found = Path(folder, "cases.json"), Path(folder, "expected.npz")
        told.write_text(json.dumps([as_json(case) for case in cases]))
        command = [sys.executable, "-m", "bench.gpu_check.expected", str(told), str(found)]
        subprocess.run(command, env=env, check=True, timeout=seconds)
        results: list[dict[str, np.ndarray]] = [{} for _ in cases]
        with np.load(found) as arrays:
            for key in arrays.files:
                number, _, name = key.partition("/")
                results[int(number)][name] = arrays[key]
    return results


def main() -> None:
    told, found = sys.argv[1:]
    library = Host()
    arrays: dict[str, Any] = {}
    for number, values in enumerate(json.loads(Path(told).read_text())):
        call = Call(Case(**values), library, dtype="float64")
        for name, value in host(library, call.train()).items():
            arrays[f"{number}/{name}"] = value
    np.savez(found, **arrays)


if __name__ == "__main__":
    main()
