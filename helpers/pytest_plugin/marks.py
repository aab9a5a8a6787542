# SPDX-License-Identifier: MIT
"""Marks of ours, and the statement of a case."""

from __future__ import annotations

import re
from typing import Any

import pytest

CLAIM = re.compile(r"W\d+")
MARKERS = {
    "needs": "needs(*names): what the case requires (helpers/requirements/requirement.py)",
    "source": "source(*texts): where the behaviour is documented",
    "claim": "claim(*ids): rows of docs/claims.md (W1 …)",
    "deviation": "deviation(id): a kernel fault known to helpers/requirements/deviations.py",
    "share_process": "share_process: items of the module (of the parametrized function) may run in "
    "one process, since each puts back what it changes there",
    "own_process": "own_process: an item of such a module that does not",
    "detects": "detects(*faults): faults of helpers/faults/catalogue that break the statement",
    "deadline": "deadline(seconds): a limit other than --deadline for this case",
}


def mark_texts(item: pytest.Item, marker: str) -> list[str]:
    found = []
    for mark in item.iter_markers(marker):
        if not mark.args or mark.kwargs or not all(isinstance(a, str) for a in mark.args):
            raise pytest.UsageError(f"memlock-tests: {item.nodeid}: malformed mark {mark}")
        found += [a for a in mark.args if a not in found]
    return found


def _first_paragraph(documented: Any) -> str:
    text = (documented and documented.__doc__) or ""
    return " ".join(text.strip().split("\n\n")[0].split())


def statement(item: pytest.Item) -> str:
    """The behaviour a case proves: the first paragraph of its docstring, in one line."""
    return _first_paragraph(getattr(item, "obj", None))


def describe_item(item: pytest.Item) -> None:
    """Statement, chapter, subject, sources and claims travel with every report (JUnit, workers)."""
    item.user_properties.append(("chapter", item.path.parent.name))
    item.user_properties.append(("statement", statement(item)))
    if subject := _first_paragraph(getattr(item, "module", None)):
        item.user_properties.append(("subject", subject))
    for name in ("source", "claim", "detects"):
        if texts := mark_texts(item, name):
            item.user_properties.append((name, "; ".join(texts)))
    for claim in mark_texts(item, "claim"):
        if not CLAIM.fullmatch(claim):
            raise pytest.UsageError(f"memlock-tests: {item.nodeid}: no claim {claim!r}")
