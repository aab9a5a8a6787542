# SPDX-License-Identifier: MIT
"""One self-contained page of one result or several: what these kernels do, to be looked up.

Needs the optional group ``report`` (Jinja2). Everything is in the markup, so that it serves without
its script too, and prints; the script (page.js) searches, filters and draws. It asks no network.
With the script a picture is parsed when it comes into view: it stands in a ``noscript``, which is
mere text until then.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import jinja2
import markupsafe

from helpers.report import detection_matrix
from helpers.report.behaviours_html import CALLS, CLASSES, LETTERS, MARKS, Behaviours, cited
from helpers.report.compare import Matrix
from helpers.report.ktap import printable
from helpers.report.pictures import svg
from helpers.report.result import Result
from helpers.report.verdicts import Verdict


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


_DEVIATION = re.compile(
    r"([\w-]+): (.*); expected: (.*) \(([^()]*(?:\([^()]*\)[^()]*)*)\)", re.DOTALL
)


@dataclass(frozen=True)
class Failure:
    """A failure with all that is known of it."""

    label: str
    behaviour: Any
    """As :meth:`Result.rows` has it."""
    pictures: list[markupsafe.Markup]
    anchor: str


@dataclass
class Deviation:
    """A known deviation, as the reasons of its cases say it."""

    name: str
    actual: str
    expected: str
    where: str
    kernels: dict[str, int] = dataclasses.field(default_factory=dict)
    """How many behaviours show it, by kernel."""


class Page:
    """Results to be shown side by side; of most behaviours no more is kept than their verdicts."""

    def __init__(self) -> None:
        self.results: list[Result] = []
        self._matrix = Matrix()
        self._behaviours = Behaviours(self._matrix)
        self._chapters: dict[str, list[Counter[Verdict]]] = {}
        self._failures: list[Failure] = []
        self._deviations: dict[str, Deviation] = {}
        self._lacking: dict[tuple[str, str, str], list[str]] = {}

    def add(self, result: Result) -> None:
        """Take a result. Raises Unreadable for a run that is in it already, or is empty."""
        self._matrix.add(result)
        column = len(self.results)
        for row in result.rows():
            counts = self._chapters.setdefault(row.chapter or "other", [])
            while len(counts) <= column:
                counts.append(Counter())
            counts[-1][row.verdict] += 1
            failed = row.verdict in {Verdict.FAILED, Verdict.BROKEN}
            self._behaviours.add(row, column)
            if row.verdict == Verdict.VERIFIED and not row.series:
                continue
            drawn = [p for p in (svg(s, row.statement or row.id) for s in row.series) if p]
            if failed:
                anchor = f"failure-{len(self._failures) + 1}"
                self._behaviours.lead(row.id, column, anchor)
                marked = [markupsafe.Markup(p) for p in drawn]
                row.series = ()
                self._failures.append(Failure(result.label, row, marked, anchor))
            elif drawn:
                self._behaviours.draw(row.id, column, drawn)
            if row.verdict == Verdict.DEVIATES:
                self._deviate(row, result.label)
            elif not failed and row.verdict != Verdict.VERIFIED:
                key = (result.label, row.verdict, row.detail or row.reason)
                self._lacking.setdefault(key, []).append(row.id)
        # The file's text is in memory as long as its rows are.
        self.results.append(dataclasses.replace(result, encoded=()))

    def _deviate(self, row: Any, label: str) -> None:
        said = row.detail or row.reason
        found = self._deviations.get(said)
        if found is None:
            parts = _DEVIATION.fullmatch(said)
            name, actual, expected, where = parts.groups() if parts else ("", said, "", "")
            found = self._deviations[said] = Deviation(name, actual, expected, where)
        found.kernels[label] = found.kernels.get(label, 0) + 1

    def _grouped(self, *verdicts: Verdict) -> list[tuple[str, str, list[str]]]:
        """Kernel, reason and the behaviours of which it is said, most first."""
        found = [(k, why, ids) for (k, v, why), ids in self._lacking.items() if v in verdicts]
        return sorted(found, key=lambda group: -len(group[2]))

    def _counts(self, rows: Sequence[Counter[Verdict]]) -> list[Counter[Verdict]]:
        """Counts of a chapter in each result, also where the last ones do not have it."""
        return [*rows, *(Counter() for _ in self.results[len(rows) :])]

    def write(self, file: IO[str]) -> None:
        """Write the HTML, piece by piece. Raises OSError."""
        environment = jinja2.Environment(
            autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
            lstrip_blocks=True, finalize=_visible,
        )  # fmt: skip
        environment.filters |= {"cited": cited, "anchor": self._behaviours.anchor}
        chapters = [(name, self._counts(rows)) for name, rows in sorted(self._chapters.items())]
        tried = [found for r in self.results if (found := _sensitivity(r))]
        folder = Path(__file__).parent
        source, style, script = (
            (folder / f"page.{kind}").read_text(encoding="utf-8") for kind in ("html", "css", "js")
        )
        stream = environment.from_string(source).stream(
            results=self.results,
            style=markupsafe.Markup(style),
            script=markupsafe.Markup(script),
            verdicts=list(Verdict),
            classes=CLASSES,
            marks=MARKS,
            letters=LETTERS,
            calls=CALLS,
            chapters=chapters,
            totals=[sum(column, Counter()) for column in zip(*(rows for _, rows in chapters))],
            behaviours=self._behaviours.html([t["shown"] for t in tried]),
            number=len(self._matrix.places),
            failures=self._failures,
            deviations=sorted(self._deviations.values(), key=lambda d: d.name),
            unverified=self._grouped(Verdict.NOT_VERIFIED, Verdict.INCONCLUSIVE),
            unrun=self._grouped(Verdict.NOT_RUN),
            tried=tried,
        )
        stream.enable_buffering(1000)
        file.writelines(stream)
