# SPDX-License-Identifier: MIT
"""The four accounts of a process's locked memory, read together, in pages.

``VmLck`` and the summed size of the ``lo`` VMAs count ranges; ``Locked:`` in smaps and in
smaps_rollup counts what of them is resident, as a PSS (a page mapped twice counts half in
each mapping). One reading of smaps serves all of it: parsing every VMA of an interpreter
would cost more than a whole case may.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from helpers.memory import Region
from helpers.observe import maps, status, timeline
from helpers.syscalls import PAGE, PAGE_KB

FREE, LOCKED, ONFAULT = "-", "L", "F"
"""Letters of :attr:`Account.pages`: not locked (or not mapped); ``lo``; ``lo lf``."""


class LockAccounting(str):
    """Locked pages by each witness, and the state of every page of one range.

    A string, so that a comparison that fails shows both accounts as lines side by side.
    """

    vmlck: float
    lo: float
    pages: str

    def __new__(
        cls, vmlck: float, lo: float, locked: float, rollup: float, pages: str
    ) -> LockAccounting:
        """The text; ``locked`` and ``rollup`` are Locked in smaps and in smaps_rollup."""
        made = super().__new__(
            cls,
            f"VmLck {vmlck}, lo {lo}, Locked {locked}, rollup {rollup}, pages {pages}",
        )
        made.vmlck, made.lo, made.pages = vmlck, lo, pages
        return made


def expect(pages: str, resident: float, elsewhere: int = 0) -> LockAccounting:
    """The account in which all witnesses agree with ``pages``.

    ``resident`` locked pages are in memory; ``elsewhere`` are locked beside the range.
    """
    count = elsewhere + sum(letter in (LOCKED, ONFAULT) for letter in pages)
    return LockAccounting(count, count, resident, resident, pages)


def _in_pages(kb: int) -> float:
    return kb // PAGE_KB if kb % PAGE_KB == 0 else kb / PAGE_KB


def _read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        chunks = []
        while chunk := os.read(fd, 8192):  # the kernel gives a page or so at a time
            chunks.append(chunk)
    finally:
        os.close(fd)
    return b"".join(chunks)


def _vmas(text: bytes) -> Iterator[tuple[int, int, bytes, bytes]]:
    """(start, end, flags, body) of each VMA in smaps; VmFlags is its last line."""
    body, *rest = text.split(b"\nVmFlags:")
    for chunk in rest:
        flags, _, following = chunk.partition(b"\n")
        start, _, end = body[: body.index(b" ")].partition(b"-")
        yield int(start, 16), int(end, 16), flags, body
        body = following


def read(region: Region, pid: int | str = "self") -> LockAccounting:
    """All accounts of a process (its own, or a child at rest), and the region's pages."""
    vmlck = status.vmlck_kb(pid)
    lo = locked = 0
    letters = [FREE] * region.pages
    for start, end, flags, body in _vmas(_read(f"/proc/{pid}/smaps")):
        names = flags.split()
        marked = b"lo" in names
        if marked:
            lo += (end - start) // 1024
            locked += int(body[body.index(b"\nLocked:") + 8 :].split(None, 1)[0])
        if start < region.end and end > region.addr:
            on_fault = b"lf" in names or b"??" in names  # "??" before 6.2
            letter = FREE if not marked else ONFAULT if on_fault else LOCKED
            first = (max(start, region.addr) - region.addr) // PAGE
            last = (min(end, region.end) - region.addr) // PAGE
            letters[first:last] = letter * (last - first)
    rollup = maps.rollup_kb("Locked", pid)
    timeline.sample(VmLck=vmlck, lo=lo, Locked=locked)
    return LockAccounting(
        _in_pages(vmlck), _in_pages(lo), _in_pages(locked), _in_pages(rollup), "".join(letters)
    )


def page_letters(region: Region, pid: int | str = "self") -> str:
    """The state of every page of the region, a letter each."""
    return read(region, pid).pages
