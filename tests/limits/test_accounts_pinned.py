# SPDX-License-Identifier: MIT
"""Pinned memory under RLIMIT_MEMLOCK: perf's rings, io_uring's buffers and rings, BPF maps, huge
segments: what each is compared with."""

import functools
import os

import pytest

from helpers import processes, syscalls
from helpers.machine import kernel_version
from helpers.memory import sysv_segment
from helpers.observe import status, vmstat
from helpers.processes import Child, limit_accounts
from helpers.processes.limit_accounts import ACCOUNTS, USER, give, rings, take, take_all, take_late
from helpers.syscalls import PAGE, PAGE_KB, bpf, io_uring, sysv

LIMIT, FIRST = 32, 12
SHM_HUGETLB = 0o4000

pytestmark = [
    pytest.mark.share_process,
    pytest.mark.needs("other-user", "root-user", "limit:64"),
    pytest.mark.source("getrlimit(2) RLIMIT_MEMLOCK"),
]
PERF = pytest.mark.needs("perf-limited")
RINGS = pytest.mark.source("perf_event_open(2) perf_event_mlock_kb", "kernel/events/core.c")


def by_account(*names):
    """``name``: each of these accounts, with what it needs."""
    found = []
    for name in names:
        needs, source = ACCOUNTS[name].needs, ACCOUNTS[name].source
        marks = [pytest.mark.source(source)] + [pytest.mark.needs(*needs)] * bool(needs)
        found.append(pytest.param(name, id=name, marks=marks))
    return pytest.mark.parametrize("name", found)


def pinned_pages():
    return status.kb("VmPin") // PAGE_KB


def perf_user(*names, uid=None):
    """In a child: an ordinary user who has used nothing of what perf allows beside the limit."""
    limit_accounts.prepare("perf")
    return limit_accounts.ordinary(LIMIT, *names, uid=uid)


@PERF
@RINGS
@pytest.mark.detects("perf-ring-not-pinned")
def test_rings_take_the_users_allowance_then_the_limit():
    """A user's rings are free up to perf_event_mlock_kb for each CPU, then in VmPin up to the
    limit, to the page; unmapped, both are there again, no page more."""

    def child():
        perf_user()
        allowance, seen = limit_accounts.perf_allowance(), []
        for _ in range(2):
            free = rings(allowance)
            seen.append(pinned_pages())
            answers = take_all("perf", LIMIT + 1, FIRST, LIMIT - FIRST + 1, LIMIT - FIRST, 1)
            seen += [answers, pinned_pages()]
            give("perf")
            give("perf")
            seen.append(pinned_pages())
            free()
        return seen

    answers = ["EPERM", "ok", "EPERM", "ok", "EPERM"]
    assert processes.run(child) == [0, answers, LIMIT, 0] * 2, "VmPin: free, full, given back"


@PERF
@RINGS
def test_ring_across_the_allowance_is_charged_by_its_part_beyond():
    """A ring that the user's allowance holds in part is charged to VmPin by its other part; its
    end gives each part back where it came from."""

    def child():
        perf_user()
        allowance = limit_accounts.perf_allowance()
        rings(allowance - 2)
        across = take("perf", 5), pinned_pages()
        beyond = take("perf", 3), pinned_pages()
        give("perf")
        give("perf")
        within = take("perf", 2), pinned_pages()
        return across, beyond, within, (take("perf", 1), pinned_pages())

    across, beyond, within, more = processes.run(child)
    assert across == ("ok", 3), "two of five pages were left"
    assert beyond == ("ok", 6), "all of the next ring"
    assert within == ("ok", 0), "two are left again"
    assert more == ("ok", 1), "and no more than two"


@PERF
@RINGS
def test_allowance_of_rings_is_the_users_and_the_limit_the_address_spaces():
    """Processes of a user share perf's allowance, each has the limit in its own VmPin; another
    user has his own allowance; the end of a process gives its part back."""
    uid = sysv_segment.unused_uid()
    with Child() as one, Child() as two, Child() as stranger:
        for child, user in ((one, uid), (two, uid), (stranger, uid + 1)):
            child.call(functools.partial(perf_user, uid=user))
        allowance = limit_accounts.perf_allowance()
        assert one.call(charged, allowance) == 0, "the allowance, by one process"
        assert two.call(charged, 1) == 1, "is used up for another"
        assert one.call(charged, LIMIT) == LIMIT, "the limit of the one"
        assert two.call(charged, LIMIT - 1) == LIMIT, "the limit of the other"
        assert stranger.call(charged, allowance) == 0, "another user's allowance"
        one.kill()
        two.call(give, "perf")
        assert two.call(charged, LIMIT - 1) == 1, "the ended process's part of the allowance"


