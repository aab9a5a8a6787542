"""System calls by ctypes.

Every function states its argument and result types to ctypes, and raises
:class:`OSError` naming the call and its arguments when the kernel refuses. Addresses
and lengths are bytes. The mlock family goes through ``syscall(2)`` by number, so that
no C library can substitute one call for another (old glibc fell back from mlock2 to
mlock); :data:`GLIBC` offers the C library's own wrappers beside them.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from helpers import scarce

PAGE = os.sysconf("SC_PAGE_SIZE")
"""Bytes in a page of the running kernel."""
PAGE_KB = PAGE // 1024
"""Kilobytes (1,024 bytes) in a page: /proc counts in them."""
WORD_BITS = ctypes.sizeof(ctypes.c_void_p) * 8
ULONG_MAX = (1 << (ctypes.sizeof(ctypes.c_ulong) * 8)) - 1
SIZE_MAX = (1 << (ctypes.sizeof(ctypes.c_size_t) * 8)) - 1

_dll = ctypes.CDLL(None, use_errno=True)

recent: deque[tuple[str, tuple[object, ...], str]] = deque(maxlen=64)
"""The calls made last by this process: name, arguments, result (``"0"``, ``"ENOMEM"``)."""


class UnknownArchitecture(RuntimeError):
    """The machine's system call numbers are not in :data:`_NUMBERS`."""


# Numbers from arch/*/entry/syscalls/*.tbl and include/uapi/asm-generic/unistd.h.
_ORDER = (
    "mlock", "munlock", "mlockall", "munlockall", "mlock2", "mincore",
    "madvise", "msync", "mremap", "munmap", "mprotect", "brk",
    "remap_file_pages", "capget", "capset", "move_pages", "mbind", "set_mempolicy",
    "userfaultfd", "memfd_create", "perf_event_open", "migrate_pages",
    "io_setup",
    "clone", "exit", "wait4", "getpid",
    "prctl",
)  # fmt: skip
_GENERIC = (
    228, 229, 230, 231, 284, 232, 233, 227, 216, 215, 226, 214,
    234, 90, 91, 239, 235, 237, 282, 279,
    241, 238,
    0,
    220, 93, 260, 172,
    167,
)  # fmt: skip
_NUMBERS: dict[str, tuple[int, ...]] = {
    "x86_64": (
        149, 150, 151, 152, 325, 27, 28, 26, 25, 11, 10, 12,
        216, 125, 126, 279, 237, 238, 323, 319,
        298, 256,
        206,
        56, 60, 61, 39,
        157,
    ),
    "i386": (
        150, 151, 152, 153, 376, 218, 219, 144, 163, 91, 125, 45,
        257, 184, 185, 317, 274, 276, 374, 356,
        336, 294,
        245,
        120, 1, 114, 20,
        172,
    ),
    "arm": (
        150, 151, 152, 153, 390, 219, 220, 144, 163, 91, 125, 45,
        253, 184, 185, 344, 319, 321, 388, 385,
        364, 400,
        243,
        120, 1, 114, 20,
        172,
    ),
    "ppc64le": (
        150, 151, 152, 153, 378, 206, 205, 144, 163, 91, 125, 45,
        239, 183, 184, 301, 259, 261, 364, 360,
        319, 258,
        227,
        120, 1, 114, 20,
        171,
    ),
    "s390x": (
        150, 151, 152, 153, 374, 218, 219, 144, 163, 91, 125, 45,
        267, 184, 185, 310, 268, 270, 355, 350,
        331, 287,
        243,
        120, 1, 114, 20,
        172,
    ),
    "aarch64": _GENERIC,
    "riscv64": _GENERIC,
    "loongarch64": _GENERIC,
}  # fmt: skip
# Calls added since 5.0 have one number everywhere.
_COMMON = {
    "io_uring_setup": 425,
    "io_uring_register": 427,
    "process_madvise": 440,
    "memfd_secret": 447,
    "cachestat": 451,
    "mseal": 462,
}


