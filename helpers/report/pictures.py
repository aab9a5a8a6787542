# SPDX-License-Identifier: MIT
"""Pictures of what a case saw, as SVG."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

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


def draw(series: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the template draws of one series; None for a kind this page does not know."""
    drawn = {"timeline": _timeline, "pages": _pages}.get(str(series.get("kind")))
    if drawn is None:
        return None
    try:
        return {"kind": series["kind"], "left": _LEFT, "width": _WIDTH, "height": _HEIGHT} | drawn(
            series
        )
    except (KeyError, TypeError, ValueError, ArithmeticError):
        return None  # a foreign or damaged series draws nothing; the numbers stay in the JSON
