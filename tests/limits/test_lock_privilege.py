# SPDX-License-Identifier: MIT
"""Who may lock: CAP_IPC_LOCK in the initial user namespace, effective now, or the limit."""

import os
import threading

import pytest

from helpers import processes, syscalls
from helpers.machine import timeouts
from helpers.memory import mapping
from helpers.observe import maps, status
from helpers.processes import credentials, namespaces, rlimits
from helpers.processes.credentials import without_capabilities
from helpers.processes.rlimits import soft_memlock_limit, unprivileged_with_limit
from helpers.processes.stub import StubProcess
from helpers.syscalls import MCL_CURRENT, MCL_FUTURE, PAGE

pytestmark = [
    pytest.mark.share_process,
    pytest.mark.needs("lock-calls"),
    pytest.mark.claim("W9"),
    pytest.mark.source("capabilities(7) CAP_IPC_LOCK", "mlock(2) Limits and permissions"),
]

PR_SET_KEEPCAPS = 8


def mlock2(addr, size):
    syscalls.mlock2(addr, size, 0)


def onfault(addr, size):
    syscalls.mlock2(addr, size, syscalls.MLOCK_ONFAULT)


def map_locked(addr, size):
    how = syscalls.MAP_PRIVATE | syscalls.MAP_ANONYMOUS | syscalls.MAP_FIXED | syscalls.MAP_LOCKED
    syscalls.mmap(addr, size, syscalls.PROT_RW, how)


# Each call, and what it answers over the limit; at limit 0 all answer EPERM.
ROUTES = {
    "mlock": (syscalls.mlock, "ENOMEM"),
    "mlock2": (mlock2, "ENOMEM"),
    "onfault": (onfault, "ENOMEM"),
    "MAP_LOCKED": (map_locked, "EAGAIN"),
}
BY_ROUTE = pytest.mark.parametrize("lock", [r for r, _ in ROUTES.values()], ids=ROUTES)

# What somebody bound by a limit of four pages is told (see told()).
BOUND = {
    "over": [refusal for _, refusal in ROUTES.values()],
    "mlockall over": "ENOMEM",
    "exactly": "ok",
    "pages": 4,
    "one more": [refusal for _, refusal in ROUTES.values()],
    "at 0": ["EPERM"] * len(ROUTES),
    "mlockall at 0": ["EPERM", "EPERM"],
    "no bytes at 0": "EPERM",
    "munlock at 0": "ok",
    "munlockall at 0": "ok",
    "pages in the end": 0,
}


def told(region):
    """Answers to this process, which is under a soft limit of four pages, about eight."""
    answers = {
        "over": [syscalls.outcome(r, region.addr, 5 * PAGE) for r, _ in ROUTES.values()],
        "mlockall over": syscalls.outcome(syscalls.mlockall, MCL_CURRENT),
        "exactly": syscalls.outcome(syscalls.mlock, region.addr, 4 * PAGE),
        "pages": status.vmlck_pages(),
        "one more": [syscalls.outcome(r, region.at(5), PAGE) for r, _ in ROUTES.values()],
    }
    rlimits.set_soft_memlock(0)
    answers |= {
        "at 0": [syscalls.outcome(r, region.at(5), PAGE) for r, _ in ROUTES.values()],
        "mlockall at 0": [
            syscalls.outcome(syscalls.mlockall, f) for f in (MCL_CURRENT, MCL_FUTURE)
        ],
        "no bytes at 0": syscalls.outcome(syscalls.mlock, region.addr, 0),
        "munlock at 0": syscalls.outcome(syscalls.munlock, region.addr, PAGE),
        "munlockall at 0": syscalls.outcome(syscalls.munlockall),
        "pages in the end": status.vmlck_pages(),
    }
    return answers


@pytest.mark.needs("other-user", "limit:8")
def test_ordinary_user_locks_up_to_the_limit():
    """An ordinary user locks memory up to the soft limit and no further; unlocking is free."""

    def as_nobody():
        if os.geteuid() == 0:
            credentials.set_user()
        credentials.lower_effective("CAP_IPC_LOCK")
        rlimits.set_soft_memlock(4 * PAGE)
        return os.geteuid(), told(region)

    with mapping(pages=8) as region:
        uid, seen = processes.run(as_nobody)
        assert uid != 0, "not root"
        assert seen == BOUND, "answers under a limit of four pages, then at 0"


@pytest.mark.needs("root-user", "limit:8")
@pytest.mark.detects("cap-by-uid")
def test_root_without_the_capability_is_bound():
    """User 0 without CAP_IPC_LOCK is bound by the limit like anybody else."""

    def as_root():
        credentials.lower_effective("CAP_IPC_LOCK")
        rlimits.set_soft_memlock(4 * PAGE)
        return os.geteuid(), told(region)

    with mapping(pages=8) as region:
        uid, seen = processes.run(as_root)
        assert uid == 0, "user 0"
        assert seen == BOUND, "answers under a limit of four pages, then at 0"


