# SPDX-License-Identifier: MIT
"""Calls that touch a range, as data: how each is made, and by which rule it is judged."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

from helpers import syscalls
from helpers.model.arena import PROT, Arena
from helpers.model.differences import kernel_has
from helpers.model.failing_calls import Expectation, FailingCalls, Request
from helpers.model.page_state import KINDS, TARGET
from helpers.syscalls import PAGE

_NOTHING = nullcontext()
MAYMOVE, FIXED = syscalls.MREMAP_MAYMOVE, syscalls.MREMAP_FIXED
DONTUNMAP = syscalls.MREMAP_DONTUNMAP
PRIVATE = syscalls.MAP_PRIVATE | syscalls.MAP_ANONYMOUS
_WRAPS = syscalls.SIZE_MAX - PAGE + 1
"""The largest length of whole pages: its end is behind that of every address."""


@dataclass(frozen=True)
class RangeCall:
    """A call on a range. ``rule``: the model's; ``before``: what the range is locked by, first."""

    id: str
    rule: str
    make: Callable[[Request], object]
    flags: int = 0
    prot: str = "rw"
    advice: str = ""
    lock: str = ""
    before: str = "lo"
    grows: int = 0
    """mremap: units that the new length has more than the old."""
    old: int = -1
    """mremap: units of the old length, if not those of the range."""
    needs: tuple[str, ...] = ()

    def request(self, arena: Arena, first: int, count: int) -> Request:
        """The call on so many units."""
        length = (count if self.old < 0 else self.old) * arena.unit
        return Request(
            arena.at(first), length, self.flags, self.prot, self.advice,
            arena.at(TARGET), (count + self.grows) * arena.unit, self.lock,
        )  # fmt: skip


def _mlock(r: Request) -> None:
    syscalls.mlock(r.start, r.length)


def _mlock2(r: Request) -> None:
    syscalls.mlock2(r.start, r.length, r.flags)


def _munlock(r: Request) -> None:
    syscalls.munlock(r.start, r.length)


def _mprotect(r: Request) -> None:
    syscalls.syscall("mprotect", r.start, r.length, PROT[r.prot])


def _pkey_mprotect(r: Request) -> None:
    syscalls.syscall("pkey_mprotect", r.start, r.length, PROT[r.prot], -1)


def _madvise(r: Request) -> None:
    syscalls.syscall("madvise", r.start, r.length, ADVICE[r.advice])


def _munmap(r: Request) -> None:
    syscalls.syscall("munmap", r.start, r.length)


def _map_over(r: Request) -> None:
    how = PRIVATE | syscalls.MAP_FIXED | (syscalls.MAP_LOCKED if r.lock else 0)
    syscalls.mmap(r.start, r.length, PROT[r.prot], how)


def _noreplace(r: Request) -> None:
    syscalls.mmap(r.start, r.length, PROT[r.prot], PRIVATE | syscalls.MAP_FIXED_NOREPLACE)


def _mseal(r: Request) -> None:
    syscalls.syscall("mseal", r.start, r.length, 0)


def _mremap(r: Request) -> None:
    syscalls.mremap(r.start, r.length, r.new, r.flags, r.target)


def _msync(r: Request) -> None:
    syscalls.syscall("msync", r.start, r.length, r.flags)


def _mincore(r: Request) -> None:
    syscalls.mincore(r.start, r.length, (ctypes.c_ubyte * 64)())


def _remap_file_pages(r: Request) -> None:
    syscalls.syscall("remap_file_pages", r.start, r.length, 0, 0, 0)


ADVICE = {
    name.lower(): getattr(syscalls, f"MADV_{name}")
    for name in (
        "WILLNEED", "DONTNEED", "FREE", "REMOVE", "DONTFORK", "WIPEONFORK", "COLD", "PAGEOUT",
        "POPULATE_READ", "POPULATE_WRITE", "DONTNEED_LOCKED", "GUARD_INSTALL",
    )
}  # fmt: skip
_ADVICE_NEEDS = {
    "cold": ("pageout",),
    "pageout": ("pageout",),
    "populate_read": ("populate",),
    "populate_write": ("populate",),
    "dontneed_locked": ("dontneed-locked",),
    "guard_install": ("guard",),
}
_UNLOCKED_TOO = ("dontneed", "free", "remove", "cold", "pageout", "guard_install")

