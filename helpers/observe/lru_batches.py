# SPDX-License-Identifier: MIT
"""The kernel's per-CPU batches of LRU and mlock work, so that page flags can be read exactly.

Since 5.18 PG_mlocked of a page is set at once but cleared when the CPU's batch is drained,
and a page still waiting to join its LRU list is not counted for its lockers; before, a page
off its list loses PG_mlocked to the first who unlocks it (mm/mlock.c, mm/swap.c).
"""

from __future__ import annotations

from helpers import memory, syscalls


def mlock_drain_local() -> None:
    """Empty this CPU's batches, by locking and unlocking a present scratch page.

    Both calls drain the calling CPU only (R 6.18; S 5.10 to 7.3): :func:`pin` first.
    """
    with memory.mapping("private", 1) as scratch:
        scratch.touch()
        syscalls.mlock(scratch.addr, scratch.size)
        syscalls.munlock(scratch.addr, scratch.size)
