# SPDX-License-Identifier: MIT
"""Which pages of a range are there, by two witnesses that share no code in the kernel.

pagemap reads this process's page tables, mincore(2) asks the mapping: for anonymous memory
the two must agree, for a file mincore tells of the page cache.
"""

from __future__ import annotations

from collections.abc import Iterable

from helpers.memory import Region
from helpers.observe import mincore, pagemap


def bits(flags: Iterable[object]) -> str:
    """A 1 or 0 for each page: ``"1101"``."""
    return "".join("1" if flag else "0" for flag in flags)


def mapped_bits(region: Region) -> str:
    """Pages that the process's page tables map (pagemap bit 63): ``"1101"``."""
    return bits(pagemap.present(region.addr, region.pages))


def anon_bits(region: Region) -> str:
    """Pages mapped that are neither a file's nor shared (pagemap bit 61 clear)."""
    return bits(pagemap.anonymous(region.addr, region.pages))


def mincore_bits(region: Region) -> str:
    """Pages that mincore(2) calls resident."""
    return bits(mincore.resident(region.addr, region.pages))


def of(region: Region) -> dict[str, str]:
    """What both witnesses say; compare with :func:`agreed` or a dict of one's own."""
    return {"pagemap": mapped_bits(region), "mincore": mincore_bits(region)}


def all_say(pages: str) -> dict[str, str]:
    """Both witnesses say ``pages``."""
    return {"pagemap": pages, "mincore": pages}
