"""Where results are kept: one JSON file, whole after every record, whatever kills the program."""

from __future__ import annotations

import fcntl
import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import penstock
from penstock.training.checkpoints import read_json, write_text_atomically
from penstock.training.errors import UserError
from penstock.training.runs import machine, versions

#: What tells one record from another.
KEY = ("data", "model", "seed", "fold")

Key = tuple[Any, ...]


def described(*packages: str) -> dict[str, Any]:
    """The machine and the versions, those of `packages` too, that records come from."""
    found = {**versions(), **{package: metadata.version(package) for package in packages}}
    config = penstock.config()
    return {**machine(), "isa": config["cpu_isa"], "blas": config["blas"], "versions": found}


def differences(old: Mapping[str, Any], new: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """In words, where settings differ that both have; those that one alone has are no difference.

    Settings of a data set or a model are a dict below its name, so that a file takes records of
    more of them later.
    """
    for name in sorted(old.keys() & new.keys()):
        a, b, here = old[name], new[name], f"{path}{name}"
        if isinstance(a, dict) and isinstance(b, dict):
            yield from differences(a, b, f"{here}.")
            if path:  # of one data set or model all must agree
                for extra in sorted(a.keys() ^ b.keys()):
                    yield f"{here}.{extra}: {a.get(extra)!r} there, {b.get(extra)!r} now"
        elif a != b:
            yield f"{here}: {a!r} there, {b!r} now"


def _merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(old)
    for name, value in new.items():
        both = isinstance(value, dict) and isinstance(old.get(name), dict)
        result[name] = _merged(old[name], value) if both else value
    return result


class Store:
    """Records of one program with one set of settings.

    Args:
        path: the file; it is made with the first record.
        settings: what all records share, JSON values: a dict of dicts by name for what holds for
            one data set or model alone.
        machine: where the records that are added come from.

    Raises:
        UserError: the file holds records of other settings or no records, or another process has
            it in use.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], machine: Mapping[str, Any]) -> None:
        self.path = path
        self._lock = self._locked(path)
        content: dict[str, Any] = {"settings": {}, "machines": [], "records": []}
        if path.exists():
            content = read_json(path)
            if not isinstance(content, dict) or "records" not in content:
                raise UserError(f"{path} holds no records")
        new = json.loads(json.dumps(settings))
        changed = list(differences(content["settings"], new))
        if changed:
            raise UserError(
                f"{path} holds records of other settings ({'; '.join(changed)}); "
                "write to another file, or move it away"
            )
        self._content = content
        self._content["settings"] = _merged(content["settings"], new)
        self._machine = dict(machine)
        self._done = {self._key(record) for record in content["records"]}

    @staticmethod
    def _locked(path: Path) -> Any:
        digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
        # Not beside the file, where it would stay; the file itself is replaced at every record.
        lock = (Path(tempfile.gettempdir()) / f"penstock-records-{digest}.lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.close()
            raise UserError(f"{path} is in use by another process") from error
        return lock

    @staticmethod
    def _key(record: Mapping[str, Any]) -> Key:
        return tuple(record[name] for name in KEY)

    @property
    def records(self) -> list[dict[str, Any]]:
        """All records, in the order in which they came."""
        return list(self._content["records"])

    def has(self, record: Mapping[str, Any]) -> bool:
        """Whether there is a record of the same key."""
        return self._key(record) in self._done

    def add(self, record: Mapping[str, Any]) -> None:
        """Write a record; once this returns, it stays."""
        if self.has(record):
            raise ValueError(f"record: expected a new one, got {self._key(record)} again")
        machines = self._content["machines"]
        if self._machine not in machines:
            machines.append(self._machine)
        entry = {**record, "machine": machines.index(self._machine)}
        self._content["records"].append(entry)
        self._done.add(self._key(record))
        self._write()

    def set(self, name: str, value: Any) -> None:
        """Write a value beside the records."""
        self._content[name] = value
        self._write()

    def get(self, name: str) -> Any:
        """What `set` wrote, or None."""
        return self._content.get(name)

    def close(self) -> None:
        """Let others have the file."""
        self._lock.close()

    def _write(self) -> None:
        head = {key: value for key, value in self._content.items() if key != "records"}
        text = json.dumps(head, indent=1, allow_nan=False).removesuffix("\n}")
        # A line a record: the file stays small, and a change of it can be read.
        lines = [json.dumps(record, allow_nan=False) for record in self._content["records"]]
        records = "[\n  " + ",\n  ".join(lines) + "\n ]" if lines else "[]"
        write_text_atomically(self.path, f'{text},\n "records": {records}\n}}\n')
