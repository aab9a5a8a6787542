# SPDX-License-Identifier: MIT
"""Ids that behaviours of earlier suites have now, so that results stay comparable.

``renamed.json``: ``files``, old → new; ``cases``, an old id → the ids of the variants that it hid.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any


@functools.cache
def _table() -> dict[str, Any]:
    text = (Path(__file__).parent / "renamed.json").read_text(encoding="utf-8")
    table: dict[str, Any] = json.loads(text)
    return table


def ids_of(old: str) -> list[str]:
    """The ids of a behaviour in this suite: its own where nothing was renamed."""
    table = _table()
    if (found := table["cases"].get(old)) is not None:
        return list(found)
    file, separator, rest = old.partition("::")
    return [table["files"].get(file, file) + separator + rest]
