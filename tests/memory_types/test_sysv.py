# SPDX-License-Identifier: MIT
"""SysV shared memory and SHM_LOCK: the segment is locked, not a mapping; a user's quota pays."""

import os

import pytest

from helpers import processes, syscalls
from helpers.memory import Region, mapping, sysv_segment
from helpers.observe import lock_accounting, lru_batches, maps, page_flags, pagemap, status, vmstat
from helpers.processes import Child, credentials, namespaces, rlimits
from helpers.reclaim import drivers
from helpers.syscalls import PAGE, sysv

pytestmark = [
    pytest.mark.share_process,
    pytest.mark.needs("sysv-shm"),
    pytest.mark.source("shmctl(2) SHM_LOCK", "ipc/shm.c shmctl_do_lock"),
]
USERS = pytest.mark.needs("other-user", "root-user", "limit:16")
N = 16


def tries(function, number):
    return syscalls.outcome(function, number)


def ordinary(limit, uid):
    """In a child: a user without capabilities, who may lock ``limit`` pages."""
    rlimits.set_soft_memlock(limit * PAGE)
    credentials.set_user(uid, uid)


def segment_of(pages, size=None):
    """In a child: a segment of its own; only the id travels."""
    return sysv_segment.create_segment(pages, size=size).id


def lock_more(*sizes):
    """In a child: for each size the answer to SHM_LOCK of a new segment of so many pages."""
    return [tries(sysv_segment.lock, segment_of(pages)) for pages in sizes]


@pytest.mark.needs("CAP_IPC_LOCK")
@pytest.mark.detects("shm-lock-ignored", "shm-unlock-ignored")
def test_lock_marks_the_segment_and_no_mapping():
    """SHM_LOCK sets SHM_LOCKED in the segment's mode once and for all processes; no VMA is lo,
    VmLck stays 0, nothing is populated; SHM_UNLOCK takes it back."""
    with sysv_segment.segment(N) as segment, Child() as child:
        mode = sysv_segment.proc_row(segment.id)["perms"]
        for _ in range(2):
            sysv_segment.lock(segment.id)
            assert sysv_segment.proc_row(segment.id)["perms"] == mode | sysv_segment.LOCKED, (
                "SHM_LOCKED, no other bit"
            )
        assert lock_accounting.read(segment.region) == lock_accounting.expect("-" * N, 0), (
            "VmLck 0, no lo VMA"
        )
        assert sysv_segment.proc_row(segment.id)["rss"] == 0, "nothing is populated"
        assert child.call(status.vmlck_kb) == 0, "nor counted in another process"
        segment.region.sub(0, 4).touch()
        assert sysv_segment.proc_row(segment.id)["rss"] == 4 * PAGE, "what is touched is there"
        for _ in range(2):
            child.call(sysv_segment.unlock, segment.id)
            assert sysv_segment.proc_row(segment.id)["perms"] == mode, "unlocked by another process"


@pytest.mark.needs("CAP_IPC_LOCK")
def test_lock_of_a_segment_outlives_detach_and_the_locker():
    """The lock belongs to the segment: detaching, and the end of the process that locked it,
    leave it."""
    with sysv_segment.segment(N) as segment:
        with Child() as child:
            child.call(sysv_segment.lock, segment.id)
            child.call(sysv.shmdt, segment.region.addr)
            assert sysv_segment.is_locked(segment.id), "after detach"
        assert sysv_segment.is_locked(segment.id), "after the locker's end"
        again = sysv_segment.attach(segment.id, N)
        assert lock_accounting.read(again.region) == lock_accounting.expect("-" * N, 0), (
            "attached: not lo"
        )
        sysv_segment.detach(again)
        sysv_segment.unlock(segment.id)
        assert not sysv_segment.is_locked(segment.id), "until SHM_UNLOCK"


@pytest.mark.needs("CAP_IPC_LOCK", "lock:16")
def test_segment_lock_and_mapping_lock_are_two_things():
    """munlock and munlockall leave SHM_LOCK, SHM_UNLOCK leaves mlock."""
    with sysv_segment.segment(N) as segment:
        region = segment.region
        sysv_segment.lock(segment.id)
        syscalls.mlock(region.addr, region.size)
        syscalls.munlock(region.addr, region.size)
        assert status.vmlck_pages() == 0, "munlock ends the mapping's lock"
        assert sysv_segment.is_locked(segment.id), "and not the segment's"
        syscalls.mlock(region.addr, region.size)
        syscalls.munlockall()
        assert status.vmlck_pages() == 0, "munlockall ends the mapping's lock"
        assert sysv_segment.is_locked(segment.id), "and not the segment's"
        syscalls.mlock(region.addr, region.size)
        sysv_segment.unlock(segment.id)
        assert not sysv_segment.is_locked(segment.id), "SHM_UNLOCK ends the segment's lock"
        assert lock_accounting.page_letters(region) == lock_accounting.LOCKED * N, (
            "and leaves the mapping lo"
        )
        assert status.vmlck_pages() == N, "and counted"


