# SPDX-License-Identifier: MIT
"""Pages that wait in one CPU's batch while another CPU locks or unlocks them.

Source: mm/mlock.c, mm/swap.c: the batches are per CPU, and a call empties that of its own CPU.
Unlike the races of the neighbouring modules each step ends before the next begins, so that
the marks are exact once all batches are empty.
"""

import os
import signal

import pytest

from helpers import processes, syscalls
from helpers.machine import kernel_version
from helpers.memory import mapping
from helpers.observe import mlock_counters, page_flags, pagemap, residency, status
from helpers.processes import cpus, munlock_race
from helpers.requirements import deviations
from helpers.syscalls import MAP_ANONYMOUS, MAP_FIXED, MAP_LOCKED, MAP_PRIVATE, PROT_RW

pytestmark = [
    pytest.mark.share_process,
    pytest.mark.needs("two-cpus", "kpageflags", "lock:64"),
    pytest.mark.source("unevictable-lru.rst", "mm/mlock.c mlock_drain_local"),
    pytest.mark.claim("W14"),
]

PAGES = {"waiting": 7, "more than a batch": 40}
"""15 pages fill a batch, 31 from 6.9 on."""
BEFORE_5_18 = kernel_version.version() < (5, 18, 0)
BYTE = 0x6B


def place_locked(region):
    how = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_LOCKED
    syscalls.mmap(region.addr, region.size, PROT_RW, how)


STEPS = {
    "touch": lambda r: r.touch(BYTE),
    "mlock": lambda r: syscalls.mlock(r.addr, r.size),
    "onfault": lambda r: syscalls.mlock2(r.addr, r.size, syscalls.MLOCK_ONFAULT),
    "MAP_LOCKED": place_locked,
    "munlock": lambda r: syscalls.munlock(r.addr, r.size),
    "munlockall": lambda r: syscalls.munlockall(),
}


def marks(region, pid="self"):
    """Mlocked and unevictable pages, once no page waits in any CPU's batch."""
    cpus.mlock_drain_all()
    seen = page_flags.snapshot(region.addr, region.pages, pid)
    return residency.bits(seen.mlocked), residency.bits(seen.unevictable)


def run(region, text):
    """Take each step of ``touch A, mlock B`` on its CPU."""
    saved = os.sched_getaffinity(0)
    try:
        for part in text.split(", "):
            name, cpu = part.split()
            os.sched_setaffinity(0, {sorted(saved)[cpu == "B"]})
            STEPS[name](region)
    finally:
        os.sched_setaffinity(0, saved)


ORDERS = (
    "touch A, mlock B",
    "onfault A, touch B",
    "onfault A, touch B, mlock A",
    "touch A, mlock B, munlock A",
    "touch A, mlock A, munlock B",
    "mlock A, munlock B",
    "mlock A, munlock B, mlock A",
    "MAP_LOCKED A, munlock B",
    "MAP_LOCKED A, munlockall B",
    "onfault A, touch B, munlock A",
    "onfault A, touch B, munlockall A",
    "onfault A, touch B, mlock A, munlock B",
    "touch A, mlock B, munlock A, mlock B, munlock A",
)


@pytest.mark.parametrize("pages", PAGES.values(), ids=PAGES)
@pytest.mark.parametrize(
    ("kind", "steps"),
    [
        *(("private", steps) for steps in ORDERS),
        *(("memfd-shared", steps) for steps in ORDERS if "MAP_LOCKED" not in steps),
    ],
)
@pytest.mark.detects("mark-lost-on-another-cpu", "mark-kept-on-another-cpu")
def test_marks_of_steps_on_two_cpus(kind, steps, pages):
    """Whichever CPU faults a page in, locks it and unlocks it, it is mlocked and unevictable
    while it is locked and neither afterwards, once the batches are empty."""
    if kind == "memfd-shared" and BEFORE_5_18 and "onfault" in steps:
        pytest.skip("needs 5.18: before, file faults leave the marking to reclaim")
    locked = not steps.split(", ")[-1].startswith("munlock")
    with mapping(kind, pages) as region:
        run(region, steps)
        want = ("1" if locked else "0") * pages
        assert marks(region) == (want, want), f"{'locked' if locked else 'unlocked'} after {steps}"
        assert status.vmlck_pages() == (pages if locked else 0), "VmLck"
        assert pagemap.present_count(region.addr, pages) == pages, "every page is present"
        if "touch" in steps:
            assert region.first_bytes() == bytes([BYTE]) * pages, "contents"


@pytest.mark.parametrize(
    "order",
    [
        "one mlock A, other mlock B, one munlock B, other munlock A",
        "one mlock A, other mlock B, other munlock A, one munlock A",
        "one mlock B, other mlock B, one munlock A, other munlock B",
    ],
)
def test_marks_of_two_lockers_on_two_cpus(order):
    """A page that two processes lock and unlock on two CPUs, a call at a time, is mlocked from
    the first lock to the last unlock."""
    pages = PAGES["waiting"]
    with mapping("memfd-shared", pages) as region, processes.Child() as one:
        region.touch(BYTE)
        one.call(region.first_bytes)
        cpus.mlock_drain_all()
        saved = sorted(os.sched_getaffinity(0))
        lockers = 0
        for part in order.split(", "):
            who, name, cpu = part.split()
            if who == "one":
                one.call(os.sched_setaffinity, 0, {saved[cpu == "B"]})
                one.call(getattr(syscalls, name), region.addr, region.size)
            else:
                run(region, f"{name} {cpu}")
            lockers += 1 if name == "mlock" else -1
            want = ("1" if lockers else "0") * pages
            assert marks(region) == (want, want), f"{lockers} lockers after {part}"


