# SPDX-License-Identifier: MIT
"""Calls that are refused for an argument, whatever the memory: they change nothing."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from dataclasses import dataclass

from helpers import syscalls
from helpers.memory import files
from helpers.memory.region import Region
from helpers.model.arena import Arena
from helpers.model.failing_calls import Expectation
from helpers.model.page_state import TARGET
from helpers.syscalls import PAGE, process_vm, sysv, userfaultfd

MakeCall = Callable[[Arena, int, int], object]
"""With the arena, address and bytes of the range."""
MAYMOVE, FIXED = syscalls.MREMAP_MAYMOVE, syscalls.MREMAP_FIXED
DONTUNMAP = syscalls.MREMAP_DONTUNMAP
_RW, _R = syscalls.PROT_RW, syscalls.PROT_READ
_PRIVATE, _SHARED = syscalls.MAP_PRIVATE, syscalls.MAP_SHARED
_BAD_FD = 1 << 20
_UNKNOWN_ADVICE = 9999
_MAP_UNKNOWN = 1 << 25
_PROT_GROWSUP, _PROT_GROWSDOWN = 0x02000000, 0x01000000
_F_ADD_SEALS, _F_SEAL_SHRINK, _F_SEAL_WRITE = 1033, 2, 8


@dataclass(frozen=True)
class RefusedCall:
    """A call, the kind of memory that it is made on, and the errors that are right."""

    id: str
    make: MakeCall
    answers: tuple[str, ...]
    needs: tuple[str, ...] = ()
    kind: str = "private"


def _call(name: str, *behind: int) -> MakeCall:
    return lambda arena, addr, size: syscalls.syscall(name, addr, size, *behind)


def _mremap(new: Callable[[int], int], flags: int) -> MakeCall:
    """``new``: the new length, of the old one."""
    return lambda arena, addr, size: syscalls.mremap(addr, size, new(size), flags, arena.at(TARGET))


def _same(size: int) -> int:
    return size


def _mmap(prot: int, flags: int, fd: int = -1, offset: int = 0) -> MakeCall:
    how = flags | syscalls.MAP_FIXED
    return lambda arena, addr, size: syscalls.mmap(addr, size, prot, how, fd, offset)


def _mmap_of(path: str, mode: int, prot: int, flags: int) -> MakeCall:
    """MAP_FIXED of a file that cannot be mapped so."""

    def make(arena: Arena, addr: int, size: int) -> None:
        fd = os.open(path, mode | os.O_CLOEXEC)
        try:
            syscalls.mmap(addr, size, prot, flags | syscalls.MAP_FIXED, fd)
        finally:
            os.close(fd)

    return make


def _mmap_huge_unaligned(arena: Arena, addr: int, size: int) -> None:
    how = _PRIVATE | syscalls.MAP_ANONYMOUS | syscalls.MAP_NORESERVE | syscalls.MAP_FIXED
    syscalls.mmap(addr | PAGE, PAGE, _RW, how | syscalls.MAP_HUGETLB)


def _mmap_of_sealed_file(arena: Arena, addr: int, size: int) -> None:
    """Writable, of a file that may no longer be written: its file system says no."""
    fd = files.memfd(size)
    try:
        fcntl.fcntl(fd, _F_ADD_SEALS, _F_SEAL_WRITE)
        syscalls.mmap(addr, size, _RW, _SHARED | syscalls.MAP_FIXED, fd)
    finally:
        os.close(fd)


def _attach(shift: int) -> MakeCall:
    """shmat where something is mapped, without SHM_REMAP."""

    def make(arena: Arena, addr: int, size: int) -> None:
        number = sysv.shmget(syscalls.IPC_PRIVATE, PAGE, syscalls.IPC_CREAT | 0o600)
        try:
            sysv.shmat(number, addr + shift, 0)
        finally:
            sysv.shmctl(number, syscalls.IPC_RMID, None)

    return make


def _cut_read_only(arena: Arena, addr: int, size: int) -> None:
    fd = os.open(f"/proc/self/fd/{arena.fd}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.ftruncate(fd, PAGE)
    finally:
        os.close(fd)


def _cut_sealed(arena: Arena, addr: int, size: int) -> None:
    fcntl.fcntl(arena.fd, _F_ADD_SEALS, _F_SEAL_SHRINK)
    os.ftruncate(arena.fd, PAGE)


def _fallocate(mode: int, length: int) -> MakeCall:
    return lambda arena, addr, size: syscalls.fallocate(arena.fd, mode, 0, length)


def _copy(shift: int) -> MakeCall:
    """UFFDIO_COPY over pages that are there."""
    return lambda arena, addr, size: userfaultfd.copy(arena.fd, addr + shift, addr, PAGE)


def _of_protection(*rows: tuple[str, int]) -> list[RefusedCall]:
    return [RefusedCall(f"mprotect-{n}", _call("mprotect", p), ("EINVAL",)) for n, p in rows]


def _of_mremap(*rows: tuple[str, MakeCall]) -> list[RefusedCall]:
    return [RefusedCall(f"mremap-{name}", make, ("EINVAL",)) for name, make in rows]


def _of_mmap(*rows: tuple[str, str, MakeCall]) -> list[RefusedCall]:
    return [RefusedCall(f"mmap-{name}", make, (answer,)) for name, answer, make in rows]


def _of_uffd(*rows: tuple[str, str, MakeCall]) -> list[RefusedCall]:
    return [
        RefusedCall(f"uffd-{name}", make, (answer,), ("uffd-user-mode",), "registered")
        for name, answer, make in rows
    ]


REFUSED = (
    RefusedCall("mlock2-unknown-flag", _call("mlock2", 2), ("EINVAL",)),
    RefusedCall("mlockall-unknown-flag", lambda *_: syscalls.mlockall(1 << 20), ("EINVAL",)),
    *_of_protection(
        ("grows-both-ways", _PROT_GROWSDOWN | _PROT_GROWSUP),
        ("grows-down", _PROT_GROWSDOWN | _R),
        ("unknown-protection", 1 << 30),
    ),
    RefusedCall(
        "pkey_mprotect-unknown-key", _call("pkey_mprotect", _R, 99), ("EINVAL",),
        ("pkey-mprotect",),
    ),
    RefusedCall("madvise-unknown", _call("madvise", _UNKNOWN_ADVICE), ("EINVAL",)),
    RefusedCall(
        "process_madvise-unknown",
        lambda arena, addr, size: process_vm.process_madvise(
            os.getpid(), addr, size, _UNKNOWN_ADVICE
        ),
        ("EINVAL",), ("process-madvise",),
    ),
    RefusedCall("mseal-unknown-flag", _call("mseal", 1), ("EINVAL",), ("mseal",)),
    RefusedCall("msync-unknown-flag", _call("msync", 8), ("EINVAL",)),
    RefusedCall("msync-both-ways", _call("msync", 5), ("EINVAL",)),
    RefusedCall("mincore-no-vector", _call("mincore", 0), ("EFAULT",), ("mincore",)),
    RefusedCall("mbind-unknown-policy", _call("mbind", 99, 0, 0, 0), ("EINVAL", "ENOSYS", "EPERM")),
    RefusedCall(
        "remap_file_pages-with-protection", _call("remap_file_pages", 1, 0, 0), ("EINVAL",),
        ("remap-file-pages",),
    ),
    *_of_mremap(
        ("unknown-flag", _mremap(_same, 8)),
        ("fixed-that-may-not-move", _mremap(_same, FIXED)),
        ("dontunmap-that-may-not-move", _mremap(_same, DONTUNMAP)),
        ("dontunmap-of-another-length", _mremap(lambda n: 2 * n, MAYMOVE | DONTUNMAP)),
    ),
    *_of_mmap(
        ("neither-private-nor-shared", "EINVAL", _mmap(_RW, syscalls.MAP_ANONYMOUS)),
        ("no-file", "EBADF", _mmap(_RW, _PRIVATE, _BAD_FD)),
        ("of-unaligned-offset", "EINVAL", _mmap(_RW, _PRIVATE, 0, PAGE // 2)),
        ("of-a-folder", "ENODEV", _mmap_of("/", os.O_RDONLY, _R, _PRIVATE)),
        ("writable-of-a-file-open-to-read", "EACCES",
         _mmap_of("/proc/self/exe", os.O_RDONLY, _RW, _SHARED)),
        ("of-a-file-open-to-write", "EACCES", _mmap_of("/dev/zero", os.O_WRONLY, _R, _PRIVATE)),
    ),
    RefusedCall(
        "mmap-unknown-flag-that-is-checked",
        _mmap_of("/proc/self/exe", os.O_RDONLY, _R, syscalls.MAP_SHARED_VALIDATE | _MAP_UNKNOWN),
        ("EOPNOTSUPP", "ENOTSUP"),
    ),
    RefusedCall(
        "mmap-huge-unaligned", _mmap_huge_unaligned, ("EINVAL", "ENOMEM"), ("hugetlb-mapping",)
    ),
    RefusedCall("shmat-over-a-mapping", _attach(0), ("EINVAL",), ("sysv-shm",)),
    RefusedCall("shmat-unaligned", _attach(1), ("EINVAL",), ("sysv-shm",)),
    RefusedCall(
        "shmdt-of-no-segment", lambda arena, addr, size: sysv.shmdt(addr), ("EINVAL",),
        ("sysv-shm",),
    ),
    RefusedCall("ftruncate-of-a-file-open-to-read", _cut_read_only, ("EINVAL",), kind="memfd"),
    RefusedCall("ftruncate-of-a-file-sealed-so", _cut_sealed, ("EPERM",), kind="memfd"),
    RefusedCall(
        "ftruncate-of-a-secret", lambda arena, addr, size: os.ftruncate(arena.fd, PAGE),
        ("EINVAL",), ("secretmem",), "secret",
    ),
    RefusedCall(
        "fallocate-hole-without-keep-size", _fallocate(2, PAGE), ("EOPNOTSUPP", "ENOTSUP"),
        kind="memfd",
    ),
    RefusedCall("fallocate-of-nothing", _fallocate(0, 0), ("EINVAL",), kind="memfd"),
    *_of_uffd(
        ("copy-over-a-page", "EEXIST", _copy(0)),
        ("copy-unaligned", "EINVAL", _copy(PAGE // 2)),
        ("zeropage-over-a-page", "EEXIST",
         lambda arena, addr, size: userfaultfd.zeropage(arena.fd, addr, PAGE)),
        ("register-unaligned", "EINVAL",
         lambda arena, addr, size: userfaultfd.register(arena.fd, Region(addr + 1, size))),
        ("unregister-unaligned", "EINVAL",
         lambda arena, addr, size: userfaultfd.unregister(arena.fd, Region(addr + 1, size))),
    ),
)  # fmt: skip
REFUSED_LATE = (
    RefusedCall("mmap-of-a-file-sealed-against-writing", _mmap_of_sealed_file, ("EPERM",)),
)
"""Refused by the file: when the kernel asks it, the place has been made free already, or not."""


def differences_of_refused(arena: Arena, call: RefusedCall, first: int, count: int) -> list[str]:
    """Make the call; what differs from its being refused and everything as it was, a line each."""
    states = [dict(arena.pages)]
    if late := call in REFUSED_LATE:
        states.append({n: p for n, p in arena.pages.items() if not first <= n < first + count})
    expected = Expectation(frozenset(call.answers), states, untouched=not late)
    before = arena.look()
    answer = syscalls.outcome(call.make, arena, arena.at(first), count * arena.unit)
    return arena.compare(expected, answer, before)
