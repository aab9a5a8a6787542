# SPDX-License-Identifier: MIT
"""Processes that lock, unlock, fault and end on the pages of one file at the same time.

PG_mlocked of a page that two CPUs lock and unlock at the same moment is not exact: a locker
may stay counted for good (seen on 6.18: folio_test_clear_lru fails in __munlock_folio, which then
leaves mlock_count as it was). So page marks are asserted where each page has one locker at a
time; the accounts and residency, which are promised, where all lock all of them.
"""

import os
import random
import signal

import pytest

from helpers import processes, syscalls
from helpers.memory import mapping
from helpers.observe import mincore, page_flags, pagemap, status
from helpers.processes import cpus, threads
from helpers.syscalls import PAGE

pytestmark = [
    pytest.mark.needs("lock:16"),
    pytest.mark.source("mlock(2) NOTES; Documentation/mm/unevictable-lru.rst"),
]

PAGES = 12
PROCESSES = 4
ROUNDS = 200


def work(region, seed, index, rounds, ready, go):
    """In a child: lock, unlock and touch at random; its accounts at the end."""
    cpus.keep_to_cpu(index)
    dice = random.Random(f"{seed}:{index}")
    os.write(ready, b".")
    os.read(go, 1)  # end of file: all start at once
    for _ in range(rounds):
        addr, size = threads.random_part(region, dice)
        act = dice.randrange(4)
        if act < 2:
            syscalls.mlock2(addr, size, act)
        elif act == 2:
            syscalls.munlock(addr, size)
        else:
            syscalls.memset(addr, dice.randrange(256), 1)
    seen = threads.read_invariants(region)
    syscalls.munlockall()
    return seen, threads.check_unraced()


def started(regions, seed, rounds):
    """Children that are in the middle of it."""
    ready, says = os.pipe()
    go, gate = os.pipe()
    children = []
    for index, region in enumerate(regions):
        children.append(processes.Child())
        children[-1].call(os.close, gate)
        children[-1].start(work, region, seed, index, rounds, says, go)
    got = 0
    while got < len(regions):
        got += len(os.read(ready, len(regions)))
    for fd in (ready, says, go, gate):
        os.close(fd)
    return children


def shares(region):
    """The region in parts, one for each process."""
    pages = region.pages // PROCESSES
    return [region.sub(index * pages, pages) for index in range(PROCESSES)]


@pytest.mark.needs("smaps-flags")
@pytest.mark.parametrize("kind", ["memfd-shared", "shared", "file-shared"])
def test_processes_race_on_same_pages(request, kind):
    """Processes that lock, unlock and write the same pages of a file at the same time each keep
    an exact account, and what each has locked is present."""
    seed = request.config.getoption("--seed")
    with mapping(kind, PAGES) as region:
        children = started([region] * PROCESSES, seed, ROUNDS)
        try:
            for child in children:
                seen, control = child.result()
                assert control == [4, 0, 4, 0], "control: the calls that raced are obeyed"
                assert seen.vmlck == seen.lo, f"VmLck is the sum of the lo VMAs (--seed {seed})"
                assert seen.absent == (), f"every page that is lo is present (--seed {seed})"
                child.exit()
        finally:
            for child in children:
                child.kill()
        assert status.vmlck_pages() == 0, "and nothing is counted here"


@pytest.mark.needs("smaps-flags", "kpageflags")
@pytest.mark.parametrize("end", ["exit", "kill"])
@pytest.mark.detects("kill-keeps-mlocked")
def test_processes_that_end_leave_no_mark(request, end):
    """Once processes that lock and unlock pages of one file have exited, or have been killed in
    the middle, no page is mlocked, and each can be locked and unlocked as before."""
    seed = request.config.getoption("--seed")
    with mapping("memfd-shared", PAGES) as region:
        region.touch()
        cpus.mlock_drain_all()
        for turn in range(3):
            children = started(shares(region), seed + turn, ROUNDS if end == "exit" else 1 << 30)
            for child in children:
                if end == "exit":
                    _, control = child.result()
                    assert control == [4, 0, 4, 0], "control: the calls that raced are obeyed"
                    child.exit()
                else:
                    # Once it holds a lock, it is in the middle: SIGKILL meets locked pages.
                    assert any(status.vmlck_kb(child.pid) for _ in range(100_000)), "it locks"
                    assert os.WTERMSIG(child.kill()) == signal.SIGKILL, "killed in the middle"
        for lock, marked in ((None, 0), (syscalls.mlock, PAGES), (syscalls.munlock, 0)):
            if lock is not None:
                lock(region.addr, region.size)
            cpus.mlock_drain_all()
            seen = page_flags.snapshot(region.addr, PAGES)
            assert seen.count_with(page_flags.MLOCKED) == marked, (
                f"{marked} mlocked (--seed {seed})"
            )


@pytest.mark.needs("mincore")
def test_holder_keeps_pages_while_others_race(request):
    """While one process holds pages locked, nothing that others do to them takes one away from
    it: all stay present, and its count stays."""
    seed = request.config.getoption("--seed")
    with mapping("memfd-shared", PAGES) as region:
        syscalls.mlock(region.addr, region.size)
        children = started([region] * PROCESSES, seed, ROUNDS)
        try:
            for child in children:
                _, control = child.result()
                assert control == [4, 0, 4, 0], "control: the calls that raced are obeyed"
                assert pagemap.present_count(region.addr, PAGES) == PAGES, f"--seed {seed}"
                child.exit()
        finally:
            for child in children:
                child.kill()
        assert mincore.resident_count(region.addr, PAGES) == PAGES, "every page is resident"
        assert status.vmlck_kb() * 1024 == PAGES * PAGE, "the holder's count is its own"