LOCK_CALLS = (
    RangeCall("mlock", "mlock", _mlock, lock="lo", before=""),
    RangeCall("mlock-of-onfault", "mlock", _mlock, lock="lo", before="lo lf"),
    RangeCall("onfault", "mlock", _mlock2, syscalls.MLOCK_ONFAULT, lock="lo lf", before=""),
    RangeCall("onfault-of-locked", "mlock", _mlock2, syscalls.MLOCK_ONFAULT, lock="lo lf"),
    RangeCall("munlock", "mlock", _munlock),
)
PROTECT_CALLS = (
    RangeCall("mprotect-none", "mprotect", _mprotect, prot="none"),
    RangeCall("mprotect-r", "mprotect", _mprotect, prot="r"),
    RangeCall("mprotect-rw", "mprotect", _mprotect, prot="rw"),
    RangeCall("mprotect-r-of-onfault", "mprotect", _mprotect, prot="r", before="lo lf"),
    RangeCall("mprotect-r-unlocked", "mprotect", _mprotect, prot="r", before=""),
    RangeCall("pkey_mprotect-r", "mprotect", _pkey_mprotect, prot="r", needs=("pkey-mprotect",)),
)
ADVICE_CALLS = tuple(
    RangeCall(f"madvise-{name}{suffix}", "madvise", _madvise, advice=name, before=before,
              needs=_ADVICE_NEEDS.get(name, ()))
    for name in ADVICE
    for suffix, before in (("", "lo"), ("-unlocked", ""))
    if not suffix or name in _UNLOCKED_TOO
)  # fmt: skip
MOVE_CALLS = (
    RangeCall("mremap-grow", "mremap", _mremap, 0, grows=2),
    RangeCall("mremap-fixed", "mremap", _mremap, MAYMOVE | FIXED),
    RangeCall("mremap-fixed-of-onfault", "mremap", _mremap, MAYMOVE | FIXED, before="lo lf"),
    RangeCall("mremap-fixed-unlocked", "mremap", _mremap, MAYMOVE | FIXED, before=""),
    RangeCall("mremap-fixed-grow", "mremap", _mremap, MAYMOVE | FIXED, grows=2),
    RangeCall("mremap-duplicate", "mremap", _mremap, MAYMOVE | FIXED, old=0),
    RangeCall("mremap-shrink", "mremap", _mremap, 0, grows=-2),
)
OTHER_CALLS = (
    RangeCall("munmap", "munmap", _munmap),
    RangeCall("munmap-of-onfault", "munmap", _munmap, before="lo lf"),
    RangeCall("map-noreplace", "noreplace", _noreplace),
    RangeCall("mseal", "mseal", _mseal, needs=("mseal",)),
    RangeCall("msync-async", "msync", _msync, syscalls.MS_ASYNC),
    RangeCall("msync-invalidate", "msync", _msync, syscalls.MS_ASYNC | syscalls.MS_INVALIDATE),
    RangeCall("msync-invalidate-unlocked", "msync", _msync,
              syscalls.MS_ASYNC | syscalls.MS_INVALIDATE, before=""),
    RangeCall("mincore", "mincore", _mincore, needs=("mincore",)),
    RangeCall("remap_file_pages", "remap_file_pages", _remap_file_pages,
              needs=("remap-file-pages",)),
)  # fmt: skip
MAP_CALLS = (
    RangeCall("map-fixed", "map_over", _map_over),
    RangeCall("map-fixed-locked", "map_over", _map_over, lock="lo", before=""),
)
RANGE_CALLS = {
    c.id: c
    for c in (*LOCK_CALLS, *PROTECT_CALLS, *ADVICE_CALLS, *MOVE_CALLS, *OTHER_CALLS, *MAP_CALLS)
}

