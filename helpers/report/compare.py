# SPDX-License-Identifier: MIT
"""What changed verdict between results: two kernels, two machines, or many."""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from helpers.report.files import InvalidResult
from helpers.report.ktap import one_line, printable
from helpers.report.renamed import ids_of
from helpers.report.result import Result
from helpers.report.verdicts import Verdict

_BAD = {Verdict.FAILED, Verdict.BROKEN}
_UNKNOWN = {Verdict.NOT_VERIFIED, Verdict.INCONCLUSIVE, Verdict.NOT_RUN}
SLOWER = 3.0
"""A duration is an outlier if it is this many times the other …"""
SECONDS = 0.5
"""… and differs by this many seconds at least."""

CHANGE_KINDS = (
    "broken", "no longer verified", "deviates now", "mended", "newly verified", "gone", "new",
    "other",
)  # fmt: skip
CODES = (None, *Verdict)
"""A verdict by the number that stands for it in a column; 0: not in that result."""
_NUMBERS = {verdict: number for number, verdict in enumerate(CODES)}
_VERIFIED = _NUMBERS[Verdict.VERIFIED]


def change_kind(was: Verdict | None, now: Verdict | None) -> str | None:
    """One of :data:`KINDS`, or None where the verdict is the same."""
    if was is now:
        return None
    if was is None:
        return "new"
    if now is None:
        return "gone"
    if now in _BAD:
        return "broken"
    if now in _UNKNOWN:
        return "no longer verified" if was not in _UNKNOWN else "other"
    if now is Verdict.DEVIATES:
        return "deviates now"
    if was in _UNKNOWN:
        return "newly verified"
    return "mended"


class Row(NamedTuple):
    """A behaviour across results: its verdict in each (None: absent there)."""

    id: str
    verdicts: tuple[Verdict | None, ...]


@dataclass
class Column:
    """What one result says of each behaviour, by the behaviour's place in the matrix."""

    label: str
    path: str
    complete: bool
    verdicts: bytearray = field(default_factory=bytearray)
    seconds: array[float] = field(default_factory=lambda: array("d"))
    reasons: dict[int, str] = field(default_factory=dict)

    def put(self, place: int, verdict: int, seconds: float) -> None:
        """Set the verdict of a place, beyond the end too."""
        lacking = place + 1 - len(self.verdicts)
        if lacking > 0:
            self.verdicts.extend(bytes(lacking))
            self.seconds.extend([0.0] * lacking)
        self.verdicts[place], self.seconds[place] = verdict, seconds


