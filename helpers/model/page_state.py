# SPDX-License-Identifier: MIT
"""Kinds of memory by what the calls may do with them, and the state of one page of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

FIRST, COUNT = 4, 8
"""The memory under test begins at this unit of an arena, and has so many."""
TARGET, TARGET_COUNT = 16, 6
"""Where a call may move it to: so many units, mapped and locked too."""
UNITS = 26
"""Units in an arena; those of neither are never mapped."""


@dataclass(frozen=True)
class MemoryKind:
    """One kind of memory. ``lock``: mlock marks it ("yes"), passes over it ("never"), or it has
    its mark for good ("kept")."""

    id: str
    needs: tuple[str, ...] = ()
    shared: bool = False
    anonymous: bool = False
    """Private, and of no file: vma_is_anonymous()."""
    lock: str = "yes"
    prot: str = "rw"
    writable: bool = True
    """It may be made writable."""
    exact: bool = True
    """A page that was not touched is not there: nothing maps it along with another."""
    filled: bool = True
    """It is touched while it is set up."""
    special: bool = False
    """It is not the kernel's to grow, or to leave out of a fork (VM_SPECIAL)."""
    file: bool = False
    """Its file can be cut off."""


KINDS = {
    k.id: k
    for k in (
        MemoryKind("private", anonymous=True),
        MemoryKind("shared", shared=True),
        MemoryKind("memfd", shared=True, file=True),
        MemoryKind("memfd-private", file=True),
        MemoryKind("file", shared=True, exact=False, file=True),
        MemoryKind("file-private", exact=False, file=True),
        MemoryKind("file-readonly", shared=True, exact=False, prot="r", writable=False),
        MemoryKind("sysv", ("sysv-shm",), shared=True),
        MemoryKind("hugetlb", ("hugetlb-mapping",), lock="never", exact=False, filled=False),
        MemoryKind("secret", ("secretmem",), shared=True, lock="kept"),
        MemoryKind("ring", ("packet-ring",), shared=True, lock="never", special=True),
        MemoryKind("droppable", ("droppable",), anonymous=True, lock="never"),
        MemoryKind("stack", anonymous=True),
        MemoryKind("registered", ("uffd-user-mode",), anonymous=True),
    )
}


@dataclass(frozen=True, slots=True)
class PageState:
    """One mapped page (of a huge page: the whole). ``present``, ``value``: None is not known."""

    kind: MemoryKind
    prot: str = "rw"
    lock: str = ""
    present: bool | None = True
    value: int | None = 0
    sealed: bool = False
    guarded: bool = False
    ended: bool = False
    """Behind the end of its file."""

    @property
    def perms(self) -> str:
        """As /proc/PID/smaps has them."""
        return (
            "".join(c if c in self.prot else "-" for c in "rwx") if self.prot != "none" else "---"
        ) + ("s" if self.kind.shared else "p")

    @property
    def vma(self) -> tuple[object, ...]:
        """What two pages of one VMA have in common."""
        return (self.kind.id, self.prot, self.lock, self.sealed)


Pages = dict[int, PageState]
"""Unit of the arena → its state; a hole has none."""


def changed(pages: Pages, numbers: Iterable[int], **fields: object) -> None:
    """Set fields of these pages, as far as they are mapped."""
    for number in numbers:
        if number in pages:
            pages[number] = replace(pages[number], **fields)  # type: ignore[arg-type]


def runs(pages: Mapping[int, PageState], first: int, end: int) -> list[range]:
    """The mapped parts of [first, end), VMA by VMA."""
    found: list[range] = []
    for number in range(first, end):
        page, before = pages.get(number), pages.get(number - 1)
        if page is None:
            continue
        joined = found and found[-1].stop == number and before is not None
        if joined and before is not None and before.vma == page.vma:
            found[-1] = range(found[-1].start, number + 1)
        else:
            found.append(range(number, number + 1))
    return found


def locked(pages: Pages, kept: str) -> int:
    """Units that VmLck counts. ``kept``: the mark of what has it for good."""
    return sum(1 for p in pages.values() if mark(p, kept))


def mark(page: PageState, kept: str) -> str:
    """The lock flags that smaps shows."""
    if page.kind.lock == "never":
        return ""
    return kept if page.kind.lock == "kept" else page.lock