DRAINED = {
    "mlock": lambda r: STEPS["mlock"](r),
    "mlock2": lambda r: syscalls.mlock2(r.addr, r.size, 0),
    "MAP_LOCKED": place_locked,
    "touched before": lambda r: (r.touch(), STEPS["mlock"](r)),
    "onfault before": lambda r: (STEPS["onfault"](r), STEPS["mlock"](r)),
}


@pytest.mark.parametrize(
    ("kind", "way"),
    [
        (kind, way)
        for kind in ("private", "shared", "memfd-shared")
        for way in DRAINED
        if kind == "private" or way != "MAP_LOCKED"
    ],
)
@pytest.mark.source("mm/gup.c populate_vma_page_range (ece369c7e104)")
@pytest.mark.usefixtures("one_cpu")
@pytest.mark.detects("lock-leaves-its-batch")
def test_lock_call_empties_its_own_batch(kind, way):
    """When a call that locks and populates has returned, its pages are mlocked and (from 5.18)
    on the unevictable list, before anything else empties this CPU's batch."""
    for pages in (1, 7, 33):
        with mapping(kind, pages) as region:
            cpus.mlock_drain_all()
            DRAINED[way](region)
            # Not marks(): the call itself is asked about.
            seen = page_flags.snapshot(region.addr, pages)
            assert residency.bits(seen.mlocked) == "1" * pages, f"mlocked, of {pages}"
            if not BEFORE_5_18:  # then each page was put back by way of the batch
                assert residency.bits(seen.unevictable) == "1" * pages, f"unevictable, of {pages}"


LOCKERS, ROUNDS, WAITING = 6, 5, 12


def lock_and_leave(turn, end):
    """In a child: lock on fault and touch on one CPU, let go on another."""
    saved = os.sched_getaffinity(0)
    for number in range(ROUNDS):
        os.sched_setaffinity(0, saved)
        cpus.keep_to_cpu(turn + number)
        addr = syscalls.mmap(0, WAITING * syscalls.PAGE)
        syscalls.mlock2(addr, WAITING * syscalls.PAGE, syscalls.MLOCK_ONFAULT)
        for page in range(WAITING):
            syscalls.memset(addr + page * syscalls.PAGE, BYTE, 1)
        os.sched_setaffinity(0, saved)
        cpus.keep_to_cpu(turn + number + 1)
        if end == "munlock":
            syscalls.munlock(addr, WAITING * syscalls.PAGE)
        elif end == "munlockall":
            syscalls.munlockall()
        elif end == "munmap":
            syscalls.munmap(addr, WAITING * syscalls.PAGE)
    return True


@pytest.mark.exclusive
@pytest.mark.parametrize("end", ["munlock", "munlockall", "munmap", "exit", "SIGKILL"])
@pytest.mark.source("commit 70feee0e1ef3 (CVE-2017-18221)")
@pytest.mark.claim("W18")
@pytest.mark.needs("lock:360")
@pytest.mark.detects("mlocked-counter-grows-on-another-cpu", "mlocked-counter-grows-at-exit")
def test_machine_counters_come_back_after_parallel_lockers(end):
    """nr_mlock is what it was once processes that locked pages on one CPU and let go of them
    on another, all at the same time, are done."""
    cpus.mlock_drain_all()
    before = mlock_counters.read()
    names = [n for n in ("nr_mlock", "meminfo Mlocked", "node Mlocked") if n in before]
    children = [processes.Child() for _ in range(LOCKERS)]
    try:
        for turn, child in enumerate(children):
            child.start(lock_and_leave, turn, end)
        for child in children:
            assert child.result(), "the child did its rounds"
        if end in {"exit", "SIGKILL"}:
            held = mlock_counters.read()["nr_mlock"] - before["nr_mlock"]
            assert held >= LOCKERS * ROUNDS * WAITING, "control: nr_mlock has grown by their pages"
    finally:
        for child in children:
            if end == "SIGKILL":
                assert os.WTERMSIG(child.kill()) == signal.SIGKILL, "killed"
            else:
                child.exit()
    cpus.mlock_drain_all()
    after = mlock_counters.read()
    # Others lock little while an exclusive case runs; the fault leaves most of these pages.
    few = LOCKERS * ROUNDS
    grown = {name: after[name] - before[name] for name in names}
    assert all(abs(grown[name]) < few for name in names), f"less than {few} pages each: {grown}"


@pytest.mark.exclusive
@pytest.mark.claim("W18")
@pytest.mark.detects("mark-kept-on-another-cpu")
def test_race_of_two_lockers_leaves_no_page_mlocked():
    """However two CPUs lock and unlock the same pages at the same time, no page is left mlocked
    when both are done: the count of lockers errs on the low side."""
    raced, stranded = munlock_race.stranded()
    assert stranded <= raced // 8, f"{stranded} of {raced} raced pages are mlocked by nobody"
    known = deviations.KNOWN["racing-munlock-strands"]
    if stranded and known.in_range(kernel_version.version()):
        # Not by the mark: whether a race is met is chance, in the probe as in the case.
        pytest.xfail(f"{known}; {stranded} of {raced} pages")
    assert stranded == 0, f"{stranded} of {raced} raced pages are mlocked by nobody"
