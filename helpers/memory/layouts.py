# SPDX-License-Identifier: MIT
"""Shapes of an address space: holes, alternating protections."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from helpers import syscalls
from helpers.memory.mappings import mapping
from helpers.memory.region import Region
from helpers.syscalls import PAGE


def unmap_pages(region: Region, page: int, pages: int = 1) -> None:
    """Unmap ``pages`` pages of the region from page ``page`` on."""
    syscalls.munmap(region.at(page), pages * PAGE)


@contextmanager
def alternating_protections(pages: int) -> Iterator[Region]:
    """A private region in which every page is a VMA: every other one is read-only."""
    with mapping("private", pages) as region:
        for page in range(0, pages, 2):
            syscalls.mprotect(region.at(page), PAGE, syscalls.PROT_READ)
        yield region
