# SPDX-License-Identifier: MIT
"""Two processes on two CPUs that lock and unlock the same pages at the same time."""

from __future__ import annotations

import os

from helpers import memory, syscalls
from helpers.observe import page_flags
from helpers.processes import cpus
from helpers.processes.child import Child

PAGES, ROUNDS, TRIALS = 64, 100, 60


def _lock_and_unlock(addr: int, size: int) -> None:
    for _ in range(ROUNDS):
        syscalls.mlock(addr, size)
        syscalls.munlock(addr, size)


def stranded() -> tuple[int, int]:
    """Race over fresh pages until some stay mlocked, at most TRIALS times: (pages raced over,
    pages mlocked though nobody locks them). Children keep this process's CPUs.
    """
    raced = 0
    with memory.mapping("memfd-shared", PAGES) as region, Child() as one, Child() as other:
        for turn, child in enumerate((one, other)):
            child.call(cpus.keep_to_cpu, turn)
        for _ in range(TRIALS):
            os.ftruncate(region.fd, 0)  # a page that was stranded is so until it is freed
            os.ftruncate(region.fd, region.size)
            region.touch()
            cpus.mlock_drain_all()
            for child in (one, other):
                child.start(_lock_and_unlock, region.addr, region.size)
            for child in (one, other):
                child.result()
            raced += PAGES
            cpus.mlock_drain_all()
            seen = page_flags.snapshot(region.addr, PAGES).count_with(page_flags.MLOCKED)
            if seen:
                return raced, seen
    return raced, 0