def architecture(machine: str | None = None, bits: int = WORD_BITS) -> str:
    """Name of this process's system call table.

    ``uname -m`` alone does not tell: under ``setarch i686`` a 64-bit process reads
    i686, and a 32-bit one may run on x86_64 or aarch64; the word size decides.

    Raises :class:`UnknownArchitecture` where no table is known.
    """
    name = (machine or platform.machine()).lower()
    if name in {"x86_64", "amd64", "i386", "i486", "i586", "i686"}:
        name = "x86_64" if bits == 64 else "i386"
    elif name.startswith(("aarch64", "arm")):
        name = "aarch64" if bits == 64 else "arm"
    elif name in {"ppc64", "ppc64le", "ppc", "ppcle"} and bits == 64:
        name = "ppc64le"  # both byte orders share one table
    if name not in _NUMBERS:
        raise UnknownArchitecture(
            f"no system call numbers known for {name} ({bits} bit); "
            f"add a row to _NUMBERS in helpers/libc.py (known: {', '.join(sorted(_NUMBERS))})"
        )
    return name


def number(name: str) -> int:
    """Number of the system call ``name`` on this architecture."""
    if name in _COMMON:
        return _COMMON[name]
    return _NUMBERS[architecture()][_ORDER.index(name)]


_POWERPC = platform.machine().lower().startswith("ppc")

PROT_NONE, PROT_READ, PROT_WRITE, PROT_EXEC = 0, 1, 2, 4
PROT_RW = PROT_READ | PROT_WRITE
PROT_GROWSDOWN = 0x01000000

MAP_SHARED, MAP_PRIVATE, MAP_SHARED_VALIDATE, MAP_DROPPABLE = 0x01, 0x02, 0x03, 0x08
MAP_FIXED, MAP_ANONYMOUS, MAP_GROWSDOWN = 0x10, 0x20, 0x100
MAP_LOCKED = 0x80 if _POWERPC else 0x2000
MAP_NORESERVE = 0x40 if _POWERPC else 0x4000
MAP_POPULATE, MAP_NONBLOCK, MAP_STACK, MAP_HUGETLB = 0x8000, 0x10000, 0x20000, 0x40000
MAP_FIXED_NOREPLACE = 0x100000

MLOCK_ONFAULT = 1
MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT = (0x2000, 0x4000, 0x8000) if _POWERPC else (1, 2, 4)

MREMAP_MAYMOVE, MREMAP_FIXED, MREMAP_DONTUNMAP = 1, 2, 4
MS_ASYNC, MS_INVALIDATE, MS_SYNC = 1, 2, 4

MADV_NORMAL, MADV_RANDOM, MADV_SEQUENTIAL, MADV_WILLNEED, MADV_DONTNEED = 0, 1, 2, 3, 4
MADV_FREE, MADV_REMOVE, MADV_DONTFORK, MADV_DOFORK = 8, 9, 10, 11
MADV_MERGEABLE, MADV_UNMERGEABLE, MADV_HUGEPAGE, MADV_NOHUGEPAGE = 12, 13, 14, 15
MADV_DONTDUMP, MADV_DODUMP, MADV_WIPEONFORK, MADV_KEEPONFORK = 16, 17, 18, 19
MADV_COLD, MADV_PAGEOUT, MADV_POPULATE_READ, MADV_POPULATE_WRITE = 20, 21, 22, 23
MADV_DONTNEED_LOCKED, MADV_COLLAPSE = 24, 25
MADV_GUARD_INSTALL, MADV_GUARD_REMOVE = 102, 103

IPC_PRIVATE, IPC_CREAT, IPC_RMID = 0, 0o1000, 0
SHM_LOCK, SHM_UNLOCK = 11, 12

MFD_CLOEXEC, MFD_ALLOW_SEALING = 1, 2

PR_SET_PDEATHSIG, PR_CAPBSET_READ, PR_CAPBSET_DROP = 1, 23, 24
PR_SET_DUMPABLE = 4
PR_SET_THP_DISABLE, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL = 41, 47, 4
PR_SET_NO_NEW_PRIVS, PR_SET_MEMORY_MERGE, PR_GET_MEMORY_MERGE = 38, 67, 68

CLONE_VM, CLONE_VFORK, CLONE_NEWUSER, CLONE_NEWIPC = 0x100, 0x4000, 0x10000000, 0x08000000
CLONE_NEWNS = 0x00020000


