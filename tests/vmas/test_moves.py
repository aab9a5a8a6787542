# SPDX-License-Identifier: MIT
"""mremap and mmap onto places beside, between, before, behind and across other locks.

Twenty pages hold a source and two neighbours, with holes between them::

    SSSS....AAAA....BBBB

and the same mirrored. What a page is after a call follows from where it came from alone; which
pages are one VMA follows from their locks and offsets (mm/vma.c).
"""

import os

import pytest

from helpers import syscalls
from helpers.machine import kernel_version
from helpers.memory import locks, mapping
from helpers.observe import maps, pagemap, status
from helpers.syscalls import (
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_LOCKED,
    MAP_PRIVATE,
    MAP_SHARED,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PAGE,
    PROT_RW,
)

pytestmark = [
    pytest.mark.share_process,
    pytest.mark.needs("lock:20", "smaps-flags"),
    pytest.mark.source("mremap(2)", "mm/vma.c copy_vma"),
    pytest.mark.claim("W12"),
]

PAGES = 20
PLACES = {"S": 0, "A": 8, "B": 16}
SIZE = 4
MOVES = {
    "beside the source": (0, 4, 4),
    "between": (0, 4, 12),
    "behind": (0, 2, 12),
    "before": (2, 2, 14),
    "across a start": (0, 4, 6),
    "across an end": (0, 4, 10),
    "inside": (1, 2, 9),
    "onto": (0, 4, 8),
    "out of the middle": (1, 2, 12),
}
"""First page and pages of the source that move, and where to."""
WAYS = {"L": "mlock", "F": "onfault", "-": "munlock"}
FIXED = MREMAP_MAYMOVE | MREMAP_FIXED
MOVED = pytest.mark.parametrize("move", MOVES.values(), ids=MOVES)
DIRECTION = pytest.mark.parametrize("mirrored", [False, True], ids=["up", "down"])


class Places:
    """Source and neighbours in a region, and what each page must be."""

    def __init__(self, region, kind, source, neighbours, shift, mirrored):
        self.region, self.kind = region, kind
        self.fd = region.fd
        self.pages = [None] * PAGES
        """Of each page: its lock letter, the offset in its file (or a constant), its byte."""
        syscalls.munmap(region.addr, region.size)
        letters = {"S": source, "A": neighbours[0], "B": neighbours[1]}
        for number, (name, first) in enumerate(PLACES.items()):
            self._place(PAGES - first - SIZE if mirrored else first, letters[name], number,
                        shift if name == "S" else 0)  # fmt: skip

    def _place(self, first, letter, number, shift):
        part = self.region.sub(first, SIZE)
        if self.kind in {"private", "untouched"}:
            how = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED
            syscalls.mmap(part.addr, part.size, PROT_RW, how)
        else:
            offset = (first + shift) * PAGE
            syscalls.mmap(part.addr, part.size, PROT_RW, MAP_SHARED | MAP_FIXED, self.fd, offset)
        locks.apply(part, WAYS[letter])
        for page in range(SIZE):
            offset = self._offset(first + page + shift, number)
            byte = None if self.kind == "untouched" else 1 + offset
            if byte is not None:  # pages of a file may be mapped twice
                syscalls.memset(part.at(page), byte, 1)
            self.pages[first + page] = (letter, offset, byte)

    def _offset(self, page, number):
        # Faulted memory keeps the offset of its first address, and each part its own anon_vma.
        return page + (number * PAGES * 3 if self.kind == "private" else 0)

    def move(self, first, count, to):
        """Say what the pages are after a move."""
        moved = self.pages[first : first + count]
        self.pages[first : first + count] = [None] * count
        if self.kind == "untouched":  # it takes the offset of its new address
            moved = [(letter, to + i, byte) for i, (letter, _, byte) in enumerate(moved)]
        self.pages[to : to + count] = moved

    def bytes(self, offset, count):
        """What the pages of the file from ``offset`` on hold."""
        return b"".join(bytes([1 + offset + page]) * PAGE for page in range(count))

    def place(self, letter, offset, count, to):
        """Say what the pages are after a part of the file was mapped there."""
        self.pages[to : to + count] = [
            (letter, offset + page, 1 + offset + page) for page in range(count)
        ]

    def check(self, when):
        """Layout, VmLck, presence and contents are as they must be."""
        want = []
        before = None
        for page, found in enumerate(self.pages):
            if found is not None:
                letter, offset, _ = found
                flags = locks.FLAGS[WAYS[letter]]
                if before == (letter, offset - 1):
                    want[-1] = (want[-1][0], page + 1, flags)
                else:
                    want.append((page, page + 1, flags))
            before = found and (found[0], found[1])
        assert maps.layout(self.region) == want, f"VMAs {when}"
        count = sum(p is not None and p[0] != "-" for p in self.pages)
        assert status.vmlck_pages() == count, f"VmLck {when}"
        there = [p is not None and p[2] is not None for p in self.pages]
        assert pagemap.present(self.region.addr, PAGES) == there, f"present {when}"
        for page, found in enumerate(self.pages):
            if found is not None and found[2] is not None:
                assert syscalls.load(self.region.at(page), 1)[0] == found[2], f"page {page} {when}"


def direction(move, mirrored):
    first, count, to = move
    return (PAGES - first - count, count, PAGES - to - count) if mirrored else move


