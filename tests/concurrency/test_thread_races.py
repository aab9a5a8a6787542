# SPDX-License-Identifier: MIT
"""Threads of one process that lock, unlock, fault, fork and unmap the same range."""

import os
import signal
import threading

import pytest

from helpers import processes, syscalls
from helpers.memory import mapping
from helpers.observe import maps, page_flags, status
from helpers.processes import rlimits, threads
from helpers.processes.cpus import mlock_drain_all
from helpers.syscalls import PAGE, numa

pytestmark = [
    pytest.mark.needs("smaps-flags"),
    pytest.mark.source("mlock(2), munlock(2); Documentation/mm/process_addrs.rst"),
]

PAGES = 12
ROUNDS = 400


class Hands:
    """What threads do with a region; each outcome is kept."""

    def __init__(self, region):
        self.region = region
        self.outcomes = set()

    def note(self, function, *args):
        self.outcomes.add((function.__name__, syscalls.outcome(function, *args)))

    def lock(self, dice):
        how = syscalls.MLOCK_ONFAULT if dice.random() < 0.3 else 0
        self.note(syscalls.mlock2, *threads.random_part(self.region, dice), how)

    def unlock(self, dice):
        self.note(syscalls.munlock, *threads.random_part(self.region, dice))

    def fault(self, dice):
        addr, size = threads.random_part(self.region, dice)
        # /dev/zero is read into memory by the kernel: a hole is EFAULT, no signal.
        fd = os.open("/dev/zero", os.O_RDONLY)
        try:
            self.note(syscalls.read_to_address, fd, addr, size)
        finally:
            os.close(fd)

    def drop(self, dice):
        self.note(syscalls.madvise, *threads.random_part(self.region, dice), syscalls.MADV_DONTNEED)

    def protect(self, dice):
        prot = dice.choice([syscalls.PROT_READ, syscalls.PROT_RW])
        self.note(syscalls.mprotect, *threads.random_part(self.region, dice), prot)

    def replace(self, dice):
        addr, size = threads.random_part(self.region, dice)
        locked = syscalls.MAP_LOCKED if dice.random() < 0.3 else 0
        how = syscalls.MAP_PRIVATE | syscalls.MAP_ANONYMOUS | syscalls.MAP_FIXED | locked
        self.note(syscalls.mmap, addr, size, syscalls.PROT_RW, how)

    def unmap(self, dice):
        self.note(syscalls.munmap, *threads.random_part(self.region, dice))

    def hop(self, dice):
        cpus = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {dice.choice(cpus)})
        os.sched_setaffinity(0, cpus)

    def migrate(self, dice):
        addr, size = threads.random_part(self.region, dice)
        part = self.region.sub((addr - self.region.addr) // PAGE, size // PAGE)
        self.note(numa.move_pages, part, dice.choice(numa.nodes()))

    def fork(self, dice):
        if dice.random() < 0.1:
            child = processes.run(lambda: threads.read_invariants(self.region))
            assert (child.vmlck, child.lo) == (0, 0), "a child forked in between has no lock"


def at_rest(region, seed):
    """The invariants; then everything is unlocked, and nothing is left."""
    seen = threads.read_invariants(region)
    assert seen.vmlck == seen.lo, f"VmLck is the sum of the lo VMAs (--seed {seed})"
    assert seen.absent == (), f"every page that is lo is present (--seed {seed})"
    syscalls.munlockall()
    seen = threads.read_invariants(region)
    assert (seen.vmlck, seen.lo) == (0, 0), f"munlockall leaves no lock (--seed {seed})"
    assert threads.check_unraced() == [4, 0, 4, 0], "control: the calls that raced are obeyed"


def marks(region):
    mlock_drain_all()
    return page_flags.snapshot(region.addr, region.pages)


# mmap(MAP_FIXED | MAP_LOCKED) is counted beside what it replaces: EAGAIN at a low limit.
@pytest.mark.needs("lock:16")
@pytest.mark.parametrize(
    "names",
    [
        ("lock", "unlock"),
        ("lock", "unlock", "fault", "drop"),
        ("lock", "lock", "unlock", "protect"),
        ("lock", "unlock", "fault", "replace"),
        ("lock", "unlock", "unmap", "replace"),
        ("lock", "unlock", "fault", "hop"),
        ("lock", "unlock", "fork"),
        pytest.param(("lock", "unlock", "fault", "migrate"), marks=pytest.mark.needs("two-nodes")),
    ],
    ids="-".join,
)
@pytest.mark.detects("thread-uncounted", "thread-munlock-kept")
def test_races_leave_exact_account(request, names):
    """However the calls of several threads on one range interleave, afterwards VmLck is the sum
    of the lo VMAs, every locked page is present, and munlockall leaves nothing."""
    seed = request.config.getoption("--seed")
    with mapping("private", PAGES) as region:
        hands = Hands(region)
        threads.run_threads([getattr(hands, name) for name in names], ROUNDS, seed)
        allowed = {"ok", "ENOMEM", "EINVAL", "EFAULT", "EAGAIN", "ENOENT"}
        assert {o for _, o in hands.outcomes} <= allowed, f"--seed {seed}: {hands.outcomes}"
        at_rest(region, seed)


@pytest.mark.needs("lock:16", "kpageflags")
def test_races_leave_pages_that_can_be_locked_and_unlocked(request):
    """After threads on several CPUs have locked and unlocked the same pages, one more lock
    marks every page mlocked, and one more unlock leaves none."""
    seed = request.config.getoption("--seed")
    with mapping("private", PAGES) as region:
        region.touch()
        mlock_drain_all()
        hands = Hands(region)
        threads.run_threads(
            [hands.lock, hands.unlock, hands.lock, hands.unlock], ROUNDS, seed, pinned=True
        )
        syscalls.munlock(region.addr, region.size)
        assert not any(marks(region).mlocked), f"no page stays mlocked (--seed {seed})"
        syscalls.mlock(region.addr, region.size)
        assert all(marks(region).mlocked), f"every page is mlocked again (--seed {seed})"
        syscalls.munlock(region.addr, region.size)
        assert not any(marks(region).mlocked), f"and none after munlock (--seed {seed})"
        assert threads.check_unraced() == [4, 0, 4, 0], "control: the calls that raced are obeyed"


@pytest.mark.needs("lock-all")
def test_mlockall_races_with_mlock(request):
    """mlockall and munlockall by one thread, while others lock, unlock and map, neither lose
    nor invent locked pages."""
    seed = request.config.getoption("--seed")
    kinds = [
        syscalls.MCL_CURRENT | syscalls.MCL_ONFAULT,
        syscalls.MCL_FUTURE,
        syscalls.MCL_FUTURE | syscalls.MCL_ONFAULT,
    ]

    def everything(dice):
        syscalls.mlockall(dice.choice(kinds))
        if dice.random() < 0.5:
            syscalls.munlockall()

    with mapping("private", PAGES) as region:
        hands = Hands(region)
        threads.run_threads([everything, hands.lock, hands.unlock, hands.replace], 40, seed)
        at_rest(region, seed)
        for kind in kinds:
            syscalls.mlockall(kind)
            with mapping("private", 1) as fresh:
                wanted = bool(kind & syscalls.MCL_FUTURE)
                assert maps.at(fresh.addr).locked is wanted, "control: mlockall is obeyed"
            syscalls.munlockall()


@pytest.mark.needs("limit:32")
@pytest.mark.detects("thread-escapes-limit")
def test_threads_reach_the_limit_exactly(request):
    """Threads that lock a page at a time at once get as many as the limit has, no page more
    or less: who comes too late gets ENOMEM."""
    with mapping("private", 64) as region, rlimits.unprivileged_with_limit(32 * PAGE):
        seen = {0: [], 1: [], 2: [], 3: []}

        def locker(first):
            todo = iter(range(first, 64, 4))
            return lambda _: seen[first].append(
                syscalls.outcome(syscalls.mlock, region.at(next(todo)), PAGE)
            )

        threads.run_threads([locker(n) for n in range(4)], 16, request.config.getoption("--seed"))
        every = [outcome for thread in seen.values() for outcome in thread]
        assert (every.count("ok"), every.count("ENOMEM")) == (32, 32), "half of the locks fit"
        assert status.vmlck_pages() == 32, "VmLck is the limit"
        assert threads.read_invariants(region).lo == 32, "so are the lo VMAs"


@pytest.mark.needs("lock:8192", "budget:8192")
@pytest.mark.source("mlock(2); signal(7)")
def test_signals_during_a_long_lock_leave_it_whole():
    """A signal handled in the middle of a long mlock leaves it done, or ended by EINTR; the
    whole range is lo and counted either way."""
    pages = 8192
    signal.signal(signal.SIGUSR1, lambda *_: None)
    main = threading.get_ident()
    begun, ended = threading.Event(), threading.Event()
    sent = []

    def pester():
        begun.set()
        while not ended.is_set():
            signal.pthread_kill(main, signal.SIGUSR1)
            sent.append(1)

    with mapping("private", pages) as region:
        thread = threading.Thread(target=pester)
        thread.start()
        begun.wait()
        outcome = syscalls.outcome(syscalls.mlock, region.addr, region.size)
        ended.set()
        thread.join()
        assert sent, "signals were sent"
        assert outcome in {"ok", "EINTR"}, "done or interrupted"
        seen = threads.read_invariants(region)
        assert (seen.vmlck, seen.lo) == (pages, pages), "never half accounted"
        if outcome == "ok":
            assert seen.absent == (), "done: every page is present"


@pytest.mark.needs("lock:8192", "budget:8192", "kpageflags")
def test_kill_during_a_long_lock_leaves_no_mark():
    """SIGKILL in the middle of a long mlock of a shared file leaves none of its pages mlocked."""
    pages = 8192
    with mapping("memfd-shared", pages) as region:
        with processes.Child() as child:
            child.start(syscalls.mlock, region.addr, region.size)
            while not status.vmlck_pages(child.pid):
                pass  # the range is counted before its pages come
            child.kill()
        region.read()
        mlock_drain_all()
        seen = page_flags.snapshot(region.addr, pages)
        assert not any(seen.mlocked), "no page stays mlocked"
        assert status.vmlck_pages() == 0, "and nothing is counted here"
