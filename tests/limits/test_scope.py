# SPDX-License-Identifier: MIT
"""Whose account it is: one for each address space; whose limit: each process's, inherited."""

import resource
import threading

import pytest

from helpers import processes, syscalls
from helpers.memory import mapping
from helpers.observe import maps, status
from helpers.processes import Child, credentials, rlimits
from helpers.processes.rlimits import set_soft_memlock, unprivileged_with_limit
from helpers.processes.stub import StubProcess
from helpers.syscalls import PAGE, PAGE_KB

pytestmark = [
    pytest.mark.share_process,
    pytest.mark.needs("limit:8"),
    pytest.mark.source("getrlimit(2)", "mlock(2) Limits and permissions"),
]


def tries(addr, *counts):
    """mlock of so many pages from ``addr``, one after the other: the answers, and VmLck."""
    answers = [syscalls.outcome(syscalls.mlock, addr, count * PAGE) for count in counts]
    return answers, status.vmlck_pages()


def drop():
    credentials.lower_effective("CAP_IPC_LOCK")


def soft_limit():
    return rlimits.memlock_limit()[0]


@pytest.mark.parametrize("kind", ["private", "memfd-shared"])
@pytest.mark.detects("limit-shared-by-family")
def test_account_is_the_address_spaces_own(kind):
    """Parent and two children of one user each lock up to the whole limit, of the same shared
    memory even.
    """
    with mapping(kind, 8) as region, unprivileged_with_limit(4 * PAGE):
        region.touch()
        syscalls.mlock(region.addr, 4 * PAGE)
        with Child() as one, Child() as two:
            first = one.call(tries, region.addr, 5, 4, 5)
            second = two.call(tries, region.addr, 5, 4, 5)
            mine = status.vmlck_pages()
            more = syscalls.outcome(syscalls.mlock, region.at(4), PAGE)
        assert first == (["ENOMEM", "ok", "ENOMEM"], 4), "the first child: 5, 4, 5 pages"
        assert second == (["ENOMEM", "ok", "ENOMEM"], 4), "the second child: 5, 4, 5 pages"
        assert mine == 4, "the parent's account is its own"
        assert more == "ENOMEM", "and it is full"


def test_ended_process_leaves_other_accounts_alone():
    """A process that ends with its limit full gives nothing to others and takes nothing."""
    with mapping(pages=8) as region, unprivileged_with_limit(4 * PAGE):
        syscalls.mlock(region.addr, 3 * PAGE)
        with Child() as child:
            full = child.call(tries, region.addr, 4)
            child.kill()
        after = tries(region.addr, 5, 4)
        assert full == (["ok"], 4), "the child filled its limit"
        assert after == (["ENOMEM", "ok"], 4), "the parent: five, then four pages"


def test_threads_share_one_account():
    """Threads fill one limit together, and what one unlocks another may lock."""
    seen = []

    def in_thread(function, *args):
        def body():
            seen.append(syscalls.outcome(function, *args))

        thread = threading.Thread(target=body)
        thread.start()
        thread.join()

    with mapping(pages=8) as region, unprivileged_with_limit(4 * PAGE):
        syscalls.mlock(region.addr, 3 * PAGE)
        in_thread(syscalls.mlock, region.at(4), 2 * PAGE)
        in_thread(syscalls.mlock, region.at(4), PAGE)
        mine = syscalls.outcome(syscalls.mlock, region.at(6), PAGE)
        in_thread(syscalls.munlock, region.addr, PAGE)
        freed = syscalls.outcome(syscalls.mlock, region.at(6), PAGE)
        assert seen == ["ENOMEM", "ok", "ok"], "a thread: 3 + 2 pages, 3 + 1, then munlock of one"
        assert mine == "ENOMEM", "the main thread at the limit"
        assert freed == "ok", "and after the munlock"
        assert status.vmlck_pages() == 4, "four pages are counted"


