"""SysV shared memory and SHM_LOCK: the segment is locked, not a mapping; a user's quota pays."""

import os

import pytest

from helpers import libc, lru, privilege, process, sysv
from helpers.libc import PAGE
from helpers.memory import Region, mapping
from helpers.observe import account, maps, pagemap, status
from helpers.pressure import drive
from helpers.process import Child

pytestmark = [
    pytest.mark.needs("sysv-shm"),
    pytest.mark.source("shmctl(2) SHM_LOCK", "ipc/shm.c shmctl_do_lock"),
]
USERS = pytest.mark.needs("other-user", "root-user", "limit:16")
N = 16


def tries(function, number):
    return libc.outcome(function, number)


def ordinary(limit, uid):
    """In a child: a user without capabilities, who may lock ``limit`` pages."""
    privilege.set_memlock(limit * PAGE)
    privilege.become(uid, uid)


def segment_of(pages, size=None):
    """In a child: a segment of its own; only the id travels."""
    return sysv.make(pages, size=size).id


def lock_more(*sizes):
    """In a child: for each size the answer to SHM_LOCK of a new segment of so many pages."""
    return [tries(sysv.lock, segment_of(pages)) for pages in sizes]


@pytest.mark.needs("CAP_IPC_LOCK")
def test_lock_marks_the_segment_and_no_mapping():
    """SHM_LOCK sets SHM_LOCKED in the segment's mode once and for all processes; no VMA is lo,
    VmLck stays 0, nothing is populated; SHM_UNLOCK takes it back."""
    with sysv.segment(N) as segment, Child() as child:
        mode = sysv.row(segment.id)["perms"]
        for _ in range(2):
            sysv.lock(segment.id)
            assert sysv.row(segment.id)["perms"] == mode | sysv.LOCKED, "SHM_LOCKED, no other bit"
        assert account.of(segment.region) == account.balanced("-" * N, 0), "VmLck 0, no lo VMA"
        assert sysv.row(segment.id)["rss"] == 0, "nothing is populated"
        assert child.call(status.vmlck_kb) == 0, "nor counted in another process"
        segment.region.sub(0, 4).touch()
        assert sysv.row(segment.id)["rss"] == 4 * PAGE, "what is touched is there"
        for _ in range(2):
            child.call(sysv.unlock, segment.id)
            assert sysv.row(segment.id)["perms"] == mode, "unlocked by another process"


@pytest.mark.needs("CAP_IPC_LOCK")
def test_lock_of_a_segment_outlives_detach_and_the_locker():
    """The lock belongs to the segment: detaching, and the end of the process that locked it,
    leave it."""
    with sysv.segment(N) as segment:
        with Child() as child:
            child.call(sysv.lock, segment.id)
            child.call(libc.shmdt, segment.region.addr)
            assert sysv.is_locked(segment.id), "after detach"
        assert sysv.is_locked(segment.id), "after the locker's end"
        again = sysv.attach(segment.id, N)
        assert account.of(again.region) == account.balanced("-" * N, 0), "attached: not lo"
        sysv.detach(again)
        sysv.unlock(segment.id)
        assert not sysv.is_locked(segment.id), "until SHM_UNLOCK"


@pytest.mark.needs("CAP_IPC_LOCK", "lock:16")
def test_segment_lock_and_mapping_lock_are_two_things():
    """munlock and munlockall leave SHM_LOCK, SHM_UNLOCK leaves mlock."""
    with sysv.segment(N) as segment:
        region = segment.region
        sysv.lock(segment.id)
        libc.mlock(region.addr, region.size)
        libc.munlock(region.addr, region.size)
        assert status.vmlck_pages() == 0, "munlock ends the mapping's lock"
        assert sysv.is_locked(segment.id), "and not the segment's"
        libc.mlock(region.addr, region.size)
        libc.munlockall()
        assert status.vmlck_pages() == 0, "munlockall ends the mapping's lock"
        assert sysv.is_locked(segment.id), "and not the segment's"
        libc.mlock(region.addr, region.size)
        sysv.unlock(segment.id)
        assert not sysv.is_locked(segment.id), "SHM_UNLOCK ends the segment's lock"
        assert account.pages(region) == account.LOCKED * N, "and leaves the mapping lo"
        assert status.vmlck_pages() == N, "and counted"


