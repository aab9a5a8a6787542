# SPDX-License-Identifier: MIT
"""Memory that goes bad under a lock: soft offline moves the page, an error takes it.

Each frame that a case has taken is unpoisoned at its end, through debugfs, and stands in the
journal before.
"""

import signal
from contextlib import ExitStack

import pytest

from helpers import syscalls
from helpers.memory import mapping
from helpers.observe import (
    lock_accounting,
    maps,
    page_faults,
    page_flags,
    pagemap,
    residency,
    status,
)
from helpers.processes import Child, ChildKilled
from helpers.requirements.inconclusive import inconclusive
from helpers.syscalls import PAGE

N = 8
BAD = 2
"""The page that goes bad."""

pytestmark = [
    pytest.mark.needs("memory-failure", "allow-sysctl", "kpageflags", "CAP_SYS_ADMIN", "lock:16"),
    pytest.mark.source("madvise(2)", "mm/memory-failure.c", "Documentation/mm/hwpoison.rst"),
    pytest.mark.exclusive,
]
KINDS = pytest.mark.parametrize("kind", ["private", "shared", "memfd-shared", "memfd-private"])


def contents(region):
    for page in range(N):
        syscalls.store(region.at(page), bytes([0x40 + page]))


def advise(region, advice):
    """The advice on the bad page: its answer."""
    return syscalls.outcome(syscalls.madvise, region.at(BAD), PAGE, advice)


@KINDS
@pytest.mark.detects("soft-offline-unlocks", "soft-offline-drops", "soft-offline-unmarks")
@pytest.mark.usefixtures("one_cpu")
def test_locked_page_taken_offline_softly_moves_and_stays_locked(reclaim, kind):
    """MADV_SOFT_OFFLINE moves a locked page to another frame: present, mlocked, counted and intact,
    without a fault, as it moves an unlocked one; munlock leaves none marked."""
    with ExitStack() as stack:
        frames = stack.enter_context(ExitStack())  # unpoisoned when nobody maps them any more
        region, control = (stack.enter_context(mapping(kind, N)) for _ in range(2))
        for each in (region, control):
            contents(each)
        syscalls.mlock(region.addr, N * PAGE)
        assert page_flags.mlocked(region) == "1" * N, "mlocked before"
        before = pagemap.pfns(region.addr, N)
        for each in (control, region):
            (frame,) = pagemap.pfns(each.at(BAD), 1)
            frames.enter_context(reclaim.run.change("poisoned-frame", pfn=frame))
            answer = advise(each, syscalls.MADV_SOFT_OFFLINE)
            if each is control and answer != "ok":
                inconclusive(f"an unlocked page could not be taken offline: {answer}")
        assert answer == "ok", "the locked page was taken offline"
        after = pagemap.pfns(region.addr, N)
        assert after[BAD] != before[BAD], "it is in another frame"
        assert page_flags.kpageflags([before[BAD]])[0] & page_flags.HWPOISON, "the old one is out"
        assert page_flags.mlocked(region) == "1" * N, "mlocked"
        assert lock_accounting.read(region) == lock_accounting.expect("L" * N, N), "lo and VmLck"
        assert page_faults.faults_writing(region.at(BAD) + 16, 16).minor == 0, "no fault"
        assert region.first_bytes() == bytes(range(0x40, 0x40 + N)), "contents"
        syscalls.munlock(region.addr, region.size)
        assert page_flags.mlocked(region) == "0" * N, "unlocked: none is marked"


def poisoned(region):
    """In the child: lock it, have a page go bad, and what is left."""
    syscalls.mlock(region.addr, region.size)
    # From 6.10 on the advice is an error that its caller has consumed: SIGBUS, if not caught.
    signal.signal(signal.SIGBUS, lambda number, frame: None)
    answer = advise(region, syscalls.MADV_HWPOISON)
    signal.signal(signal.SIGBUS, signal.SIG_DFL)
    good = [page for page in range(N) if page != BAD]
    return (
        answer,
        residency.mapped_bits(region),
        maps.layout(region),
        status.vmlck_pages(),
        bytes(syscalls.load(region.at(page), 1)[0] for page in good),
    )


@pytest.mark.parametrize("kind", ["private", "memfd-shared"])
@pytest.mark.parametrize("next_step", ["touch", "munmap"])
@pytest.mark.detects("hwpoison-ignored", "hwpoison-unlocks")
@pytest.mark.usefixtures("one_cpu")
def test_memory_error_takes_one_locked_page_and_no_lock(reclaim, kind, next_step):
    """An error in a locked page (MADV_HWPOISON) takes that page alone: its neighbours stay, present
    and intact, lock and VmLck stay whole, mlock cannot bring it back (ENOMEM), a touch is SIGBUS,
    and neither the end of the process nor munmap leaves a frame mlocked."""
    with ExitStack() as stack:
        frames = stack.enter_context(ExitStack())
        region = stack.enter_context(mapping(kind, N))
        child = stack.enter_context(Child())
        child.call(contents, region)
        before = child.call(pagemap.pfns, region.addr, N)
        frames.enter_context(reclaim.run.change("poisoned-frame", pfn=before[BAD]))
        answer, left, layout, count, rest = child.call(poisoned, region)
        if answer != "ok":
            inconclusive(f"the page could not be poisoned: {answer}")
        assert left == "".join("01"[page != BAD] for page in range(N)), "that page alone is gone"
        assert layout == [(0, N, "lo")], "locked"
        assert count == N, "VmLck"
        assert rest == bytes(0x40 + page for page in range(N) if page != BAD), (
            "the others' contents"
        )
        assert child.call(syscalls.outcome, syscalls.mlock, region.addr, region.size) == "ENOMEM", (
            "it cannot come back"
        )
        assert page_flags.kpageflags([before[BAD]])[0] & page_flags.HWPOISON, "the frame is out"
        if next_step == "touch":
            with pytest.raises(ChildKilled) as killed:
                child.call(region.first_bytes)
            assert killed.value.signal == "SIGBUS", "a touch"
        else:
            child.call(syscalls.munmap, region.addr, region.size)
            assert child.call(status.vmlck_pages) == 0, "unmapped: VmLck"
            child.exit()
        with mapping("private", 1) as scratch:  # drains this CPU's batch
            syscalls.mlock(scratch.addr, PAGE)
            syscalls.munlock(scratch.addr, PAGE)
        marked = [bool(f & page_flags.MLOCKED) for f in page_flags.kpageflags(before)]
        assert not marked[BAD], "the bad frame is not left mlocked"
        if kind == "memfd-shared":  # the other frames are the file's still
            assert not any(marked), "nor is another"
