# SPDX-License-Identifier: MIT
"""One exclusive case at a time, over all workers and runs of a user."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

_held: list[int] = []


def forget() -> None:
    """In a forked child: the turn is the parent's alone, and ends with it."""
    while _held:
        os.close(_held.pop())


@contextmanager
def slot(item: pytest.Item) -> Iterator[None]:
    """This case's turn: alone if it is ``exclusive``, beside the others if not.

    One lock for all workers and for all runs on the machine, on a file that is always there
    and that only root can open, so nothing is left behind and nobody else can hold it. Cases
    that share nothing do not wait unless an exclusive one is running, or is next: a second
    file is the gate that it closes while it waits for those inside to leave (flock(2) alone
    would let new ones in before it for as long as they keep coming).

    Tests of the harness take no turn: the runs inside them do, and would wait for their own.
    """
    if item.path.parent.name == "harness":
        yield
        return
    try:
        with ExitStack() as stack:
            fds = []
            for path in ("/proc/kpagecount", "/proc/kpageflags"):
                fds.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
                stack.callback(os.close, fds[-1])
            kept = stack.pop_all()
    except OSError:
        yield  # who cannot read page flags drives no machine-wide counters either
        return
    gate, room = _held[:] = fds
    with kept:
        alone = item.get_closest_marker("exclusive") is not None
        for fd in (gate, room):
            fcntl.flock(fd, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(gate, fcntl.LOCK_UN)
        try:
            yield
        finally:
            _held.clear()
