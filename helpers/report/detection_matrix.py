# SPDX-License-Identifier: MIT
"""Who notices which fault: ``matrix.json``, its table, and what it is worth.

``matrix.json``, which is also what a result carries as ``sensitivity``::

    {"format": 3, "kernel": RELEASE, "architecture", "page_size", "seconds": 512.3,
     "command": [...], "all": true,
     "faults": {NAME: {"chapter", "statement", "noticed_by": [TEST], "mechanism"}},
     "cases": {NODE ID: {"chapter", "baseline", "seconds"}},
     "cells": {NAME: {OUTCOME: [PLACE IN cases]}},
     "problems": [TEXT]}

``baseline`` is the verdict under the supervisor without a fault (``held``, ``deviates``,
``failed``, ``not verified``); only the first is run under faults: a case that deviates is broken
by the kernel itself. ``seconds`` is what all runs of a case took. ``cells`` has the pairs in
which the fault would have acted: ``noticed``, ``missed``, ``inconclusive``, ``unreached`` (it
did not act after all), ``not run`` (the case had had its time). Format 2 named one test, or its
file, a fault.
Without ``all`` only the faults named were tried, and that they do not break a case says nothing.

In memory ``cells`` is {NAME: {NODE ID: OUTCOME}} (:func:`packed`, :func:`unpacked`).
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from helpers import syscalls
from helpers.machine import kernel_version
from helpers.report.files import InvalidResult, inside, replaced_file
from helpers.report.ktap import printable

PROPERTY = "fault-matrix"
DETECTED, UNDETECTED, INCONCLUSIVE, NOT_REACHED = "noticed", "missed", "inconclusive", "unreached"
UNRUN = "not run"
RAN = (DETECTED, UNDETECTED, INCONCLUSIVE)
PASSED, DEVIATES, FORMAT = "held", "deviates", 3
SOUND = (PASSED, DEVIATES)


CELLS = {"failed": DETECTED, "passed": UNDETECTED, "skipped": INCONCLUSIVE}
"""What a case made of a fault, by its outcome."""


def baseline(reports: Sequence[Any]) -> str:
    """What a case came to without a fault."""
    if any(r.failed for r in reports):
        return "failed"
    if any(hasattr(r, "wasxfail") for r in reports):
        return DEVIATES
    return "not verified" if any(r.skipped for r in reports) else PASSED


@dataclass
class Matrix:
    """Gathered case by case, then written.

    ``faults``: those that cases are run under, by name, as ``matrix.json`` has them; ``all``:
    there are no others.
    """

    faults: dict[str, dict[str, Any]]
    all: bool
    cases: dict[str, dict[str, Any]] = field(default_factory=dict)
    cells: dict[str, dict[str, str]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    begun: float = field(default_factory=time.time)

    def add(self, node: str, reports: Sequence[Any]) -> None:
        """A case's reports, the last of which carries its row."""
        chapter = next(
            (str(v) for r in reports for n, v in r.user_properties if n == "chapter"), ""
        )
        self.cases[node] = {"chapter": chapter, "baseline": baseline(reports)}
        detects = {str(v) for r in reports for n, v in r.user_properties if n == "detects"}
        for fault in "; ".join(detects).split("; "):
            tests = self.faults.get(fault, {}).get("noticed_by", [])
            if (test := node.partition("[")[0]) not in tests and fault in self.faults:
                tests.append(test)
        for report in reports:
            for name, value in report.user_properties:
                if name == PROPERTY:
                    row = json.loads(str(value))
                    self.cases[node]["seconds"] = row["seconds"]
                    self.problems += [f"{node}: {text}" for text in row["problems"]]
                    for fault, seen in row["cells"].items():
                        self.cells.setdefault(fault, {})[node] = seen

    def data(self) -> dict[str, Any]:
        """The content of matrix.json."""
        return {
            "format": FORMAT,
            "kernel": kernel_version.release(),
            "architecture": syscalls.architecture(),
            "page_size": syscalls.PAGE,
            "seconds": round(time.time() - self.begun, 1),
            "command": sys.argv[1:],
            "all": self.all,
            "faults": self.faults,
            "cases": self.cases,
            "cells": self.cells,
            "problems": self.problems,
        }  # fmt: skip


def packed(data: Mapping[str, Any]) -> dict[str, Any]:
    """A matrix as it is kept: cells by outcome, their cases by number."""
    place = {node: number for number, node in enumerate(data["cases"])}
    cells: dict[str, dict[str, list[int]]] = {}
    for fault, row in data["cells"].items():
        kept = cells.setdefault(fault, {})
        for node, seen in row.items():
            kept.setdefault(seen, []).append(place[node])
    return {**data, "cells": cells}


def unpacked(data: Mapping[str, Any], path: Path | None = None) -> dict[str, Any]:
    """The reverse. Raises ValueError for a place that no case has (``path``: of which file)."""
    nodes = list(data["cases"])
    try:
        cells = {
            fault: {nodes[n]: seen for seen, numbers in row.items() for n in numbers}
            for fault, row in data["cells"].items()
        }
    except IndexError:
        raise InvalidResult(f"{path}: a cell of a case that is not in the fault matrix") from None
    faults = {
        name: fault | {"noticed_by": [by] if isinstance(by := fault["noticed_by"], str) else by}
        for name, fault in data["faults"].items()
    }
    return {**data, "faults": faults, "cells": cells}


