# SPDX-License-Identifier: MIT
"""The counters of locked pages by kind of memory, and by how a lock ends."""

import contextlib
import os

import pytest

from helpers import syscalls
from helpers.machine import kernel_version
from helpers.memory import every_kind, huge_pages, sysv_segment
from helpers.observe import lru_batches
from helpers.processes import Child, cpus, errors
from helpers.processes.stub_memory import fill, stub_with
from helpers.pytest_plugin.parametrize import by_memory_kind
from helpers.reclaim import cgroup, counter_rounds
from helpers.syscalls import PAGE, numa

pytestmark = [
    pytest.mark.share_process,
    pytest.mark.source("unevictable-lru.rst", "proc_vmstat(5)", "cgroup-v2.rst memory.stat"),
    pytest.mark.claim("W14", "W18"),
]

PAGES = max(512, huge_pages.HPAGE_PMD_NR)
BUDGET = pytest.mark.needs(f"lock:{PAGES}", f"budget:{2 * PAGES}")
SMALL = ("private", "shared", "memfd-private", "memfd-shared", "file-private", "file-shared",
         "sysv", "secret", "droppable")  # fmt: skip

MARKED_BY_FAULT = kernel_version.version() >= (5, 18, 0)
"""Before, a fault in a mapping of a file leaves the marking of its page to reclaim."""


def about(value, pages=PAGES):
    return pages * 3 // 4 <= value <= pages * 5 // 4