@pytest.mark.needs("user-namespace", "limit:8")
@pytest.mark.source("user_namespaces(7)")
@pytest.mark.detects("cap-userns")
def test_user_namespace_root_is_bound():
    """Root of a child user namespace has CAP_IPC_LOCK only there: the limit binds it."""

    def as_namespace_root():
        namespaces.enter_user_namespace()
        rlimits.set_soft_memlock(4 * PAGE)
        held = bool(credentials.capabilities().effective & 1 << 14)
        return os.geteuid(), held, told(region)

    with mapping(pages=8) as region:
        uid, held, seen = processes.run(as_namespace_root)
        assert (uid, held) == (0, True), "user 0 with CAP_IPC_LOCK effective, in the namespace"
        assert seen == BOUND, "answers under a limit of four pages, then at 0"


@pytest.mark.needs("user-namespace", "stub-process", "limit:8")
def test_user_namespace_root_is_bound_under_mcl_future():
    """Root of a child user namespace gets EAGAIN for a mapping over the limit under
    MCL_FUTURE, and no more heap.
    """
    with StubProcess(namespaces.enter_user_namespace) as bare:
        bare.limit(4 * PAGE)
        start = (bare.call("brk", 0) + PAGE - 1) // PAGE * PAGE
        bare.call("brk", start)
        bare.call("mlockall", MCL_FUTURE)
        over = syscalls.outcome(bare.mmap, 5)
        grown = bare.call("brk", start + 5 * PAGE)
        equal = syscalls.outcome(bare.mmap, 4)
        assert over == "EAGAIN", "five pages under a limit of four"
        assert grown == start, "five pages of heap under a limit of four"
        assert equal == "ok", "four pages under a limit of four"


@BY_ROUTE
@pytest.mark.needs("CAP_IPC_LOCK", "limit:1")
@pytest.mark.detects("cap-ignored-by-mlock", "cap-ignored-by-mmap")
def test_capability_exempts_from_the_limit(lock):
    """With CAP_IPC_LOCK effective every call locks beyond the limit, which is 0, a byte or a
    page.
    """
    with mapping(pages=8) as region, soft_memlock_limit(PAGE):
        page = syscalls.outcome(lock, region.addr, 3 * PAGE)
        rlimits.set_soft_memlock(1)
        byte = syscalls.outcome(lock, region.at(2), 3 * PAGE)
        rlimits.set_soft_memlock(0)
        zero = syscalls.outcome(lock, region.at(4), 4 * PAGE)
        assert page == "ok", "three pages under a limit of one"
        assert byte == "ok", "two more, and one again, under a limit of one byte"
        assert zero == "ok", "three more, and one again, at limit 0"
        assert status.vmlck_pages() == 8, "eight pages are counted"
        assert maps.locked_kb() == 8 * syscalls.PAGE_KB, "eight pages are lo"


@pytest.mark.needs("CAP_IPC_LOCK", "CAP_SETUID", "root-user")
def test_capability_exempts_an_ordinary_user():
    """The capability decides, not the user: somebody else than root who holds it locks beyond
    the limit, at 0 too.
    """

    def as_nobody_with_capability():
        syscalls.prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0)
        os.setresuid(credentials.NOBODY, credentials.NOBODY, credentials.NOBODY)
        rlimits.set_soft_memlock(0)
        dropped = [syscalls.outcome(r, region.addr, 5 * PAGE) for r, _ in ROUTES.values()]
        credentials.raise_effective("CAP_IPC_LOCK")
        held = [syscalls.outcome(r, region.addr, 5 * PAGE) for r, _ in ROUTES.values()]
        return os.geteuid(), dropped, held, status.vmlck_pages()

    with mapping(pages=8) as region:
        uid, dropped, held, pages = processes.run(as_nobody_with_capability)
        assert uid == credentials.NOBODY, "not root"
        assert dropped == ["EPERM"] * len(ROUTES), "permitted only"
        assert held == ["ok"] * len(ROUTES), "effective"
        assert pages == 5, "five pages are counted"


@pytest.mark.needs("CAP_IPC_LOCK", "limit:1")
@pytest.mark.parametrize("limit", [0, PAGE], ids=["0", "P"])
@pytest.mark.detects("cap-permitted")
def test_effective_capability_decides(limit):
    """CAP_IPC_LOCK permitted but not effective counts for nothing; dropping denies and raising
    allows at once.
    """
    refusals = [r for _, r in ROUTES.values()] if limit else ["EPERM"] * len(ROUTES)

    def ask():
        answers = []
        for lock, _ in ROUTES.values():
            answers.append(syscalls.outcome(lock, region.addr, 5 * PAGE))
            syscalls.munlock(region.addr, region.size)
        return answers

    with mapping(pages=8) as region, soft_memlock_limit(limit):
        before = ask()
        credentials.lower_effective("CAP_IPC_LOCK")
        permitted = bool(credentials.capabilities().permitted & 1 << 14)
        dropped = ask()
        everything = syscalls.outcome(syscalls.mlockall, MCL_CURRENT)
        credentials.raise_effective("CAP_IPC_LOCK")
        raised = ask()
        assert permitted, "it stays permitted"
        assert before == ["ok"] * len(ROUTES), "effective"
        assert dropped == refusals, "not effective"
        assert everything == ("ENOMEM" if limit else "EPERM"), "mlockall, not effective"
        assert raised == ["ok"] * len(ROUTES), "effective again"


