"""vm.max_map_count: what a lock may not do when it would have to split a VMA."""

import os
from collections import deque
from itertools import repeat
from pathlib import Path

import pytest

from helpers import libc
from helpers.libc import MS_INVALIDATE, PAGE, PROT_NONE, PROT_READ
from helpers.memory import mapping
from helpers.observe import maps

STEPS = 64
"""VMAs left for the exact last steps to the limit."""


class Process:
    """This process's VMAs and VmLck, read without allocating, as that could add a VMA."""

    def __init__(self):
        # Free room in the interpreter's arenas: an object in each keeps them mapped.
        self.kept = [bytes(400) for _ in range(8000)][::500]
        self.buffer = bytearray(1 << 16)
        self.maps = os.open("/proc/self/maps", os.O_RDONLY | os.O_CLOEXEC)
        self.status = os.open("/proc/self/status", os.O_RDONLY | os.O_CLOEXEC)

    def vmas(self):
        """Number of VMAs. The gate, last in maps on x86, is not one of the process's."""
        os.lseek(self.maps, 0, os.SEEK_SET)
        lines = gates = 0
        while got := os.readv(self.maps, [self.buffer]):
            lines += self.buffer.count(b"\n", 0, got)
            # The kernel hands out whole lines as long as the buffer is larger than a page.
            gates += self.buffer.count(b"[vsyscall]", 0, got)
        return lines - gates

    def vmlck(self):
        """VmLck in pages."""
        os.lseek(self.status, 0, os.SEEK_SET)
        got = os.readv(self.status, [self.buffer])
        at = self.buffer.index(b"VmLck:", 0, got) + 6
        return int(self.buffer[at : self.buffer.index(b"kB", at)]) // libc.PAGE_KB


class Ballast:
    """VMAs of one page each: inaccessible memory of which every second page is readable."""

    def __init__(self, most):
        self.size = (most + 4 * STEPS) * PAGE
        how = libc.MAP_PRIVATE | libc.MAP_ANONYMOUS | libc.MAP_NORESERVE
        self.base = self.first = libc.mmap(0, self.size, PROT_NONE, how)
        self.next = self.base + PAGE
        self.end = self.base + self.size

    def bulk(self, number):
        """Add ``number`` VMAs (an even number), two by each call."""
        starts = range(self.next, self.next + number * PAGE, 2 * PAGE)
        deque(map(libc.mprotect, starts, repeat(PAGE), repeat(PROT_READ)), maxlen=0)
        self.next += number * PAGE

    def add(self):
        """Add one VMA: make the memory from here on readable or inaccessible by turns."""
        odd = (self.next - self.base) // PAGE % 2
        libc.mprotect(self.next, self.end - self.next, PROT_READ if odd else PROT_NONE)
        self.next += PAGE

    def take(self):
        """Unmap one whole VMA."""
        libc.munmap(self.first, PAGE)
        self.first += PAGE

    def bring(self, have, number):
        """Add or take VMAs: the process has ``have`` of them and shall have ``number``."""
        for _ in range(abs(number - have)):
            libc.outcome(self.add if have < number else self.take)

    def drop(self):
        """Unmap what is left."""
        libc.munmap(self.first, self.end - self.first)


def busy(region):
    """One letter a page: L where msync(MS_INVALIDATE) finds a locked VMA (EBUSY), else -."""
    return "".join(
        "L" if libc.outcome(libc.msync, region.at(page), PAGE, MS_INVALIDATE) == "EBUSY" else "-"
        for page in range(region.pages)
    )


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


def perform(calls, regions, process):
    """Answer, locked pages and VmLck after each call."""
    seen = []
    for name, which, first, end, _, _ in calls:
        function = getattr(libc, name)
        region = regions[which]
        extra = (libc.MLOCK_ONFAULT,) if name == "mlock2" else ()
        answer = libc.outcome(function, region.at(first), (end - first) * PAGE, *extra)
        seen.append((answer, busy(region), process.vmlck()))
    return seen


@pytest.mark.needs("lock:8", "smaps-flags", "map-count")
@pytest.mark.source("mlock(2) ERRORS ENOMEM", "Documentation/admin-guide/sysctl/vm.rst")
@pytest.mark.claim("W12")
@pytest.mark.deadline(300)
def test_split_beyond_map_count_gives_enomem_and_changes_no_lock():
    """With vm.max_map_count VMAs, a lock or unlock that has to split a VMA gives ENOMEM and
    leaves the locks of that VMA and its VmLck as they were; one of whole VMAs, or one that only
    moves a boundary, succeeds, and with two VMAs freed so does the one in the middle."""
    most = int(Path("/proc/sys/vm/max_map_count").read_text())
    process = Process()
    with mapping("private", 8) as one, mapping("private", 8) as two:
        one.touch()
        two.touch()
        libc.mprotect(two.addr, 4 * PAGE, PROT_READ)
        regions = {"one": one, "two": two}
        # Everything once before, so that the interpreter has what it needs.
        perform(LEVELS[0], regions, process)
        libc.munlock(one.addr, one.size)
        libc.munlock(two.addr, two.size)
        ballast = Ballast(most)
        try:
            start = process.vmlck()
            ballast.bulk((most - process.vmas() - STEPS // 2) & ~1)
            while libc.outcome(ballast.add) == "ok" and ballast.next < ballast.end - PAGE:
                pass
            full = process.vmas()
            seen = {}
            for below, calls in LEVELS.items():
                # Counted anew, should the interpreter have mapped something in between.
                have = process.vmas() if below else full
                ballast.bring(have, most - below)
                seen[below] = perform(calls, regions, process)
            middle = libc.outcome(libc.mlock, one.at(2), 4 * PAGE)
        finally:
            ballast.drop()
        assert full == most, "VMAs when a split was first refused"
        for below, calls in LEVELS.items():
            for (name, which, first, end, answer, locked), found in zip(calls, seen[below]):
                step = f"{name} of pages {first} to {end} of {which}, {below} below the limit"
                want = (answer, locked, start + locked.count("L"))
                assert found == want, f"answer, locked pages and VmLck of {step}"
        assert middle == "ok", "a lock in the middle with two VMAs free"
        shape = maps.layout(one.addr, one.end, PAGE)
        assert shape == [(0, 2, ""), (2, 6, "lo"), (6, 8, "")], "locked in the middle"
