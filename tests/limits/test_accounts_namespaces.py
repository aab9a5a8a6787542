# SPDX-License-Identifier: MIT
"""RLIMIT_MEMLOCK in user namespaces: who is counted where, and the ceiling that a namespace has."""

import functools
import os
import resource
from pathlib import Path

import pytest

from helpers import processes, syscalls
from helpers.machine import kernel_version
from helpers.memory import sysv_segment
from helpers.processes import Child, limit_accounts, rlimits
from helpers.processes.limit_accounts import (
    ACCOUNTS,
    ceiling_unit,
    give,
    take,
    take_all,
    take_freed,
)
from helpers.syscalls import PAGE, sysv

LIMIT, FIRST, CEILING = 32, 12, 20
UNLIMITED = rlimits.RLIM_INFINITY
SHM = "shm-lock"

pytestmark = [
    pytest.mark.share_process,
    pytest.mark.needs("other-user", "root-user", "user-namespace", "limit:64"),
    pytest.mark.source("user_namespaces(7)", "kernel/ucount.c inc_rlimit_ucounts"),
]
SEGMENTS = pytest.mark.needs("sysv-shm")


def by_account(*names):
    """``name``: each of these accounts, with what it needs."""
    found = []
    for name in names:
        needs, source = ACCOUNTS[name].needs, ACCOUNTS[name].source
        marks = [pytest.mark.source(source)] + [pytest.mark.needs(*needs)] * bool(needs)
        found.append(pytest.param(name, id=name, marks=marks))
    return pytest.mark.parametrize("name", found)


@pytest.fixture
def by_namespace():
    """Locked segments are counted by user and user namespace: d7c9e99aee48 (5.14); before, by user
    of the machine."""
    if kernel_version.version() < (5, 14, 0):
        pytest.skip("needs a kernel from 5.14 on: before, a namespace has no count of its own")


def become(child, uid, *names):
    """The child is the user, outside of every namespace of ours."""
    child.call(functools.partial(limit_accounts.ordinary, LIMIT, *names, uid=uid))


def enter(ceiling=LIMIT * 2 * PAGE, inside=LIMIT * PAGE):
    """In a child: :func:`limit_accounts.enter_namespace`, with room to spare if not told."""
    limit_accounts.enter_namespace(ceiling, inside)


@SEGMENTS
@pytest.mark.usefixtures("by_namespace")
@pytest.mark.deviation("userns-ceiling-in-bytes")
def test_ceiling_is_the_limit_in_pages_under_which_the_namespace_was_made():
    """Root of a user namespace who raises its soft limit locks no more segments than the limit,
    under which the namespace was made, allowed."""

    def child():
        limit_accounts.ordinary(LIMIT)
        enter(2 * PAGE, LIMIT * PAGE)
        return take_all(SHM, 3, 2, 1)

    assert processes.run(child) == ["ENOMEM", "ok", "ENOMEM"], "three pages, two, one more"


@SEGMENTS
@pytest.mark.usefixtures("by_namespace")
@pytest.mark.parametrize(
    "raised",
    [
        "higher",
        pytest.param(
            "unlimited",
            marks=[
                pytest.mark.needs("limit-infinite"),
                pytest.mark.deviation("shm-lock-unlimited-escapes-ceiling"),
                pytest.mark.source("e97824ff663c"),
            ],
        ),
    ],
)
@pytest.mark.detects("userns-ceiling-ignored")
def test_raising_the_soft_limit_inside_does_not_raise_the_ceiling(raised):
    """A soft limit raised in a user namespace, to whatever, lets no more segments be locked there
    than the namespace's ceiling, and as many."""
    ceiling = CEILING * ceiling_unit()

    def child():
        if raised == "unlimited":
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (UNLIMITED, UNLIMITED))
        limit_accounts.ordinary(LIMIT)
        enter(ceiling, UNLIMITED if raised == "unlimited" else 2 * LIMIT * PAGE)
        return take_all(SHM, CEILING + 1, CEILING, 1)

    assert processes.run(child) == ["ENOMEM", "ok", "ENOMEM"], "one over, the ceiling, one more"