def origin(data: Mapping[str, Any]) -> tuple[str, str, int]:
    """Kernel, architecture and page size that a matrix was made on."""
    return data["kernel"], data["architecture"], data["page_size"]


def write(data: Mapping[str, Any], folder: Path) -> None:
    """Write matrix.json and matrix.md. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (("json", json.dumps(packed(data)) + "\n"), ("md", table(data))):
        with replaced_file(folder / f"matrix.{name}") as file:
            file.write(text)


def deviates(data: Mapping[str, Any], node: str) -> bool:
    """The case fails by itself on this kernel, which is known to deviate there."""
    return bool(data["cases"][node]["baseline"] == DEVIATES)


def expected_in(fault: Mapping[str, Any], node: str) -> bool:
    """The case says by the mark ``detects`` that it detects the fault."""
    return any(name in node for name in fault["noticed_by"])


def merge(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Matrices of several chapters as one; a later part replaces the cases it has.

    Raises Unreadable for parts of different kernels.
    """
    if other := next((origin(p) for p in parts if origin(p) != origin(parts[0])), None):
        raise InvalidResult(f"parts of {origin(parts[0])} and of {other}: not the same kernel")
    whole: dict[str, Any] = {"cases": {}, "cells": {}, "problems": []}
    tests: dict[str, set[str]] = {}
    seconds = 0.0
    for part in parts:
        for cells in whole["cells"].values():
            for node in part["cases"]:
                cells.pop(node, None)
        whole["cases"].update(part["cases"])
        for name, fault in part["faults"].items():
            tests.setdefault(name, set()).update(fault["noticed_by"])
        for fault, cells in part["cells"].items():
            whole["cells"].setdefault(fault, {}).update(cells)
        whole["problems"] += part["problems"]
        seconds += part["seconds"]
        whole |= {
            k: part[k]
            for k in ("format", "kernel", "architecture", "page_size", "command", "all", "faults")
        }
    whole["seconds"] = round(seconds, 1)
    whole["faults"] = {
        name: fault | {"noticed_by": sorted(tests[name])} for name, fault in whole["faults"].items()
    }
    return whole


@dataclass(frozen=True)
class Sensitivity:
    """What a matrix says in numbers.

    ``faults`` could act in a case, ``noticed`` of them were noticed by at least one; ``expected``
    by the case whose statement they break. ``cases`` held without a fault; ``shown`` of them
    failed under one, ``controlled`` are known to fail otherwise, ``unshown`` are neither.
    ``unnoticed``, ``unexpected`` (noticed, but not where expected) and ``idle`` (no case let it
    act) are faults whose expected case held without a fault: a part of the suite is not blamed
    for what another part would have noticed.
    """

    faults: int
    noticed: int
    expected: int
    cases: int
    shown: int
    controlled: int
    unnoticed: tuple[str, ...]
    unexpected: tuple[str, ...]
    idle: tuple[str, ...]
    unshown: tuple[str, ...]

    @property
    def whole(self) -> bool:
        """Every fault was noticed where it should be, every case shown able to fail."""
        return not (self.unnoticed or self.unexpected or self.idle or self.unshown)


def load(path: Path) -> dict[str, Any]:
    """The content of a matrix.json, or of the one in a folder.

    Raises Unreadable; ModuleNotFoundError without msgspec (dependency group ``report``).
    """

    from helpers.report import reader  # msgspec

    path = inside(path, "matrix.json", f"pytest --fault-matrix={path}")
    return unpacked(reader.matrix(path), path)


def detected_by(data: Mapping[str, Any]) -> dict[str, set[str]]:
    """Each fault's cases that noticed it."""
    return {f: {n for n, s in row.items() if s == DETECTED} for f, row in data["cells"].items()}


def count(data: Mapping[str, Any]) -> Sensitivity:
    """Count a matrix (:func:`load`)."""
    cases = [n for n, row in data["cases"].items() if row["baseline"] in SOUND]
    held = [n for n in cases if data["cases"][n]["baseline"] == PASSED]
    who = detected_by(data)
    told: dict[str, list[str]] = {k: [] for k in ("idle", "unnoticed", "unexpected", "expected")}
    reached = 0
    for name, fault in data["faults"].items():
        acted = any(seen in RAN for seen in data["cells"].get(name, {}).values())
        reached += acted
        if any(expected_in(fault, node) for node in who.get(name, ())):
            told["expected"].append(name)
        elif not acted and any(f": {name}: " in text for text in data["problems"]):
            continue  # it cannot be told here, and that is said
        elif any(expected_in(fault, node) for node in held):
            told["unexpected" if who.get(name) else "unnoticed" if acted else "idle"].append(name)
    shown = set().union(*who.values()) & set(cases)
    rest = [n for n in cases if n not in shown]
    return Sensitivity(
        reached, sum(map(bool, who.values())), len(told["expected"]), len(cases), len(shown),
        sum(deviates(data, n) for n in rest),
        tuple(told["unnoticed"]), tuple(told["unexpected"]), tuple(told["idle"]),
        tuple(n for n in rest if not deviates(data, n)) if data["all"] else (),
    )  # fmt: skip


