# SPDX-License-Identifier: MIT
"""Have the N-th allocation of this thread fail: fault-injection.rst, section on fail-nth."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from helpers.syscalls import call

FILE = "/proc/thread-self/fail-nth"
WAITING = tuple(
    Path("/sys/kernel/debug", kind, "ignore-gfp-wait") for kind in ("failslab", "fail_page_alloc")
)
"""Settings that keep allocations which may wait, as nearly all that a system call makes, from
failing: ``Y`` by default."""


def failing(number: int, made: Callable[[], object]) -> tuple[str, bool]:
    """Make a call in which the ``number``-th allocation fails.

    ``"ok"`` or the errno's name, and whether it came to that many. Raises OSError where the kernel
    cannot do it.
    """
    fd = os.open(FILE, os.O_RDWR | os.O_CLOEXEC)
    try:
        armed = str(number).encode()
        os.write(fd, armed)
        answer = call.outcome(made)
        left = os.pread(fd, 16, 0)
        os.pwrite(fd, b"0", 0)
    finally:
        os.close(fd)
    return answer, int(left) == 0