@SEGMENTS
@pytest.mark.usefixtures("by_namespace")
def test_ceiling_counts_what_the_owner_has_outside():
    """The ceiling of a user namespace is compared with all that its owner has locked, outside and
    in each of his namespaces."""
    uid, ceiling = sysv_segment.unused_uid(), CEILING * ceiling_unit()
    with Child() as outside, Child() as one, Child() as two:
        for child in (outside, one, two):
            become(child, uid)
        for child in (one, two):
            child.call(enter, ceiling, 2 * LIMIT * PAGE)
        assert outside.call(take, SHM, 5) == "ok", "outside"
        assert one.call(take_all, SHM, CEILING - 4, 5) == ["ENOMEM", "ok"], "one namespace"
        assert two.call(take_all, SHM, CEILING - 9, CEILING - 10) == ["ENOMEM", "ok"], "another"
        assert one.call(take, SHM, 1) == "ENOMEM", "and none is left for the first"
        outside.call(give, SHM)
        assert one.call(take_all, SHM, 6, 5) == ["ENOMEM", "ok"], "what was freed outside"


@SEGMENTS
@pytest.mark.parametrize("end", ["given-back", "exit", "killed", "exec"])
@pytest.mark.detects("userns-charge-not-outside")
def test_charge_inside_counts_outside(end):
    """What root of a user namespace has locked is missing to its owner outside, until it ends."""
    uid = sysv_segment.unused_uid()
    with Child() as outside, Child() as inside:
        become(outside, uid)
        become(inside, uid)
        inside.call(enter)
        assert inside.call(take, SHM, FIRST) == "ok", "inside"
        over, fits = outside.call(take_all, SHM, LIMIT - FIRST + 1, LIMIT - FIRST)
        assert (over, fits) == ("ENOMEM", "ok"), "what is left outside, to the page"
        outside.call(give, SHM)
        if end == "given-back":
            inside.call(give, SHM)
        else:
            inside.end_by(end)
        assert outside.call(take_all, SHM, LIMIT + 1, LIMIT) == ["ENOMEM", "ok"], "and all of it"


@SEGMENTS
@pytest.mark.usefixtures("by_namespace")
@pytest.mark.needs("limit:128")
@pytest.mark.source("d7c9e99aee48")
@pytest.mark.detects("userns-charge-shared-inside")
def test_charge_outside_leaves_the_limit_inside_whole():
    """The limit of a process in a user namespace is compared with what its user has locked there:
    what the same user has outside, or in another namespace, takes nothing from it."""
    uid = sysv_segment.unused_uid()
    with Child() as outside, Child() as one, Child() as two:
        for child in (outside, one, two):
            become(child, uid)
        for child in (one, two):
            child.call(enter, LIMIT * 4 * ceiling_unit(), LIMIT * PAGE)
        assert outside.call(take, SHM, LIMIT) == "ok", "full outside"
        assert one.call(take_all, SHM, LIMIT + 1, LIMIT, 1) == ["ENOMEM", "ok", "ENOMEM"], "one"
        assert two.call(take_all, SHM, LIMIT + 1, LIMIT, 1) == ["ENOMEM", "ok", "ENOMEM"], "two"
        outside.call(give, SHM)
        assert outside.call(take, SHM, 1) == "ENOMEM", "outside both count"


_inner = []


def enter_deeper(ceiling, limit):
    """In a child: it forks one that enters a user namespace below its own."""
    child = Child()
    child.call(enter, ceiling, limit)
    _inner.append(child)


def deeper(function, *args):
    """In a child: the answer of the one that it forked."""
    return _inner[-1].call(function, *args)


@SEGMENTS
@pytest.mark.usefixtures("by_namespace")
def test_nested_charge_counts_in_every_namespace_above():
    """What is locked in a nested user namespace counts in each above it, and the ceiling of each
    binds those below."""
    uid, limit = sysv_segment.unused_uid(), LIMIT * PAGE
    with Child() as outside, Child() as middle:
        become(outside, uid)
        become(middle, uid)
        middle.call(enter, CEILING * ceiling_unit(), limit)
        middle.call(enter_deeper, 2 * CEILING * ceiling_unit(), 2 * limit)
        assert middle.call(deeper, take_all, SHM, CEILING + 1, FIRST) == ["ENOMEM", "ok"], (
            "the ceiling of the middle one binds the inner"
        )
        rest = CEILING - FIRST
        assert middle.call(take_all, SHM, rest + 1, rest - 1) == ["ENOMEM", "ok"], "middle"
        assert middle.call(deeper, take_all, SHM, 2, 1) == ["ENOMEM", "ok"], "inner"
        left = LIMIT - CEILING
        assert outside.call(take_all, SHM, left + 1, left) == ["ENOMEM", "ok"], "outside"
        middle.call(deeper, give, SHM)
        middle.call(deeper, give, SHM)
        assert outside.call(take_all, SHM, FIRST + 2, FIRST + 1) == ["ENOMEM", "ok"], (
            "what the inner one has given back"
        )


