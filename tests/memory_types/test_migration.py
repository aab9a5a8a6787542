# SPDX-License-Identifier: MIT
"""Pages that move: a lock keeps a page in memory, not in its place."""

import pytest

from helpers import syscalls
from helpers.machine import memory_blocks
from helpers.memory import huge_pages, mapping
from helpers.observe import (
    folios,
    huge_mappings,
    lock_accounting,
    lru_batches,
    page_faults,
    page_flags,
    pagemap,
    residency,
    status,
    vmstat,
)
from helpers.processes import Child
from helpers.reclaim import drivers
from helpers.requirements.inconclusive import inconclusive
from helpers.syscalls import PAGE, PAGE_KB, numa

N = 16
KINDS = ["private", "shared", "memfd-private", "memfd-shared"]

pytestmark = [
    pytest.mark.share_process,
    pytest.mark.needs("lock:32"),
    pytest.mark.source("move_pages(2)", "mbind(2)", "unevictable-lru.rst MIGRATING MLOCKED PAGES"),
]
NODES = pytest.mark.needs("two-nodes", "kpageflags")
COMPACTION = pytest.mark.needs("compaction", "allow-sysctl", "kpageflags")
SYSCTL = "/proc/sys/vm/compact_unevictable_allowed"


def contents(region):
    for page in range(region.pages):
        syscalls.store(region.at(page), bytes([page + 1]) * 16)


def intact(region):
    return [region.first_bytes()[page] for page in range(region.pages)] == [
        page + 1 for page in range(region.pages)
    ]


def other_node(region):
    here = numa.page_nodes(region)[0]
    return here, next(node for node in numa.nodes() if node != here)


@NODES
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["move_pages", "mbind", "migrate_pages"])
@pytest.mark.detects("move-drops-contents")
@pytest.mark.usefixtures("one_cpu")
def test_locked_page_moved_to_another_node_stays_locked(kind, way):
    """move_pages, mbind(MPOL_MF_MOVE) and migrate_pages take locked pages to another node: in new
    frames, mlocked, present, counted and with their contents; munlock unmarks them all."""
    with mapping(kind, N) as region:
        contents(region)
        lru_batches.mlock_drain_local()
        syscalls.mlock(region.addr, 12 * PAGE)
        locked = region.sub(0, 12)
        here, there = other_node(region)
        before = pagemap.pfns(region.addr, N)
        if way == "move_pages":
            numa.move_pages(region, there)
        elif way == "mbind":
            numa.mbind(region, there)
        else:
            numa.migrate_pages(0, here, there)
        assert numa.page_nodes(locked) == [there] * 12, "on the other node"
        assert not set(pagemap.pfns(region.addr, 12)) & set(before), "in other frames"
        assert page_flags.mlocked(region) == "1" * 12 + "0" * 4, "mlocked where locked"
        seen = lock_accounting.read(region)
        assert (seen.pages, seen.vmlck) == ("L" * 12 + "-" * 4, 12), "lo and VmLck"
        assert intact(region), "contents"
        assert page_faults.faults_writing(locked.addr, locked.size).minor == 0, "no page faults"
        syscalls.munlock(region.addr, region.size)
        assert page_flags.mlocked(region) == "0" * N, "unlocked: none is marked"


def huge_and_moved(region):
    """In the child: a locked huge page moved to the other node; whether that worked."""
    huge_pages.enable_thp()
    region.touch()
    huge_pages.keep_huge_pages()
    syscalls.mlock(region.addr, region.size)
    lru_batches.mlock_drain_local()
    first = region.sub(0, 1)
    _, there = other_node(first)
    moved = numa.move_pages(first, there) == [there]
    lru_batches.mlock_drain_local()
    return moved and huge_mappings.is_huge(region)


def fill_control(region):
    region.write(0x77)


