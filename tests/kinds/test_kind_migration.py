"""Pages that move: a lock keeps a page in memory, not in its place."""

import pytest

from helpers import hotplug, libc, lru, numa, thp
from helpers.libc import PAGE, PAGE_KB
from helpers.memory import mapping
from helpers.observe import account, folios, pagemap, presence, rusage, status, vmstat
from helpers.pressure import drive
from helpers.process import Child
from helpers.report.verdicts import inconclusive

N = 16
KINDS = ["private", "shared", "memfd-private", "memfd-shared"]

pytestmark = [
    pytest.mark.needs("lock:32"),
    pytest.mark.source("move_pages(2)", "mbind(2)", "unevictable-lru.rst MIGRATING MLOCKED PAGES"),
]
NODES = pytest.mark.needs("two-nodes", "kpageflags")
COMPACTION = pytest.mark.needs("compaction", "allow-sysctl", "kpageflags")
SYSCTL = "/proc/sys/vm/compact_unevictable_allowed"


def mlocked(region, pid="self"):
    lru.drain()
    return presence.bits(pagemap.snapshot(region.addr, region.pages, pid).mlocked)


def contents(region):
    for page in range(region.pages):
        libc.write(region.at(page), bytes([page + 1]) * 16)


def intact(region):
    return [region.peek()[page] for page in range(region.pages)] == [
        page + 1 for page in range(region.pages)
    ]


def other_node(region):
    here = numa.where(region)[0]
    return here, next(node for node in numa.nodes() if node != here)


@NODES
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["move_pages", "mbind", "migrate_pages"])
def test_locked_page_moved_to_another_node_stays_locked(kind, way):
    """move_pages, mbind(MPOL_MF_MOVE) and migrate_pages take locked pages to another node: in new
    frames, mlocked, present, counted and with their contents; munlock unmarks them all."""
    lru.pin()
    with mapping(kind, N) as region:
        contents(region)
        lru.drain()
        libc.mlock(region.addr, 12 * PAGE)
        locked = region.sub(0, 12)
        here, there = other_node(region)
        before = pagemap.pfns(region.addr, N)
        if way == "move_pages":
            numa.move(region, there)
        elif way == "mbind":
            numa.bind(region, there)
        else:
            numa.migrate(0, here, there)
        assert numa.where(locked) == [there] * 12, "on the other node"
        assert not set(pagemap.pfns(region.addr, 12)) & set(before), "in other frames"
        assert mlocked(region) == "1" * 12 + "0" * 4, "mlocked where locked"
        seen = account.of(region)
        assert (seen.pages, seen.vmlck) == ("L" * 12 + "-" * 4, 12), "lo and VmLck"
        assert intact(region), "contents"
        assert rusage.writing(locked.addr, locked.size).minor == 0, "no page faults"
        libc.munlock(region.addr, region.size)
        assert mlocked(region) == "0" * N, "unlocked: none is marked"


def huge_and_moved(region):
    """In the child: a locked huge page moved to the other node; whether that worked."""
    thp.allow()
    region.touch()
    libc.mlock(region.addr, region.size)
    lru.drain()
    first = region.sub(0, 1)
    _, there = other_node(first)
    moved = numa.move(first, there) == [there]
    lru.drain()
    return moved and thp.is_huge(region)


def fill_control(region):
    region.write(0x77)


@NODES
@pytest.mark.needs("thp", f"lock:{thp.PAGES}", f"budget:{2 * thp.PAGES}")
@pytest.mark.needs("cgroup", "swap")
@pytest.mark.claim("W1", "W17")
def test_locked_huge_page_moved_to_another_node_stays_locked(pressure):
    """A locked huge page that is moved to another node stays whole, counted and present; under
    pressure it stays too, and is mlocked, at the latest by reclaim."""
    # Its mark does not come along from 6.7 on: remove_migration_pmd() leaves that to reclaim.
    pages = thp.PAGES
    with thp.aligned() as region, mapping("private", pages) as control:
        with pressure.cgroup() as group, Child() as child:
            group.add(child.pid)
            if not child.call(huge_and_moved, region):
                inconclusive("no huge page, or none free on the other node")
            child.call(fill_control, control)
            assert child.call(status.vmlck_pages) == pages, "VmLck"
            assert pagemap.present_count(region.addr, pages, child.pid) == pages, "present"
            drive.until_gone(group.reclaim, child.pid, control)
            child.call(lru.drain)
            assert pagemap.present_count(region.addr, pages, child.pid) == pages, "still"
            assert all(folios.mlocked(region, child.pid)), "mlocked"
            child.call(libc.munlock, region.addr, region.size)
            child.call(lru.drain)
            assert not any(folios.mlocked(region, child.pid)), "unlocked: not marked"