def flags(region):
    lru_batches.mlock_drain_local()
    return page_flags.snapshot(region.addr, region.pages)


@pytest.mark.needs("CAP_IPC_LOCK", "kpageflags")
@pytest.mark.usefixtures("one_cpu")
def test_pages_touched_in_a_locked_segment_are_unevictable():
    """Pages that come into a locked segment are unevictable, not mlocked; SHM_UNLOCK puts all of
    them back at once."""
    with sysv_segment.segment(48) as segment:
        sysv_segment.lock(segment.id)
        segment.region.touch()
        seen = flags(segment.region)
        assert seen.count_with(page_flags.UNEVICTABLE) == 48, "unevictable"
        assert seen.count_with(page_flags.MLOCKED) == 0, "and not mlocked"
        sysv_segment.unlock(segment.id)
        seen = flags(segment.region)
        assert seen.count_with(page_flags.UNEVICTABLE) == 0, "evictable again"
        assert sum(seen.present) == 48, "and still there"


@pytest.mark.needs("CAP_IPC_LOCK", "kpageflags", "lock:48")
@pytest.mark.usefixtures("one_cpu")
def test_page_locked_both_ways_is_unevictable_until_both_end():
    """A page of a locked segment that is mlocked too stays unevictable when either lock ends."""
    with sysv_segment.segment(48) as segment:
        region = segment.region
        sysv_segment.lock(segment.id)
        region.touch()
        syscalls.mlock(region.addr, region.size)
        assert flags(region).count_with(page_flags.UNEVICTABLE) == 48, "both"
        syscalls.munlock(region.addr, region.size)
        seen = flags(region)
        assert seen.count_with(page_flags.UNEVICTABLE) == 48, "the segment's is left"
        assert seen.count_with(page_flags.MLOCKED) == 0, "none is mlocked"
        syscalls.mlock(region.addr, region.size)
        sysv_segment.unlock(segment.id)
        both = page_flags.MLOCKED | page_flags.UNEVICTABLE
        assert not sysv_segment.is_locked(segment.id), "the segment's lock has ended"
        assert flags(region).count_with(both) == 48, "the mapping's is left"
        syscalls.munlock(region.addr, region.size)
        assert flags(region).count_with(page_flags.UNEVICTABLE) == 0, "both have ended"


def swap_out_then_lock(group, pages):
    """In the child: a written segment, its id and place."""
    made = sysv_segment.create_segment(pages)
    made.region.write()
    return made


@pytest.mark.needs("CAP_IPC_LOCK", "cgroup", "swap")
def test_segment_swapped_out_before_its_lock_comes_back_when_touched(reclaim):
    """SHM_LOCK reads nothing in: pages that are in swap stay there until touched, then they stay
    in memory; after SHM_UNLOCK they may go again."""
    pages = 256
    with reclaim.cgroup() as group, Child() as child:
        group.add(child.pid)
        segment = child.call(swap_out_then_lock, None, pages)
        control = child.call(swap_out_then_lock, None, pages)
        drivers.reclaim_until_evicted(group.reclaim, child.pid, segment.region, control.region)
        gone = sysv_segment.proc_row(segment.id)["swap"] // PAGE
        child.call(sysv_segment.lock, segment.id)
        assert sysv_segment.proc_row(segment.id)["swap"] // PAGE == gone, (
            "the lock reads nothing in"
        )
        child.call(segment.region.first_bytes)
        child.call(control.region.first_bytes)
        assert sysv_segment.proc_row(segment.id)["rss"] // PAGE == pages, "touched: all in memory"
        drivers.reclaim_until_evicted(group.reclaim, child.pid, control.region)
        assert sysv_segment.proc_row(segment.id)["rss"] // PAGE == pages, "they stay"
        assert sysv_segment.proc_row(segment.id)["swap"] == 0, "none is in swap"
        present = child.call(pagemap.present_count, segment.region.addr, pages)
        assert present == pages, "mapped as before"
        child.call(sysv_segment.unlock, segment.id)
        drivers.reclaim_until_evicted(group.reclaim, child.pid, segment.region)


