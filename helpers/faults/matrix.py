"""Who notices which fault: ``matrix.json``, its table, and what it is worth.

``matrix.json``::

    {"format": 1, "kernel": RELEASE, "seconds": 512.3, "command": [...],
     "faults": {NAME: {"chapter", "statement", "noticed_by", "mechanism"}},
     "cases": {NODE ID: {"chapter", "baseline"}},
     "cells": {NAME: {NODE ID: "noticed" | "missed" | "inconclusive" | "unreached"}},
     "controls": {NODE ID: REASON},
     "problems": [TEXT]}

``baseline`` is the verdict under the supervisor without a lie (``held``, ``deviates``,
``failed``, ``not verified``); only the first is run under faults: a case that deviates is broken
by the kernel itself. ``cells`` has the pairs that were run: the fault would have acted
in that case. ``controls`` are the cases shown able to fail in another way (:data:`CONTROLS`).
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from helpers.faults.catalogue import FAULTS
from helpers.faults.controls import CONTROLS

PROPERTY = "fault-matrix"
NOTICED, MISSED, INCONCLUSIVE, UNREACHED = "noticed", "missed", "inconclusive", "unreached"
HELD, DEVIATES, FORMAT = "held", "deviates", 1
SOUND = (HELD, DEVIATES)


CELLS = {"failed": NOTICED, "passed": MISSED, "skipped": INCONCLUSIVE}
"""What a case made of a fault, by its outcome."""


def baseline(reports: Sequence[Any]) -> str:
    """What a case came to without a lie."""
    if any(r.failed for r in reports):
        return "failed"
    if any(hasattr(r, "wasxfail") for r in reports):
        return DEVIATES
    return "not verified" if any(r.skipped for r in reports) else HELD


@dataclass
class Matrix:
    """Gathered case by case, then written."""

    cases: dict[str, dict[str, str]] = field(default_factory=dict)
    cells: dict[str, dict[str, str]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    begun: float = field(default_factory=time.time)

    def add(self, node: str, reports: Sequence[Any]) -> None:
        """A case's reports, the last of which carries its row."""
        chapter = next(
            (str(v) for r in reports for n, v in r.user_properties if n == "chapter"), ""
        )
        self.cases[node] = {"chapter": chapter, "baseline": baseline(reports)}
        for report in reports:
            for name, value in report.user_properties:
                if name == PROPERTY:
                    row = json.loads(str(value))
                    self.problems += [f"{node}: {text}" for text in row["problems"]]
                    for fault, seen in row["cells"].items():
                        self.cells.setdefault(fault, {})[node] = seen

    def data(self) -> dict[str, Any]:
        """The content of matrix.json."""
        return {
            "format": FORMAT,
            "kernel": os.uname().release,
            "seconds": round(time.time() - self.begun, 1),
            "command": sys.argv[1:],
            "faults": {
                f.name: {"chapter": f.chapter, "statement": f.statement,
                         "noticed_by": f.noticed_by, "mechanism": f.mechanism}
                for f in FAULTS.values()
            },
            "cases": self.cases,
            "cells": self.cells,
            "controls": {
                n: why for n, row in self.cases.items() if (why := control(n, row["baseline"]))
            },
            "problems": self.problems,
        }  # fmt: skip

    def summary(self) -> list[str]:
        """Lines for the terminal."""
        return lines(self.data())


def write(data: Mapping[str, Any], folder: Path) -> None:
    """Write matrix.json and matrix.md. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "matrix.json").write_text(json.dumps(data, indent=1) + "\n")
    (folder / "matrix.md").write_text(table(data))


def control(node: str, baseline: str = HELD) -> str:
    """Why a case that no fault breaks is known to be able to fail ("" if it is not)."""
    if baseline == DEVIATES:
        return "fails by itself on this kernel, which is known to deviate here"
    return next((why for name, why in CONTROLS.items() if name in node), "")


def merge(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Matrices of several chapters as one; a later part replaces the cases it has."""
    whole: dict[str, Any] = {"cases": {}, "cells": {}, "controls": {}, "problems": []}
    seconds = 0.0
    for part in parts:
        for cells in whole["cells"].values():
            for node in part["cases"]:
                cells.pop(node, None)
        for key in ("cases", "controls"):
            whole[key].update(part[key])
        for fault, cells in part["cells"].items():
            whole["cells"].setdefault(fault, {}).update(cells)
        whole["problems"] += part["problems"]
        seconds += part["seconds"]
        whole |= {k: part[k] for k in ("format", "kernel", "command", "faults")}
    whole["seconds"] = round(seconds, 1)
    return whole


@dataclass(frozen=True)
class Worth:
    """What a matrix says in numbers.

    ``faults`` were in reach of a case, ``noticed`` of them by at least one case; ``expected`` by
    the case whose statement they break. ``cases`` held without a fault; ``shown`` of them failed
    under one, ``controlled`` are known to fail otherwise, ``unshown`` are neither. ``unnoticed``
    and ``unexpected`` (noticed, but not where expected) are faults whose expected case was run;
    ``unreached`` are those that no case gave the chance to act.
    """

    faults: int
    noticed: int
    expected: int
    cases: int
    shown: int
    controlled: int
    unnoticed: tuple[str, ...]
    unexpected: tuple[str, ...]
    unreached: tuple[str, ...]
    unshown: tuple[str, ...]
    kernel: str
    seconds: float


