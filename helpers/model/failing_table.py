# SPDX-License-Identifier: MIT
"""Calls that touch a range, as data: how each is made, and by which rule it is judged."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from dataclasses import dataclass, replace

from helpers import syscalls
from helpers.model.arena import PROT, Arena
from helpers.model.differences import kernel_has
from helpers.model.failing_calls import Expectation, FailingCalls, Request
from helpers.model.page_state import KINDS, TARGET
from helpers.syscalls import PAGE

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
        "RANDOM", "WILLNEED", "DONTNEED", "FREE", "REMOVE", "DONTFORK", "DONTDUMP", "WIPEONFORK",
        "COLD", "PAGEOUT", "POPULATE_READ", "POPULATE_WRITE", "DONTNEED_LOCKED", "GUARD_INSTALL",
        "GUARD_REMOVE",
    )
}  # fmt: skip
_ADVICE_NEEDS = {
    "cold": ("pageout",),
    "pageout": ("pageout",),
    "populate_read": ("populate",),
    "populate_write": ("populate",),
    "dontneed_locked": ("dontneed-locked",),
    "guard_install": ("guard",),
    "guard_remove": ("guard",),
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
    RangeCall("mincore", "mincore", _mincore),
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
        "mlock", "onfault", "munlock", "mprotect-none", "mprotect-r", "mprotect-rw",
        "madvise-willneed", "madvise-dontneed", "madvise-dontneed-unlocked",
        "madvise-free-unlocked", "madvise-remove-unlocked", "madvise-cold-unlocked",
        "madvise-pageout-unlocked", "madvise-wipeonfork", "madvise-populate_read", "madvise-populate_write",
        "madvise-dontneed_locked", "mremap-fixed", "mremap-fixed-unlocked", "mremap-fixed-grow",
        "mremap-shrink", "munmap", "mseal", "msync-invalidate", "msync-invalidate-unlocked",
        "mincore", "map-fixed", "map-fixed-locked",
    )
)  # fmt: skip
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
        Obstacle("read-only", lambda arena, at, n: arena.protect(at, n, "r")),
        Obstacle("locked", lambda arena, at, n: arena.lock(at, n, "lo"), lock="lo"),
        Obstacle("locked-onfault", lambda arena, at, n: arena.lock(at, n, "lo lf"), lock="lo lf"),
        Obstacle("unlocked", lambda arena, at, n: arena.lock(at, n, ""), lock=""),
    )
}


@dataclass(frozen=True)
class RefusedCall:
    """A call refused for its arguments, whatever the memory: these answers, and nothing changes."""

    id: str
    make: Callable[[Arena, int, int], object]
    """With the arena, address and bytes of the range."""
    answers: tuple[str, ...]
    needs: tuple[str, ...] = ()


def _pkey(arena: Arena, addr: int, size: int) -> None:
    syscalls.syscall("pkey_mprotect", addr, size, PROT["r"], 99)


def _call(name: str, *behind: int) -> Callable[[Arena, int, int], object]:
    return lambda arena, addr, size: syscalls.syscall(name, addr, size, *behind)


def _mmap(prot: int, flags: int, fd: int = -1, offset: int = 0) -> Callable[..., object]:
    how = flags | syscalls.MAP_FIXED
    return lambda arena, addr, size: syscalls.mmap(addr, size, prot, how, fd, offset)


def _on(path: str, mode: int, prot: int, flags: int) -> Callable[[Arena, int, int], object]:
    """MAP_FIXED of a file that cannot be mapped so."""

    def make(arena: Arena, addr: int, size: int) -> object:
        fd = os.open(path, mode | os.O_CLOEXEC)
        try:
            return syscalls.mmap(addr, size, prot, flags | syscalls.MAP_FIXED, fd)
        finally:
            os.close(fd)

    return make


_RW = syscalls.PROT_RW
_BAD_FD = 1 << 20
REFUSED = {
    c.id: c
    for c in (
        RefusedCall("mlock2-unknown-flag", _call("mlock2", 2), ("EINVAL",)),
        RefusedCall("mprotect-grows-both-ways", _call("mprotect", 0x03000000), ("EINVAL",)),
        RefusedCall("mprotect-grows-up", _call("mprotect", 0x02000001), ("EINVAL",)),
        RefusedCall("pkey_mprotect-unknown-key", _pkey, ("EINVAL",), ()),
        RefusedCall("madvise-unknown", _call("madvise", 9999), ("EINVAL",)),
        RefusedCall("mseal-unknown-flag", _call("mseal", 1), ("EINVAL",), ("mseal",)),
        RefusedCall("msync-unknown-flag", _call("msync", 8), ("EINVAL",)),
        RefusedCall("msync-both-ways", _call("msync", 5), ("EINVAL",)),
        RefusedCall("mincore-no-vector", _call("mincore", 0), ("EFAULT",)),
        RefusedCall(
            "remap_file_pages-with-protection",
            _call("remap_file_pages", 1, 0, 0),
            ("EINVAL",),
            ("remap-file-pages",),
        ),
        RefusedCall(
            "mremap-unknown-flag",
            lambda arena, addr, size: syscalls.mremap(addr, size, size, 8),
            ("EINVAL",),
        ),
        RefusedCall(
            "mremap-fixed-that-may-not-move",
            lambda arena, addr, size: syscalls.mremap(addr, size, size, FIXED, arena.at(TARGET)),
            ("EINVAL",),
        ),
        RefusedCall(
            "mremap-dontunmap-that-may-not-move",
            lambda arena, addr, size: syscalls.mremap(addr, size, size, DONTUNMAP),
            ("EINVAL",),
        ),
        RefusedCall(
            "mremap-dontunmap-of-another-length",
            lambda arena, addr, size: syscalls.mremap(addr, size, size * 2, MAYMOVE | DONTUNMAP),
            ("EINVAL",),
        ),
        RefusedCall("mmap-neither-private-nor-shared", _mmap(_RW, 0x20), ("EINVAL",)),
        RefusedCall("mmap-no-file", _mmap(_RW, syscalls.MAP_PRIVATE, _BAD_FD), ("EBADF",)),
        RefusedCall(
            "mmap-of-unaligned-offset", _mmap(_RW, syscalls.MAP_PRIVATE, 0, PAGE // 2), ("EINVAL",)
        ),
        RefusedCall("mmap-of-a-folder", _on("/", os.O_RDONLY, 1, 2), ("ENODEV",)),
        RefusedCall(
            "mmap-writable-of-a-file-open-to-read",
            _on("/proc/self/exe", os.O_RDONLY, _RW, syscalls.MAP_SHARED),
            ("EACCES",),
        ),
        RefusedCall(
            "mmap-of-a-file-open-to-write",
            _on("/dev/zero", os.O_WRONLY, 1, syscalls.MAP_PRIVATE),
            ("EACCES",),
        ),
        RefusedCall(
            "mmap-of-an-unknown-flag-that-is-checked",
            _on("/proc/self/exe", os.O_RDONLY, 1, syscalls.MAP_SHARED_VALIDATE | 1 << 25),
            ("EOPNOTSUPP", "ENOTSUP"),
        ),
    )
}


def differences_of_refused(arena: Arena, call: RefusedCall, first: int, count: int) -> list[str]:
    """Make the call; what differs from its being refused and everything as it was, a line each."""
    expected = Expectation(frozenset(call.answers), [dict(arena.pages)], untouched=True)
    before = arena.look()
    answer = syscalls.outcome(call.make, arena, arena.at(first), count * arena.unit)
    return arena.compare(expected, answer, before)


def differences_after(
    arena: Arena, call: RangeCall, request: Request, room: int | None = None, permitted: bool = True
) -> list[str]:
    """Make the call; what differs from what the model expects of it, a line each."""
    model = FailingCalls(dict(arena.pages), arena.base, arena.unit, kernel_has, room, permitted)
    expected = model.expect(call.rule, request)
    before = arena.look()
    answer = syscalls.outcome(call.make, request)
    return arena.compare(expected, answer, before)
