# SPDX-License-Identifier: MIT
"""The promise: what is locked stays, what is not goes."""

import pytest

from helpers import syscalls
from helpers.memory import mapping
from helpers.observe import pagemap, status
from helpers.processes import Child
from helpers.requirements.inconclusive import inconclusive

pytestmark = [
    pytest.mark.share_process,
    pytest.mark.source("mlock(2) DESCRIPTION", "unevictable-lru.rst"),
]

PAGES = 256


@pytest.mark.needs("cgroup", "swap", "lock:256", "budget:256")
@pytest.mark.claim("W1")
def test_locked_private_memory_stays_while_its_twin_is_swapped(reclaim):
    """Reclaim of a whole cgroup swaps out unlocked memory and leaves every locked page."""
    with (
        mapping("private", PAGES) as locked,
        mapping("private", PAGES) as control,
        reclaim.cgroup() as group,
        Child() as child,
    ):
        group.add(child.pid)
        child.call(locked.write)
        child.call(control.write)
        child.call(syscalls.mlock, locked.addr, locked.size)
        before = child.call(pagemap.pfns, locked.addr, PAGES)
        group.reclaim()
        if child.call(pagemap.swapped_count, control.addr, PAGES) < PAGES // 2:
            inconclusive("the unlocked control was not swapped out")
        assert child.call(pagemap.present_count, locked.addr, PAGES) == PAGES, "locked pages stay"
        assert child.call(pagemap.swapped_count, locked.addr, PAGES) == 0, "none is in swap"
        assert child.call(pagemap.pfns, locked.addr, PAGES) == before, "nor was any read back"
        assert child.call(status.kb, "VmSwap") > 0, "VmSwap counts the control"