@NODES
@pytest.mark.needs(
    "thp", f"lock:{huge_pages.HPAGE_PMD_NR}", f"budget:{2 * huge_pages.HPAGE_PMD_NR}"
)
@pytest.mark.needs("cgroup", "swap")
@pytest.mark.claim("W1", "W17")
def test_locked_huge_page_moved_to_another_node_stays_locked(reclaim):
    """A locked huge page that is moved to another node stays whole, counted and present; under
    pressure it stays too, and is mlocked, at the latest by reclaim."""
    # Its mark does not come along from 6.7 on: remove_migration_pmd() leaves that to reclaim.
    pages = huge_pages.HPAGE_PMD_NR
    with huge_pages.thp_aligned_mapping() as region, mapping("private", pages) as control:
        with reclaim.cgroup() as group, Child() as child:
            group.add(child.pid)
            if not child.call(huge_and_moved, region):
                inconclusive("no huge page, or none free on the other node")
            child.call(fill_control, control)
            assert child.call(status.vmlck_pages) == pages, "VmLck"
            assert pagemap.present_count(region.addr, pages, child.pid) == pages, "present"
            drivers.reclaim_until_evicted(group.reclaim, child.pid, control)
            child.call(lru_batches.mlock_drain_local)
            assert pagemap.present_count(region.addr, pages, child.pid) == pages, "still"
            assert all(folios.mlocked(region, child.pid)), "mlocked"
            child.call(syscalls.munlock, region.addr, region.size)
            child.call(lru_batches.mlock_drain_local)
            assert not any(folios.mlocked(region, child.pid)), "unlocked: not marked"


@NODES
@pytest.mark.usefixtures("one_cpu")
def test_page_with_two_lockers_moves_with_both():
    """A page locked by two processes is still mlocked, after it was moved, when one of them
    unlocks, and no more when both have."""
    with mapping("shared", N) as region:
        region.touch()
        lru_batches.mlock_drain_local()
        syscalls.mlock(region.addr, region.size)
        with Child() as child:
            child.call(syscalls.mlock, region.addr, region.size)
            child.call(lru_batches.mlock_drain_local)
            _, there = other_node(region)
            numa.mbind(region, there, numa.MOVE_ALL)
            if numa.page_nodes(region) != [there] * N:
                inconclusive("pages mapped by two processes were not moved (CAP_SYS_NICE)")
            assert page_flags.mlocked(region) == "1" * N, "moved: mlocked"
            child.call(syscalls.munlock, region.addr, region.size)
            child.call(lru_batches.mlock_drain_local)
            assert page_flags.mlocked(region) == "1" * N, "the parent still holds them"
            syscalls.munlock(region.addr, region.size)
            assert page_flags.mlocked(region) == "0" * N, "nobody does"


@NODES
@pytest.mark.parametrize("lock", ["mlock", "onfault"])
def test_policy_decides_where_a_lock_populates(lock):
    """mlock populates on the node that the range's policy names, and so does a fault into it."""
    with mapping("private", N) as region:
        for node in numa.nodes():
            syscalls.munlock(region.addr, region.size)
            syscalls.madvise(region.addr, region.size, syscalls.MADV_DONTNEED)
            numa.mbind(region, node, 0)
            if lock == "mlock":
                syscalls.mlock(region.addr, region.size)
            else:
                syscalls.mlock2(region.addr, region.size, syscalls.MLOCK_ONFAULT)
                region.touch()
            assert numa.page_nodes(region) == [node] * N, f"node {node}"
            assert lock_accounting.read(region).vmlck == N, "VmLck"


def compact():
    """Compact all memory: how many pages were migrated meanwhile, by whomever."""
    before = vmstat.read().get("pgmigrate_success", 0)
    with open("/proc/sys/vm/compact_memory", "w") as file:
        file.write("1")
    return vmstat.read().get("pgmigrate_success", 0) - before


