# SPDX-License-Identifier: MIT
"""NUMA balancing and locked memory: minor faults that no lock spares, and no lock lost by them."""

import resource
import time

import pytest

from helpers import syscalls
from helpers.machine import timeouts
from helpers.memory import mapping
from helpers.observe import lock_accounting, lru_batches, page_flags, residency
from helpers.processes import Child
from helpers.requirements.inconclusive import inconclusive
from helpers.syscalls import numa

PAGES = 2048
SETTING = "/proc/sys/kernel/numa_balancing"

pytestmark = [
    pytest.mark.needs("numa-balancing", "allow-sysctl", "kpageflags", f"lock:{PAGES}"),
    pytest.mark.needs(f"budget:{2 * PAGES}", "smaps-flags"),
    pytest.mark.source("Documentation/admin-guide/sysctl/kernel.rst numa_balancing"),
    pytest.mark.exclusive,
]


def read_for(region, seconds):
    """In the child: read every page again and again: minor faults, until some or so long."""
    syscalls.syscall("set_mempolicy", numa.MPOL_DEFAULT, None, 0)
    region.first_bytes()
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        region.first_bytes()
        if resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before > PAGES // 4:
            break
    return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before


def fill(*regions):
    """In the child: lock the first, fill all."""
    syscalls.mlock(regions[0].addr, regions[0].size)
    for region in regions:
        for page in range(region.pages):
            syscalls.store(region.at(page), bytes([page & 0xFF]))
    lru_batches.mlock_drain_local()


@pytest.mark.claim("W3")
@pytest.mark.deadline(120)
@pytest.mark.parametrize("balancing", ["1", "0"], ids=["on", "off"])
@pytest.mark.detects("policy-change-unlocks")
def test_numa_balancing_faults_in_locked_memory_and_leaves_it_locked(reclaim, balancing):
    """With kernel.numa_balancing on, reads of locked memory take minor faults now and then, as
    those of unlocked memory do, with it off they take none; the pages stay present, mlocked,
    counted and intact, on whatever node."""
    with (
        reclaim.setting(SETTING, balancing),
        mapping("private", PAGES) as region,
        mapping("private", PAGES) as control,
        Child() as child,
    ):
        child.call(fill, region, control)
        seconds = timeouts.scaled(15) if balancing == "1" else 1
        seen = child.call(read_for, region, seconds, deadline=40)
        assert lock_accounting.read(region, child.pid).pages == "L" * PAGES, "locked"
        assert child.call(residency.mapped_bits, region) == "1" * PAGES, "present"
        child.call(lru_batches.mlock_drain_local)
        assert child.call(page_flags.mlocked, region) == "1" * PAGES, "mlocked"
        shown = child.call(region.first_bytes)
        assert shown == bytes(page & 0xFF for page in range(PAGES)), "contents"
        if balancing == "0":
            assert seen < PAGES // 4, "off: no faults by the page"
        elif seen <= PAGES // 4:
            if child.call(read_for, control, seconds, deadline=40) <= PAGES // 4:
                inconclusive("nor did unlocked memory fault")
            assert seen, "unlocked memory faulted, locked memory does too"