SEVERAL_VMAS = tuple(
    RANGE_CALLS[name]
    for name in (
        "mlock", "onfault", "munlock", "mprotect-none", "mprotect-rw", "madvise-dontneed-unlocked",
        "madvise-free-unlocked", "madvise-remove-unlocked", "madvise-cold-unlocked",
        "madvise-wipeonfork", "madvise-populate_write", "madvise-dontneed_locked", "mremap-fixed",
        "mremap-fixed-grow", "mremap-shrink", "munmap", "mseal", "msync-invalidate-unlocked",
        "map-fixed-locked",
    )
)  # fmt: skip
"""What is made on three VMAs of which the second is unlike the others."""
OVER_LIMIT = tuple(
    RANGE_CALLS[name]
    for name in (
        "mlock", "onfault", "mlock-of-onfault", "onfault-of-locked", "munlock", "map-fixed-locked",
        "mremap-grow", "mremap-fixed-grow",
    )
)  # fmt: skip
"""What asks RLIMIT_MEMLOCK, and some that do not."""
SPLITTING = tuple(
    RANGE_CALLS[name]
    for name in (
        "onfault-of-locked", "mprotect-none", "mprotect-r-of-onfault", "madvise-dontfork",
        "munmap", "munmap-of-onfault", "mremap-fixed", "mremap-shrink", "mseal",
        "map-fixed", "map-fixed-locked",
    )
)  # fmt: skip
"""What splits a VMA when it is made on the middle of one."""
WRONG_NUMBERS = tuple(
    RANGE_CALLS[name]
    for name in (
        "mprotect-r", "mprotect-r-of-onfault", "pkey_mprotect-r", "madvise-dontneed_locked",
        "madvise-dontneed-unlocked", "munmap", "munmap-of-onfault", "map-fixed", "map-fixed-locked",
        "map-noreplace", "mseal", "msync-invalidate", "mincore", "mremap-fixed",
        "mremap-fixed-of-onfault", "mremap-fixed-grow", "mremap-duplicate", "mremap-shrink",
    )
)  # fmt: skip
"""What is made with each of :data:`ARGUMENTS`."""
ALIGNED = tuple(
    RANGE_CALLS[name]
    for name in ("mprotect-r", "madvise-dontfork", "munmap", "mseal", "munlock", "msync-invalidate")
)
"""What is made on a range that cuts a huge page: four that have to split its VMA, two that not."""
_ON_PAGES = ("mprotect", "madvise", "munmap", "map_over", "noreplace", "mseal", "msync", "mincore")
ARGUMENTS: dict[str, tuple[tuple[str, ...], Callable[[Request], Request]]] = {
    "unaligned": ((*_ON_PAGES, "mremap"), lambda r: replace(r, start=r.start + PAGE // 2)),
    "length-0": ((*_ON_PAGES, "mremap"), lambda r: replace(r, length=0, new=0)),
    "length-wraps": (_ON_PAGES, lambda r: replace(r, length=_WRAPS)),
    "new-length-wraps": (("mremap",), lambda r: replace(r, new=_WRAPS)),
    "target-unaligned": (("mremap",), lambda r: replace(r, target=r.target + PAGE // 2)),
    "target-overlaps": (("mremap",), lambda r: replace(r, target=r.start + PAGE)),
}
"""What can be wrong with the numbers of a call: the rules that know it, and how it is made."""
INSIDE_A_HUGE_PAGE: dict[str, Callable[[Request], Request]] = {
    "starts-inside": lambda r: replace(r, start=r.start + PAGE, length=r.length - PAGE),
    "ends-inside": lambda r: replace(r, length=r.length - PAGE),
}
"""Of memory in huge pages: what is aligned to the small ones only."""


@dataclass(frozen=True)
class Obstacle:
    """A VMA that some calls refuse, put into the memory under test. ``place`` is given the arena,
    first unit and number of units."""

    id: str
    place: Callable[[Arena, int, int], None]
    needs: tuple[str, ...] = ()
    lock: str | None = None
    """What it is where all is locked so."""


def _of_kind(kind: str) -> Obstacle:
    def place(arena: Arena, first: int, count: int) -> None:
        arena.make(kind, first, count)

    return Obstacle(kind, place, KINDS[kind].needs)


OBSTACLES = {
    o.id: o
    for o in (
        *(_of_kind(k) for k in ("file-readonly", "secret", "ring", "droppable", "registered")),
        Obstacle("sealed", Arena.seal, ("mseal",)),
        Obstacle("inaccessible", lambda arena, at, n: arena.protect(at, n, "none")),
        Obstacle("locked", lambda arena, at, n: arena.lock(at, n, "lo"), lock="lo"),
        Obstacle("locked-onfault", lambda arena, at, n: arena.lock(at, n, "lo lf"), lock="lo lf"),
        Obstacle("unlocked", lambda arena, at, n: arena.lock(at, n, ""), lock=""),
    )
}


def differences_after(
    arena: Arena,
    call: RangeCall,
    request: Request,
    under: AbstractContextManager[None] = _NOTHING,
    room: int | None = None,
    permitted: bool = True,
) -> list[str]:
    """Make the call ``under`` some limit; what differs from what the model expects, a line each."""
    model = FailingCalls(dict(arena.pages), arena.base, arena.unit, kernel_has, room, permitted)
    expected = model.expect(call.rule, request)
    before = arena.look()
    with under:
        answer = syscalls.outcome(call.make, request)
    return arena.compare(expected, answer, before)


def differences_when_refused(
    arena: Arena, call: RangeCall, request: Request, under: AbstractContextManager[None]
) -> list[str]:
    """The same where the call can only be refused for want of memory, with nothing changed."""
    # 5.10 has ENOMEM where it looks at the map count itself (madvise(2) has both).
    answers = {"EAGAIN", "ENOMEM"} if call.rule == "madvise" else {"ENOMEM"}
    expected = Expectation(frozenset(answers), [dict(arena.pages)], untouched=True)
    before = arena.look()
    with under:
        answer = syscalls.outcome(call.make, request)
    return arena.compare(expected, answer, before)