def _show(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return hex(value & ULONG_MAX) if value < 0 or value >= 1 << 20 else str(value)
    return str(value)


def _told(args: tuple[object, ...]) -> tuple[object, ...]:
    # Without holding on to buffers, whose memory would then stay mapped.
    return tuple(a if isinstance(a, int) else type(a).__name__ for a in args)


def note(name: str, args: tuple[object, ...], told: str) -> None:
    """Keep a call in :data:`recent` that another process makes for this one."""
    recent.append((name, _told(args), told))


def recent_calls() -> list[str]:
    """:data:`recent` as lines, oldest first: ``mlock(0x7f0000001000, 8192) = 0``."""
    return [f"{name}({', '.join(map(_show, args))}) = {told}" for name, args, told in recent]


def _failed(name: str, args: tuple[object, ...]) -> OSError:
    code = ctypes.get_errno()
    recent.append((name, _told(args), errno.errorcode.get(code, str(code))))
    shown = ", ".join(_show(a) for a in args)
    text = f"{name}({shown}): {errno.errorcode.get(code, code)}, {os.strerror(code)}"
    if why := scarce.of_call(name, args, code):
        return scarce.SetupError(code, f"{text}; {why}")
    return OSError(code, text)


_syscall = _dll.syscall
_syscall.restype = ctypes.c_long


def syscall(
    name: str, *args: int | ctypes.Array[Any] | ctypes.Structure | ctypes.c_ulong | None
) -> int:
    """Call the kernel by number: the result, or :class:`OSError`.

    Integers are passed as unsigned machine words (−1 is ULONG_MAX), arrays and
    structures by reference.
    """
    words: list[Any] = [ctypes.c_long(number(name))]
    for value in args:
        if value is None:
            words.append(ctypes.c_void_p(None))
        elif isinstance(value, int):
            words.append(ctypes.c_ulong(value & ULONG_MAX))
        else:
            words.append(ctypes.byref(value))
    result: int = _syscall(*words)
    if result == -1:
        raise _failed(name, args)
    recent.append((name, _told(args), _show(result)))
    return result


class LockCalls(Protocol):
    """The six calls under test, by whichever door. All return 0 or raise OSError."""

    def mlock(self, addr: int, length: int) -> int: ...
    def mlock2(self, addr: int, length: int, flags: int) -> int: ...
    def munlock(self, addr: int, length: int) -> int: ...
    def mlockall(self, flags: int) -> int: ...
    def munlockall(self) -> int: ...
    def mincore(self, addr: int, length: int, vec: ctypes.Array[Any] | int) -> int: ...


class _Raw:
    """The mlock family by system call number."""

    def __repr__(self) -> str:
        return "syscall"

    def mlock(self, addr: int, length: int) -> int:
        return syscall("mlock", addr, length)

    def mlock2(self, addr: int, length: int, flags: int) -> int:
        return syscall("mlock2", addr, length, flags)

    def munlock(self, addr: int, length: int) -> int:
        return syscall("munlock", addr, length)

    def mlockall(self, flags: int) -> int:
        return syscall("mlockall", flags)

    def munlockall(self) -> int:
        return syscall("munlockall")

    def mincore(self, addr: int, length: int, vec: ctypes.Array[Any] | int) -> int:
        return syscall("mincore", addr, length, vec)


def _wrapper(name: str, *argtypes: Any, restype: Any = ctypes.c_int) -> Callable[..., int]:
    function = getattr(_dll, name)
    function.argtypes = argtypes
    function.restype = restype

    def checked(*args: Any) -> int:
        result: int | None = function(*args)
        if restype is ctypes.c_void_p:
            result = result or 0
            if result == ULONG_MAX:
                raise _failed(name, args)
        elif result == -1:
            raise _failed(name, args)
        assert result is not None
        recent.append((name, _told(args), _show(result)))
        return result

    checked.__name__ = checked.__qualname__ = name  # picklable: Child.call(libc.munmap, …)
    return checked


_addr, _size, _int, _long = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_long


class _Glibc:
    """The mlock family through the C library's wrappers, as programs call it."""

    def __init__(self) -> None:
        self.mlock = _wrapper("mlock", _addr, _size)
        self.mlock2 = _wrapper("mlock2", _addr, _size, ctypes.c_uint)
        self.munlock = _wrapper("munlock", _addr, _size)
        self.mlockall = _wrapper("mlockall", _int)
        self.munlockall = _wrapper("munlockall")
        self.mincore = _wrapper("mincore", _addr, _size, ctypes.c_void_p)

    def __repr__(self) -> str:
        return "libc"


RAW: LockCalls = _Raw()
GLIBC: LockCalls = _Glibc()

mlock, mlock2, munlock = RAW.mlock, RAW.mlock2, RAW.munlock
mlockall, munlockall, mincore = RAW.mlockall, RAW.munlockall, RAW.mincore

_mmap = _wrapper("mmap", _addr, _size, _int, _int, _int, ctypes.c_longlong, restype=_addr)
if hasattr(_dll, "mmap64"):  # 32-bit: file offsets beyond 2 GiB
    _mmap = _wrapper("mmap64", _addr, _size, _int, _int, _int, ctypes.c_longlong, restype=_addr)
munmap = _wrapper("munmap", _addr, _size)
mprotect = _wrapper("mprotect", _addr, _size, _int)
madvise = _wrapper("madvise", _addr, _size, _int)
msync = _wrapper("msync", _addr, _size, _int)
prctl = _wrapper("prctl", _int, _long, _long, _long, _long)
shmget = _wrapper("shmget", _int, _size, _int)
shmat = _wrapper("shmat", _int, _addr, _int, restype=_addr)
shmdt = _wrapper("shmdt", _addr)
shmctl = _wrapper("shmctl", _int, _int, _addr)
unshare = _wrapper("unshare", _int)
_text = ctypes.c_char_p
_mount = _wrapper("mount", _text, _text, _text, ctypes.c_ulong, _text)
arch_prctl = _wrapper("arch_prctl", _int, _size) if hasattr(_dll, "arch_prctl") else None
"""x86-64 only (arch_prctl(2))."""
sbrk = _wrapper("sbrk", ctypes.c_ssize_t, restype=_addr)
_loff = ctypes.c_longlong
_fallocate = _wrapper(
    "fallocate64" if hasattr(_dll, "fallocate64") else "fallocate", _int, _int, _loff, _loff
)
vfork_clone = _wrapper("clone", _addr, _addr, _int, _addr)


def mmap(
    addr: int,
    length: int,
    prot: int = PROT_RW,
    flags: int = MAP_PRIVATE | MAP_ANONYMOUS,
    fd: int = -1,
    offset: int = 0,
) -> int:
    """mmap(2): the address of the new mapping, in bytes. OSError as the kernel says."""
    return _mmap(addr, length, prot, flags, fd, offset)


def mremap(addr: int, old: int, new: int, flags: int = 0, target: int = 0) -> int:
    """mremap(2): the new address. Sizes in bytes; ``target`` counts with MREMAP_FIXED."""
    return syscall("mremap", addr, old, new, flags, target) & ULONG_MAX


def brk(addr: int) -> int:
    """The raw brk(2): the program break after the call, unchanged when it is refused."""
    return syscall("brk", addr) & ULONG_MAX


def punch(fd: int, offset: int, length: int) -> int:
    """Cut a hole in a file (fallocate(2)); offset and length in bytes."""
    return _fallocate(fd, _PUNCH_HOLE | _KEEP_SIZE, offset, length)


_KEEP_SIZE, _PUNCH_HOLE = 1, 2


def mount(source: str, target: str, kind: str, flags: int = 0, options: str = "") -> None:
    """mount(2). OSError as the kernel says."""
    _mount(source.encode(), target.encode(), kind.encode(), flags, options.encode() or None)


_statfs = _wrapper("statfs", _text, _addr)


def statfs_type(path: str) -> int:
    """f_type of statfs(2): the magic number of the file system that holds ``path``."""
    room = ctypes.create_string_buffer(512)
    _statfs(path.encode(), ctypes.addressof(room))
    word = ctypes.c_uint32 if architecture() == "s390x" else ctypes.c_ulong
    return word.from_buffer(room).value & 0xFFFFFFFF


MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 1 << 18


def outcome(function: Callable[..., object], *args: object) -> str:
    """``"ok"``, or the name of the errno with which the call failed (``"ENOMEM"``).

    Raises what says that a resource ran out (:func:`helpers.scarce.reason`): no answer.
    """
    try:
        function(*args)
    except OSError as error:
        if scarce.reason(error):
            raise
        return errno.errorcode.get(error.errno or 0, str(error.errno))
    return "ok"


def write(addr: int, data: bytes) -> None:
    """Copy ``data`` to ``addr``; the kernel sends SIGSEGV where that is not writable."""
    ctypes.memmove(addr, data, len(data))


def read(addr: int, length: int) -> bytes:
    """``length`` bytes from ``addr``."""
    return ctypes.string_at(addr, length)


def fill(addr: int, byte: int, length: int) -> None:
    """Write ``byte`` over ``length`` bytes: one C loop, no interpreter work between pages."""
    ctypes.memset(addr, byte, length)


_read = _wrapper("read", _int, _addr, _size)


def read_into(fd: int, addr: int, length: int) -> int:
    """read(2) into memory at ``addr``: bytes read; OSError EFAULT where nothing is writable."""
    return _read(fd, addr, length)