def flags(region):
    lru.drain()
    return pagemap.snapshot(region.addr, region.pages)


@pytest.mark.needs("CAP_IPC_LOCK", "kpageflags")
def test_pages_touched_in_a_locked_segment_are_unevictable():
    """Pages that come into a locked segment are unevictable, not mlocked; SHM_UNLOCK puts all of
    them back at once."""
    lru.pin()
    with sysv.segment(48) as segment:
        sysv.lock(segment.id)
        segment.region.touch()
        seen = flags(segment.region)
        assert seen.having(pagemap.UNEVICTABLE) == 48, "unevictable"
        assert seen.having(pagemap.MLOCKED) == 0, "and not mlocked"
        sysv.unlock(segment.id)
        seen = flags(segment.region)
        assert seen.having(pagemap.UNEVICTABLE) == 0, "evictable again"
        assert sum(seen.present) == 48, "and still there"


@pytest.mark.needs("CAP_IPC_LOCK", "kpageflags", "lock:48")
def test_page_locked_both_ways_is_unevictable_until_both_end():
    """A page of a locked segment that is mlocked too stays unevictable when either lock ends."""
    lru.pin()
    with sysv.segment(48) as segment:
        region = segment.region
        sysv.lock(segment.id)
        region.touch()
        libc.mlock(region.addr, region.size)
        assert flags(region).having(pagemap.UNEVICTABLE) == 48, "both"
        libc.munlock(region.addr, region.size)
        seen = flags(region)
        assert seen.having(pagemap.UNEVICTABLE) == 48, "the segment's is left"
        assert seen.having(pagemap.MLOCKED) == 0, "none is mlocked"
        libc.mlock(region.addr, region.size)
        sysv.unlock(segment.id)
        both = pagemap.MLOCKED | pagemap.UNEVICTABLE
        assert not sysv.is_locked(segment.id), "the segment's lock has ended"
        assert flags(region).having(both) == 48, "the mapping's is left"
        libc.munlock(region.addr, region.size)
        assert flags(region).having(pagemap.UNEVICTABLE) == 0, "both have ended"


def swap_out_then_lock(group, pages):
    """In the child: a written segment, its id and place."""
    made = sysv.make(pages)
    made.region.write()
    return made


@pytest.mark.needs("CAP_IPC_LOCK", "cgroup", "swap")
def test_segment_swapped_out_before_its_lock_comes_back_when_touched(pressure):
    """SHM_LOCK reads nothing in: pages that are in swap stay there until touched, then they stay
    in memory; after SHM_UNLOCK they may go again."""
    pages = 256
    with pressure.cgroup() as group, Child() as child:
        group.add(child.pid)
        segment = child.call(swap_out_then_lock, None, pages)
        control = child.call(swap_out_then_lock, None, pages)
        drive.until_gone(group.reclaim, child.pid, segment.region, control.region)
        gone = sysv.row(segment.id)["swap"] // PAGE
        child.call(sysv.lock, segment.id)
        assert sysv.row(segment.id)["swap"] // PAGE == gone, "the lock reads nothing in"
        child.call(segment.region.peek)
        child.call(control.region.peek)
        assert sysv.row(segment.id)["rss"] // PAGE == pages, "touched: all in memory"
        drive.until_gone(group.reclaim, child.pid, control.region)
        assert sysv.row(segment.id)["rss"] // PAGE == pages, "they stay"
        assert sysv.row(segment.id)["swap"] == 0, "none is in swap"
        present = child.call(pagemap.present_count, segment.region.addr, pages)
        assert present == pages, "mapped as before"
        child.call(sysv.unlock, segment.id)
        drive.until_gone(group.reclaim, child.pid, segment.region)


