"""The SRU's recurrence alone beside memcpy: runs bench_sru_scan and writes what it says.

    cmake --preset cpu -DPENSTOCK_BENCHMARKS=ON && cmake --build --preset cpu
    python bench/sru_scan.py build/cpu/bench_sru_scan --out bench/results/sru_scan_cpu.json

The scans of src/cells/sru_cpu_scans.cc work on arrays beyond every cache; memcpy moves as many
bytes (read plus written) on as many threads, in turn with them. The program is bench/sru_scan.cc.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from pathlib import Path

from penstock.bench.machine import busy_seconds, describe


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("program", type=Path, help="bench_sru_scan")
    parser.add_argument("--shape", type=int, nargs=3, metavar=("T", "B", "H"), default=[])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    command = [str(args.program.resolve()), *map(str, args.shape)]
    begin, busy = time.perf_counter(), busy_seconds()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    for row in rows:
        print(
            f"{row['threads']} thread(s), {row['pass']}: {row['ms']:.1f} ms, "
            f"{row['ratio']:.2f} times memcpy"
        )
    # The program itself keeps as many processors busy as it has threads.
    most = max(row["threads"] for row in rows)
    others = (busy_seconds() - busy) / (time.perf_counter() - begin)
    if others > most + 0.25:
        print(f"others kept {others - most:.1f} processors busy")
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        machine = describe(packages=())
        args.out.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