@USERS
def test_quota_is_the_limit_and_no_page_more():
    """A user without CAP_IPC_LOCK locks segments up to the soft limit in all, rounded up to pages
    each; one page more gives ENOMEM and locks nothing."""
    with Child() as child:
        child.call(ordinary, 8, sysv_segment.unused_uid())
        assert child.call(lock_more, 9) == ["ENOMEM"], "nine pages"
        assert child.call(lock_more, 5, 4, 2, 2, 1) == ["ok", "ENOMEM", "ok", "ENOMEM", "ok"]
        small = child.call(segment_of, 1, 1)
        assert child.call(tries, sysv_segment.lock, small) == "ENOMEM", "one byte is a page"
        assert not sysv_segment.is_locked(small), "not locked"
        assert child.call(status.vmlck_kb) == 0, "VmLck"


@USERS
@pytest.mark.parametrize(
    "way",
    [
        "unlock",
        pytest.param("unlock-by-root", marks=pytest.mark.needs("CAP_IPC_LOCK")),
        "removal",
        "twice",
    ],
)
def test_quota_is_given_back(way):
    """SHM_UNLOCK by whoever may, and the end of the segment, give the locker's quota back, once;
    locking again what is locked takes nothing."""
    with Child() as child:
        child.call(ordinary, 4, sysv_segment.unused_uid())
        number = child.call(segment_of, 3)
        child.call(sysv_segment.lock, number)
        if way == "twice":
            child.call(sysv_segment.lock, number)
        assert child.call(lock_more, 2, 1) == ["ENOMEM", "ok"], "one page is left"
        if way == "removal":
            child.call(detach_all)
            assert child.call(lock_more, 5, 4) == ["ENOMEM", "ok"], "all is free"
            return
        if way == "unlock-by-root":
            sysv_segment.unlock(number)
        else:
            child.call(sysv_segment.unlock, number)
            child.call(sysv_segment.unlock, number)
        assert child.call(lock_more, 4, 3) == ["ENOMEM", "ok"], "three are free again"


def detach_all():
    """In a child: detach every segment, which ends those that are removed."""
    for vma in maps.vmas():
        if vma.name.startswith("/SYSV"):
            sysv.shmdt(vma.start)


@USERS
@pytest.mark.detects("shm-quota-unchecked")
def test_quota_is_the_users():
    """Processes of one user share one quota, which a process leaves behind with the segment it
    locked; another user has another."""
    uid = sysv_segment.unused_uid()
    with Child() as keeper, Child() as other:
        keeper.call(ordinary, 4, uid)
        other.call(ordinary, 4, uid + 5000)
        number = keeper.call(segment_of, 3)
        with Child() as locker:
            locker.call(ordinary, 4, uid)
            locker.call(sysv_segment.lock, number)
            assert keeper.call(lock_more, 2, 1) == ["ENOMEM", "ok"], "one is left for the user"
            assert other.call(lock_more, 4) == ["ok"], "all for another user"
        assert keeper.call(lock_more, 1) == ["ENOMEM"], "nothing comes back with the locker's end"
        keeper.call(sysv_segment.unlock, number)
        assert keeper.call(lock_more, 4, 3) == ["ENOMEM", "ok"], "but with the unlock"


@USERS
def test_quota_and_mlock_are_two_accounts():
    """Locked segments leave the whole limit to mlock, and the reverse."""
    with mapping("private", 8) as region, Child() as child:
        child.call(ordinary, 4, sysv_segment.unused_uid())
        assert child.call(lock_more, 4) == ["ok"], "a full quota"
        answers = [
            child.call(syscalls.outcome, syscalls.mlock, region.addr, n * PAGE) for n in (5, 4)
        ]  # fmt: skip
        assert answers == ["ENOMEM", "ok"], "mlock has its own account"
        child.call(detach_all)
        assert child.call(lock_more, 5, 4) == ["ENOMEM", "ok"], "a full VmLck takes nothing away"


@USERS
@pytest.mark.detects("shm-lock-by-anyone")
def test_owner_and_creator_may_lock_and_nobody_else():
    """The owner and the creator of a segment may lock and unlock it, another user gets EPERM
    whatever the mode; CAP_IPC_LOCK opens it."""
    uid = sysv_segment.unused_uid()
    with Child() as creator, Child() as owner, Child() as stranger:
        for offset, child in enumerate((creator, owner, stranger)):
            child.call(ordinary, N, uid + offset * 1000)
        number = creator.call(segment_of, 2)
        assert owner.call(tries, sysv_segment.lock, number) == "EPERM", "not the owner yet"
        creator.call(sysv_segment.set_owner, number, uid + 1000)
        for who, child in (("creator", creator), ("owner", owner)):
            assert child.call(tries, sysv_segment.lock, number) == "ok", f"the {who} locks"
            assert sysv_segment.is_locked(number), "locked"
            assert stranger.call(tries, sysv_segment.unlock, number) == "EPERM", (
                "a stranger's unlock"
            )
            assert sysv_segment.is_locked(number), "still"
            assert child.call(tries, sysv_segment.unlock, number) == "ok", f"the {who} unlocks"
            assert stranger.call(tries, sysv_segment.lock, number) == "EPERM", "a stranger's lock"
            assert not sysv_segment.is_locked(number), "not locked"


