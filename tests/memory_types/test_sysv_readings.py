# SPDX-License-Identifier: MIT
"""/proc/sysvipc/shm and shmctl's IPC_STAT, SHM_STAT, SHM_STAT_ANY and SHM_INFO of segments."""

import os

import pytest

from helpers import processes, syscalls
from helpers.memory import sysv_segment
from helpers.observe import residency, segments, vmstat
from helpers.processes import Child, credentials
from helpers.reclaim import drivers
from helpers.syscalls import PAGE

pytestmark = [
    pytest.mark.share_process,
    pytest.mark.needs("sysv-shm"),
    pytest.mark.source("shmctl(2)", "proc_sysvipc(5)", "ipc/shm.c"),
]

N = 8
DEST = 0o1000
"""SHM_DEST in shm_perm.mode: it goes with its last detach."""
MODE = 0o600 | DEST
LOCKED = sysv_segment.LOCKED


def told(number):
    """What all readings of a segment agree on, and what /proc alone tells; or each, if they
    do not agree."""
    row = sysv_segment.proc_row(number)
    place = segments.index(number)
    seen = {name: segments.stat(place, name) for name in ("SHM_STAT", "SHM_STAT_ANY")}
    seen["IPC_STAT"] = segments.stat(number)
    seen["/proc"] = {name: row[name] for name in seen["IPC_STAT"]}
    if any(fields != seen["/proc"] for fields in seen.values()):
        return seen
    return row


def state(number):
    """Mode, attachments, and pages in memory and in swap; or readings that do not agree."""
    row = told(number)
    if "perms" not in row:
        return row
    return oct(row["perms"]), row["nattch"], row["rss"] // PAGE, row["swap"] // PAGE


def be(mode, attached, rss, swap=0):
    return oct(mode), attached, rss, swap


