# SPDX-License-Identifier: MIT
"""RLIMIT_MEMLOCK: read, set, scoped."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager

from helpers.observe import status
from helpers.processes.credentials import has_capability, without_capabilities

RLIM_INFINITY = resource.RLIM_INFINITY


def memlock_limit() -> tuple[int, int]:
    """RLIMIT_MEMLOCK (soft, hard) in bytes; INFINITE is -1."""
    return resource.getrlimit(resource.RLIMIT_MEMLOCK)


def hard_limit_for(soft: int, hard: int) -> int:
    """The hard limit to set with ``soft``: the same as now, unless that would be below."""
    return soft if hard != RLIM_INFINITY and (soft == RLIM_INFINITY or soft > hard) else hard


def set_soft_memlock(soft: int) -> None:
    """Set the soft RLIMIT_MEMLOCK in bytes, for good; the hard one only if it would be below.

    Raises ValueError above the hard limit without CAP_SYS_RESOURCE.
    """
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (soft, hard_limit_for(soft, memlock_limit()[1])))


@contextmanager
def soft_memlock_limit(soft: int) -> Iterator[None]:
    """The block runs under a soft RLIMIT_MEMLOCK of ``soft`` bytes; afterwards as before."""
    saved = memlock_limit()
    set_soft_memlock(soft)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, saved)


@contextmanager
def unprivileged_with_limit(soft: int) -> Iterator[None]:
    """An ordinary locker: no effective CAP_IPC_LOCK, soft limit of ``soft`` bytes."""
    with without_capabilities("CAP_IPC_LOCK"), soft_memlock_limit(soft):
        yield


def may_lock(size: int) -> bool:
    """Kernel rules let this process lock ``size`` bytes beyond what it has locked now.

    From the capability set and the limit alone: asking mlock itself would hide its faults.
    """
    soft = memlock_limit()[0]
    return (
        has_capability("CAP_IPC_LOCK")
        or soft == RLIM_INFINITY
        or status.vmlck_kb() * 1024 + size <= soft
    )