@USERS
@pytest.mark.needs("CAP_IPC_LOCK")
def test_capability_opens_every_segment_and_the_quota():
    """With CAP_IPC_LOCK anybody's segment can be locked, above any limit, at limit 0 too."""
    with Child() as child:
        child.call(ordinary, N, sysv_segment.unused_uid())
        number = child.call(segment_of, N)
        with rlimits.soft_memlock_limit(0):
            assert tries(sysv_segment.lock, number) == "ok", "another user's segment, limit 0"
            assert sysv_segment.is_locked(number), "locked"
            assert tries(sysv_segment.unlock, number) == "ok", "SHM_UNLOCK"
            assert not sysv_segment.is_locked(number), "unlocked"


@USERS
@pytest.mark.detects("shm-unlock-needs-right")
def test_limit_zero_forbids_the_lock_and_not_the_unlock():
    """At limit 0 the owner's SHM_LOCK gives EPERM, its SHM_UNLOCK works."""
    with Child() as child:
        child.call(ordinary, 4, sysv_segment.unused_uid())
        locked, other = child.call(segment_of, 2), child.call(segment_of, 2)
        child.call(sysv_segment.lock, locked)
        child.call(rlimits.set_soft_memlock, 0)
        assert child.call(tries, sysv_segment.lock, other) == "EPERM", "SHM_LOCK"
        assert child.call(tries, sysv_segment.lock, locked) == "EPERM", "of what is locked, too"
        assert sysv_segment.is_locked(locked), "which changes nothing"
        assert child.call(tries, sysv_segment.unlock, locked) == "ok", "SHM_UNLOCK"
        assert not sysv_segment.is_locked(locked), "unlocked"


@pytest.mark.detects("shm-lock-unknown-segment")
def test_unknown_segment_gives_einval():
    """SHM_LOCK and SHM_UNLOCK of an id that is no segment give EINVAL."""
    with sysv_segment.segment(1) as segment:
        number = segment.id
    for call in (sysv_segment.lock, sysv_segment.unlock):
        assert tries(call, number) == "EINVAL", "a segment that has gone"
        assert tries(call, -1) == "EINVAL", "no id at all"


def as_namespace_root(limit):
    """In a child: root of a new user namespace with IPC of its own; answers by segment size."""
    rlimits.set_soft_memlock(limit * PAGE)
    if credentials.has_capability("CAP_SETUID"):
        user = sysv_segment.unused_uid()  # a quota of its own; its groups do not matter
        os.setresuid(user, user, user)
        syscalls.prctl(syscalls.PR_SET_DUMPABLE, 1, 0, 0, 0)  # else /proc/self is root's
    namespaces.enter_user_namespace()
    syscalls.unshare(syscalls.CLONE_NEWIPC)
    return lock_more(3, 2)


@pytest.mark.needs("user-namespace", "limit:16")
@pytest.mark.source("user_namespaces(7)", "mm/mlock.c user_shm_lock")
def test_root_of_a_user_namespace_is_bound_by_the_quota():
    """Root of a user namespace passes the check of rights in its own IPC namespace, yet not the
    quota: beyond it, and at limit 0, SHM_LOCK gives ENOMEM."""
    inside = processes.run(lambda: as_namespace_root(2))
    zero = processes.run(lambda: as_namespace_root(0))
    assert inside == ["ENOMEM", "ok"], "three pages, then two, of a quota of two"
    assert zero == ["ENOMEM", "ENOMEM"], "limit 0"


@pytest.mark.needs("hugetlb", "CAP_IPC_LOCK")
def test_lock_of_a_huge_segment_is_a_noop():
    """SHM_LOCK of a segment of huge pages succeeds, marks and charges nothing."""

    size = vmstat.huge_page_size()
    with sysv_segment.segment(size // PAGE, flags=sysv_segment.HUGETLB) as segment:
        sysv_segment.lock(segment.id)
        assert not sysv_segment.is_locked(segment.id), "SHM_LOCKED is not set"
        syscalls.mlock(segment.region.addr, size)
        assert status.vmlck_kb() == 0, "nor does mlock count it"
        first = Region(segment.region.addr, PAGE)
        assert not maps.at(first.addr).locked, "or mark it"
        sysv_segment.unlock(segment.id)