@COMPACTION
@pytest.mark.needs("budget:2048", "lock:1024")
@pytest.mark.exclusive
@pytest.mark.parametrize("allowed", ["1", "0"])
@pytest.mark.usefixtures("one_cpu")
def test_compaction_moves_locked_pages_only_where_it_may(reclaim, allowed):
    """Compaction moves locked pages where vm.compact_unevictable_allowed is 1, and they stay
    mlocked, present and intact; where it is 0 it moves unlocked pages and no locked one."""
    pages = 2048
    with reclaim.setting(SYSCTL, allowed), mapping("private", pages) as region:
        region.write(0x42)
        # Every other page is given up, so that memory is full of holes; of the rest, half locked.
        for page in range(0, pages, 2):
            syscalls.madvise(region.at(page), PAGE, syscalls.MADV_DONTNEED)
        lru_batches.mlock_drain_local()
        half = region.sub(0, pages // 2)
        syscalls.mlock2(half.addr, half.size, syscalls.MLOCK_ONFAULT)
        before = pagemap.pfns(region.addr, pages)
        marked = page_flags.mlocked(half)
        compact()
        after = pagemap.pfns(region.addr, pages)
        moved = [a != b for a, b in zip(before, after)]
        locked_moved, free_moved = sum(moved[: pages // 2]), sum(moved[pages // 2 :])
        assert page_flags.mlocked(half) == marked == "01" * (pages // 4), "mlocked as before"
        assert residency.mapped_bits(half) == marked, "present as before"
        assert half.first_bytes().count(b"\x42") == pages // 4, "contents"
        if not free_moved:
            inconclusive("compaction moved nothing")
        if allowed == "0":
            assert locked_moved == 0, "no locked page was moved"
        elif not locked_moved:
            inconclusive("compaction moved no locked page")


def placed(region):
    """Which block each page of the region lies in; −1 where absent."""
    size = memory_blocks.block_pages()
    return [pfn // size if pfn else -1 for pfn in pagemap.pfns(region.addr, region.pages)]


@pytest.mark.needs("movable-block", "allow-sysctl", "kpageflags")
@pytest.mark.needs("lock:1024", "budget:1024")
@pytest.mark.source("memory-hotplug.rst", "mm/memory_hotplug.c")
@pytest.mark.exclusive
@pytest.mark.usefixtures("one_cpu")
def test_locked_pages_outlive_the_memory_they_lie_in(reclaim):
    """When a block of memory is taken away, the locked pages in it move to another: present,
    mlocked, counted and intact."""
    pages = 1024
    # The first block that memory is taken from often holds the kernel's own: fill it.
    available = vmstat.meminfo_kb("MemAvailable") // PAGE_KB
    most = min(memory_blocks.block_pages() // 2, available // 3)
    with mapping("private", most) as filler, mapping("private", pages) as region:
        filler.touch()
        contents = bytes(page & 0xFF for page in range(pages))
        for page in range(pages):
            syscalls.store(region.at(page), contents[page : page + 1])
        lru_batches.mlock_drain_local()
        syscalls.mlock(region.addr, region.size)
        blocks = memory_blocks.movable_blocks()
        inside = [block for block in placed(region) if block in blocks]
        for chosen in sorted(set(inside), key=inside.count, reverse=True):
            with memory_blocks.offlined(reclaim.run, blocks[chosen]) as gone:
                if not gone:
                    continue
                assert chosen not in placed(region), "no page is left in it"
                assert pagemap.present_count(region.addr, pages) == pages, "all are present"
                assert page_flags.mlocked(region) == "1" * pages, "and mlocked"
                assert region.first_bytes() == contents, "contents"
                assert status.vmlck_pages() == pages, "VmLck"
                assert page_faults.faults_writing(region.addr, region.size).minor == 0, (
                    "no page faults"
                )
                break
        else:
            inconclusive(f"none of {len(set(inside))} blocks with locked pages could be emptied")
        syscalls.munlock(region.addr, region.size)
        assert page_flags.mlocked(region) == "0" * pages, "unlocked: none is marked"
