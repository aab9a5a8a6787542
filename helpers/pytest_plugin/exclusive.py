# SPDX-License-Identifier: MIT
"""One exclusive case at a time, over all workers and runs of a user."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

import pytest

from helpers.machine import timeouts

PATIENCE = 10.0
"""Seconds to wait for the cases of other runs: most take less than one."""
_held: list[int] = []


def forget() -> None:
    """In a forked child: the turn is the parent's alone, and ends with it."""
    while _held:
        os.close(_held.pop())


def slot(item: pytest.Item) -> AbstractContextManager[None]:
    """This case's turn: alone if it is ``exclusive``, beside the others if not.

    Tests of the harness take no turn: the runs inside them do, and would wait for their own.
    """
    if item.path.parent.name == "harness":
        return nullcontext()
    return _turn(alone=item.get_closest_marker("exclusive") is not None)


def no_case_runs() -> AbstractContextManager[None]:
    """No case of any run is running, for what changes the machine under all of them: taking a
    swap area away reads back what anybody had in it. After :data:`PATIENCE` one does so anyway."""
    return _turn(alone=True, until=timeouts.until(PATIENCE))


@contextmanager
def _turn(alone: bool, until: float | None = None) -> Iterator[None]:
    """One lock for all workers and for all runs on the machine, on a file that is always there
    and that only root can open, so nothing is left behind and nobody else can hold it. Cases
    that share nothing do not wait unless an exclusive one is running, or is next: a second
    file is the gate that it closes while it waits for those inside to leave (flock(2) alone
    would let new ones in before it for as long as they keep coming).
    """
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
        for fd in (gate, room):
            _lock(fd, fcntl.LOCK_EX if alone else fcntl.LOCK_SH, until)
        fcntl.flock(gate, fcntl.LOCK_UN)
        try:
            yield
        finally:
            _held.clear()


def _lock(fd: int, how: int, until: float | None) -> None:
    if until is None:
        fcntl.flock(fd, how)
        return
    while time.monotonic() < until:
        try:
            fcntl.flock(fd, how | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.01)
        else:
            return