@pytest.mark.needs("CAP_IPC_LOCK")
def test_dropped_capability_leaves_locks_alone():
    """Locks beyond the limit outlive the capability that allowed them; munlock needs none."""
    with mapping(pages=8) as region, soft_memlock_limit(0):
        syscalls.mlock(region.addr, 6 * PAGE)
        with without_capabilities("CAP_IPC_LOCK"):
            kept = status.vmlck_pages(), maps.layout(region)
            again = syscalls.outcome(syscalls.mlock, region.addr, 6 * PAGE)
            part = syscalls.outcome(syscalls.munlock, region.addr, 2 * PAGE)
            left = status.vmlck_pages()
            rest = syscalls.outcome(syscalls.munlockall)
            nothing = status.vmlck_pages()
        assert kept == (6, [(0, 6, "lo"), (6, 8, "")]), "six pages stay locked"
        assert again == "EPERM", "locking them again"
        assert (part, left) == ("ok", 4), "munlock of two"
        assert (rest, nothing) == ("ok", 0), "munlockall"


@pytest.mark.own_process
@pytest.mark.needs("CAP_IPC_LOCK")
def test_capability_is_the_calling_threads():
    """Of two threads of one process the one with CAP_IPC_LOCK locks beyond the limit, the one
    without does not.
    """
    ready, asked = threading.Event(), threading.Event()
    seen = {}

    def other():
        ready.wait(timeouts.scaled(processes.CALL_TIMEOUT))
        seen["with"] = syscalls.outcome(syscalls.mlock, region.addr, 3 * PAGE)
        asked.set()

    with mapping(pages=4) as region, soft_memlock_limit(0):
        thread = threading.Thread(target=other)
        thread.start()
        credentials.lower_effective("CAP_IPC_LOCK")
        ready.set()
        asked.wait(timeouts.scaled(processes.CALL_TIMEOUT))
        thread.join()
        seen["without"] = syscalls.outcome(syscalls.mlock, region.addr, PAGE)
        assert seen == {"with": "ok", "without": "EPERM"}, "at limit 0"
        assert status.vmlck_pages() == 3, "three pages are counted"


@pytest.mark.needs("CAP_IPC_LOCK", "CAP_SETUID", "root-user")
@pytest.mark.source("LTP mlock02, mlock202", "Open POSIX mlock 12-1, mlockall 15-1")
def test_seteuid_away_from_root_loses_the_privilege():
    """The effective user id takes the privilege away as it leaves 0 and brings it back as it
    returns; setuid takes it for good.
    """

    def change_users():
        rlimits.set_soft_memlock(0)
        facts = {"root": ask()}
        os.seteuid(credentials.NOBODY)
        facts["seteuid nobody"] = ask()
        facts["munlock"] = syscalls.outcome(syscalls.munlock, region.addr, region.size)
        os.seteuid(0)
        facts["seteuid root"] = ask()
        os.setuid(credentials.NOBODY)
        facts["setuid nobody"] = ask()
        facts["back"] = syscalls.outcome(os.seteuid, 0)
        facts["munlockall"] = syscalls.outcome(syscalls.munlockall)
        return facts

    def ask():
        return [syscalls.outcome(r, region.addr, PAGE) for r, _ in ROUTES.values()]

    with mapping(pages=2) as region:
        assert processes.run(change_users) == {
            "root": ["ok"] * 4,
            "seteuid nobody": ["EPERM"] * 4,
            "munlock": "ok",
            "seteuid root": ["ok"] * 4,
            "setuid nobody": ["EPERM"] * 4,
            "back": "EPERM",
            "munlockall": "ok",
        }, "locking a page at limit 0 as each user"


@pytest.mark.needs("limit:4")
def test_limit_binds_without_capability_whoever_asks():
    """Without CAP_IPC_LOCK, as the user who runs this, the limit holds and then lets go."""
    with mapping(pages=6) as region, unprivileged_with_limit(4 * PAGE):
        over = syscalls.outcome(syscalls.mlock, region.addr, 5 * PAGE)
        exactly = syscalls.outcome(syscalls.mlock, region.addr, 4 * PAGE)
        assert (over, exactly) == ("ENOMEM", "ok"), "five and four pages under a limit of four"
