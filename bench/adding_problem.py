"""How well a sliced and a plain GRU learn the adding problem: runs examples/sliced_gru.py by seed.

    python bench/adding_problem.py --out bench/results/adding_problem_cpu.json

A run's loss is that of its last hundred updates. Runs that the file has already are not made again.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from penstock.bench.machine import describe

EXAMPLE = Path(__file__).resolve().parents[1] / "examples/sliced_gru.py"
SLICES = ("8,8", "")


def run(slices: str, seed: int, updates: int) -> dict[str, Any]:
    """One run: its parameters, and the mean loss of the last hundred updates."""
    command = [sys.executable, str(EXAMPLE), "--slices", slices, "--seed", str(seed)]
    command += ["--updates", str(updates)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    count = re.search(r"(\d+) parameters", said)
    losses = re.findall(r"update +\d+ +mean loss ([\d.]+)", said)
    if count is None or not losses:
        raise RuntimeError(f"expected parameters and losses from {EXAMPLE.name} (actual: {said})")
    return {
        "slices": slices, "seed": seed, "updates": updates, "parameters": int(count[1]),
        "loss": float(losses[-1]), "losses": [float(loss) for loss in losses],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--updates", type=int, default=1000)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    runs: list[dict[str, Any]] = []
    if args.out and args.out.exists():
        runs = json.loads(args.out.read_text(encoding="utf-8"))["runs"]
    for slices in SLICES:
        for seed in args.seeds:
            settings = {"slices": slices, "seed": seed, "updates": args.updates}
            if any(settings.items() <= found.items() for found in runs):
                continue
            runs.append(run(slices, seed, args.updates))
            print(json.dumps(runs[-1]), flush=True)
            if args.out:
                args.out.parent.mkdir(parents=True, exist_ok=True)
                result = {"machine": describe(packages=("numpy",)), "runs": runs}
                args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