def chapters(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    """By chapter: its faults that acted and were noticed, its cases shown, controlled, left."""
    found = count(data)
    who = detected_by(data)
    shown = set().union(*who.values())
    rows = []
    for chapter in sorted({row["chapter"] for row in data["cases"].values()}):
        mine = [
            f for f, row in data["faults"].items()
            if row["chapter"] == chapter
            and any(seen in RAN for seen in data["cells"].get(f, {}).values())
        ]  # fmt: skip
        nodes = [n for n, row in data["cases"].items()
                 if row["chapter"] == chapter and row["baseline"] in SOUND]  # fmt: skip
        rows.append(
            {"chapter": chapter, "faults": len(mine), "noticed": sum(bool(who[f]) for f in mine),
             "cases": len(nodes), "shown": sum(n in shown for n in nodes),
             "controlled": sum(deviates(data, n) and n not in shown for n in nodes),
             "unshown": sum(n in found.unshown for n in nodes)}
        )  # fmt: skip
    return rows


COLUMNS = ("faults", "noticed", "cases", "shown", "controlled", "unshown")


def summary(data: Mapping[str, Any]) -> list[str]:
    """What it is worth: a sentence, and a line a chapter."""
    found = count(data)
    seen = Counter(s for row in data["cells"].values() for s in row.values())
    ran, left = sum(seen[s] for s in RAN), seen[UNRUN]
    text = [
        f"faults {found.faults}, noticed {found.noticed}, by the case whose statement they break "
        f"{found.expected}; cases {found.cases}, shown able to fail {found.shown}, "
        f"by a control of their own {found.controlled}",
        f"pairs {ran}, and {left} that were not run (--fault-budget); "
        f"{data['seconds'] / 60:.1f} minutes",
        f"{'chapter':12}" + "".join(f"{name:>12}" for name in COLUMNS),
    ]
    return text + [
        f"{row['chapter']:12}" + "".join(f"{row[name]:>12}" for name in COLUMNS)
        for row in chapters(data)
    ]


def lines(data: Mapping[str, Any]) -> list[str]:
    """The summary, and everything that is left over."""
    found = count(data)
    text = summary(data)
    text += [f"noticed by nobody: {name}" for name in found.unnoticed]
    text += [
        f"noticed, but not by {' or '.join(data['faults'][f]['noticed_by'])}: {f}"
        for f in found.unexpected
    ]
    text += [f"no case let it act: {name}" for name in found.idle]
    text += [f"not broken by any fault: {node}" for node in found.unshown]
    failed = [n for n, row in data["cases"].items() if row["baseline"] == "failed"]
    text += [f"failed without a fault: {node}" for node in failed]
    text += [f"a fault could not be told: {line}" for line in data["problems"]]
    return list(map(printable, text))


def broken_by(data: Mapping[str, Any]) -> dict[str, int]:
    """How many faults each case noticed; only those that noticed one."""
    return dict(Counter(node for nodes in detected_by(data).values() for node in nodes))


def rows(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row a fault: in how many cases it acted, how many noticed, and which of them first."""
    who = detected_by(data)
    found = []
    for name, fault in data["faults"].items():
        noticed = sorted(who.get(name, ()))
        first = next((n for n in noticed if expected_in(fault, n)), "")
        found.append(
            {"name": name, **fault, "noticed": len(noticed), "expected": bool(first),
             "first": first or (noticed[0] if noticed else ""),
             "acted": sum(s in RAN for s in data["cells"].get(name, {}).values())}
        )  # fmt: skip
    return found


def table(data: Mapping[str, Any]) -> str:
    """The matrix as a page of Markdown: a row a fault, then what is left over."""
    found = count(data)
    text = [
        "# Who notices which fault", "",
        f"Kernel {data['kernel']}, {data['seconds'] / 60:.1f} minutes.", "",
        "```", *summary(data), "```", "",
        "| fault | statement | reached | noticed by | expected in |",
        "|---|---|---|---|---|",
    ]  # fmt: skip
    for row in rows(data):
        more = f" and {row['noticed'] - 1} more" if row["noticed"] > 1 else ""
        first = row["first"].removeprefix("tests/")
        seen = f"`{first}`{more}" if first else "**nobody**" if row["acted"] else "–"
        text.append(
            f"| {row['name']} | {row['statement'].replace('|', chr(92) + '|')} | {row['acted']} "
            f"| {seen} | {', '.join(n.removeprefix('tests/') for n in row['noticed_by'])} |"
        )
    text += ["", "## Cases that no fault breaks", ""]
    text += [f"- `{node}`" for node in found.unshown] or ["None."]
    text += ["", "## Cases that deviate here", ""]
    text += [f"- `{n}`" for n in data["cases"] if deviates(data, n)] or ["None."]
    return "\n".join(map(printable, text)) + "\n"
