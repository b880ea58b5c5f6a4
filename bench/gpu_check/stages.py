"""The stages of a check, in the order they run in, and what each is told."""

from __future__ import annotations

import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Kind = Literal["setup", "check", "measure"]
PACKAGE = "bench.gpu_check"


@dataclass(frozen=True)
class Stage:
    """One part of the check, run in a process of its own.

    ``setup`` and ``check`` stages decide the command's exit status; ``measure`` stages do not.
    """

    name: str
    kind: Kind
    #: "module:function"; the function takes a Context and a Report (worker.py).
    target: str
    #: Seconds after which it is stopped, on a device.
    limit: float
    #: Stages without which it cannot run: it is left out where one of them ran and failed.
    needs: tuple[str, ...] = ("build",)


STAGES = [
    Stage("device", "setup", f"{PACKAGE}.device:describe_device", 60, needs=()),
    Stage("build", "setup", f"{PACKAGE}.build:build", 240, needs=("device",)),
    Stage("python-tests", "check", f"{PACKAGE}.suites:python_tests", 120),
    Stage("cpp-tests", "check", f"{PACKAGE}.suites:cpp_tests", 60),
    Stage("sanitizer", "check", f"{PACKAGE}.sanitizer:run_tools", 100),
    Stage("agreement", "check", f"{PACKAGE}.behaviour:agreement", 60),
    Stage("determinism", "check", f"{PACKAGE}.behaviour:determinism", 60),
    Stage("graphs", "check", f"{PACKAGE}.behaviour:graphs", 60),
    Stage("streams", "check", f"{PACKAGE}.behaviour:streams", 60),
    Stage("memory", "check", f"{PACKAGE}.behaviour:memory", 60),
    Stage("ceilings", "measure", f"{PACKAGE}.measure:ceilings", 25),
    Stage("measure-sru", "measure", f"{PACKAGE}.measure:sru", 30),
    Stage("measure-gru", "measure", f"{PACKAGE}.measure:gru", 30),
    Stage("measure-lstm", "measure", f"{PACKAGE}.measure:lstm", 30),
    Stage("measure-rnn", "measure", f"{PACKAGE}.measure:rnn", 20),
    Stage("measure-sliced", "measure", f"{PACKAGE}.measure:sliced", 35),
    # It compiles a kernel for each shape first, so it has a stage to itself, the last one.
    Stage("measure-flashrnn", "measure", f"{PACKAGE}.measure:flash_rnn", 60),
]

#: An emulated device, on the few cores of a machine without a GPU, takes this much longer.
EMULATED_LIMIT_FACTOR = 4


@dataclass(frozen=True)
class Context:
    """What a stage is told; travels to its process as JSON."""

    root: Path
    build_dir: Path
    emulated: bool = False
    #: pytest's ``-k`` expression.
    tests: str = ""
    #: ctest's ``-R`` expression.
    cpp_tests: str = ""
    jobs: int = 1
    #: Seconds until the stage is stopped, and when it was started (time.time()).
    seconds: float = 60.0
    start: float = dataclasses.field(default_factory=time.time)
    #: Outcomes of the stages before, by name: their ``data``.
    earlier: dict[str, dict] = dataclasses.field(default_factory=dict)

    @property
    def time_left(self) -> float:
        """Seconds that a stage may still use and have some left to say how it went."""
        return max(0.1, self.start + 0.95 * self.seconds - time.time())

    @property
    def site(self) -> Path:
        """A package folder that runs from the build, to put on PYTHONPATH."""
        return self.build_dir / "site"

    @property
    def logs(self) -> Path:
        return self.build_dir / "logs"

    @property
    def emulated_plugin(self) -> Path:
        return self.build_dir / "libpenstock_cuda_emulated.so"

    def dump(self) -> str:
        return json.dumps(dataclasses.asdict(self), default=str)

    @classmethod
    def load(cls, text: str) -> Context:
        values = json.loads(text)
        for name in ("root", "build_dir"):
            values[name] = Path(values[name])
        return cls(**values)


def select(only: list[str], skip: list[str], stages: list[Stage] | None = None) -> list[Stage]:
    """Stages to run; names may be a group: setup, check or measure.

    The first one, which says what the machine is, runs unless it is named in ``skip``.

    Raises:
        ValueError: a name that no stage and no group has.
    """
    stages = STAGES if stages is None else stages
    known = {s.name for s in stages} | {s.kind for s in stages}
    for name in [*only, *skip]:
        if name not in known:
            raise ValueError(
                f"stage: expected one of {', '.join(s.name for s in stages)}, or a group: setup, "
                f"check, measure (actual: {name!r})"
            )
    return [
        s
        for s in stages
        if (not only or s.name in only or s.kind in only or s is stages[0])
        and s.name not in skip
        and (s.kind not in skip or s is stages[0])
    ]