@pytest.mark.exclusive
@BUDGET
@by_memory_kind(PAGES, only=SMALL)
@pytest.mark.needs("kpageflags")
@pytest.mark.usefixtures("one_cpu")
@pytest.mark.detects(
    "node-vmstat-stuck", "zoneinfo-stuck", "nr-mlock-counts-private", "unlockable-counted"
)
def test_machine_counters_move_by_the_pages_of_each_kind(kind):
    """A lock of memory of any kind that can be locked moves every counter of the machine, its
    nodes and its zones by its pages, and munlock moves them back; of other kinds, none."""
    with every_kind.mapping_of(kind, PAGES) as region:
        region.write() if kind.id != "secret" else region.touch()
        lru_batches.mlock_drain_local()
        lockable = kind.lock and kind.id != "secret"
        levels, events = counter_rounds.alternate(
            lambda: syscalls.outcome(syscalls.mlock, region.addr, region.size),
            lambda: syscalls.munlock(region.addr, region.size),
            PAGES,
            rounds=5,
        )
        moved = {name: about(n) for name, n in levels.items() if abs(n) >= PAGES // 4}
        wanted = dict.fromkeys(levels, True) if lockable else {}
        assert moved == wanted, f"{PAGES} pages in each: {levels}"
        if lockable:
            counted = [events["mlocked"], -events["munlocked"], events["culled"]]
            assert all(map(about, [*counted, -events["rescued"]])), f"events: {events}"


@pytest.mark.exclusive
@BUDGET
@pytest.mark.needs("sysv-shm", "CAP_IPC_LOCK", "kpageflags")
@pytest.mark.source("shmctl(2) SHM_LOCK", "mm/vmscan.c check_move_unevictable_folios")
@pytest.mark.usefixtures("one_cpu")
@pytest.mark.detects("event-scanned-stuck")
def test_machine_counters_of_a_locked_segment_are_unevictable_alone():
    """Pages that come into a locked segment are unevictable everywhere and mlocked nowhere;
    SHM_UNLOCK scans and rescues each."""
    with sysv_segment.segment(PAGES) as made:

        def take():
            sysv_segment.lock(made.id)
            made.region.touch()

        def give():
            sysv_segment.unlock(made.id)
            syscalls.madvise(made.region.addr, made.region.size, syscalls.MADV_REMOVE)

        levels, events = counter_rounds.alternate(take, give, PAGES, rounds=5)
    moved = {name: about(n) for name, n in levels.items() if abs(n) >= PAGES // 4}
    names = [name for name in levels if "nevictable" in name]
    assert moved == dict.fromkeys(names, True), f"the unevictable: {levels}"
    counted = [events["culled"], -events["scanned"], -events["rescued"]]
    assert all(map(about, counted)), f"culled; scanned, rescued: {events}"
    assert abs(events["mlocked"]) < PAGES // 4, f"none was mlocked: {events}"


def unevictable(group, pages):
    """Pages that memory.stat calls unevictable, drained; all that tell it, if they differ."""
    lru_batches.mlock_drain_local()
    seen = {"unevictable": group.settled("unevictable", pages)}
    stat = group.stat()
    if "total_unevictable" in stat:  # v1
        seen["total_unevictable"] = stat["total_unevictable"] // PAGE
    if (nodes := group.of_nodes("unevictable")) is not None:
        seen["memory.numa_stat"] = nodes
    off = [abs(n - pages) for n in seen.values()]
    return pages if max(off) <= cgroup.stat_slack() else seen


HERE = ("private", "shared", "memfd-private", "memfd-shared", "file-private", "file-shared",
        "sysv", "secret", "droppable", "thp", "hugetlb")  # fmt: skip


@BUDGET
@by_memory_kind(1, only=HERE)
@pytest.mark.needs("cgroup", "stub-process")
@pytest.mark.usefixtures("one_cpu")
@pytest.mark.detects(
    "memcg-unevictable-stuck",
    "memcg-shared-not-unevictable",
    "memcg-nodes-stuck",
    "unlockable-counted",
)
def test_cgroups_counter_follows_a_lock_of_each_kind(reclaim, kind):
    """unevictable of memory.stat and memory.numa_stat is 0 before a lock, grows as an on-fault
    lock is filled, is the whole under a lock, the rest after munlock of a half, 0 after munlock,
    in pages of any kind and size; secret memory is unevictable as soon as it is there."""
    units = PAGES if kind.unit == PAGE else 2
    with reclaim.cgroup() as group, stub_with(kind, units) as (stub, region):
        group.add(stub.pid)
        if kind.id.startswith("file"):
            # What is cached is charged to who wrote the file; and a large folio that is mapped
            # page by page is left to reclaim to mark (__folio_add_file_rmap() in mm/rmap.c).
            os.posix_fadvise(region.fd, 0, 0, os.POSIX_FADV_DONTNEED)
            stub.call("madvise", region.addr, region.size, syscalls.MADV_RANDOM)
        half = region.size // 2
        pages = region.pages if kind.lock else 0
        assert unevictable(group, 0) == 0, "before"
        if kind.id == "secret":
            fill(stub, region.addr, half)
            assert unevictable(group, pages // 2) == pages // 2, "half of it is there"
            stub.call("munlock", region.addr, region.size)
            assert unevictable(group, pages // 2) == pages // 2, "munlock changes nothing"
            return
        stub.call("mlock2", region.addr, region.size, syscalls.MLOCK_ONFAULT)
        assert unevictable(group, 0) == 0, "locked on fault"
        fill(stub, region.addr, half)
        if kind.anonymous or MARKED_BY_FAULT:
            assert unevictable(group, pages // 2) == pages // 2, "half of it filled"
        stub.call("mlock", region.addr, region.size)
        assert unevictable(group, pages) == pages, "locked"
        stub.call("munlock", region.addr, half)
        assert unevictable(group, pages // 2) == pages // 2, "half of it unlocked"
        stub.call("munlock", region.addr, region.size)
        assert unevictable(group, 0) == 0, "unlocked"


def munlock(stub, region):
    stub.call("munlock", region.addr, region.size)


def munlockall(stub, region):
    stub.call("munlockall")


def munmap(stub, region):
    stub.call("munmap", region.addr, region.size)


def munmap_in_parts(stub, region):
    """The middle first, which splits a huge page."""
    part = region.pages // 4
    for first, count in ((part, part), (0, part), (2 * part, region.pages - 2 * part)):
        stub.call("munmap", region.at(first), count * PAGE)


def placed_over(stub, region):
    how = syscalls.MAP_PRIVATE | syscalls.MAP_ANONYMOUS | syscalls.MAP_FIXED
    stub.mmap(region.pages, syscalls.PROT_RW, how, region.addr)


def dropped(stub, region):
    stub.call("madvise", region.addr, region.size, syscalls.MADV_DONTNEED_LOCKED)


def shrunk(stub, region):
    stub.call("mremap", region.addr, region.size, PAGE, 0)
    stub.call("munmap", region.addr, PAGE)


def truncated(stub, region):
    os.ftruncate(region.fd, 0)


def moved_and_unmapped(stub, region):
    here = numa.page_nodes(region, stub.pid)[0]
    there = next(node for node in numa.nodes() if node != here)
    numa.move_pages(region, there, stub.pid)
    lru_batches.mlock_drain_local()
    assert there in numa.page_nodes(region, stub.pid), "moved to another node"
    munmap(stub, region)


def exited(stub, region):
    with contextlib.suppress(errors.ChildExited):
        stub.call("exit_group", 0)


def killed(stub, region):
    stub.kill()


ENDS = [
    *(
        (kind, act)
        for kind in ("private", "thp", "memfd-shared")
        for act in (munlock, munlockall, munmap, munmap_in_parts, placed_over, shrunk, killed)
    ),
    ("private", exited),
    ("private", dropped),
    ("thp", dropped),
    ("memfd-shared", truncated),
    *((kind, moved_and_unmapped) for kind in ("private", "thp", "memfd-shared")),
]
ALSO_NEEDS = {dropped: ["dontneed-locked"], moved_and_unmapped: ["two-nodes"]}


def by_end(*acts):
    """``kind`` and ``end``: each of :data:`ENDS`, or those of these acts."""
    found = []
    for kind, act in ENDS:
        needs = [*every_kind.KINDS[kind].needs, *ALSO_NEEDS.get(act, [])]
        if not acts or act in acts:
            marks = pytest.mark.needs(*needs) if needs else ()
            found.append(pytest.param(kind, act, id=f"{kind}-{act.__name__}", marks=marks))
    return pytest.mark.parametrize(("kind", "end"), found)


@BUDGET
@by_end()
@pytest.mark.needs("cgroup", "stub-process")
@pytest.mark.usefixtures("one_cpu")
@pytest.mark.detects("memcg-keeps-exited", "memcg-keeps-split", "counters-keep-moved")
def test_cgroups_counter_comes_back_however_a_lock_ends(reclaim, kind, end):
    """However locked memory is given up, whole or in parts, small pages or huge, unevictable of
    its cgroup is 0 afterwards."""
    kind = every_kind.KINDS[kind]
    with reclaim.cgroup() as group, stub_with(kind, PAGES * PAGE // kind.unit) as (stub, region):
        group.add(stub.pid)
        stub.call("mlock", region.addr, region.size)
        assert unevictable(group, region.pages) == region.pages, "locked"
        end(stub, region)
        assert unevictable(group, 0) == 0, "given up"


@pytest.mark.exclusive
@BUDGET
@by_end(munmap_in_parts, shrunk, truncated, killed, dropped, moved_and_unmapped)
@pytest.mark.needs("kpageflags", "stub-process")
@pytest.mark.usefixtures("one_cpu")
@pytest.mark.detects("mlocked-counters-keep-split", "mlocked-counters-keep-exited")
@pytest.mark.detects("counters-keep-moved")
def test_machine_counters_keep_nothing_however_a_lock_ends(kind, end):
    """The counters of the machine, its nodes and zones grow by what a process locks, and keep
    nothing of it when it has ended, however it gave its memory up."""
    kind = every_kind.KINDS[kind]
    held = []

    def take():
        stack = contextlib.ExitStack()
        held.append((stack, *stack.enter_context(stub_with(kind, PAGES * PAGE // kind.unit))))
        held[-1][1].call("mlock", held[-1][2].addr, held[-1][2].size)

    def give():
        stack, stub, region = held.pop()
        end(stub, region)
        stack.close()

    moved, left = counter_rounds.left_behind(take, give, PAGES, rounds=5)
    assert all(map(about, moved.values())), f"{PAGES} pages in each: {moved}"
    assert not [name for name, n in left.items() if abs(n) >= PAGES // 4], f"kept: {left}"


LOCKERS, ROUNDS, WAITING = 4, 4, 40


def lock_and_leave(turn, end):
    """In a child: lock on fault and touch on one CPU, let go on another."""
    saved = os.sched_getaffinity(0)
    for number in range(ROUNDS):
        for step in (0, 1):
            os.sched_setaffinity(0, saved)
            cpus.keep_to_cpu(turn + number + step)
            if step == 0:
                addr = syscalls.mmap(0, WAITING * PAGE)
                syscalls.mlock2(addr, WAITING * PAGE, syscalls.MLOCK_ONFAULT)
                syscalls.memset(addr, 1, WAITING * PAGE)
            elif end in {"munlock", "munmap"}:
                getattr(syscalls, end)(addr, WAITING * PAGE)
    return True


@pytest.mark.needs("cgroup", "two-cpus", f"lock:{LOCKERS * ROUNDS * WAITING}")
@pytest.mark.parametrize("end", ["munlock", "munmap", "exit", "SIGKILL"])
@pytest.mark.detects("memcg-keeps-exited", "memcg-unevictable-stuck")
def test_cgroups_counter_comes_back_after_parallel_lockers(reclaim, end):
    """unevictable of a cgroup is what its processes have locked and 0 once they let go of it,
    though each locked on one CPU and unlocked, unmapped or ended on another, all at once."""
    whole = LOCKERS * ROUNDS * WAITING
    with reclaim.cgroup() as group, contextlib.ExitStack() as stack:
        children = [stack.enter_context(Child()) for _ in range(LOCKERS)]
        for turn, child in enumerate(children):
            group.add(child.pid)
            child.start(lock_and_leave, turn, end)
        assert all(child.result() for child in children), "each did its rounds"
        cpus.mlock_drain_all()
        held = whole if end in {"exit", "SIGKILL"} else 0
        assert unevictable(group, held) == held, "after all rounds"
        for child in children:
            child.kill() if end == "SIGKILL" else child.exit()
        cpus.mlock_drain_all()
        assert unevictable(group, 0) == 0, "ended"