@NODES
def test_page_with_two_lockers_moves_with_both():
    """A page locked by two processes is still mlocked, after it was moved, when one of them
    unlocks, and no more when both have."""
    lru.pin()
    with mapping("shared", N) as region:
        region.touch()
        lru.drain()
        libc.mlock(region.addr, region.size)
        with Child() as child:
            child.call(libc.mlock, region.addr, region.size)
            child.call(lru.drain)
            _, there = other_node(region)
            numa.bind(region, there, numa.MOVE_ALL)
            if numa.where(region) != [there] * N:
                inconclusive("pages mapped by two processes were not moved (CAP_SYS_NICE)")
            assert mlocked(region) == "1" * N, "moved: mlocked"
            child.call(libc.munlock, region.addr, region.size)
            child.call(lru.drain)
            assert mlocked(region) == "1" * N, "the parent still holds them"
            libc.munlock(region.addr, region.size)
            assert mlocked(region) == "0" * N, "nobody does"


@NODES
@pytest.mark.parametrize("lock", ["mlock", "onfault"])
def test_policy_decides_where_a_lock_populates(lock):
    """mlock populates on the node that the range's policy names, and so does a fault into it."""
    with mapping("private", N) as region:
        for node in numa.nodes():
            libc.munlock(region.addr, region.size)
            libc.madvise(region.addr, region.size, libc.MADV_DONTNEED)
            numa.bind(region, node, 0)
            if lock == "mlock":
                libc.mlock(region.addr, region.size)
            else:
                libc.mlock2(region.addr, region.size, libc.MLOCK_ONFAULT)
                region.touch()
            assert numa.where(region) == [node] * N, f"node {node}"
            assert account.of(region).vmlck == N, "VmLck"


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
def test_compaction_moves_locked_pages_only_where_it_may(pressure, allowed):
    """Compaction moves locked pages where vm.compact_unevictable_allowed is 1, and they stay
    mlocked, present and intact; where it is 0 it moves unlocked pages and no locked one."""
    lru.pin()
    pages = 2048
    with pressure.setting(SYSCTL, allowed), mapping("private", pages) as region:
        region.write(0x42)
        # Every other page is given up, so that memory is full of holes; of the rest, half locked.
        for page in range(0, pages, 2):
            libc.madvise(region.at(page), PAGE, libc.MADV_DONTNEED)
        lru.drain()
        half = region.sub(0, pages // 2)
        libc.mlock2(half.addr, half.size, libc.MLOCK_ONFAULT)
        before = pagemap.pfns(region.addr, pages)
        marked = mlocked(half)
        compact()
        after = pagemap.pfns(region.addr, pages)
        moved = [a != b for a, b in zip(before, after)]
        locked_moved, free_moved = sum(moved[: pages // 2]), sum(moved[pages // 2 :])
        assert mlocked(half) == marked == "01" * (pages // 4), "mlocked as before"
        assert presence.mapped(half) == marked, "present as before"
        assert half.peek().count(b"\x42") == pages // 4, "contents"
        if not free_moved:
            inconclusive("compaction moved nothing")
        if allowed == "0":
            assert locked_moved == 0, "no locked page was moved"
        elif not locked_moved:
            inconclusive("compaction moved no locked page")


def placed(region):
    """Which block each page of the region lies in; −1 where absent."""
    size = hotplug.block_pages()
    return [pfn // size if pfn else -1 for pfn in pagemap.pfns(region.addr, region.pages)]


@pytest.mark.needs("movable-block", "allow-sysctl", "kpageflags")
@pytest.mark.needs("lock:1024", "budget:1024")
@pytest.mark.source("memory-hotplug.rst", "mm/memory_hotplug.c")
@pytest.mark.exclusive
def test_locked_pages_outlive_the_memory_they_lie_in(pressure):
    """When a block of memory is taken away, the locked pages in it move to another: present,
    mlocked, counted and intact."""
    lru.pin()
    pages = 1024
    # The first block that memory is taken from often holds the kernel's own: fill it.
    available = vmstat.meminfo_kb("MemAvailable") // PAGE_KB
    most = min(hotplug.block_pages() // 2, available // 3)
    with mapping("private", most) as filler, mapping("private", pages) as region:
        filler.touch()
        contents = bytes(page & 0xFF for page in range(pages))
        for page in range(pages):
            libc.write(region.at(page), contents[page : page + 1])
        lru.drain()
        libc.mlock(region.addr, region.size)
        blocks = hotplug.movable()
        inside = [block for block in placed(region) if block in blocks]
        for chosen in sorted(set(inside), key=inside.count, reverse=True):
            with hotplug.without(pressure.run, blocks[chosen]) as gone:
                if not gone:
                    continue
                assert chosen not in placed(region), "no page is left in it"
                assert pagemap.present_count(region.addr, pages) == pages, "all are present"
                assert mlocked(region) == "1" * pages, "and mlocked"
                assert region.peek() == contents, "contents"
                assert status.vmlck_pages() == pages, "VmLck"
                assert rusage.writing(region.addr, region.size).minor == 0, "no page faults"
                break
        else:
            inconclusive(f"none of {len(set(inside))} blocks with locked pages could be emptied")
        libc.munlock(region.addr, region.size)
        assert mlocked(region) == "0" * pages, "unlocked: none is marked"
