# SPDX-License-Identifier: MIT
"""One self-contained page of one result or several: no script, no network, prints well.

Needs the optional group ``report`` (Jinja2, for structure and escaping). The pictures are SVG
by the template itself: a run has some 400 of them, which took matplotlib 65 to 95 ms and 14 kB
each, this 0.3 ms and 2 kB, and they take the page's own colours, light and dark.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import jinja2
import markupsafe

from helpers.report import detection_matrix
from helpers.report.compare import Matrix
from helpers.report.ktap import printable
from helpers.report.pictures import draw
from helpers.report.result import Result
from helpers.report.verdicts import Verdict

CLASSES = {
    Verdict.VERIFIED: "ok", Verdict.DEVIATES: "dev", Verdict.FAILED: "bad", Verdict.BROKEN: "bad",
    Verdict.INCONCLUSIVE: "dim", Verdict.NOT_VERIFIED: "dim",
    Verdict.NOT_RUN: "dim",
}  # fmt: skip
MARKS = {
    Verdict.VERIFIED: "✓", Verdict.DEVIATES: "≠", Verdict.FAILED: "✗", Verdict.BROKEN: "!",
    Verdict.INCONCLUSIVE: "?", Verdict.NOT_VERIFIED: "·", Verdict.NOT_RUN: "-",
}  # fmt: skip


def _visible(value: object) -> object:
    """What the template is to show of a value: nothing that acts instead of being seen."""
    if isinstance(value, str) and not isinstance(value, markupsafe.Markup):
        return printable(value, keep="\n\t")
    return value


_CELLS = {
    detection_matrix.DETECTED: "noticed",
    detection_matrix.UNDETECTED: "missed",
    detection_matrix.INCONCLUSIVE: "missed",
}
"""CSS classes of a matrix's cells."""


def _sensitivity(result: Result) -> dict[str, Any] | None:
    """What the fault matrix of a result says, as the template shows it; None without one."""
    data = result.sensitivity
    if data is None:
        return None
    places = sorted(
        (n for n, row in data["cases"].items() if row["baseline"] == detection_matrix.PASSED),
        key=lambda n: (data["cases"][n]["chapter"], n),
    )
    column = {node: x for x, node in enumerate(places)}
    faults = sorted(data["faults"], key=lambda f: data["faults"][f]["chapter"])
    paths: dict[str, list[str]] = {"noticed": [], "missed": []}
    for y, fault in enumerate(faults):
        cells = sorted(
            (column[n], _CELLS[seen])
            for n, seen in data["cells"].get(fault, {}).items()
            if n in column and seen in _CELLS
        )
        for seen, same in itertools.groupby(enumerate(cells), lambda p: (p[1][1], p[1][0] - p[0])):
            run = list(same)
            paths[seen[0]].append(f"M{run[0][1][0]} {y}h{len(run)}")
    borders = [
        {"at": x, "chapter": data["cases"][n]["chapter"]}
        for x, n in enumerate(places)
        if not x or data["cases"][n]["chapter"] != data["cases"][places[x - 1]]["chapter"]
    ]
    return {
        "label": result.label,
        "worth": detection_matrix.count(data),
        "chapters": detection_matrix.chapters(data),
        "columns": detection_matrix.COLUMNS,
        "rows": detection_matrix.rows(data),
        "deviates": {n for n in data["cases"] if detection_matrix.deviates(data, n)},
        "shown": detection_matrix.broken_by(data),
        "minutes": data["seconds"] / 60,
        "picture": {
            "width": len(places), "height": len(faults), "borders": borders,
            "paths": {name: "".join(parts) for name, parts in paths.items()},
        },
    }  # fmt: skip


@dataclass(frozen=True)
class Shown:
    """A behaviour that the page tells more of than its verdict."""

    result: Result
    behaviour: Any
    """As :meth:`Result.rows` has it."""
    pictures: list[dict[str, Any]]


