# SPDX-License-Identifier: MIT
"""GitHub Actions: the job's summary, and an annotation at the line of each case that failed."""

from __future__ import annotations

import html
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from helpers.report.ktap import printable
from helpers.report.verdicts import CaseResult, Verdict, missing

LARGEST = 1 << 20
"""Bytes of a step's summary that GitHub takes."""
SHOWN = 10
"""Annotations of a kind that GitHub shows of a step."""
_BAD = (Verdict.FAILED, Verdict.BROKEN)
_LONGEST = 4000
"""Characters of a piece of evidence in the summary."""


def is_there() -> bool:
    """This is a step of GitHub Actions."""
    return bool(os.environ.get("GITHUB_STEP_SUMMARY"))


def publish(behaviours: Iterable[CaseResult], title: str, root: Path) -> str:
    """Append the summary and print the annotations; in words why not, or nothing.

    ``root``: the folder that ids begin at.
    """
    behaviours = list(behaviours)
    for line in workflow_commands(behaviours, root):
        print(line, flush=True)
    path = os.environ.get("GITHUB_STEP_SUMMARY", "")
    try:
        # A FIFO or a folder is never waited for.
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK, 0o644)
        with open(descriptor, "ab") as file:
            room = LARGEST - os.fstat(descriptor).st_size
            file.write(summary(behaviours, title, room))
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        return f"GITHUB_STEP_SUMMARY {path} cannot be written ({why})"
    return ""


def summary(behaviours: Sequence[CaseResult], title: str, room: int = LARGEST) -> bytes:
    """Markdown: verdicts by chapter, and each failure, in so many bytes at most."""
    failed = [b for b in behaviours if b.verdict in _BAD]
    text = "\n".join(_head(behaviours, title)).encode()
    left = room - len(text) - 200
    pieces = [text] if left > 0 else []
    for number, b in enumerate(failed if left > 0 else ()):
        piece = "\n".join(_failure(b)).encode()
        if len(piece) > left:
            more = f"\n\n{len(failed) - number} more failures did not fit: see result.json\n"
            pieces.append(more.encode())
            break
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces)


def _cell(text: str) -> str:
    """Text in a table, nothing of which is markup."""
    escaped = html.escape(printable(" ".join(text.split())), quote=False)
    return "".join(f"&#{ord(c)};" if c in "|`*_[]\\~@#" else c for c in escaped)


def _head(behaviours: Sequence[CaseResult], title: str) -> Iterator[str]:
    chapters: dict[str, Counter[Verdict]] = {}
    for b in behaviours:
        chapters.setdefault(b.chapter or "other", Counter())[b.verdict] += 1
    total = sum(chapters.values(), Counter())
    columns = [v for v in Verdict if total[v]]
    yield f"## {_cell(title)}\n"
    if lacking := missing(behaviours):
        yield f"**Incomplete**: {lacking}.\n"
    yield "| chapter | " + " | ".join(columns) + " |"
    yield "|---|" + "---:|" * len(columns)
    for name, counts in [*sorted(chapters.items()), ("total", total)]:
        yield f"| {_cell(name)} | " + " | ".join(str(counts[v]) for v in columns) + " |"
    grouped = Counter(b.detail or b.reason for b in behaviours if b.verdict is Verdict.DEVIATES)
    if grouped:
        yield "\n**Known deviations**\n"
        for reason, number in grouped.most_common(50):
            yield f"* {number}× {_cell(reason)[:1000]}"
    yield "\n"


def _failure(b: CaseResult) -> Iterator[str]:
    def block(text: str) -> str:
        cut = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}\n…"
        # An empty line would end the block of HTML.
        lines = html.escape(printable(cut, keep="\n\t")).replace("\n", "&#10;")
        return f"<pre>{lines}</pre>"

    yield f"### {_cell(b.statement or b.id)}\n"
    place = f" (line {b.line})" if b.line else ""
    yield f"{b.verdict}: <code>{_cell(b.id)}</code>{place}\n"
    yield block(b.reason)
    for title, text in b.evidence:
        yield f"<details><summary>{_cell(title)}</summary>{block(text)}</details>"
    yield "\n"


def _escaped(text: str) -> str:
    """Data of a workflow command."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _escaped(text).replace(":", "%3A").replace(",", "%2C")


def workflow_commands(behaviours: Iterable[CaseResult], root: Path) -> list[str]:
    """A workflow command a failure, as many as GitHub shows; the last says how many more."""
    failed = [b for b in behaviours if b.verdict in _BAD]
    few = failed if len(failed) <= SHOWN else failed[: SHOWN - 1]
    lines = [_annotation(b, root) for b in few]
    if len(few) < len(failed):
        lines.append(f"::error title=memlock-tests::{len(failed) - len(few)} more failures")
    return lines


def _annotation(b: CaseResult, root: Path) -> str:
    file = root / b.id.partition("::")[0]
    workspace = os.environ.get("GITHUB_WORKSPACE")
    if workspace and file.is_relative_to(workspace):
        file = file.relative_to(workspace)
    elif file.is_relative_to(root):
        file = file.relative_to(root)
    told = {"file": str(file), "line": str(b.line or 1), "title": b.statement or b.id}
    properties = ",".join(
        f"{k}={_property(printable(' '.join(v.split()))[:500])}" for k, v in told.items()
    )
    text = printable(f"{b.id}: {b.verdict}\n{b.reason[:2000]}", keep="\n")
    return f"::error {properties}::{_escaped(text)}"
