# SPDX-License-Identifier: MIT
"""A case of a known deviation is a strict expected failure where range and probe agree."""

from __future__ import annotations

import pytest

from helpers.machine import kernel_version
from helpers.requirements import deviations


def expect_deviation(item: pytest.Item) -> None:
    for mark in item.iter_markers("deviation"):
        known = deviations.KNOWN.get(mark.args[0]) if mark.args else None
        if known is None:
            raise pytest.UsageError(f"memlock-tests: {item.nodeid}: unknown deviation {mark}")
        if known.in_range(kernel_version.version()):
            if _present(known.id):
                item.add_marker(
                    pytest.mark.xfail(reason=str(known), raises=AssertionError, strict=True)
                )
            else:
                item.user_properties.append(("mended", f"{known.id} ({known.range})"))
        else:
            item.user_properties.append(("known", str(known)))


_seen: dict[str, bool] = {}


def _present(name: str) -> bool:
    if name not in _seen:
        _seen[name] = deviations.is_present(deviations.KNOWN[name])
    return _seen[name]
