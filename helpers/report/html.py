"""One self-contained page of one result or several: no script, no network, prints well.

Needs the optional group ``report`` (Jinja2, for structure and escaping). The pictures are SVG
by the template itself: a run has some 400 of them, which took matplotlib 65 to 95 ms and 14 kB
each, this 0.3 ms and 2 kB, and they take the page's own colours, light and dark.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from helpers.faults import matrix
from helpers.report.compare import Matrix
from helpers.report.result import Result
from helpers.report.verdicts import Behaviour, Verdict

CLASSES = {
    Verdict.VERIFIED: "ok", Verdict.DEVIATES: "dev", Verdict.FAILED: "bad", Verdict.BROKEN: "bad",
    Verdict.INCONCLUSIVE: "dim", Verdict.NOT_VERIFIED: "dim",
    Verdict.NOT_RUN: "dim",
}  # fmt: skip
MARKS = {
    Verdict.VERIFIED: "✓", Verdict.DEVIATES: "≠", Verdict.FAILED: "✗", Verdict.BROKEN: "!",
    Verdict.INCONCLUSIVE: "?", Verdict.NOT_VERIFIED: "·", Verdict.NOT_RUN: "-",
}  # fmt: skip


_LEFT, _WIDTH, _HEIGHT = 170, 720, 150
"""Of a picture's plot in user units: its left edge, its right edge and its lower edge."""
_STATES = {"p": "present", "s": "swapped", "a": "absent"}
"""Letters of ``pages`` by CSS class."""
_MOST = 60
"""Characters of a name that are shown."""
_LONGEST_STEP = 26


def _short(step: object) -> str:
    text = str(step)
    return text if len(text) <= _LONGEST_STEP else f"{text[: _LONGEST_STEP - 1]}…"


def _timeline(series: Mapping[str, Any]) -> dict[str, Any]:
    """Geometry of a timeline: a line a counter, a place a step, ticks of round kilobytes."""
    steps = [_short(step) for step in series["steps"]]
    values = {str(k)[:_MOST]: list(v)[: len(steps)] for k, v in series["values"].items()}
    top = max((float(v) for row in values.values() for v in row if v is not None), default=0) or 1
    size = 1
    while top / size > 4:
        size *= 2
    wide = (_WIDTH - _LEFT) / max(1, len(steps))
    lines = []
    for name, row in values.items():
        points = [
            (round(_LEFT + i * wide, 1), round(_HEIGHT - float(v) / top * (_HEIGHT - 12), 1), v)
            for i, v in enumerate(row)
            if v is not None
        ]
        # A counter keeps its value until the next step: horizontal, then vertical.
        ends = [*(x for x, _, _ in points[1:]), _WIDTH]
        corners = [c for (x, y, _), end in zip(points, ends) for c in ((x, y), (end, y))]
        lines.append({"name": name, "points": points, "corners": corners})
    ticks = [
        {"at": round(_HEIGHT - n * size / top * (_HEIGHT - 12), 1), "text": n * size}
        for n in range(int(top / size) + 1)
    ]
    places = [{"at": round(_LEFT + i * wide, 1), "text": step} for i, step in enumerate(steps)]
    return {"lines": lines, "ticks": ticks, "steps": places, "unit": str(series["unit"])[:_MOST]}


def _pages(series: Mapping[str, Any]) -> dict[str, Any]:
    """Geometry of a strip a range, cut into runs of pages in one state."""
    regions = {str(k)[:_MOST]: str(v) for k, v in series["regions"].items()}
    most = max(map(len, regions.values()), default=1) or 1
    scale = (_WIDTH - _LEFT) / most
    strips = []
    for name, letters in regions.items():
        runs, place = [], 0
        for letter, same in itertools.groupby(letters):
            count = len(list(same))
            at, width = round(_LEFT + place * scale, 1), round(count * scale, 1)
            runs.append({"at": at, "width": width, "state": _STATES[letter], "count": count})
            place += count
        strips.append({"name": name, "runs": runs})
    told = {_STATES[k]: str(v)[:_MOST] for k, v in series["letters"].items() if k in _STATES}
    return {"strips": strips, "most": most, "told": told}


