# SPDX-License-Identifier: MIT
"""Large folios: which pages of a range lie in one, and the marks of the folio as a whole.

PG_mlocked belongs to a folio. kpageflags shows it on the head page always, and on the tail
pages too where fs/proc/page.c copies the folio's flags (6.10 on); before, tail pages show
their own, which are clear. So a page is judged by its head.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from helpers.memory import Region
from helpers.observe import page_flags

HEAD = 1 << page_flags.KPF["COMPOUND_HEAD"]
TAIL = 1 << page_flags.KPF["COMPOUND_TAIL"]
SWAPCACHE = 1 << page_flags.KPF["SWAPCACHE"]
_LASTING = HEAD | TAIL | page_flags.MLOCKED | page_flags.UNEVICTABLE
_ORDERS = range(1, 17)
_STEP = 512
_ATTEMPTS = 20


@dataclass(frozen=True)
class Folio:
    """A folio: PFN of its head (0: the page is absent), its size in pages, flags of each."""

    head: int
    size: int
    words: tuple[int, ...]

    @property
    def marks(self) -> str:
        """``"M"`` mlocked, ``"MU"`` and unevictable, ``"U"``, ``"-"``; ``" "`` when absent."""
        if not self.head:
            return " "
        first = self.words[0]
        shown = ("M" if first & page_flags.MLOCKED else "") + (
            "U" if first & page_flags.UNEVICTABLE else ""
        )
        return shown or "-"

    @property
    def mlocked(self) -> bool:
        """PG_mlocked of the head."""
        return bool(self.words[0] & page_flags.MLOCKED)

    @property
    def swap_cached(self) -> bool:
        """PG_swapcache of the head: swap slots are given to all of its pages."""
        return bool(self.words[0] & SWAPCACHE)

    @property
    def tails_agree(self) -> bool:
        """The tail pages show the head's PG_mlocked, or (before 6.10) all of them none."""
        tails = {word & page_flags.MLOCKED for word in self.words[1:]}
        return tails <= {self.words[0] & page_flags.MLOCKED} or tails == {0}


ABSENT = Folio(0, 0, (0,))


def _folio(pfn: int, word: int) -> Folio:
    if not word & (HEAD | TAIL):
        return Folio(pfn, 1, (word,))
    head = pfn
    if word & TAIL:
        # A folio is aligned to its size: its head is the first of these that is one.
        aligned = [pfn & -(1 << order) for order in _ORDERS]
        words = page_flags.kpageflags(aligned)
        head = next((p for p, w in zip(aligned, words) if w & HEAD), pfn)
    found = [*page_flags.kpageflags([head])]
    while True:
        more = page_flags.kpageflags(range(head + len(found), head + len(found) + _STEP))
        for count, each in enumerate(more):
            if not each & TAIL:
                found += more[:count]
                return Folio(head, len(found), tuple(found))
        found += more


def of(region: Region, pid: int | str = "self") -> list[Folio]:
    """The folio of each page of the region, at a moment in which none moved.

    Raises OSError without CAP_SYS_ADMIN, RuntimeError if pages moved under every attempt.
    """
    for _ in range(_ATTEMPTS):
        seen = page_flags.snapshot(region.addr, region.pages, pid)
        folios: list[Folio] = []
        last = ABSENT
        for pfn, word in zip(seen.pfns, seen.flags):
            if not pfn:
                folios.append(ABSENT)
                continue
            if not last.head <= pfn < last.head + last.size:
                last = _folio(pfn, word)
            folios.append(last)
        again = page_flags.snapshot(region.addr, region.pages, pid)
        # Marks of age come and go meanwhile (DAMON sets PG_idle): not what is asked for.
        if again.pfns == seen.pfns and all(
            not (a ^ b) & _LASTING for a, b in zip(again.flags, seen.flags)
        ):
            return folios
    raise RuntimeError(f"folios at {region.addr:#x} changed in each of {_ATTEMPTS} readings")


def sizes(region: Region, pid: int | str = "self") -> dict[int, int]:
    """Folio size in pages → how many pages of the region lie in folios of that size."""
    found: dict[int, int] = {}
    for folio in of(region, pid):
        found[folio.size] = found.get(folio.size, 0) + 1
    return found


def mlocked(region: Region, pid: int | str = "self") -> list[bool]:
    """For each page: its folio is PG_mlocked."""
    return [folio.mlocked for folio in of(region, pid)]


def crossing(found: Sequence[Folio]) -> list[bool]:
    """For each of these folios, as :func:`of` gave them: not all of its pages are among them."""
    pages = Counter(folio.head for folio in found)
    return [pages[folio.head] < folio.size for folio in found]
