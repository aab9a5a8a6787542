# SPDX-License-Identifier: MIT
"""vm.max_map_count: what a lock may not do when it would have to split a VMA."""

from pathlib import Path

import pytest

from helpers import syscalls
from helpers.memory import Region
from helpers.observe import maps, status
from helpers.processes.stub import StubProcess
from helpers.syscalls import MS_INVALIDATE, PAGE, PROT_NONE, PROT_READ

pytestmark = pytest.mark.share_process

STEPS = 64
"""VMAs left for the exact last steps to the limit."""
MAP = syscalls.MAP_PRIVATE | syscalls.MAP_ANONYMOUS


def fenced(bare, pages):
    """A region there that has been written to, with an inaccessible page on either side."""
    base = bare.mmap(pages + 2, PROT_NONE)
    region = Region(base + PAGE, pages * PAGE)
    bare.mmap(pages, flags=MAP | syscalls.MAP_FIXED, addr=region.addr)
    for page in range(pages):
        bare.store(region.at(page))
    return region


def count(bare):
    """Number of its VMAs. The gate, last in maps on x86, is not one of the process's."""
    text = Path(f"/proc/{bare.pid}/maps").read_bytes()
    return text.count(b"\n") - text.count(b"[vsyscall]")


class Ballast:
    """VMAs of one page each: inaccessible memory of which every second page is readable."""

    def __init__(self, bare, most):
        self.bare = bare
        pages = most + 4 * STEPS
        self.first = bare.mmap(pages, PROT_NONE, MAP | syscalls.MAP_NORESERVE)
        self.base, self.next, self.end = self.first, self.first + PAGE, self.first + pages * PAGE

    def bulk(self, number):
        """Add ``number`` VMAs (an even number), two by each call."""
        starts = range(self.next, self.next + number * PAGE, 2 * PAGE)
        self.bare.calls("mprotect", *((start, PAGE, PROT_READ) for start in starts))
        self.next += number * PAGE

    def add(self):
        """Add one VMA: make the memory from here on readable or inaccessible by turns."""
        odd = (self.next - self.base) // PAGE % 2
        how = PROT_READ if odd else PROT_NONE
        self.bare.call("mprotect", self.next, self.end - self.next, how)
        self.next += PAGE

    def take(self):
        """Unmap one whole VMA."""
        self.bare.call("munmap", self.first, PAGE)
        self.first += PAGE

    def bring(self, have, number):
        """Add or take VMAs: the process has ``have`` of them and shall have ``number``."""
        for _ in range(abs(number - have)):
            syscalls.outcome(self.add if have < number else self.take)


def busy(bare, region):
    """One letter a page: L where msync(MS_INVALIDATE) finds a locked VMA (EBUSY), else -."""

    def answer(page):
        return syscalls.outcome(bare.call, "msync", region.at(page), PAGE, MS_INVALIDATE)

    return "".join("L" if answer(page) == "EBUSY" else "-" for page in range(region.pages))


