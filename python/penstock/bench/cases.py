"""What is measured: cases, read from text.

One case a line: the operation, then ``name=value`` for each field, in any order::

    # A comment. Those at the top of a suite describe it.
    suite device=cpu budget=2           # about the whole file, at most once
    default dtype=float32               # what later lines leave out
    gru T=512 B=100 D=200 H=50 pass=forward,train
    gru T=4096 B=16 D=200 H=50 slices=8x8x8
    sru,lstm T=32 B=32 H=64,128,256 D=H # six cases

A list of values, with commas, makes a case of each; of several fields, of every combination, the
last field of the line going fastest. ``docs/benchmarks.md`` has a table of the fields.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from penstock.training.errors import UserError

OPERATIONS = ("sru", "gru", "lstm", "rnn")
DIRECTIONS = ("forward", "reverse", "bidirectional")
DTYPES = ("float32", "float64", "float16", "bfloat16")
PASSES = ("forward", "train")
CACHES = ("warm", "cold")
DEVICES = ("cpu", "cuda")
ISAS = ("base", "avx2", "avx512")
#: Gates whose products are made, by operation; the SRU has one more with a skip term of its own.
GATES = {"sru": 3, "gru": 3, "lstm": 4, "rnn": 1}
_ALL = "all"


@dataclass(frozen=True)
class Case:
    """One piece of work: a network's shape, and which pass over it.

    ``slices`` makes the sliced network of the operation, which has a level above each cut.
    ``peers`` are the keys of those to measure beside ours; None for all that apply.
    """

    op: str
    T: int
    B: int
    D: int
    H: int
    layers: int = 1
    direction: str = "forward"
    slices: tuple[int, ...] = ()
    dtype: str = "float32"
    mode: str = "forward"
    cache: str = "warm"
    memory: bool = False
    peers: tuple[str, ...] | None = None

    @property
    def dirs(self) -> int:
        return 2 if self.direction == "bidirectional" else 1

    @property
    def training(self) -> bool:
        return self.mode == "train"

    @property
    def width(self) -> int:
        """Features of the output."""
        return self.dirs * self.H

    @property
    def output_shape(self) -> tuple[int, ...]:
        """(T, B, dirs · H), or (B, dirs · H) of a sliced network."""
        return (self.B, self.width) if self.slices else (self.T, self.B, self.width)

    @property
    def network(self) -> str:
        """For people: ``GRU``, ``2-layer bidirectional LSTM``, ``sliced GRU (8 x 8)``."""
        words = [self.op.upper()]
        if self.direction != "forward":
            words.insert(0, self.direction)
        if self.layers > 1:
            words.insert(0, f"{self.layers}-layer")
        if self.slices:
            words.insert(0, "sliced")
            words.append(f"({' x '.join(map(str, self.slices))})")
        return " ".join(words)

    @property
    def label(self) -> str:
        """The case as a line of a suite, less what is at its default."""
        return " ".join([self.op, *(f"{name}={text}" for name, text in _as_fields(self).items())])

    def parts(self) -> list[tuple[int, int, int]]:
        """Steps, rows and input width of each layer or level, first first."""
        if not self.slices:
            return [(self.T, self.B, self.width if i else self.D) for i in range(self.layers)]
        found = []
        count = math.prod(self.slices)
        steps, width = self.T // count, self.D
        for n in (*reversed(self.slices), 1):
            found.append((steps, self.B * count, width))
            steps, width, count = n, self.width, count // n
        return found

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Case:
        """The case that :meth:`as_json` was called on.

        Raises:
            UserError: data are not a case's.
        """
        try:
            given = {f.name: data[f.name] for f in fields(cls)}
            given["slices"] = tuple(given["slices"])
            if given["peers"] is not None:
                given["peers"] = tuple(given["peers"])
            return cls(**given)
        except (KeyError, TypeError) as error:
            raise UserError(f"expected a case's fields (actual: {data!r}, {error!r})") from None


@dataclass
class Suite:
    """A named list of cases, and how it is to be run and drawn."""

    name: str
    description: str
    cases: list[Case]
    device: str = "cpu"
    #: Seconds for each measurement; None for the program's own.
    budget: float | None = None
    #: The kind of plot that shows it.
    plot: str = "time"
    #: Numbers of threads, 0 for all processors; none for the program's own.
    threads: tuple[int, ...] = ()
    #: The most that penstock may use of the processor's instructions; None for all.
    isa: str | None = None


def _as_fields(case: Case) -> dict[str, str]:
    values: dict[str, str] = {name: str(getattr(case, name)) for name in "TBDH"}
    if case.layers != 1:
        values["layers"] = str(case.layers)
    if case.direction != "forward":
        values["direction"] = case.direction
    if case.slices:
        values["slices"] = "x".join(map(str, case.slices))
    values["dtype"] = case.dtype
    values["pass"] = case.mode
    if case.cache != "warm":
        values["cache"] = case.cache
    return values


# ---- one field -------------------------------------------------------------------------------


def _count(text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or int(text) < 1:
        raise ValueError("a positive integer")
    return int(text)


def _one_of(allowed: Sequence[str]) -> Callable[[str], str]:
    def check(text: str) -> str:
        if text not in allowed:
            raise ValueError(" or ".join(allowed))
        return text

    return check


def _slices(text: str) -> tuple[int, ...]:
    if text == "none":
        return ()
    try:
        return tuple(_count(part) for part in text.split("x"))
    except ValueError:
        raise ValueError("none, or numbers of parts as in 8x8x8") from None


def _yes(text: str) -> bool:
    if text not in ("yes", "no"):
        raise ValueError("yes or no")
    return text == "yes"


def _inputs(text: str) -> int | None:
    """D: a number, or H for "as wide as the output", here None."""
    if text == "H":
        return None
    try:
        return _count(text)
    except ValueError:
        raise ValueError("a positive integer, or H for the width of the output") from None


def _threads(text: str) -> int:
    """A number of threads; "all" processors are 0."""
    try:
        return 0 if text == "all" else _count(text)
    except ValueError:
        raise ValueError("positive integers, or all") from None


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ValueError("a positive number of seconds")
    return value


#: Names in the text, what reads one value, and the field of Case.
_FIELDS: dict[str, tuple[Callable[[str], Any], str]] = {
    "T": (_count, "T"),
    "B": (_count, "B"),
    "D": (_inputs, "D"),
    "H": (_count, "H"),
    "layers": (_count, "layers"),
    "direction": (_one_of(DIRECTIONS), "direction"),
    "slices": (_slices, "slices"),
    "dtype": (_one_of(DTYPES), "dtype"),
    "pass": (_one_of(PASSES), "mode"),
    "cache": (_one_of(CACHES), "cache"),
    "memory": (_yes, "memory"),
}
FIELD_NAMES = (*_FIELDS, "peers")
_REQUIRED = ("T", "B", "D", "H")
_SUITE_FIELDS: dict[str, Callable[[str], Any]] = {
    "device": _one_of(DEVICES),
    "budget": _seconds,
    "plot": _one_of(("time", "advantage", "memory")),
    "threads": _threads,
    "isa": _one_of(ISAS),
}


def _error(where: str, message: str) -> UserError:
    return UserError(f"{where}: {message}")


def _split(words: Sequence[str], known: Iterable[str], where: str) -> dict[str, list[str]]:
    """``name=a,b`` words as lists of values by name."""
    found: dict[str, list[str]] = {}
    names = tuple(known)
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or name not in names:
            raise _error(
                where, f"expected name=value with a name of {', '.join(names)} (actual: {word!r})"
            )
        if name in found:
            raise _error(where, f"field {name}: given twice")
        found[name] = text.split(",")
    return found


def _values(name: str, texts: Sequence[str], where: str) -> list[Any]:
    read, _ = _FIELDS[name]
    values = []
    for text in texts:
        try:
            values.append(read(text))
        except ValueError as error:
            raise _error(where, f"field {name}: expected {error} (actual: {text!r})") from None
    return values


def parse_cases(
    line: str, where: str = "case", defaults: dict[str, list[str]] | None = None
) -> list[Case]:
    """Read the cases of one line.

    Args:
        line: an operation and its fields.
        where: what an error names as the place, such as ``cpu.txt, line 3``.
        defaults: texts of fields that the line leaves out.

    Raises:
        UserError: naming the place and the field.
    """
    operations, *words = line.split()
    ops = operations.split(",")
    for op in ops:
        if op not in OPERATIONS:
            raise _error(where, f"operation: expected {', '.join(OPERATIONS)} (actual: {op!r})")
    given = _split(words, FIELD_NAMES, where)
    texts = {**{k: v for k, v in (defaults or {}).items() if k not in given}, **given}
    missing = [name for name in _REQUIRED if name not in texts]
    if missing:
        raise _error(where, f"field {missing[0]}: missing")
    keys = texts.pop("peers", [_ALL])
    peers = None if keys == [_ALL] else tuple(key for key in keys if key != "none")
    choices = {name: _values(name, values, where) for name, values in texts.items()}
    found = []
    for op, *combination in itertools.product(ops, *choices.values()):
        values = dict(zip((_FIELDS[name][1] for name in choices), combination, strict=True))
        if values["D"] is None:
            dirs = 2 if values.get("direction") == "bidirectional" else 1
            values["D"] = dirs * values["H"]
        found.append(_checked(Case(op, **values, peers=peers), where))
    return found


def _checked(case: Case, where: str) -> Case:
    if case.slices and case.T % math.prod(case.slices):
        raise _error(
            where,
            f"field T: expected a multiple of {math.prod(case.slices)}, the number of slices "
            f"(actual: {case.T})",
        )
    if case.slices and case.layers != 1:
        raise _error(where, f"field layers: expected 1 with slices (actual: {case.layers})")
    return case


# ---- many cases ------------------------------------------------------------------------------


def parse_suite(text: str, name: str) -> Suite:
    """Read a suite; ``name`` is what errors call it.

    Raises:
        UserError: naming the line and the field, or that there is no case.
    """
    suite = Suite(name, "", [])
    defaults: dict[str, list[str]] = {}
    about: list[str] = []
    seen = begun = False
    for number, whole in enumerate(text.splitlines(), start=1):
        line, mark, comment = whole.partition("#")
        line, where = line.strip(), f"{name}, line {number}"
        if not line:
            if not begun and mark:
                about.append(comment.strip())
            continue
        begun = True
        first, *words = line.split()
        if first == "default":
            given = _split(words, FIELD_NAMES, where)
            for key, texts in given.items():
                if key != "peers":
                    _values(key, texts, where)
            defaults.update(given)
        elif first == "suite":
            if seen:
                raise _error(where, "suite: given twice")
            seen = True
            for key, texts in _split(words, _SUITE_FIELDS, where).items():
                try:
                    values = [_SUITE_FIELDS[key](text) for text in texts]
                except ValueError as error:
                    raise _error(
                        where, f"field {key}: expected {error} (actual: {','.join(texts)!r})"
                    ) from None
                if key != "threads" and len(values) > 1:
                    raise _error(where, f"field {key}: expected one value (actual: {len(values)})")
                setattr(suite, key, tuple(values) if key == "threads" else values[0])
        else:
            suite.cases += parse_cases(line, where, defaults)
    suite.cases = list(dict.fromkeys(suite.cases))
    if not suite.cases:
        raise UserError(f"{name}: expected at least one case, one a line (actual: none)")
    suite.description = " ".join(" ".join(about).split())
    return suite


SUITES = Path(__file__).parent / "suites"


def suite_names() -> list[str]:
    """The suites that come with penstock."""
    return sorted(path.stem for path in SUITES.glob("*.txt"))


def load_suite(name: str) -> Suite:
    """A suite that comes with penstock, by its name, or one in a file of yours, by its path.

    Raises:
        UserError: there is none, or it has a mistake.
    """
    path = SUITES / f"{name}.txt"
    if name not in suite_names():
        path = Path(name)
        if not path.is_file():
            raise UserError(
                f"--suite: expected {', '.join(suite_names())} or a file (actual: {name!r})"
            )
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"--suite: {path}: expected text in UTF-8 (actual: {error})") from None
    return parse_suite(text, name if path.parent == SUITES else str(path))


def swept(cases: Sequence[Case], field_name: str, values: Sequence[str]) -> list[Case]:
    """Every case with the field set to each of the values in turn, without repetitions.

    D follows H where they were equal.

    Raises:
        UserError: no such field, or no such value of it.
    """
    where = f"--sweep {field_name}"
    if field_name not in _FIELDS:
        raise UserError(f"--sweep: expected a field of {', '.join(_FIELDS)}, or threads "
                        f"(actual: {field_name!r})")  # fmt: skip
    found = []
    for case in cases:
        for value in _values(field_name, values, where):
            changes = {_FIELDS[field_name][1]: value}
            if field_name == "D" and value is None:
                changes["D"] = case.width
            if field_name == "H" and case.width == case.D:
                changes["D"] = case.dirs * value
            found.append(_checked(replace(case, **changes), where))
    return list(dict.fromkeys(found))