def load(path: Path) -> dict[str, Any]:
    """The content of a matrix.json. Raises ValueError for another format, OSError."""
    data: dict[str, Any] = json.loads(path.read_text())
    if data.get("format") != FORMAT:
        raise ValueError(f"{path} is no matrix of format {FORMAT}")
    return data


def worth(data: Mapping[str, Any]) -> Worth:
    """Count a matrix (:func:`load`)."""
    cells: Mapping[str, Mapping[str, str]] = data["cells"]
    reached = {f: {n for n, s in row.items() if s != UNREACHED} for f, row in cells.items()}
    noticed = {f: {n for n, s in row.items() if s == NOTICED} for f, row in cells.items()}
    faults = [f for f in data["faults"] if reached.get(f)]
    by_one = [f for f in faults if noticed[f]]
    expected = [f for f in by_one
                if any(data["faults"][f]["noticed_by"] in n for n in noticed[f])]  # fmt: skip
    # A part of the suite cannot be blamed for what another part would have noticed.
    there = {f for f in faults if any(data["faults"][f]["noticed_by"] in n for n in data["cases"])}
    cases = [n for n, row in data["cases"].items() if row["baseline"] in SOUND]
    shown = set().union(*noticed.values()) if noticed else set()
    rest = [n for n in cases if n not in shown]
    return Worth(
        len(faults), len(by_one), len(expected), len(cases), len(cases) - len(rest),
        sum(n in data["controls"] for n in rest),
        tuple(f for f in faults if not noticed[f] and f in there),
        tuple(f for f in by_one if f in there and f not in expected),
        tuple(f for f in data["faults"] if not reached.get(f)),
        tuple(n for n in rest if n not in data["controls"]),
        data["kernel"], data["seconds"],
    )  # fmt: skip


def lines(data: Mapping[str, Any]) -> list[str]:
    """The matrix in a few lines."""
    found = worth(data)
    chapters = sorted({row["chapter"] for row in data["cases"].values()})
    text = [
        f"faults {found.faults}, noticed {found.noticed}, by the case whose statement they break "
        f"{found.expected}; cases {found.cases}, shown able to fail {found.shown}, "
        f"by a control of their own {found.controlled}; {found.seconds / 60:.1f} minutes",
        f"{'chapter':12}{'faults':>8}{'noticed':>9}{'cases':>8}{'shown':>8}{'unshown':>9}",
    ]
    unshown = set(found.unshown)
    shown = {n for row in data["cells"].values() for n, s in row.items() if s == NOTICED}
    for chapter in chapters:
        mine = [f for f in data["faults"] if data["faults"][f]["chapter"] == chapter
                and f not in found.unreached]  # fmt: skip
        nodes = [n for n, row in data["cases"].items()
                 if row["chapter"] == chapter and row["baseline"] in SOUND]  # fmt: skip
        text.append(
            f"{chapter:12}{len(mine):>8}{sum(f not in found.unnoticed for f in mine):>9}"
            f"{len(nodes):>8}{sum(n in shown for n in nodes):>8}"
            f"{sum(n in unshown for n in nodes):>9}"
        )
    text += [f"noticed by nobody: {name}" for name in found.unnoticed]
    text += [
        f"noticed, but not by {data['faults'][f]['noticed_by']}: {f}" for f in found.unexpected
    ]
    text += [f"not broken by any fault: {node}" for node in found.unshown]
    failed = [n for n, row in data["cases"].items() if row["baseline"] == "failed"]
    text += [f"failed without a fault: {node}" for node in failed]
    text += [f"a fault could not be told: {line}" for line in data["problems"]]
    return text


def table(data: Mapping[str, Any]) -> str:
    """The matrix as a page of Markdown: a row a fault, then what is left over."""
    found = worth(data)
    text = [
        "# Who notices which fault", "",
        f"Kernel {data['kernel']}, {found.seconds / 60:.1f} minutes.", "",
        "```", *lines(data)[:2 + len({r['chapter'] for r in data['cases'].values()})], "```", "",
        "| fault | statement | reached | noticed by | expected in |",
        "|---|---|---|---|---|",
    ]  # fmt: skip
    for name, fault in data["faults"].items():
        row = data["cells"].get(name, {})
        who = sorted(n for n, s in row.items() if s == NOTICED)
        ran = sum(s != UNREACHED for s in row.values())
        first = next((n for n in who if fault["noticed_by"] in n), who[0] if who else "")
        more = f" and {len(who) - 1} more" if len(who) > 1 else ""
        seen = f"`{first.removeprefix('tests/')}`{more}" if who else "**nobody**" if ran else "–"
        text.append(
            f"| {name} | {fault['statement'].replace('|', chr(92) + '|')} | {ran} | {seen} "
            f"| {fault['noticed_by']} |"
        )
    text += ["", "## Cases that no fault breaks", ""]
    text += [f"- `{node}`" for node in found.unshown] or ["None."]
    text += ["", "## Cases with a control of their own", ""]
    text += [f"- `{node}`: {why}" for node, why in data["controls"].items()] or ["None."]
    return "\n".join(text) + "\n"
