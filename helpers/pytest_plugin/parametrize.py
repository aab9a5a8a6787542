# SPDX-License-Identifier: MIT
"""``pytest.mark.parametrize`` over the tables that cases share, with their ids."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import pytest

from helpers import syscalls
from helpers.memory import MAPPING_KINDS, every_kind, locks
from helpers.syscalls import PAGE


def by_method(*methods: locks.LockMethod) -> pytest.MarkDecorator:
    """``method``: each of these ways to lock a range (default: all of them)."""
    chosen = methods or tuple(locks.METHODS[name] for name in locks.CALLS)
    return pytest.mark.parametrize("method", chosen, ids=[m.id for m in chosen])


def by_call() -> pytest.MarkDecorator:
    """``how``: each call that locks a range, for :func:`helpers.memory.locks.issue`."""
    return pytest.mark.parametrize("how", list(locks.CALLS.values()), ids=list(locks.CALLS))


def by_kind(*kinds: str) -> pytest.MarkDecorator:
    """``kind``: each of these kinds of mapping (default: all of them)."""
    return pytest.mark.parametrize("kind", kinds or MAPPING_KINDS)


def by_entry_point() -> pytest.MarkDecorator:
    """``calls``: the system calls by number, and the C library's wrappers of them."""
    return pytest.mark.parametrize("calls", [syscalls.RAW, syscalls.GLIBC], ids=repr)


class Row(Protocol):
    """A row of a table: its id, and what of the machine its case needs."""

    @property
    def id(self) -> str: ...
    @property
    def needs(self) -> tuple[str, ...]: ...


def by_row(rows: Iterable[Row], name: str = "call") -> pytest.MarkDecorator:
    """``name``: each row of a table."""
    return pytest.mark.parametrize(
        name,
        [
            pytest.param(r, id=r.id, marks=[pytest.mark.needs(*r.needs)] if r.needs else [])
            for r in rows
        ],
    )


def by_memory_kind(
    units: int, *, but: tuple[str, ...] = (), only: tuple[str, ...] = ()
) -> pytest.MarkDecorator:
    """``kind``: each of :data:`helpers.memory.every_kind.KINDS`, which may lock ``units``."""
    return pytest.mark.parametrize(
        "kind",
        [
            pytest.param(
                kind,
                id=name,
                marks=pytest.mark.needs(f"lock:{units * kind.unit // PAGE}", *kind.needs),
            )
            for name, kind in every_kind.KINDS.items()
            if name not in but and (not only or name in only)
        ],
    )
