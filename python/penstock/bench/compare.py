"""Two results beside each other."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Any

from penstock.bench.machine import differences
from penstock.bench.peers import OURS_KEY
from penstock.bench.results import row_key
from penstock.bench.runner import threads_in_words
from penstock.training.errors import UserError

FASTER, SLOWER, SAME = "faster", "slower", "level"


@dataclass
class Change:
    """One contender in one case, then and now."""

    label: str
    threads: int
    key: str
    name: str
    old: dict[str, Any]
    new: dict[str, Any]

    @property
    def ratio(self) -> float:
        """New time over old."""
        return float(self.new["ms"] / self.old["ms"])

    @property
    def verdict(self) -> str:
        """Whether the quartiles lie apart."""
        if self.new["high"] < self.old["low"]:
            return FASTER
        return SLOWER if self.new["low"] > self.old["high"] else SAME


@dataclass
class Comparison:
    """What two results have in common, and what not."""

    changes: list[Change] = field(default_factory=list)
    only_old: list[str] = field(default_factory=list)
    only_new: list[str] = field(default_factory=list)
    #: How the machines differ, in words; empty if they are one.
    machines: list[str] = field(default_factory=list)
    #: Other versions, instruction sets and so on, in words.
    versions: list[str] = field(default_factory=list)
    #: Failed in the new result but not in the old one.
    broken: list[str] = field(default_factory=list)

    @property
    def drift(self) -> float | None:
        """Median ratio of the peers, which did not change: what the machine itself did.

        None if there are none, or if one of their versions changed.
        """
        ratios = [c.ratio for c in self.changes if not c.key.startswith(OURS_KEY)]
        return statistics.median(ratios) if ratios else None


def compare(old: dict[str, Any], new: dict[str, Any], across: bool = False) -> Comparison:
    """Compare two results, row by row.

    Args:
        across: allow results of different machines.

    Raises:
        UserError: the machines differ and ``across`` is false, the devices differ, or the results
            have nothing in common.
    """
    devices = old["settings"]["device"], new["settings"]["device"]
    if devices[0] != devices[1] and not across:
        raise UserError(f"the results are of different devices, {' and '.join(devices)}: "
                        "--across compares them all the same")  # fmt: skip
    machines = differences(old["machine"], new["machine"])
    if machines and not across:
        raise UserError(
            f"the results are of different machines ({'; '.join(machines)}), whose times say "
            "nothing about a change of the code: --across compares them all the same"
        )
    found = Comparison(machines=machines)
    before, now = (
        {**data["machine"].get("versions", {}), **data["machine"].get("penstock", {})}
        for data in (old, new)
    )
    for name in sorted({*before, *now}):
        if before.get(name) != now.get(name):
            found.versions.append(f"{name}: {before.get(name)} → {now.get(name)}")
    old_rows = {row_key(row): row for row in old["rows"]}
    new_rows = {row_key(row): row for row in new["rows"]}
    for key, row in new_rows.items():
        where = f"{key[0]}, {threads_in_words(key[1])}"
        if key not in old_rows:
            found.only_new.append(where)
            continue
        then, times = old_rows[key].get("times", {}), row.get("times", {})
        if then and not times:
            found.broken.append(f"{where}: {row.get('failed', 'no times')}")
        for who, time in times.items():
            if who in then:
                found.changes.append(Change(key[0], key[1], who, time["name"], then[who], time))
            else:
                found.only_new.append(f"{where}: {time['name']}")
        found.only_old += [
            f"{where}: {time['name']}" for who, time in then.items() if times and who not in times
        ]
    found.only_old += [f"{k[0]}, {threads_in_words(k[1])}" for k in old_rows if k not in new_rows]
    if not found.changes and not found.broken:
        raise UserError("the results have no case in common")
    return found
