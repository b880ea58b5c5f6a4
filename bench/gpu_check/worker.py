"""Run one stage: ``python -m bench.gpu_check.worker module:function CONTEXT.json OUTCOME.json``.

What a stage has said is written at once, so that it is not lost when the process is stopped or
crashes: then the file still says "running".
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from bench.gpu_check.stages import Context


class Skip(Exception):
    """The stage, or a part of it, cannot be run here, for the reason given."""


class Report:
    """What a stage finds. ``data`` must stay JSON."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.status = "running"
        self.lines: list[str] = []
        self.failures: list[str] = []
        self.data: dict[str, Any] = {}
        self.save()

    def line(self, text: str) -> None:
        """Something to be read: a summary, or what is left out and why."""
        self.lines.append(text)
        print(text, flush=True)
        self.save()

    def fail(self, text: str) -> None:
        """Something that is wrong; the stage goes on, and has failed."""
        self.failures.append(text)
        print(f"FAILED: {text}", flush=True)
        self.save()

    def put(self, name: str, value: Any) -> None:
        self.data[name] = value
        self.save()

    def append(self, name: str, value: Any) -> None:
        self.data.setdefault(name, []).append(value)
        self.save()

    def finish(self) -> None:
        self.status = "failed" if self.failures else "passed"
        self.save()

    def skip(self, reason: str) -> None:
        self.lines.append(reason)
        self.status = "skipped"
        self.save()

    def save(self) -> None:
        if self.path is None:
            return
        names = ("status", "lines", "failures", "data")
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps({name: getattr(self, name) for name in names}))
        os.replace(temporary, self.path)


def run(target: str, context: Context, report: Report) -> None:
    """Run a stage's function; whatever it raises ends up in the report."""
    module, _, function = target.partition(":")
    try:
        getattr(importlib.import_module(module), function)(context, report)
    except Skip as reason:
        report.skip(str(reason))
        return
    except Exception as error:
        traceback.print_exc()
        report.fail(f"{type(error).__name__}: {error}")
    report.finish()


def main() -> None:
    target, context, outcome = sys.argv[1:]
    run(target, Context.load(Path(context).read_text()), Report(Path(outcome)))


if __name__ == "__main__":
    # By its own name: the stages raise that module's Skip, and not this one's.
    from bench.gpu_check import worker

    worker.main()
