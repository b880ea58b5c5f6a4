"""Results in files: JSON, which everything else is made from, and CSV."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from penstock.bench.cases import Case
from penstock.bench.runner import FORMAT
from penstock.training.checkpoints import write_text_atomically
from penstock.training.errors import UserError

_CASE_COLUMNS = (
    "op",
    "T",
    "B",
    "D",
    "H",
    "layers",
    "direction",
    "slices",
    "dtype",
    "pass",
    "cache",
)
_TIME_COLUMNS = (
    "ms", "low", "high", "best", "rounds", "few", "ratio", "gflop_per_s", "gb_per_s", "share",
    "peak_bytes",
)  # fmt: skip
COLUMNS = (*_CASE_COLUMNS, "threads", "device", "by", "name", *_TIME_COLUMNS, "remark")


def load(path: Path) -> dict[str, Any]:
    """Read a result.

    Raises:
        UserError: the file is not one.
        OSError: it cannot be read.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: expected a result of penstock bench (actual: {error})") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        found = data.get("format") if isinstance(data, dict) else type(data).__name__
        raise UserError(
            f"{path}: expected a result of penstock bench, format {FORMAT!r} (actual: {found!r})"
        )
    for name in ("machine", "settings", "rows"):
        if name not in data:
            raise UserError(f"{path}: expected a result of penstock bench (missing: {name})")
    for row in data["rows"]:
        Case.from_json(row.get("case", {}))
    return data


def save(path: Path, result: dict[str, Any]) -> None:
    """Write a result, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(_rounded(result), indent=1, ensure_ascii=False)
    write_text_atomically(path, text + "\n")


def _rounded(value: Any) -> Any:
    """With four digits, more than any of these figures deserves."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value


def as_csv(result: dict[str, Any]) -> str:
    """The result as a table: a line for each case, number of threads and contender."""
    result = _rounded(result)
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in result["rows"]:
        case = Case.from_json(row["case"])
        where = [
            *(getattr(case, name) for name in ("op", "T", "B", "D", "H", "layers", "direction")),
            "x".join(map(str, case.slices)), case.dtype, case.mode, case.cache,
            row["threads"], result["settings"]["device"],
        ]  # fmt: skip
        empty = [""] * len(_TIME_COLUMNS)
        for key, time in row.get("times", {}).items():
            values = [time.get(name) for name in _TIME_COLUMNS]
            writer.writerow(
                [*where, key, time["name"], *("" if v is None else v for v in values), ""]
            )
        if "failed" in row:
            writer.writerow([*where, "penstock", "penstock", *empty, f"failed: {row['failed']}"])
        for key, why in row["skipped"].items():
            name = result["peers"].get(key, {}).get("name", key)
            writer.writerow([*where, key, name, *empty, f"left out: {why}"])
    return text.getvalue()


def row_key(row: dict[str, Any]) -> tuple[Any, ...]:
    """What makes two rows the same measurement: the work and the threads."""
    case = Case.from_json(row["case"])
    return (case.label, row["threads"])
