"""One self-contained page of one result or several: no script, no network, prints well.

Needs the optional group ``report`` (Jinja2 for escaping and structure, matplotlib for pictures).
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
from markupsafe import Markup

from helpers.report.compare import Matrix
from helpers.report.result import Result
from helpers.report.verdicts import Behaviour, Verdict

matplotlib.use("svg")
from matplotlib.figure import Figure

_INK = "#808890"  # legible on white and on black paper
_COLOURS = ("#2f7ed8", "#d8752f", "#2fa86a", "#b04fc0", "#c0a020", "#5aa7b0")
CLASSES = {
    Verdict.VERIFIED: "ok", Verdict.DEVIATES: "dev", Verdict.FAILED: "bad", Verdict.BROKEN: "bad",
    Verdict.INCONCLUSIVE: "dim", Verdict.NOT_VERIFIED: "dim",
}  # fmt: skip
MARKS = {
    Verdict.VERIFIED: "✓", Verdict.DEVIATES: "≠", Verdict.FAILED: "✗", Verdict.BROKEN: "!",
    Verdict.INCONCLUSIVE: "?", Verdict.NOT_VERIFIED: "·",
}  # fmt: skip


def _svg(figure: Figure) -> Markup:
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    text = out.getvalue()
    return Markup(text[text.index("<svg") :])


def _axes(figure: Figure) -> Any:
    axes = figure.subplots()
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("bottom", "left"):
        axes.spines[side].set_color(_INK)
    axes.tick_params(colors=_INK, labelsize=8)
    for label in (axes.xaxis.label, axes.yaxis.label, axes.title):
        label.set_color(_INK)
    return axes


def _escaped(text: object) -> str:
    return str(text)[:60].replace("$", r"\$")  # no mathtext from somebody else's words


def timeline(series: Mapping[str, Any]) -> Markup:
    """Steps of a case on the x axis, a line for each counter (kB)."""
    figure = Figure(figsize=(7.2, 2.6), layout="constrained")
    axes = _axes(figure)
    steps = [_escaped(s) for s in series["steps"]]
    for number, (name, values) in enumerate(series["values"].items()):
        axes.step(
            range(len(values)), values, where="post", marker="o", markersize=3,
            label=_escaped(name), color=_COLOURS[number % len(_COLOURS)],
            linestyle="--" if name == "limit" else "-",
        )  # fmt: skip
    axes.set_xticks(range(len(steps)), steps, rotation=20, ha="right")
    axes.set_ylabel(_escaped(series.get("unit", "kB")), color=_INK)
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8, frameon=False, labelcolor=_INK, loc="upper left", bbox_to_anchor=(1, 1))
    return _svg(figure)


_STATES = {"present": "#2fa86a", "swapped": "#d8752f", "absent": "#9aa3ab"}


def pages(series: Mapping[str, Any]) -> Markup:
    """A strip a region, a cell a page, in the colour of its state."""
    regions: Mapping[str, Sequence[str]] = series["regions"]
    figure = Figure(figsize=(7.2, 0.5 + 0.42 * len(regions)), layout="constrained")
    axes = _axes(figure)
    for row, states in enumerate(regions.values()):
        for state, colour in _STATES.items():
            spans = [(i, 1) for i, s in enumerate(states) if s == state]
            axes.broken_barh(spans, (row - 0.4, 0.8), facecolors=colour, linewidth=0)
    axes.set_yticks(range(len(regions)), [_escaped(name) for name in regions])
    axes.invert_yaxis()
    axes.set_xlabel("page", fontsize=8)
    axes.set_xlim(left=0)
    axes.legend(
        handles=[matplotlib.patches.Patch(color=c, label=s) for s, c in _STATES.items()],
        fontsize=8, frameon=False, labelcolor=_INK, loc="upper left", bbox_to_anchor=(1, 1),
    )  # fmt: skip
    return _svg(figure)


def picture(series: Mapping[str, Any]) -> Markup:
    """The picture of one series; empty for a kind this page does not know."""
    drawn = {"timeline": timeline, "pages": pages}.get(str(series.get("kind")))
    if drawn is None:
        return Markup("")
    try:
        return drawn(series)
    except (KeyError, TypeError, ValueError, AttributeError):
        return Markup("")  # a foreign or damaged series draws nothing; the numbers stay in the JSON


def _chapters(results: Sequence[Result]) -> list[tuple[str, list[dict[str, int]]]]:
    found: dict[str, list[dict[str, int]]] = {}
    for index, result in enumerate(results):
        for b in result.behaviours.values():
            counts = found.setdefault(b.chapter or "other", [{} for _ in results])[index]
            counts[b.verdict.value] = counts.get(b.verdict.value, 0) + 1
    return sorted(found.items())


def _told(results: Sequence[Result], *verdicts: Verdict) -> list[tuple[Result, Behaviour]]:
    return [(r, b) for r in results for b in r.behaviours.values() if b.verdict in verdicts]


def _drawn(results: Sequence[Result]) -> list[tuple[Result, Behaviour, list[Markup]]]:
    found = []
    for result in results:
        for b in result.behaviours.values():
            if drawings := [p for p in map(picture, b.series) if p]:
                found.append((result, b, drawings))
    return found


def page(results: Sequence[Result]) -> str:
    """The HTML text of the page."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string((Path(__file__).parent / "page.html").read_text())
    matrix = Matrix()
    for result in results:
        matrix.add(result)
    statements = {b.id: b.statement for r in results for b in r.behaviours.values()}
    text: str = template.render(
        results=results,
        verdicts=list(Verdict),
        classes=CLASSES,
        marks=MARKS,
        chapters=_chapters(results),
        rows=list(matrix.rows()),
        statements=statements,
        failures=_told(results, Verdict.FAILED, Verdict.BROKEN),
        deviations=_told(results, Verdict.DEVIATES),
        unverified=_told(results, Verdict.NOT_VERIFIED, Verdict.INCONCLUSIVE),
        drawn=_drawn(results),
    )
    return text
