# SPDX-License-Identifier: MIT
"""Pictures of what a case saw, as SVG.

A run has some 400 of them, which took matplotlib 65 to 95 ms and 14 kB each, this 0.1 ms and 2 kB,
and they take the page's own colours, light and dark.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import markupsafe

from helpers.report.ktap import printable

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


def _timeline_svg(p: Mapping[str, Any]) -> Iterator[str]:
    for n, tick in enumerate(p["ticks"], 1):
        unit = f" {p['unit']}" if n == len(p["ticks"]) else ""
        yield (
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH}" y1="{tick["at"]}" y2="{tick["at"]}"/>'
            f'<text class="tick end" x="{_LEFT - 6}" y="{tick["at"] + 4}">'
            f"{tick['text']}{shown(unit)}</text>"
        )
    for step in p["steps"]:
        where = f"translate({step['at'] + 3} {_HEIGHT + 14}) rotate(-22)"
        yield f'<text class="tick end" transform="{where}">{shown(step["text"])}</text>'
    for n, line in enumerate(p["lines"]):
        name, key = shown(line["name"]), 18 * n
        kind = f"c{n % 6}" + (" limit" if line["name"] == "limit" else "")
        corners = " ".join(f"{x},{y}" for x, y in line["corners"])
        yield f'<g class="{kind}"><polyline stroke-width="{max(5 - n, 1.5)}" points="{corners}"/>'
        for x, y, value in line["points"]:
            told = f"{name}: {shown(value)} {shown(p['unit'])}"
            yield f'<circle cx="{x}" cy="{y}" r="3"><title>{told}</title></circle>'
        yield (
            f'<rect x="{_WIDTH + 16}" y="{8 + key}" width="10" height="10"/>'
            f'<text x="{_WIDTH + 31}" y="{17 + key}">{name}</text></g>'
        )


def _pages_svg(p: Mapping[str, Any]) -> Iterator[str]:
    for n, strip in enumerate(p["strips"]):
        top = 22 * n
        yield f'<text class="tick end" x="{_LEFT - 6}" y="{top + 13}">{shown(strip["name"])}</text>'
        for run in strip["runs"]:
            yield (
                f'<rect class="{run["state"]}" x="{run["at"]}" y="{top}" width="{run["width"]}" '
                f'height="17"><title>{run["count"]} pages</title></rect>'
            )
    foot = 22 * len(p["strips"]) + 14
    yield (
        f'<text class="tick" x="{_LEFT}" y="{foot}">page 0</text>'
        f'<text class="tick end" x="{_WIDTH}" y="{foot}">{p["most"] - 1}</text>'
    )
    for n, (state, text) in enumerate(p["told"].items()):
        yield (
            f'<rect class="{state}" x="{_WIDTH + 16}" y="{4 + 18 * n}" width="10" height="10"/>'
            f'<text class="tick" x="{_WIDTH + 31}" y="{13 + 18 * n}">{shown(text)}</text>'
        )


def svg(series: Mapping[str, Any], of: str) -> str:
    """One series drawn, labelled as what ``of`` saw; empty for a kind that is not known here.

    A foreign or damaged series draws nothing: its numbers stay in the result.
    """
    kind = str(series.get("kind"))
    try:
        if kind == "timeline":
            drawn, parts = _timeline(series), _timeline_svg
            height = _HEIGHT + 76
        elif kind == "pages":
            drawn, parts = _pages(series), _pages_svg
            height = max(22 * len(drawn["strips"]) + 24, 4 + 18 * len(drawn["told"]))
        else:
            return ""
        inner = "".join(parts(drawn))
    except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError):
        return ""
    label = f"{kind}: {shown(of)}"
    return (
        f'<svg viewBox="0 0 {_WIDTH + 150} {height}" role="img" aria-label="{label}">{inner}</svg>'
    )


def shown(value: object) -> str:
    """Text as HTML shows it: nothing in it is markup, nothing acts instead of being seen."""
    return str(markupsafe.escape(printable(str(value), keep="\n\t")))
