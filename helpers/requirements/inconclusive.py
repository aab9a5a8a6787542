# SPDX-License-Identifier: MIT
"""End a case whose control did not behave."""

from __future__ import annotations

from typing import Any

import pytest

INCONCLUSIVE_PREFIX = "inconclusive: "


def inconclusive(reason: str) -> Any:
    """End the case: its control did not behave as a control must. Never a pass."""
    pytest.skip(f"{INCONCLUSIVE_PREFIX}{reason}")