@USERS
def test_quota_is_the_limit_and_no_page_more():
    """A user without CAP_IPC_LOCK locks segments up to the soft limit in all, rounded up to pages
    each; one page more gives ENOMEM and locks nothing."""
    with Child() as child:
        child.call(ordinary, 8, sysv.spare_user())
        assert child.call(lock_more, 9) == ["ENOMEM"], "nine pages"
        assert child.call(lock_more, 5, 4, 2, 2, 1) == ["ok", "ENOMEM", "ok", "ENOMEM", "ok"]
        small = child.call(segment_of, 1, 1)
        assert child.call(tries, sysv.lock, small) == "ENOMEM", "one byte is a page"
        assert not sysv.is_locked(small), "not locked"
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
        child.call(ordinary, 4, sysv.spare_user())
        number = child.call(segment_of, 3)
        child.call(sysv.lock, number)
        if way == "twice":
            child.call(sysv.lock, number)
        assert child.call(lock_more, 2, 1) == ["ENOMEM", "ok"], "one page is left"
        if way == "removal":
            child.call(detach_all)
            assert child.call(lock_more, 5, 4) == ["ENOMEM", "ok"], "all is free"
            return
        if way == "unlock-by-root":
            sysv.unlock(number)
        else:
            child.call(sysv.unlock, number)
            child.call(sysv.unlock, number)
        assert child.call(lock_more, 4, 3) == ["ENOMEM", "ok"], "three are free again"


def detach_all():
    """In a child: detach every segment, which ends those that are removed."""
    for vma in maps.vmas():
        if vma.name.startswith("/SYSV"):
            libc.shmdt(vma.start)


@USERS
def test_quota_is_the_users():
    """Processes of one user share one quota, which a process leaves behind with the segment it
    locked; another user has another."""
    uid = sysv.spare_user()
    with Child() as keeper, Child() as other:
        keeper.call(ordinary, 4, uid)
        other.call(ordinary, 4, uid + 5000)
        number = keeper.call(segment_of, 3)
        with Child() as locker:
            locker.call(ordinary, 4, uid)
            locker.call(sysv.lock, number)
            assert keeper.call(lock_more, 2, 1) == ["ENOMEM", "ok"], "one is left for the user"
            assert other.call(lock_more, 4) == ["ok"], "all for another user"
        assert keeper.call(lock_more, 1) == ["ENOMEM"], "nothing comes back with the locker's end"
        keeper.call(sysv.unlock, number)
        assert keeper.call(lock_more, 4, 3) == ["ENOMEM", "ok"], "but with the unlock"


@USERS
def test_quota_and_mlock_are_two_accounts():
    """Locked segments leave the whole limit to mlock, and the reverse."""
    with mapping("private", 8) as region, Child() as child:
        child.call(ordinary, 4, sysv.spare_user())
        assert child.call(lock_more, 4) == ["ok"], "a full quota"
        answers = [
            child.call(libc.outcome, libc.mlock, region.addr, n * PAGE) for n in (5, 4)
        ]  # fmt: skip
        assert answers == ["ENOMEM", "ok"], "mlock has its own account"
        child.call(detach_all)
        assert child.call(lock_more, 5, 4) == ["ENOMEM", "ok"], "a full VmLck takes nothing away"


@USERS
def test_owner_and_creator_may_lock_and_nobody_else():
    """The owner and the creator of a segment may lock and unlock it, another user gets EPERM
    whatever the mode; CAP_IPC_LOCK opens it."""
    uid = sysv.spare_user()
    with Child() as creator, Child() as owner, Child() as stranger:
        for offset, child in enumerate((creator, owner, stranger)):
            child.call(ordinary, N, uid + offset * 1000)
        number = creator.call(segment_of, 2)
        assert owner.call(tries, sysv.lock, number) == "EPERM", "not the owner yet"
        creator.call(sysv.give, number, uid + 1000)
        for who, child in (("creator", creator), ("owner", owner)):
            assert child.call(tries, sysv.lock, number) == "ok", f"the {who} locks"
            assert sysv.is_locked(number), "locked"
            assert stranger.call(tries, sysv.unlock, number) == "EPERM", "a stranger's unlock"
            assert sysv.is_locked(number), "still"
            assert child.call(tries, sysv.unlock, number) == "ok", f"the {who} unlocks"
            assert stranger.call(tries, sysv.lock, number) == "EPERM", "a stranger's lock"
            assert not sysv.is_locked(number), "not locked"


