# SPDX-License-Identifier: MIT
"""Fixtures of ours."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from helpers.processes import cpus


@pytest.fixture
def one_cpu() -> Iterator[None]:
    """The case and its children stay on one CPU: one lru batch serves them all."""
    with cpus.one_cpu():
        yield