def unshare_user():
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 1, 0, 0, 0)
    rlimits.set_soft_memlock(LIMIT * 2 * PAGE)
    syscalls.unshare(syscalls.CLONE_NEWUSER)


def be_second():
    """In a child, root of a namespace with two users: it becomes the second."""
    os.setresuid(1, 1, 1)
    rlimits.set_soft_memlock(LIMIT * PAGE)


@SEGMENTS
@pytest.mark.usefixtures("by_namespace")
@pytest.mark.needs("CAP_SETUID", "CAP_SYS_PTRACE")
def test_charge_of_another_user_inside_counts_for_the_owner_outside():
    """What a second user of a user namespace has locked counts outside for the namespace's owner
    and not for that user."""
    uid = sysv_segment.unused_uid()
    with Child() as owner, Child() as second, Child() as inside:
        become(owner, uid)
        become(second, uid + 1)
        become(inside, uid)
        inside.call(unshare_user)
        Path(f"/proc/{inside.pid}/uid_map").write_text(f"0 {uid} 2")
        inside.call(be_second)
        assert inside.call(take_all, SHM, LIMIT + 1, FIRST) == ["ENOMEM", "ok"], "inside"
        assert second.call(take_all, SHM, LIMIT + 1, LIMIT) == ["ENOMEM", "ok"], "that user"
        left = LIMIT - FIRST
        assert owner.call(take_all, SHM, left + 1, left) == ["ENOMEM", "ok"], "the owner"
        inside.call(give, SHM)
        assert owner.call(take_all, SHM, FIRST + 1, FIRST) == ["ENOMEM", "ok"], "given back"


@by_account(*ACCOUNTS)
@pytest.mark.source("capabilities(7) CAP_IPC_LOCK")
@pytest.mark.detects("userns-capability-opens-pins")
def test_root_of_a_namespace_is_bound_by_every_account(name):
    """CAP_IPC_LOCK of a user namespace opens no account: the limit binds there to the page."""

    def child():
        limit_accounts.ordinary(LIMIT, name)
        enter()
        return take_all(name, LIMIT + 1, LIMIT, 4)

    no = limit_accounts.refusal(name)
    assert processes.run(child) == [no, "ok", no], "a page over the limit, the limit, any more"


@by_account("io-uring", "xdp", "zero-copy")
def test_pinned_memory_is_counted_by_user_in_all_namespaces(name):
    """Pinned memory is counted by the machine's user, in whatever user namespace it was pinned:
    inside and outside share one limit."""
    uid = sysv_segment.unused_uid()
    with Child() as outside, Child() as one, Child() as two:
        for child in (outside, one, two):
            become(child, uid, name)
        one.call(enter)
        two.call(enter)
        no, left = limit_accounts.refusal(name), LIMIT - FIRST
        assert outside.call(take, name, FIRST) == "ok", "outside"
        assert one.call(take_all, name, left + 1, left - 4) == [no, "ok"], "in one namespace"
        assert two.call(take_all, name, 5, 4) == [no, "ok"], "in another"
        one.call(give, name)
        assert outside.call(take_freed, name, left - 4, name) == "ok", "what came back inside"


def lock_and_leave():
    """In a child: a locked segment in an IPC namespace that ends with the child."""
    syscalls.unshare(syscalls.CLONE_NEWIPC)
    how = syscalls.IPC_CREAT | 0o600
    sysv_segment.lock(sysv.shmget(syscalls.IPC_PRIVATE, LIMIT * PAGE, how))


@SEGMENTS
@pytest.mark.source("ipc_namespaces(7)", "ipc/namespace.c free_ipc")
@pytest.mark.parametrize("end", ["exit", "killed"])
def test_end_of_an_ipc_namespace_gives_back(end):
    """A locked segment that nobody removed goes with its IPC namespace, when the last process in
    it has ended, and the whole limit comes back outside, soon."""
    uid = sysv_segment.unused_uid()
    with Child() as outside, Child() as inside:
        become(outside, uid)
        become(inside, uid)
        inside.call(enter)
        inside.call(lock_and_leave)
        assert outside.call(take, SHM, 1) == "ENOMEM", "while it lives"
        inside.end_by(end)
        assert outside.call(take, SHM, LIMIT + 1) == "ENOMEM", "not a page more"
        # ipc/namespace.c frees the namespace from a work queue.
        assert outside.call(limit_accounts.take_late, SHM, LIMIT) == "ok", "all of it"