def combinations(kind):
    letters = "F-" if kind == "untouched" else "LF-"
    for source in letters:
        for neighbours in (*(n * 2 for n in letters), letters[0] + letters[-1]):
            yield source, neighbours


@MOVED
@DIRECTION
@pytest.mark.parametrize("kind", ["private", "untouched", "continued file", "file"])
@pytest.mark.detects("moved-takes-neighbours-lock", "vma-not-merged-on-move")
def test_move_to_a_place_beside_others(kind, move, mirrored):
    """What mremap moves keeps its lock, count, pages and contents wherever it goes; it becomes
    one VMA with a neighbour of equal lock that it continues, takes no lock over, and gives none."""
    first, count, to = direction(move, mirrored)
    with mapping("memfd-shared" if "file" in kind else "private", PAGES) as region:
        if "file" in kind:
            os.ftruncate(region.fd, 3 * PAGES * PAGE)
        shift = {"continued file": to - first, "file": 2 * PAGES}.get(kind, 0)
        for source, neighbours in combinations(kind):
            places = Places(region, kind, source, neighbours, shift, mirrored)
            places.check("before")
            syscalls.mremap(region.at(first), count * PAGE, count * PAGE, FIXED, region.at(to))
            places.move(first, count, to)
            places.check(f"after {source} went beside {neighbours}")


@MOVED
@DIRECTION
@pytest.mark.source("mmap(2)")
@pytest.mark.detects("mapfixed-inherits-lock")
def test_mapping_placed_beside_others(move, mirrored):
    """A file mapped by MAP_FIXED beside, between and across other mappings of it has the lock
    asked for, and becomes one VMA with those it continues whose lock is equal."""
    _, count, to = direction(move, mirrored)
    with mapping("memfd-shared", PAGES) as region:
        os.ftruncate(region.fd, 3 * PAGES * PAGE)
        for source, neighbours in combinations("file"):
            for offset in (to, to + PAGES):
                places = Places(region, "file", source, neighbours, 2 * PAGES, mirrored)
                for letter, flag in (("L", MAP_LOCKED), ("-", syscalls.MAP_POPULATE)):
                    os.pwrite(region.fd, places.bytes(offset, count), offset * PAGE)
                    how = MAP_SHARED | MAP_FIXED | flag
                    syscalls.mmap(
                        region.at(to), count * PAGE, PROT_RW, how, region.fd, offset * PAGE
                    )
                    places.place(letter, offset, count, to)
                    places.check(f"after {letter} was placed by {neighbours}, offset {offset}")


SEVERAL = {
    "to a place of its own": 8,
    "before a neighbour": 10,
    "across a neighbour": 12,
}


@DIRECTION
@pytest.mark.parametrize("to", SEVERAL.values(), ids=SEVERAL)
@pytest.mark.parametrize("letters", ["LF-", "L-F", "-L-", "FLF", "L.F", "-.L"])
@pytest.mark.source("mremap(2) (6.17)")
@pytest.mark.detects("several-moved-take-first-lock")
def test_move_of_several_vmas_in_one_call(letters, to, mirrored):
    """Several VMAs moved by one mremap, with a hole or without, each keep lock, count, pages and
    contents; before 6.17 the call gives EFAULT and moves nothing."""
    with mapping("private", PAGES) as region:
        syscalls.munmap(region.addr, region.size)
        want = {}
        parts = [(2 * i, letter) for i, letter in enumerate(letters)] + [(16, "L"), (18, "-")]
        for first, letter in parts:
            at = PAGES - 2 - first if mirrored else first
            if letter == ".":
                continue
            part = region.sub(at, 2)
            syscalls.mmap(part.addr, part.size, PROT_RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED)
            locks.apply(part, WAYS[letter])
            part.touch(at + 1)
            want[at] = want[at + 1] = (letter, at + 1)
        source, target = (PAGES - 6, PAGES - 6 - to) if mirrored else (0, to)
        answer = syscalls.outcome(
            syscalls.mremap, region.at(source), 6 * PAGE, 6 * PAGE, FIXED, region.at(target)
        )
        if kernel_version.version() < (6, 17, 0):
            assert answer == "EFAULT", "one VMA at a time"
            # MREMAP_FIXED has unmapped what was there by then.
            want = {p: v for p, v in want.items() if not target <= p < target + 6}
        else:
            assert answer == "ok", "all in one call"
            moved = {page - source + target: want.pop(page) for page in range(source, source + 6)
                     if page in want}  # fmt: skip
            want = {p: v for p, v in want.items() if not target <= p < target + 6} | moved
        seen = maps.locks(region.addr, region.end, PAGE)
        flags = {p: lock for first, end, lock in seen for p in range(first, end)}
        assert flags == {p: locks.FLAGS[WAYS[letter]] for p, (letter, _) in want.items()}, "locks"
        assert status.vmlck_pages() == sum(v[0] != "-" for v in want.values()), "VmLck"
        there = [page in want for page in range(PAGES)]
        assert pagemap.present(region.addr, PAGES) == there, "present"
        bytes_seen = {p: syscalls.load(region.at(p), 1)[0] for p in want}
        assert bytes_seen == {p: byte for p, (_, byte) in want.items()}, "contents"
