# SPDX-License-Identifier: MIT
"""mincore of pages that are in swap, in the swap cache, or in memory of somebody else alone."""

import pytest

from helpers import syscalls
from helpers.observe import maps, page_flags, pagemap, residency
from helpers.processes import Child
from helpers.reclaim import control_pairs, drivers
from helpers.requirements.inconclusive import inconclusive
from helpers.syscalls import PAGE_KB

SIZE = 2 * control_pairs.SIZE
SWAPCACHE = 1 << page_flags.KPF["SWAPCACHE"]

pytestmark = [
    pytest.mark.share_process,
    pytest.mark.needs(
        "cgroup", "swap", "mincore", f"lock:{2 * SIZE}", f"budget:{3 * SIZE}", "kpageflags"
    ),
    pytest.mark.source("mincore(2)", "mm/mincore.c mincore_page"),
]


def seen_by(child, region, grand=False):
    """Page by page, to the child (or its own child): pagemap, mincore, pagemap's swap bit."""

    def ask(function):
        if grand:
            return child.call(control_pairs.call_in_grandchild, function, region)
        return child.call(function, region)

    return ask(residency.mapped_bits), ask(residency.mincore_bits), ask(swapped_bits)


def swapped_bits(region):
    """Pages whose page table entry is a swap slot."""
    return residency.bits(e & pagemap.SWAPPED for e in pagemap.entries(region.addr, region.pages))


def cached(numbers):
    """How many of these frames hold a page that is in the swap cache."""
    return sum(bool(word & SWAPCACHE) for word in page_flags.kpageflags(numbers))


@pytest.mark.parametrize("kind", ["private", "memfd-private", "shared", "memfd-shared"])
@pytest.mark.detects("mincore-all-resident")
def test_pages_in_swap_are_absent_and_locked_ones_resident(reclaim, kind):
    """Of what reclaim took to swap mincore calls nothing resident but what is still in the swap
    cache, of the locked twin all; on-fault locks of it change no answer, a full lock makes all
    of it resident."""
    with reclaim.cgroup() as group, Child() as child:
        group.add(child.pid)
        [pair] = child.call(control_pairs.make_pairs, (kind,), "mlock", SIZE).values()
        locked, region = pair.locked, pair.control
        numbers = pagemap.pfns(region.addr, SIZE, child.pid)
        drivers.reclaim_until_evicted(group.reclaim, child.pid, region)
        waiting = cached(numbers)
        there, told, in_swap = seen_by(child, region)
        if waiting > SIZE // 4:
            inconclusive(f"{waiting} of {SIZE} pages are still in the swap cache")
        extra = sum(m == "1" and p == "0" for p, m in zip(there, told))
        # The child's own pages come back as it is asked, with some neighbours in the swap area.
        assert extra <= waiting + SIZE // 4, "resident without being mapped: in the swap cache"
        assert "0" not in [m for p, m in zip(there, told) if p == "1"], "what is mapped is resident"
        if kind.endswith("private"):
            assert in_swap.count("1") == SIZE - there.count("1"), "the rest is in swap"
        assert seen_by(child, locked)[:2] == ("1" * SIZE,) * 2, "the locked twin"
        child.call(syscalls.mlock2, region.addr, region.size, syscalls.MLOCK_ONFAULT)
        after = seen_by(child, region)
        assert after[0] == there, "pagemap, locked on fault"
        assert after[1].count("1") <= waiting + SIZE // 4, "mincore, locked on fault"
        child.call(syscalls.mlock, region.addr, region.size)
        assert seen_by(child, region) == ("1" * SIZE, "1" * SIZE, "0" * SIZE), "locked"


@pytest.mark.parametrize("kind", ["private", "shared"])
@pytest.mark.parametrize("lock", ["unlocked", "onfault"])
@pytest.mark.detects("mincore-last-page-absent", "mincore-only-mapped")
def test_page_that_another_process_read_back_is_resident(reclaim, kind, lock):
    """A page in swap that another process has read back is resident to mincore, though pagemap
    calls it swapped or absent here: it is in the swap cache, or its file's; and no part of Rss
    or Locked until it is touched here."""
    with reclaim.cgroup() as group, Child() as child:
        group.add(child.pid)
        [pair] = child.call(control_pairs.make_pairs, (kind,), "mlock", SIZE).values()
        region = pair.control
        child.call(control_pairs.fork_grandchild)
        drivers.reclaim_until_evicted(group.reclaim, child.pid, region)
        there = child.call(residency.mapped_bits, region)
        if lock == "onfault":
            child.call(syscalls.mlock2, region.addr, region.size, syscalls.MLOCK_ONFAULT)
        child.call(control_pairs.call_in_grandchild, region.first_bytes)
        mapped, told, in_swap = seen_by(child, region)
        assert mapped == there, "pagemap: none has come back here"
        if kind == "private":
            assert in_swap.count("1") == mapped.count("0"), "all others are swap slots here"
        assert told == "1" * SIZE, "mincore: each is in memory"
        [vma] = maps.smaps(child.pid, region.addr, region.end)
        rss = there.count("1") * PAGE_KB
        assert vma.field_kb("Rss") == rss, "Rss"
        assert vma.field_kb("Locked") <= (rss if lock == "onfault" else 0), "Locked"
        child.call(region.first_bytes)
        assert seen_by(child, region) == ("1" * SIZE, "1" * SIZE, "0" * SIZE), "touched"