class Page:
    """Results to be shown side by side; of most behaviours no more is kept than their verdicts."""

    def __init__(self) -> None:
        self.results: list[Result] = []
        self._matrix = Matrix()
        self._statements: list[str] = []
        self._chapters: dict[str, list[Counter[Verdict]]] = {}
        self._shown: list[Shown] = []

    def add(self, result: Result) -> None:
        """Take a result. Raises Unreadable for a run that is in it already, or is empty."""
        self._matrix.add(result)
        places, statements = self._matrix.places, self._statements
        statements.extend([""] * (len(places) - len(statements)))
        known: dict[str, str] = {}
        last = ""  # the cases of one function stand together
        for row in result.rows():
            place = places[row.id]
            if statements[place] != row.statement:
                last = statements[place] = last if row.statement == last else row.statement
            counts = self._chapters.setdefault(row.chapter or "other", [])
            while len(counts) <= len(self.results):
                counts.append(Counter())
            counts[-1][row.verdict] += 1
            if row.verdict != Verdict.VERIFIED or row.series:
                drawn = [p for p in map(draw, row.series) if p]
                row.series = ()
                for name in ("chapter", "statement", "source", "claims", "reason", "detail"):
                    setattr(row, name, known.setdefault(getattr(row, name), getattr(row, name)))
                self._shown.append(Shown(result, row, drawn))
        # The file's text is in memory as long as its rows are.
        self.results.append(dataclasses.replace(result, encoded=()))

    def _of(self, *verdicts: Verdict) -> list[Shown]:
        return [each for each in self._shown if each.behaviour.verdict in verdicts]

    def _grouped(self, *verdicts: Verdict) -> dict[tuple[str, str], list[Any]]:
        """(kernel, reason) → the behaviours of which it is said, most first."""
        found: dict[tuple[str, str], list[Any]] = {}
        for each in self._of(*verdicts):
            b = each.behaviour
            found.setdefault((each.result.label, b.detail or b.reason), []).append(b)
        return dict(sorted(found.items(), key=lambda pair: -len(pair[1])))

    def _drawn(self) -> dict[str, list[Shown]]:
        """Chapter → the behaviours that have something to draw."""
        found: dict[str, list[Shown]] = {}
        for each in self._shown:
            if each.pictures:
                found.setdefault(each.behaviour.chapter or "other", []).append(each)
        return dict(sorted(found.items()))

    def _rows(self) -> Iterator[tuple[str, str, tuple[Verdict | None, ...]]]:
        """Every behaviour by id, its statement and its verdicts."""
        for place, row in self._matrix.rows():
            yield row.id, self._statements[place], row.verdicts

    def _counts(self, rows: Sequence[Counter[Verdict]]) -> list[Counter[Verdict]]:
        """Counts of a chapter in each result, also where the last ones do not have it."""
        return [*rows, *(Counter() for _ in self.results[len(rows) :])]

    def write(self, file: IO[str]) -> None:
        """Write the HTML, piece by piece. Raises OSError."""
        environment = jinja2.Environment(
            autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
            lstrip_blocks=True, finalize=_visible,
        )  # fmt: skip
        chapters = [(name, self._counts(rows)) for name, rows in sorted(self._chapters.items())]
        source = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
        stream = environment.from_string(source).stream(
            results=self.results,
            verdicts=list(Verdict),
            classes=CLASSES,
            marks=MARKS,
            chapters=chapters,
            totals=[sum(column, Counter()) for column in zip(*(rows for _, rows in chapters))],
            rows=self._rows(),
            once=functools.cache(lambda macro, value: macro(value)),
            failures=self._of(Verdict.FAILED, Verdict.BROKEN),
            deviations=self._grouped(Verdict.DEVIATES),
            unverified=self._grouped(Verdict.NOT_VERIFIED, Verdict.INCONCLUSIVE),
            unrun=self._grouped(Verdict.NOT_RUN),
            drawn=self._drawn(),
            tried=[found for r in self.results if (found := _sensitivity(r))],
        )
        stream.enable_buffering(1000)
        file.writelines(stream)