@dataclass
class Matrix:
    """Behaviours × results: nine bytes a cell, so that a thousand results fit in memory."""

    columns: list[Column] = field(default_factory=list)
    places: dict[str, int] = field(default_factory=dict)
    """Where each behaviour stands in every column."""
    runs: dict[str, str] = field(default_factory=dict)

    def add(self, result: Result) -> None:
        """Add a column. Raises :class:`Unreadable` for a run that is in it already, or is empty."""
        if result.id in self.runs:
            raise InvalidResult(
                f"{result.path} and {self.runs[result.id]}: two files of the same run"
            )
        if not result.encoded:
            raise InvalidResult(f"{result.path}: incomplete: it has no behaviours, none was run")
        self.runs[result.id] = str(result.path)
        column = Column(result.label, str(result.path), result.complete)
        self.columns.append(column)
        words: dict[str, str] = {}
        for row in result.rows():
            for name in ids_of(row.id):
                place = self.places.setdefault(name, len(self.places))
                column.put(place, _NUMBERS[row.verdict], row.duration)
                if row.reason:
                    reason = one_line(row.reason)[:200]
                    column.reasons[place] = words.setdefault(reason, reason)

    @property
    def labels(self) -> list[str]:
        """The columns' short names, each of which says whether its result is incomplete."""
        return [column.label for column in self.columns]

    def verdicts(self) -> list[bytes]:
        """The columns' numbers, all of one length."""
        return [bytes(c.verdicts).ljust(len(self.places), b"\0") for c in self.columns]

    def rows(self) -> Iterator[tuple[int, Row]]:
        """The place and the row of every behaviour, by id."""
        columns, places = self.verdicts(), self.places
        for name in sorted(places):
            place = places[name]
            yield place, Row(name, tuple([CODES[column[place]] for column in columns]))

    @property
    def lost(self) -> bool:
        """Something that the first result verified, a later one does not."""
        first, *others = self.verdicts()
        pairs = (pair for each in others for pair in zip(first, each))
        return any(was == _VERIFIED != now for was, now in pairs)

    def _differing(self) -> list[Row]:
        columns = self.verdicts()
        return sorted(
            (
                Row(name, tuple(CODES[number] for number in cells))
                for name, *cells in zip(self.places, *columns)
                if len({*cells}) > 1
            ),
            key=lambda row: row.id,
        )

    def text(self) -> str:
        """Columns numbered, a letter a verdict; only rows that differ, then a count."""
        lines = [f"{n}: {label}" for n, label in enumerate(self.labels, 1)] + ["", LEGEND, ""]
        rows = self._differing()
        for row in rows:
            marks = "".join(MARKS[v] if v else " " for v in row.verdicts)
            lines.append(f"{marks}  {one_line(row.id)}")
        every = len(self.places)
        lines.append(f"{every - len(rows)} of {every} behaviours have one verdict everywhere")
        return "\n".join(lines)

    def markdown(self) -> str:
        """A Markdown table, a line a result and a column a chapter.

        A cell is what was verified; behind it, where there are any, how many deviate (D), failed
        or could not be set up (F), were not verified, inconclusive or not run (N).
        """
        fold = {Verdict.BROKEN: "F", Verdict.FAILED: "F", Verdict.DEVIATES: "D"}
        # A parameter may hold a slash too.
        parts = (name.partition("::")[0].rsplit("/", 2)[-2:] for name in self.places)
        rooms = [part[0] if len(part) > 1 else "other" for part in parts]
        tables: list[dict[str, Counter[str]]] = []
        for column in self.columns:
            table: dict[str, Counter[str]] = {}
            for (chapter, number), count in Counter(zip(rooms, column.verdicts)).items():
                if verdict := CODES[number]:
                    letter = "" if verdict is Verdict.VERIFIED else fold.get(verdict, "N")
                    for each in (chapter, "total"):
                        table.setdefault(each, Counter())[letter] += count
            tables.append(table)
        chapters = [*sorted({c for t in tables for c in t} - {"total"}), "total"]
        lines = [
            "| kernel | " + " | ".join(map(_cell, chapters)) + " |",
            "|---" * (len(chapters) + 1) + "|",
        ]
        for label, table in zip(self.labels, tables):
            cells = [
                " ".join([str(counts[""]), *(f"{n}{x}" for x in "DFN" if (n := counts[x]))])
                if (counts := table.get(chapter))
                else ""
                for chapter in chapters
            ]
            lines.append(f"| {_cell(label)} | " + " | ".join(cells) + " |")
        legend = "verified; D deviates, F failed, N not verified (or inconclusive, or not run)"
        return "\n".join([*lines, "", legend])

    def as_json(self) -> str:
        """Every behaviour with its verdicts, in the order of ``results``."""
        value = {
            "results": self.labels,
            "complete": [column.complete for column in self.columns],
            "behaviours": {row.id: row.verdicts for _, row in self.rows()},
        }
        return json.dumps(value)


@dataclass(frozen=True)
class Change:
    """One behaviour whose verdict differs between two results (None: not in that one)."""

    kind: str
    id: str
    before: Verdict | None
    after: Verdict | None
    reason: str


@dataclass(frozen=True)
class Comparison:
    """Two results side by side."""

    before: Column
    after: Column
    lost: bool
    """Something that was verified no longer is."""
    same: int
    """Behaviours that are in both."""
    changes: list[Change] = field(default_factory=list)
    outliers: list[tuple[str, float, float]] = field(default_factory=list)