LEVELS = {
    # VMAs below the limit: (call, region, first page, end, answer, locked pages of it after).
    0: (
        ("mlock", "one", 0, 3, "ENOMEM", "--------"),
        ("mlock", "one", 5, 8, "ENOMEM", "--------"),
        ("mlock", "one", 2, 6, "ENOMEM", "--------"),
        ("mlock2", "one", 2, 6, "ENOMEM", "--------"),
        ("mlock", "one", 0, 8, "ok", "LLLLLLLL"),
        ("munlock", "one", 0, 3, "ENOMEM", "LLLLLLLL"),
        ("munlock", "one", 2, 6, "ENOMEM", "LLLLLLLL"),
        ("mlock2", "one", 5, 8, "ENOMEM", "LLLLLLLL"),
        ("mlock2", "one", 0, 8, "ok", "LLLLLLLL"),
        ("munlock", "one", 0, 8, "ok", "--------"),
        # The VMAs in front of the one that cannot be split have been done, and stay so.
        ("mlock", "two", 0, 6, "ENOMEM", "LLLL----"),
        ("munlock", "two", 0, 4, "ok", "--------"),
        ("mlock", "two", 0, 8, "ok", "LLLLLLLL"),
        ("munlock", "two", 0, 6, "ENOMEM", "----LLLL"),
        ("munlock", "two", 4, 8, "ok", "--------"),
    ),
    1: (
        # One split is possible, a lock in the middle takes two.
        ("mlock", "one", 2, 6, "ENOMEM", "--------"),
        ("mlock", "one", 0, 8, "ok", "LLLLLLLL"),
        ("munlock", "one", 2, 6, "ENOMEM", "LLLLLLLL"),
        ("munlock", "one", 0, 8, "ok", "--------"),
        ("mlock", "one", 0, 3, "ok", "LLL-----"),
        # Now at the limit. To move the boundary of two VMAs is no split.
        ("mlock", "one", 3, 5, "ok", "LLLLL---"),
        ("munlock", "one", 4, 5, "ok", "LLLL----"),
        ("munlock", "one", 1, 2, "ENOMEM", "LLLL----"),
        ("mlock", "one", 6, 8, "ENOMEM", "LLLL----"),
        ("mlock", "one", 4, 8, "ok", "LLLLLLLL"),
        ("munlock", "one", 5, 8, "ok", "LLLLL---"),
        ("munlock", "one", 0, 5, "ok", "--------"),
    ),
    2: (
        ("mlock", "one", 2, 6, "ok", "--LLLL--"),
        ("munlock", "one", 3, 5, "ENOMEM", "--LLLL--"),
        ("munlock", "one", 2, 6, "ok", "--------"),
    ),
}


def perform(bare, calls, regions):
    """Answer, locked pages and VmLck after each call."""
    seen = []
    for name, which, first, end, _, _ in calls:
        region = regions[which]
        extra = (syscalls.MLOCK_ONFAULT,) if name == "mlock2" else ()
        answer = syscalls.outcome(bare.call, name, region.at(first), (end - first) * PAGE, *extra)
        seen.append((answer, busy(bare, region), status.vmlck_pages(bare.pid)))
    return seen


@pytest.mark.needs("lock:8", "smaps-flags", "map-count", "stub-process")
@pytest.mark.source("mlock(2) ERRORS ENOMEM", "Documentation/admin-guide/sysctl/vm.rst")
@pytest.mark.claim("W12")
@pytest.mark.deadline(300)
@pytest.mark.detects("split-failure-eagain", "split-failure-not-reported")
def test_split_beyond_map_count_gives_enomem_and_changes_no_lock():
    """With vm.max_map_count VMAs, a lock or unlock that has to split a VMA gives ENOMEM and
    leaves the locks of that VMA and its VmLck as they were; one of whole VMAs, or one that only
    moves a boundary, succeeds, and with two VMAs freed so does the one in the middle."""
    most = int(Path("/proc/sys/vm/max_map_count").read_text())
    # An interpreter maps and unmaps memory of its own while its VMAs are counted.
    with StubProcess() as bare:
        one, two = fenced(bare, 8), fenced(bare, 8)
        bare.call("mprotect", two.addr, 4 * PAGE, PROT_READ)
        regions = {"one": one, "two": two}
        ballast = Ballast(bare, most)
        ballast.bulk((most - count(bare) - STEPS // 2) & ~1)
        while syscalls.outcome(ballast.add) == "ok" and ballast.next < ballast.end - PAGE:
            pass
        full = count(bare)
        seen = {}
        for below, calls in LEVELS.items():
            ballast.bring(count(bare), most - below)
            seen[below] = perform(bare, calls, regions)
        middle = syscalls.outcome(bare.call, "mlock", one.at(2), 4 * PAGE)
        shape = maps.layout(one, bare.pid)
    assert full == most, "VMAs when a split was first refused"
    for below, calls in LEVELS.items():
        for (name, which, first, end, answer, locked), found in zip(calls, seen[below]):
            step = f"{name} of pages {first} to {end} of {which}, {below} below the limit"
            want = (answer, locked, locked.count("L"))
            assert found == want, f"answer, locked pages and VmLck of {step}"
    assert middle == "ok", "a lock in the middle with two VMAs free"
    assert shape == [(0, 2, ""), (2, 6, "lo"), (6, 8, "")], "locked in the middle"