def picture(series: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the template draws of one series; None for a kind this page does not know."""
    drawn = {"timeline": _timeline, "pages": _pages}.get(str(series.get("kind")))
    if drawn is None:
        return None
    try:
        return {"kind": series["kind"], "left": _LEFT, "width": _WIDTH, "height": _HEIGHT} | drawn(
            series
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        return None  # a foreign or damaged series draws nothing; the numbers stay in the JSON


def _chapters(results: Sequence[Result]) -> list[tuple[str, list[dict[str, int]]]]:
    found: dict[str, list[dict[str, int]]] = {}
    for index, result in enumerate(results):
        for b in result.behaviours.values():
            counts = found.setdefault(b.chapter or "other", [{} for _ in results])[index]
            counts[b.verdict.value] = counts.get(b.verdict.value, 0) + 1
    return sorted(found.items())


def _told(results: Sequence[Result], *verdicts: Verdict) -> list[tuple[Result, Behaviour]]:
    return [(r, b) for r in results for b in r.behaviours.values() if b.verdict in verdicts]


def _grouped(
    results: Sequence[Result], *verdicts: Verdict
) -> dict[tuple[str, str], list[Behaviour]]:
    """(kernel, reason) → the behaviours of which it is said, most first."""
    found: dict[tuple[str, str], list[Behaviour]] = {}
    for result, b in _told(results, *verdicts):
        found.setdefault((result.label, b.detail or b.reason), []).append(b)
    return dict(sorted(found.items(), key=lambda pair: -len(pair[1])))


_CELLS = {matrix.NOTICED: "noticed", matrix.MISSED: "missed", matrix.INCONCLUSIVE: "missed"}
"""CSS classes of a matrix's cells."""


def _sensitivity(result: Result) -> dict[str, Any] | None:
    """What the fault matrix of a result says, as the template shows it; None without one."""
    data = result.sensitivity
    if data is None:
        return None
    places = sorted(
        (n for n, row in data["cases"].items() if row["baseline"] == matrix.HELD),
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
        "worth": matrix.worth(data),
        "chapters": matrix.chapters(data),
        "columns": matrix.COLUMNS,
        "rows": matrix.rows(data),
        "controls": data["controls"],
        "shown": matrix.broken_by(data),
        "minutes": data["seconds"] / 60,
        "picture": {
            "width": len(places), "height": len(faults), "borders": borders,
            "paths": {name: "".join(parts) for name, parts in paths.items()},
        },
    }  # fmt: skip


Drawn = dict[str, list[tuple[Result, Behaviour, list[dict[str, Any]]]]]


def _drawn(results: Sequence[Result]) -> Drawn:
    """Chapter → the behaviours that have something to draw, with their pictures."""
    found: Drawn = {}
    for result in results:
        for b in result.behaviours.values():
            if pictures := [p for p in map(picture, b.series) if p]:
                found.setdefault(b.chapter or "other", []).append((result, b, pictures))
    return dict(sorted(found.items()))


def page(results: Sequence[Result]) -> str:
    """The HTML text of the page."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string((Path(__file__).parent / "page.html").read_text())
    verdicts = Matrix()
    for result in results:
        verdicts.add(result)
    statements = {b.id: b.statement for r in results for b in r.behaviours.values()}
    drawn = _drawn(results)
    tried = {r.id: found for r in results if (found := _sensitivity(r))}
    text: str = template.render(
        results=results,
        verdicts=list(Verdict),
        classes=CLASSES,
        marks=MARKS,
        chapters=_chapters(results),
        rows=list(verdicts.rows()),
        statements=statements,
        failures=_told(results, Verdict.FAILED, Verdict.BROKEN),
        deviations=_grouped(results, Verdict.DEVIATES),
        unverified=_grouped(results, Verdict.NOT_VERIFIED, Verdict.INCONCLUSIVE),
        drawn=drawn,
        tried=tried,
        pictures={(r.id, b.id): p for rows in drawn.values() for r, b, p in rows},
    )
    return text