@pytest.mark.parametrize(
    "size", [1, PAGE - 1, PAGE, PAGE + 1, N * PAGE], ids=["byte", "short", "page", "over", "many"]
)
@pytest.mark.detects("shm-size-in-pages", "shm-rss-is-size")
def test_size_is_in_bytes_and_rss_in_pages(size):
    """Every reading gives the size that was asked for, in bytes, the owner and the processes, and
    rss counts whole pages."""
    pages = -(-size // PAGE)
    with sysv_segment.segment(pages, size=size) as made:
        row = told(made.id)
        assert (row["size"], row["rss"], row["swap"]) == (size, 0, 0), "nothing is touched"
        made.region.touch()
        row = told(made.id)
        assert (row["size"], row["rss"]) == (size, pages * PAGE), "all is touched"
        assert row["perms"] == MODE, "mode"
        assert (row["uid"], row["cuid"]) == (os.geteuid(),) * 2, "owner and creator"
        assert (row["cpid"], row["lpid"]) == (os.getpid(),) * 2, "who made it, who attached it"


STEPS = {
    "SHM_LOCK": (lambda s: sysv_segment.lock(s.id), MODE | LOCKED, 0),
    "SHM_LOCK, SHM_LOCK": (
        lambda s: (sysv_segment.lock(s.id), sysv_segment.lock(s.id)), MODE | LOCKED, 0,
    ),
    "SHM_LOCK, SHM_UNLOCK": (
        lambda s: (sysv_segment.lock(s.id), sysv_segment.unlock(s.id)), MODE, 0,
    ),
    "SHM_UNLOCK": (lambda s: sysv_segment.unlock(s.id), MODE, 0),
    "mlock": (lambda s: syscalls.mlock(s.region.addr, s.region.size), MODE, N),
    "onfault": (
        lambda s: syscalls.mlock2(s.region.addr, s.region.size, syscalls.MLOCK_ONFAULT), MODE, 0,
    ),
    "SHM_LOCK, mlock": (
        lambda s: (sysv_segment.lock(s.id), syscalls.mlock(s.region.addr, s.region.size)),
        MODE | LOCKED, N,
    ),
    "SHM_LOCK, mlock, munlock": (
        lambda s: (
            sysv_segment.lock(s.id),
            syscalls.mlock(s.region.addr, s.region.size),
            syscalls.munlock(s.region.addr, s.region.size),
        ), MODE | LOCKED, N,
    ),
    "SHM_LOCK, IPC_SET": (
        lambda s: (sysv_segment.lock(s.id), sysv_segment.set_owner(s.id, os.geteuid())),
        MODE | LOCKED, 0,
    ),
}  # fmt: skip


@pytest.mark.needs("CAP_IPC_LOCK", f"lock:{N}")
@pytest.mark.parametrize(("steps", "mode", "rss"), STEPS.values(), ids=STEPS)
@pytest.mark.detects("shm-proc-hides-lock", "shm-stat-hides-lock", "shm-rss-is-size")
def test_locks_and_touches_are_what_readings_show(steps, mode, rss):
    """SHM_LOCKED stands in the mode in every reading from SHM_LOCK to SHM_UNLOCK, whatever else
    is done; rss is what was touched or what mlock has brought in."""
    with sysv_segment.segment(N) as made:
        assert state(made.id) == be(MODE, 1, 0), "new"
        steps(made)
        assert state(made.id) == be(mode, 1, rss), "locked"
        made.region.sub(2, 3).touch()
        assert state(made.id) == be(mode, 1, max(rss, 3)), "three pages are touched"
        if mode & LOCKED:
            sysv_segment.unlock(made.id)
        syscalls.munlock(made.region.addr, made.region.size)
        assert state(made.id) == be(MODE, 1, max(rss, 3)), "unlocked"
        syscalls.madvise(made.region.at(3), PAGE, syscalls.MADV_REMOVE)
        assert state(made.id) == be(MODE, 1, max(rss, 3) - 1), "a page less"
        number = made.id
    assert syscalls.outcome(segments.stat, number) == "EINVAL", "gone"
    assert not any(_rows(number)), "with its line"


def _rows(number):
    try:
        yield sysv_segment.proc_row(number)
    except LookupError:
        return


@pytest.mark.needs("CAP_IPC_LOCK")
@pytest.mark.detects("shm-attachment-left-out")
def test_attachments_are_counted_one_by_one():
    """nattch is the number of attachments: two of one process are two, a forked child has its
    parent's, a detach and an end take theirs; locks, unlocks and the VMAs they make take none."""
    with sysv_segment.segment(N) as made:
        again = sysv_segment.attach(made.id, N)
        assert told(made.id)["nattch"] == 2, "twice in one process"
        with Child() as child:
            assert told(made.id)["nattch"] == 4, "and in its child"
            child.call(sysv_segment.detach, again)
            assert told(made.id)["nattch"] == 3, "the child detached one"
            assert told(made.id)["lpid"] == child.pid, "and was the last"
            sysv_segment.lock(made.id)
            assert told(made.id)["nattch"] == 3, "SHM_LOCK"
        assert told(made.id)["nattch"] == 2, "the child has ended"
        sysv_segment.detach(again)
        sysv_segment.unlock(made.id)
        assert told(made.id)["nattch"] == 1, "one is left"


@pytest.mark.needs(f"lock:{N}")
@pytest.mark.source("mm/vma.c split_vma, shm_open")
@pytest.mark.detects("shm-attachment-left-out")
def test_a_lock_that_splits_the_mapping_counts_each_part():
    """Each VMA that a lock makes of an attachment is one in nattch, for it is what shmdt has to
    end; one detach takes all of them."""
    with sysv_segment.segment(N) as made:
        again = sysv_segment.attach(made.id, N)
        syscalls.mlock(again.region.at(2), 2 * PAGE)
        assert told(made.id)["nattch"] == 4, "one whole, one in three parts"
        sysv_segment.detach(again)
        assert told(made.id)["nattch"] == 1, "detached"


def in_own_namespace():
    """In a child: segments of a namespace that has no others, and what is told of all."""
    syscalls.unshare(syscalls.CLONE_NEWIPC)
    seen = [(segments.totals(), rows_total())]
    made = [sysv_segment.create_segment(n, size=n * PAGE - 5) for n in (2, 3, 4)]
    seen.append((segments.totals(), rows_total()))
    sysv_segment.lock(made[1].id)
    made[1].region.sub(0, 2).touch()
    syscalls.mlock(made[2].region.addr, made[2].region.size)
    seen.append((segments.totals(), rows_total()))
    sysv_segment.detach(made[1])
    seen.append((segments.totals(), rows_total()))
    sysv_segment.detach(made[0])
    sysv_segment.detach(made[2])
    seen.append((segments.totals(), rows_total()))
    return seen


def rows_total():
    """Segments, rss and swap in pages, summed over /proc/sysvipc/shm."""
    rows = sysv_segment.proc_rows()
    return {
        "segments": len(rows),
        "rss": sum(r["rss"] for r in rows) // PAGE,
        "swap": sum(r["swap"] for r in rows) // PAGE,
    }


@pytest.mark.needs("ipc-namespace", "CAP_IPC_LOCK")
@pytest.mark.detects("shm-info-rss-is-total", "shm-rss-is-size")
def test_totals_of_a_namespace_are_the_sum_of_its_segments():
    """SHM_INFO counts the segments of its namespace and no other, their sizes in whole pages, and
    what is in memory as the lines of /proc/sysvipc/shm add up to."""
    with sysv_segment.segment(N) as outside:
        outside.region.touch()
        seen = processes.run(in_own_namespace)
    wanted = [(0, 0, 0, 0), (3, 9, 0, 2), (3, 9, 6, 2), (2, 6, 4, 2), (0, 0, 0, 0)]
    names = ("segments", "pages", "rss", "last")
    assert [tuple(info[n] for n in names) for info, _ in seen] == wanted, "SHM_INFO"
    assert [{n: info[n] for n in rows} for info, rows in seen] == [rows for _, rows in seen], (
        "the lines of /proc/sysvipc/shm"
    )


def as_stranger(number, place):
    """In a child: another user's answers."""
    credentials.set_user()
    return (
        syscalls.outcome(segments.stat, number),
        syscalls.outcome(segments.stat, place, "SHM_STAT"),
        segments.stat(place, "SHM_STAT_ANY"),
        sysv_segment.proc_row(number)["perms"],
    )


@pytest.mark.needs("other-user", "root-user", "CAP_SETUID", "CAP_SETGID", "CAP_IPC_LOCK")
@pytest.mark.source("shmctl(2) SHM_STAT_ANY (4.17)")
@pytest.mark.detects("shm-stat-hides-lock", "shm-proc-hides-lock")
def test_whoever_may_not_read_a_segment_still_learns_of_its_lock():
    """To a user without read permission IPC_STAT and SHM_STAT give EACCES; SHM_STAT_ANY and
    /proc/sysvipc/shm show everything, SHM_LOCKED too."""
    with sysv_segment.segment(N) as made:
        sysv_segment.lock(made.id)
        whole = segments.stat(made.id)
        seen = processes.run(lambda: as_stranger(made.id, segments.index(made.id)))
        sysv_segment.unlock(made.id)
    assert seen == ("EACCES", "EACCES", whole | {"nattch": 2}, MODE | LOCKED), (
        "another user, in a process that has it attached too"
    )


def _written(pages):
    """In the child: a segment of its own, written."""
    made = sysv_segment.create_segment(pages)
    made.region.write()
    return made


def three_amounts(number):
    row = sysv_segment.proc_row(number)
    return row["rss"] // PAGE, row["swap"] // PAGE


@pytest.mark.needs("CAP_IPC_LOCK", "cgroup", "swap")
@pytest.mark.parametrize("way", ["SHM_LOCK", "mlock"])
@pytest.mark.detects("shm-swap-always-zero", "shm-rss-counts-swapped")
def test_every_page_is_in_rss_or_in_swap(reclaim, way):
    """Under reclaim rss and swap of a segment always add up to what was written; of a locked
    segment all is rss, of the control what pagemap and mincore call absent is swap; both are as
    before once it is read again."""
    pages = 128
    with reclaim.cgroup() as group, Child() as child:
        group.add(child.pid)
        locked, control = (child.call(_written, pages) for _ in range(2))
        if way == "SHM_LOCK":
            sysv_segment.lock(locked.id)
        else:
            child.call(syscalls.mlock, locked.region.addr, locked.region.size)
        drivers.reclaim_until_evicted(group.reclaim, child.pid, control.region)
        assert three_amounts(locked.id) == (pages, 0), "locked"
        rss, swap = three_amounts(control.id)
        assert swap >= pages // 2, "the control is in swap"
        assert rss + swap == pages, "each page is in one of them"
        absent = child.call(residency.mapped_bits, control.region).count("0")
        assert swap <= absent, "none of them is mapped"
        child.call(control.region.sub(0, 64).first_bytes)
        rss, swap = three_amounts(control.id)
        assert rss + swap == pages, "partly read again"
        child.call(control.region.first_bytes)
        assert three_amounts(control.id) == (pages, 0), "read again"
        if way == "SHM_LOCK":
            sysv_segment.unlock(locked.id)


@pytest.mark.needs("hugetlb", "CAP_IPC_LOCK")
@pytest.mark.deviation("shm-huge-rss-multiplied")
def test_rss_of_a_huge_segment_is_in_bytes_of_its_pages():
    """rss of a segment of huge pages is the bytes of those that were touched, and no part of it is
    swap."""
    size = vmstat.huge_page_size()
    with sysv_segment.segment(size // PAGE, flags=sysv_segment.HUGETLB) as made:
        assert (told(made.id)["size"], told(made.id)["rss"]) == (size, 0), "new"
        syscalls.memset(made.region.addr, 1, PAGE)
        assert (told(made.id)["rss"], told(made.id)["swap"]) == (size, 0), "one byte is touched"
