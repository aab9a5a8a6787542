"""What changed verdict between results: two kernels, two machines, or many."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from helpers.report.formats import plain
from helpers.report.result import Result, Unreadable
from helpers.report.verdicts import Behaviour, Verdict

_BAD = {Verdict.FAILED, Verdict.BROKEN}
_UNKNOWN = {Verdict.NOT_VERIFIED, Verdict.INCONCLUSIVE, Verdict.NOT_RUN}
SLOWER = 3.0
"""A duration is an outlier if it is this many times the other …"""
SECONDS = 0.5
"""… and differs by this many seconds at least."""

KINDS = (
    "broken", "no longer verified", "deviates now", "mended", "newly verified", "gone", "new",
    "other",
)  # fmt: skip


@dataclass(frozen=True)
class Change:
    """One behaviour whose verdict differs between two results (None: not in that one)."""

    kind: str
    id: str
    before: Behaviour | None
    after: Behaviour | None


@dataclass(frozen=True)
class Comparison:
    """Two results side by side."""

    before: Result
    after: Result
    changes: list[Change] = field(default_factory=list)
    outliers: list[tuple[str, float, float]] = field(default_factory=list)

    @property
    def lost(self) -> bool:
        """Something that was verified no longer is."""
        return any(
            c.before is not None
            and c.before.verdict is Verdict.VERIFIED
            and (c.after is None or c.after.verdict is not Verdict.VERIFIED)
            for c in self.changes
        )


def kind(before: Behaviour | None, after: Behaviour | None) -> str | None:
    """One of :data:`KINDS`, or None where the verdict is the same."""
    if before is None:
        return "new"
    if after is None:
        return "gone"
    was, now = before.verdict, after.verdict
    if was is now:
        return None
    if now in _BAD:
        return "broken"
    if now in _UNKNOWN:
        return "no longer verified" if was not in _UNKNOWN else "other"
    if now is Verdict.DEVIATES:
        return "deviates now"
    if was in _UNKNOWN:
        return "newly verified"
    return "mended"


def two(before: Result, after: Result) -> Comparison:
    """Compare two results. Raises :class:`Unreadable` if both are one and the same run."""
    if before.id == after.id:
        raise Unreadable(f"{before.path} and {after.path}: two files of the same run")
    found = Comparison(before, after)
    for name in sorted({*before.behaviours, *after.behaviours}):
        old, new = before.behaviours.get(name), after.behaviours.get(name)
        what = kind(old, new)
        if what:
            found.changes.append(Change(what, name, old, new))
        if old and new and abs(old.duration - new.duration) >= SECONDS:
            low, high = sorted((old.duration, new.duration))
            if high >= SLOWER * low:
                found.outliers.append((name, old.duration, new.duration))
    found.changes.sort(key=lambda c: (KINDS.index(c.kind), c.id))
    return found


def _verdict(b: Behaviour | None) -> str:
    return b.verdict.value if b is not None else "-"


def _reason(c: Change) -> str:
    told = c.after if c.after is not None and c.after.reason else c.before
    return plain(told.reason)[:200] if told is not None else ""


def text(found: Comparison) -> str:
    """A comparison for a person at a terminal."""
    lines = [f"{found.before.label}  ->  {found.after.label}"]
    for result in (found.before, found.after):
        if not result.complete:
            lines.append(f"{result.path}: cut off; it holds what was found out by then")
    for what in KINDS:
        rows = [c for c in found.changes if c.kind == what]
        if rows:
            lines.append(f"\n{what} ({len(rows)}):")
        for c in rows:
            lines.append(f"  {plain(c.id)}: {_verdict(c.before)} -> {_verdict(c.after)}")
            if reason := _reason(c):
                lines.append(f"      {reason}")
    if found.outliers:
        lines.append(f"\nduration outliers ({len(found.outliers)}):")
        lines += [f"  {plain(n)}: {a:.2f} s -> {b:.2f} s" for n, a, b in found.outliers]
    if not found.changes:
        same = len({*found.before.behaviours} & {*found.after.behaviours})
        lines.append(f"no verdict changed ({same} behaviours)")
    return "\n".join(lines)


def _cell(value: str) -> str:
    return plain(value).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def markdown(found: Comparison) -> str:
    """A comparison as Markdown tables."""
    lines = [f"## {_cell(found.before.label)} → {_cell(found.after.label)}", ""]
    if found.changes:
        lines += ["| change | behaviour | before | after | reason |", "|---|---|---|---|---|"]
        lines += [
            f"| {c.kind} | {_cell(c.id)} | {_verdict(c.before)} | {_verdict(c.after)} "
            f"| {_cell(_reason(c))} |"
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
        "before": {"label": found.before.label, "path": str(found.before.path)},
        "after": {"label": found.after.label, "path": str(found.after.path)},
        "lost": found.lost,
        "changes": [
            {
                "kind": c.kind, "id": c.id, "before": _verdict(c.before),
                "after": _verdict(c.after), "reason": _reason(c),
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


@dataclass(frozen=True)
class Row:
    """A behaviour across results: its verdict in each (None: absent there)."""

    id: str
    verdicts: Sequence[Verdict | None]

    @property
    def same(self) -> bool:
        """All results say the same."""
        return len(set(self.verdicts)) == 1


@dataclass
class Matrix:
    """Behaviours × results. Holds verdicts only, so that a thousand results fit in memory."""

    labels: list[str] = field(default_factory=list)
    ids: set[str] = field(default_factory=set)
    columns: list[Mapping[str, Verdict]] = field(default_factory=list)
    runs: dict[str, str] = field(default_factory=dict)

    def add(self, result: Result) -> None:
        """Add a column. Raises :class:`Unreadable` for a run that is in it already."""
        if result.id in self.runs:
            raise Unreadable(f"{result.path} and {self.runs[result.id]}: two files of the same run")
        self.runs[result.id] = str(result.path)
        self.labels.append(result.label)
        self.columns.append(result.verdicts)
        self.ids |= result.verdicts.keys()

    def rows(self) -> Iterable[Row]:
        """Every behaviour, by id."""
        for name in sorted(self.ids):
            yield Row(name, [c.get(name) for c in self.columns])

    @property
    def lost(self) -> bool:
        """Something that the first result verified, a later one does not."""
        first = [n for n, v in self.columns[0].items() if v is Verdict.VERIFIED]
        return any(c.get(n) is not Verdict.VERIFIED for c in self.columns[1:] for n in first)

    def text(self) -> str:
        """Columns numbered, a letter a verdict; only rows that differ, then a count."""
        lines = [f"{n}: {label}" for n, label in enumerate(self.labels, 1)] + ["", LEGEND, ""]
        rows = list(self.rows())
        for row in rows:
            if not row.same:
                marks = "".join(MARKS[v] if v else " " for v in row.verdicts)
                lines.append(f"{marks}  {plain(row.id)}")
        same = [row for row in rows if row.same]
        lines.append(f"{len(same)} of {len(rows)} behaviours have one verdict everywhere")
        return "\n".join(lines)

    def markdown(self) -> str:
        """A Markdown table, a line a result and a column a chapter.

        A cell is what was verified; behind it, where there are any, how many deviate (D), failed
        or could not be set up (F), were not verified or inconclusive (N).
        """
        fold = {Verdict.BROKEN: "F", Verdict.FAILED: "F", Verdict.DEVIATES: "D"}
        tables: list[dict[str, Counter[str]]] = []
        for column in self.columns:
            table: dict[str, Counter[str]] = {}
            for name, verdict in column.items():
                # A parameter may hold a slash too.
                parts = name.partition("::")[0].split("/")
                letter = "" if verdict is Verdict.VERIFIED else fold.get(verdict, "N")
                for chapter in (parts[-2] if len(parts) > 1 else "other", "total"):
                    table.setdefault(chapter, Counter())[letter] += 1
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
        legend = "verified; D deviates, F failed, N not verified (or inconclusive)"
        return "\n".join([*lines, "", legend])

    def as_json(self) -> str:
        """Every behaviour with its verdicts, in the order of ``results``."""
        value = {
            "results": self.labels,
            "behaviours": {r.id: [v.value if v else None for v in r.verdicts] for r in self.rows()},
        }
        return json.dumps(value)