def charged(pages):
    """In a child: rings of so many pages; VmPin in pages, or the refusal."""
    answer = take("perf", pages)
    return pinned_pages() if answer == "ok" else answer


@PERF
@RINGS
@pytest.mark.needs("io-uring-user")
def test_fixed_buffer_counts_against_rings_of_the_same_process():
    """Rings beyond the allowance are bound by the limit together with what io_uring has pinned in
    the same address space, to the page; in another process they are not."""
    uid = sysv_segment.unused_uid()
    with Child() as one, Child() as two:
        one.call(functools.partial(perf_user, "io-uring", uid=uid))
        two.call(functools.partial(perf_user, uid=uid))
        assert one.call(take, "io-uring", FIRST) == "ok", "a fixed buffer"
        pinned = FIRST - limit_accounts.ring_pages()
        assert one.call(pinned_pages) == pinned, "in VmPin"
        # Where the buffer is counted with perf's allowance, that is so much smaller.
        beyond = one.call(charged, limit_accounts.perf_allowance())
        assert beyond in (pinned, pinned + FIRST), "the allowance"
        left = LIMIT - beyond
        assert one.call(take_all, "perf", left + 1, left, 1) == ["EPERM", "ok", "EPERM"], "rings"
        assert two.call(take_all, "perf", LIMIT + 1, LIMIT) == ["EPERM", "ok"], "elsewhere"
        one.call(give, "io-uring")
        assert one.call(pinned_pages) == LIMIT - pinned, "given back"


def left_beside_rings(name, count):
    """Pages that the account can have while the user has ``count`` pages of rings for free."""

    def child():
        perf_user(name)
        rings(count)
        return [room for room in (LIMIT, LIMIT - count) if take(name, room + 1) != "ok"
                and take(name, room) == "ok"]  # fmt: skip

    return processes.run(child)


def rings_beside(name):
    """Pages of the allowance that are missing to a user who has FIRST pages by the account."""

    def child():
        perf_user(name)
        begun, before = take(name, FIRST), pinned_pages()
        return begun, charged(limit_accounts.perf_allowance()) - before

    return processes.run(child)


@functools.cache
def allowance_is_counted_apart():
    """Whether perf's allowance has a counter of its own (user->perf_mlock) on this kernel."""
    return rings_beside("zero-copy")[1] == 0


@PERF
@RINGS
@pytest.mark.needs("zerocopy")
@by_account("io-uring", "xdp", "zero-copy", "secret")
def test_allowance_of_rings_and_pinned_memory_are_together_or_apart(name):
    """A user's rings within perf's allowance are counted with all that is pinned by user, in both
    directions and to the page, or, on newer kernels, with none of it."""
    count = 5
    if limit_accounts.perf_allowance() < count + FIRST:
        pytest.skip("needs a larger allowance: sysctl kernel.perf_event_mlock_kb=516")
    apart = allowance_is_counted_apart() or limit_accounts.counter(name) != USER
    assert left_beside_rings(name, count) == [LIMIT if apart else LIMIT - count], "beside rings"
    assert rings_beside(name) == ("ok", 0 if apart else FIRST), "rings beside"


@PERF
@RINGS
@pytest.mark.needs("allow-sysctl")
@pytest.mark.source("003461559ef7")
@pytest.mark.exclusive
def test_allowance_lowered_between_two_rings_loses_no_count(reclaim):
    """With perf_event_mlock_kb lowered below what a user has, the next ring is charged to VmPin by
    its own pages only, and when both are gone and the setting is back all is there again."""
    path = "/proc/sys/kernel/perf_event_mlock_kb"
    with Child() as child:
        child.call(perf_user)
        allowance = limit_accounts.perf_allowance()
        assert child.call(charged, allowance) == 0, "the allowance"
        with reclaim.setting(path, "0"):
            assert child.call(charged, FIRST) == FIRST, "the next ring, by its own pages"
            child.call(give, "perf")
            assert child.call(pinned_pages) == 0, "given back"
            assert child.call(charged, 1) == 1, "and once more"
            child.call(give, "perf")
        child.call(give, "perf")
        assert child.call(charged, allowance) == 0, "the allowance, whole"
        assert child.call(charged, 1) == 1, "and no page more"