def test_limit_set_by_one_thread_binds_all():
    """The limit is the process's: lowered by one thread it binds the others at once."""
    with mapping(pages=4) as region, unprivileged_with_limit(4 * PAGE):
        thread = threading.Thread(target=set_soft_memlock, args=(PAGE,))
        thread.start()
        thread.join()
        assert soft_limit() == PAGE, "getrlimit in the main thread"
        assert tries(region.addr, 2, 1) == (["ENOMEM", "ok"], 1), "two pages, then one"


def test_fork_inherits_the_limit_and_not_the_locks():
    """A child starts with its parent's limit and nothing locked: the whole limit is free."""
    with mapping(pages=8) as region, unprivileged_with_limit(4 * PAGE + 1):
        syscalls.mlock(region.addr, 3 * PAGE)
        with Child() as child:
            limits = child.call(rlimits.memlock_limit)
            start = child.call(status.vmlck_pages)
            answers = child.call(tries, region.at(1), 5, 4)
        assert limits == rlimits.memlock_limit(), "soft and hard limit of the parent"
        assert start == 0, "nothing is locked"
        assert answers == (["ENOMEM", "ok"], 4), "five, then four pages"


def test_fork_inherits_limit_zero():
    """A child of a process at limit 0 may not lock either; its munlock is free."""
    with mapping(pages=2) as region, unprivileged_with_limit(0):
        with Child() as child:
            locked = child.call(syscalls.outcome, syscalls.mlock, region.addr, PAGE)
            unlocked = child.call(syscalls.outcome, syscalls.munlock, region.addr, PAGE)
        assert locked == "EPERM", "mlock in the child"
        assert unlocked == "ok", "munlock in the child"


def test_limit_of_a_child_is_its_own():
    """A limit that a child lowers binds the child alone, and the other way round."""
    with mapping(pages=8) as region, unprivileged_with_limit(4 * PAGE):
        with Child() as child:
            child.call(set_soft_memlock, 2 * PAGE)
            theirs = child.call(tries, region.addr, 3, 2)
            mine = tries(region.addr, 4)
            set_soft_memlock(0)
            still = child.call(tries, region.at(1), 2, 1)
        assert theirs == (["ENOMEM", "ok"], 2), "the child: three, then two pages"
        assert mine == (["ok"], 4), "the parent: four pages"
        assert still == (["ENOMEM", "ok"], 2), "the child, once the parent is at 0"


@pytest.mark.needs("stub-process")
@pytest.mark.parametrize("soft", [4 * PAGE, 4 * PAGE + PAGE - 1], ids=["4P", "4P+"])
def test_exec_keeps_the_limit_and_drops_the_locks(soft):
    """execve keeps soft and hard limit; locks and MCL_FUTURE are gone, and the limit is free."""
    with mapping(pages=4) as region:

        def before():
            drop()
            set_soft_memlock(soft)
            syscalls.mlock(region.addr, 3 * PAGE)
            syscalls.mlock2(region.at(3), PAGE, syscalls.MLOCK_ONFAULT)

        expected = soft, rlimits.memlock_limit()[1]
        with StubProcess(before) as bare:
            bare.without("CAP_IPC_LOCK")
            limits = resource.prlimit(bare.pid, resource.RLIMIT_MEMLOCK)
            start = status.vmlck_pages(bare.pid), maps.locked_kb(bare.pid)
            addr = bare.mmap(8)
            over = syscalls.outcome(bare.call, "mlock", addr, 5 * PAGE)
            exactly = syscalls.outcome(bare.call, "mlock", addr, 4 * PAGE)
            counted = status.vmlck_pages(bare.pid)
        assert limits == expected, "soft and hard limit of before"
        assert start == (0, 0), "nothing is locked"
        assert (over, exactly) == ("ENOMEM", "ok"), "five, then four pages"
        assert counted == 4, "four pages are counted"


@pytest.mark.needs("stub-process")
def test_exec_keeps_limit_zero():
    """execve at limit 0 starts a program that may not lock."""
    with StubProcess(lambda: set_soft_memlock(0)) as bare:
        bare.without("CAP_IPC_LOCK")
        addr = bare.mmap(1)
        assert syscalls.outcome(bare.call, "mlock", addr, PAGE) == "EPERM", "mlock after execve"
        assert syscalls.outcome(bare.call, "munlock", addr, PAGE) == "ok", "munlock after execve"
        assert syscalls.outcome(bare.call, "munlockall") == "ok", "munlockall after execve"