def compare_pair(matrix: Matrix) -> Comparison:
    """Compare the two results of a matrix."""
    before, after = matrix.columns
    both = matrix.verdicts()
    absent = sum(not (was and now) for was, now in zip(*both))
    found = Comparison(before, after, matrix.lost, len(matrix.places) - absent)
    for place, (name, was, now) in enumerate(zip(matrix.places, *both)):
        if was != now:
            old, new = CODES[was], CODES[now]
            reason = after.reasons.get(place) or before.reasons.get(place, "")
            found.changes.append(Change(change_kind(old, new) or "", name, old, new, reason))
        if was and now:
            a, b = before.seconds[place], after.seconds[place]
            if abs(a - b) >= SECONDS and max(a, b) >= SLOWER * min(a, b):
                found.outliers.append((name, a, b))
    found.changes.sort(key=lambda c: (CHANGE_KINDS.index(c.kind), c.id))
    found.outliers.sort()
    return found


def _verdict(verdict: Verdict | None) -> str:
    return verdict.value if verdict else "-"


def text(found: Comparison) -> str:
    """A comparison for a person at a terminal."""
    lines = [f"{found.before.label}  ->  {found.after.label}"]
    for column in (found.before, found.after):
        if not column.complete:
            lines.append(
                f"{printable(column.path)}: incomplete; it holds what was found out by then"
            )
    for what in CHANGE_KINDS:
        rows = [c for c in found.changes if c.kind == what]
        if rows:
            lines.append(f"\n{what} ({len(rows)}):")
        for c in rows:
            lines.append(f"  {one_line(c.id)}: {_verdict(c.before)} -> {_verdict(c.after)}")
            if c.reason:
                lines.append(f"      {c.reason}")
    if found.outliers:
        lines.append(f"\nduration outliers ({len(found.outliers)}):")
        lines += [f"  {one_line(n)}: {a:.2f} s -> {b:.2f} s" for n, a, b in found.outliers]
    if not found.changes:
        lines.append(f"no verdict changed ({found.same} behaviours)")
    return "\n".join(lines)


def _cell(value: str) -> str:
    return one_line(value).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def markdown(found: Comparison) -> str:
    """A comparison as Markdown tables."""
    lines = [f"## {_cell(found.before.label)} → {_cell(found.after.label)}", ""]
    if found.changes:
        lines += ["| change | behaviour | before | after | reason |", "|---|---|---|---|---|"]
        lines += [
            f"| {c.kind} | {_cell(c.id)} | {_verdict(c.before)} | {_verdict(c.after)} "
            f"| {_cell(c.reason)} |"
            for c in found.changes
        ]
    else:
        lines.append("No verdict changed.")
    if found.outliers:
        lines += ["", "| duration outlier | before (s) | after (s) |", "|---|---|---|"]
        lines += [f"| {_cell(n)} | {a:.2f} | {b:.2f} |" for n, a, b in found.outliers]
    return "\n".join(lines)


def as_json(found: Comparison) -> str:
    """A comparison for machines."""
    value: dict[str, Any] = {
        **{
            name: {"label": column.label, "path": column.path, "complete": column.complete}
            for name, column in (("before", found.before), ("after", found.after))
        },
        "lost": found.lost,
        "changes": [
            {
                "kind": c.kind, "id": c.id, "before": _verdict(c.before),
                "after": _verdict(c.after), "reason": c.reason,
            }
            for c in found.changes
        ],
        "duration_outliers": [
            {"id": n, "before": a, "after": b} for n, a, b in found.outliers
        ],
    }  # fmt: skip
    return json.dumps(value, indent=1)


MARKS = {
    Verdict.VERIFIED: "+", Verdict.DEVIATES: "D", Verdict.FAILED: "F", Verdict.BROKEN: "B",
    Verdict.INCONCLUSIVE: "?", Verdict.NOT_VERIFIED: ".", Verdict.NOT_RUN: "-",
}  # fmt: skip
LEGEND = (
    "  ".join(f"{mark} {verdict.value}" for verdict, mark in MARKS.items()) + "  (blank) absent"
)