@pytest.mark.needs("io-uring-user")
@pytest.mark.deviation("io-uring-ring-charged")
@pytest.mark.source("io_uring_setup(2) ENOMEM", "26bfa89e25f4")
def test_instance_of_io_uring_leaves_the_whole_limit_to_its_buffer():
    """The rings of an io_uring instance are not charged to the limit: a fixed buffer can have all
    of it, and no page more."""

    def child():
        limit_accounts.ordinary(LIMIT)
        rings_of = [io_uring.create() for _ in range(2)]
        addr = syscalls.mmap(0, (LIMIT + 1) * PAGE)
        return [
            syscalls.outcome(io_uring.register, rings_of[1], addr, pages * PAGE)
            for pages in (LIMIT + 1, LIMIT)
        ]

    if kernel_version.version() < (5, 12, 0) and limit_accounts.ring_pages():
        pytest.skip("needs a kernel from 5.12 on: before, the ring itself is charged")
    assert processes.run(child) == ["ENOMEM", "ok"], "a page over the limit, the limit"


@pytest.mark.needs("bpf", "zerocopy", "CAP_BPF")
@pytest.mark.source("bpf(2)", "kernel/bpf/syscall.c")
@pytest.mark.detects("bpf-map-limited")
def test_bpf_map_is_charged_to_the_memory_cgroup_alone():
    """A BPF map beyond the limit can be had and leaves the limit to pinned memory; before 5.11 it
    is counted there, refused with EPERM, and given back soon after its last close."""

    def array(pages):
        return bpf.create_array(pages * PAGE - PAGE // 2)

    def child():
        limit_accounts.ordinary(LIMIT, "zero-copy", capability="CAP_BPF")
        beyond = syscalls.outcome(array, 4 * LIMIT)
        kept = array(FIRST)
        answers = take_all("zero-copy", LIMIT + 1, LIMIT, LIMIT - FIRST + 1, LIMIT - FIRST)
        os.close(kept)
        return beyond, answers, take_late("zero-copy", FIRST) if beyond != "ok" else ""

    beyond, answers, after = processes.run(child)
    if kernel_version.version() < (5, 11, 0):  # 80ee81e0403c: memory cgroups count maps
        assert beyond == "EPERM", "a map over the limit"
        assert answers == ["ENOBUFS", "ENOBUFS", "ENOBUFS", "ok"], "what a map of 12 pages leaves"
        assert after == "ok", "what it gave back"
    else:
        assert beyond == "ok", "a map over the limit"
        assert answers == ["ENOBUFS", "ok", "ENOBUFS", "ENOBUFS"], "the whole limit"


@pytest.mark.needs("sysv-shm")
@pytest.mark.source("shmget(2) SHM_HUGETLB", "83c1fd763b32", "fs/hugetlbfs/inode.c")
@pytest.mark.detects("shm-huge-refused-charged")
def test_huge_segment_without_right_leaves_no_charge():
    """SHM_HUGETLB without CAP_IPC_LOCK and outside of vm.hugetlb_shm_group gives EPERM and leaves
    nothing charged; before 5.16 it is charged like SHM_LOCK, until the segment's end."""
    huge = vmstat.huge_page_size()
    if not huge:
        pytest.skip("needs huge pages: CONFIG_HUGETLBFS=y")
    limit = huge // PAGE + 4

    def child():
        try:
            limit_accounts.ordinary(limit)
        except ValueError:
            return [], []
        how = syscalls.IPC_CREAT | 0o600 | SHM_HUGETLB
        answers = []
        for _ in range(3):
            answers.append(syscalls.outcome(sysv.shmget, syscalls.IPC_PRIVATE, huge, how))
        return answers, take_all("shm-lock", limit + 1, limit, 5, 4)

    before = kernel_version.version() < (5, 16, 0)
    answers, room = processes.run(child)
    if not answers:
        wanted = 2 * limit * PAGE // 1024
        pytest.skip(f"needs limit: the hard RLIMIT_MEMLOCK is too low; ulimit -H -l {wanted}")
    if before and "ok" in answers:
        assert answers == ["ok", "EPERM", "EPERM"], "one is the limit"
        assert room == ["ENOMEM", "ENOMEM", "ENOMEM", "ok"], "four pages are left"
    else:
        assert set(answers) == {"ENOMEM" if before else "EPERM"}, "refused"
        assert room == ["ENOMEM", "ok", "ENOMEM", "ENOMEM"], "the whole limit, and no more"


def map_ring(fd, pages):
    return syscalls.mmap(0, pages * PAGE, syscalls.PROT_RW, syscalls.MAP_SHARED, fd)


@PERF
@RINGS
def test_ring_mapped_twice_is_charged_once():
    """A ring that is mapped a second time is charged once, until its last mapping has gone; one of
    another size is refused and charges nothing."""

    def child():
        perf_user("perf")
        fd, seen = limit_accounts.spare_event(), []
        first = map_ring(fd, 9)
        seen.append(pinned_pages())
        second = map_ring(fd, 9)
        seen.append(pinned_pages())
        other = syscalls.outcome(map_ring, fd, 5)
        seen.append(pinned_pages())
        syscalls.munmap(first, 9 * PAGE)
        seen.append(pinned_pages())
        syscalls.munmap(second, 9 * PAGE)
        seen.append(pinned_pages())
        return other, seen, take_all("perf", LIMIT + 1, LIMIT)

    other, seen, after = processes.run(child)
    assert other == "EINVAL", "another size"
    assert seen == [9, 9, 9, 9, 0], "VmPin: once, twice, other size, one unmapped, both"
    assert after == ["EPERM", "ok"], "the whole limit, and no page more"


@PERF
@RINGS
def test_ring_unmapped_by_parts_is_given_back_whole():
    """munmap of a part of a ring is refused or keeps the whole charged; when all has been unmapped
    the limit and the allowance are whole."""

    def child():
        perf_user("perf")
        fd = limit_accounts.spare_event()
        addr = map_ring(fd, 9)
        part = syscalls.outcome(syscalls.munmap, addr + 8 * PAGE, PAGE)
        between = pinned_pages()
        syscalls.munmap(addr, 9 * PAGE)
        return part, between, pinned_pages(), take_all("perf", LIMIT + 1, LIMIT)

    part, between, none, after = processes.run(child)
    assert part in {"EINVAL", "ok"}, "a ring may be indivisible (6.17)"
    assert (between, none) == (9, 0), "VmPin: a part unmapped, all"
    assert after == ["EPERM", "ok"], "the whole limit, and no page more"


@PERF
@RINGS
def test_forked_process_has_no_part_in_a_ring():
    """A ring is not inherited: a forked process starts with VmPin 0, and its end takes nothing from
    its parent's."""

    def child():
        perf_user("perf")
        begun = take("perf", FIRST)
        theirs = processes.run(pinned_pages)
        return begun, theirs, pinned_pages(), take_all("perf", LIMIT - FIRST + 1, LIMIT - FIRST)

    assert processes.run(child) == ("ok", 0, FIRST, ["EPERM", "ok"]), "VmPin: child's, parent's"


@pytest.mark.needs("secretmem")
@pytest.mark.source("mm/secretmem.c")
def test_secret_page_is_charged_to_who_made_the_file():
    """Where secret memory is counted by user, its pages are charged to the user who made the file,
    whoever touches them first, under the limit of who does."""
    if limit_accounts.secret_counter() != USER:
        pytest.skip("needs secret memory that is counted by user: a kernel from 7.1 on")
    maker = sysv_segment.unused_uid()

    def child():
        limit_accounts.become(LIMIT, maker)
        fd = syscalls.syscall("memfd_secret", 0)
        os.ftruncate(fd, LIMIT * PAGE)
        addr = syscalls.mmap(0, LIMIT * PAGE, syscalls.PROT_RW, syscalls.MAP_SHARED, fd)
        limit_accounts.become(LIMIT, maker + 1)
        touched = [limit_accounts.touch(addr + i * PAGE) for i in range(LIMIT)]
        mine = take_all("secret", LIMIT + 1, LIMIT)
        limit_accounts.become(LIMIT, maker)
        return touched, mine, take("secret", 1)

    touched, mine, makers = processes.run(child)
    assert set(touched) == {True}, "another user touches all of it"
    assert mine == ["EFAULT", "ok"], "whose own limit is whole"
    assert makers == "EFAULT", "the maker's is used up"