@pytest.mark.needs("stub-process")
def test_exec_ends_mcl_future():
    """A program executed by a process with MCL_FUTURE maps more than the limit holds: it has
    no MCL_FUTURE.
    """
    with StubProcess(lambda: syscalls.mlockall(syscalls.MCL_FUTURE)) as bare:
        bare.without("CAP_IPC_LOCK").limit(PAGE)
        seen = syscalls.outcome(bare.mmap, 4)
        assert seen == "ok", "four pages under a limit of one"
        assert status.vmlck_pages(bare.pid) == 0, "nothing is locked"


@pytest.mark.needs("lock-all")
def test_fork_does_not_inherit_mcl_future_at_the_limit():
    """A child of a process with MCL_FUTURE maps memory freely at limit 0: it has no
    MCL_FUTURE.
    """

    def parent():
        syscalls.mlockall(syscalls.MCL_FUTURE)
        return processes.run(child)

    def child():
        drop()
        set_soft_memlock(0)
        addr = syscalls.mmap(0, 4 * PAGE)
        return maps.at(addr).locked, status.vmlck_pages()

    assert processes.run(parent) == (False, 0), "a new mapping is not lo, VmLck is 0"


@pytest.mark.source("prlimit(2)")
def test_limit_set_from_outside_binds_at_once():
    """prlimit on a running process lowers its limit without unlocking anything, and raised
    again allows as before.
    """
    with mapping(pages=8) as region, unprivileged_with_limit(6 * PAGE):
        with Child() as child:
            hard = child.call(rlimits.memlock_limit)[1]

            def limit(pages):
                resource.prlimit(child.pid, resource.RLIMIT_MEMLOCK, (pages * PAGE, hard))

            child.call(drop)
            child.call(syscalls.mlock, region.addr, 4 * PAGE)
            shape = child.call(maps.layout_between, region.addr, region.end, PAGE)
            limit(3)
            seen = child.call(soft_limit)
            kept = child.call(maps.layout_between, region.addr, region.end, PAGE)
            low = child.call(tries, region.addr, 1)
            limit(0)
            zero = child.call(tries, region.addr, 1)
            limit(5)
            raised = child.call(tries, region.addr, 6, 5)
        assert seen == 3 * PAGE, "the process sees its new limit"
        assert kept == shape == [(0, 4, "lo"), (4, 8, "")], "its locks stay"
        assert low == (["ENOMEM"], 4), "four locked under a limit of three"
        assert zero == (["EPERM"], 4), "four locked under a limit of 0"
        assert raised == (["ENOMEM", "ok"], 5), "six, then five pages under a limit of five"


def test_limit_of_another_process_decides_nothing_here():
    """A limit of 0 set on a child from outside leaves the parent's own limit alone."""
    with mapping(pages=4) as region, unprivileged_with_limit(2 * PAGE):
        hard = rlimits.memlock_limit()[1]
        with Child() as child:
            resource.prlimit(child.pid, resource.RLIMIT_MEMLOCK, (0, hard))
            theirs = child.call(tries, region.addr, 1)
            mine = tries(region.addr, 3, 2)
        assert theirs == (["EPERM"], 0), "the child at 0"
        assert mine == (["ENOMEM", "ok"], 2), "the parent at two pages"


@pytest.mark.needs("limit-infinite")
def test_limit_beside_an_infinite_one():
    """An infinite limit raised from outside frees a process that was bound."""
    with mapping(pages=8) as region, unprivileged_with_limit(2 * PAGE), Child() as child:
        before = child.call(tries, region.addr, 3)
        resource.prlimit(child.pid, resource.RLIMIT_MEMLOCK, (-1, -1))
        after = child.call(tries, region.addr, 8)
        assert before == (["ENOMEM"], 0), "three pages under a limit of two"
        assert after == (["ok"], 8), f"eight pages ({8 * PAGE_KB} kB) under none"