@USERS
@pytest.mark.needs("CAP_IPC_LOCK")
def test_capability_opens_every_segment_and_the_quota():
    """With CAP_IPC_LOCK anybody's segment can be locked, above any limit, at limit 0 too."""
    with Child() as child:
        child.call(ordinary, N, sysv.spare_user())
        number = child.call(segment_of, N)
        with privilege.memlock(0):
            assert tries(sysv.lock, number) == "ok", "another user's segment, limit 0"
            assert sysv.is_locked(number), "locked"
            assert tries(sysv.unlock, number) == "ok", "SHM_UNLOCK"
            assert not sysv.is_locked(number), "unlocked"


@USERS
def test_limit_zero_forbids_the_lock_and_not_the_unlock():
    """At limit 0 the owner's SHM_LOCK gives EPERM, its SHM_UNLOCK works."""
    with Child() as child:
        child.call(ordinary, 4, sysv.spare_user())
        locked, other = child.call(segment_of, 2), child.call(segment_of, 2)
        child.call(sysv.lock, locked)
        child.call(privilege.set_memlock, 0)
        assert child.call(tries, sysv.lock, other) == "EPERM", "SHM_LOCK"
        assert child.call(tries, sysv.lock, locked) == "EPERM", "of what is locked, too"
        assert sysv.is_locked(locked), "which changes nothing"
        assert child.call(tries, sysv.unlock, locked) == "ok", "SHM_UNLOCK"
        assert not sysv.is_locked(locked), "unlocked"


def test_unknown_segment_gives_einval():
    """SHM_LOCK and SHM_UNLOCK of an id that is no segment give EINVAL."""
    with sysv.segment(1) as segment:
        number = segment.id
    for call in (sysv.lock, sysv.unlock):
        assert tries(call, number) == "EINVAL", "a segment that has gone"
        assert tries(call, -1) == "EINVAL", "no id at all"


def as_namespace_root(limit):
    """In a child: root of a new user namespace with IPC of its own; answers by segment size."""
    privilege.set_memlock(limit * PAGE)
    if privilege.has("CAP_SETUID"):
        user = sysv.spare_user()  # a quota of its own; its groups do not matter
        os.setresuid(user, user, user)
        libc.prctl(libc.PR_SET_DUMPABLE, 1, 0, 0, 0)  # else /proc/self is root's
    privilege.enter_user_namespace()
    libc.unshare(libc.CLONE_NEWIPC)
    return lock_more(3, 2)


@pytest.mark.needs("user-namespace", "limit:16")
@pytest.mark.source("user_namespaces(7)", "mm/mlock.c user_shm_lock")
def test_root_of_a_user_namespace_is_bound_by_the_quota():
    """Root of a user namespace passes the check of rights in its own IPC namespace, yet not the
    quota: beyond it, and at limit 0, SHM_LOCK gives ENOMEM."""
    inside = process.run(lambda: as_namespace_root(2))
    zero = process.run(lambda: as_namespace_root(0))
    assert inside == ["ENOMEM", "ok"], "three pages, then two, of a quota of two"
    assert zero == ["ENOMEM", "ENOMEM"], "limit 0"


@pytest.mark.needs("hugetlb", "CAP_IPC_LOCK")
def test_lock_of_a_huge_segment_is_a_noop():
    """SHM_LOCK of a segment of huge pages succeeds, marks and charges nothing."""
    from helpers.observe import vmstat

    size = vmstat.huge_page_size()
    with sysv.segment(size // PAGE, flags=0o4000) as segment:  # SHM_HUGETLB
        sysv.lock(segment.id)
        assert not sysv.is_locked(segment.id), "SHM_LOCKED is not set"
        libc.mlock(segment.region.addr, size)
        assert status.vmlck_kb() == 0, "nor does mlock count it"
        first = Region(segment.region.addr, PAGE)
        assert not maps.at(first.addr).locked, "or mark it"
        sysv.unlock(segment.id)
