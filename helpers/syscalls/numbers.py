# SPDX-License-Identifier: MIT
"""System call numbers by name and architecture.

From arch/*/syscalls/*.tbl and include/uapi/asm-generic/unistd.h. ``mmap`` is mmap2 where that
is the call (i386, arm).
"""

from __future__ import annotations

import platform

from helpers.syscalls.constants import WORD_BITS


class UnknownArchitecture(RuntimeError):
    """The machine's system call numbers are not in :data:`NUMBERS`."""


_COLUMNS = ("x86_64", "i386", "arm", "ppc64le", "s390x", "generic")
_GENERIC = ("aarch64", "riscv64", "loongarch64")
NUMBERS: dict[str, tuple[int | None, ...]] = {
    "mlock": (149, 150, 150, 150, 150, 228),
    "munlock": (150, 151, 151, 151, 151, 229),
    "mlockall": (151, 152, 152, 152, 152, 230),
    "munlockall": (152, 153, 153, 153, 153, 231),
    "mlock2": (325, 376, 390, 378, 374, 284),
    "mincore": (27, 218, 219, 206, 218, 232),
    "madvise": (28, 219, 220, 205, 219, 233),
    "msync": (26, 144, 144, 144, 144, 227),
    "mremap": (25, 163, 163, 163, 163, 216),
    "munmap": (11, 91, 91, 91, 91, 215),
    "mprotect": (10, 125, 125, 125, 125, 226),
    "brk": (12, 45, 45, 45, 45, 214),
    "remap_file_pages": (216, 257, 253, 239, 267, 234),
    "capget": (125, 184, 184, 183, 184, 90),
    "capset": (126, 185, 185, 184, 185, 91),
    "move_pages": (279, 317, 344, 301, 310, 239),
    "mbind": (237, 274, 319, 259, 268, 235),
    "set_mempolicy": (238, 276, 321, 261, 270, 237),
    "migrate_pages": (256, 294, 400, 258, 287, 238),
    "userfaultfd": (323, 374, 388, 364, 355, 282),
    "memfd_create": (319, 356, 385, 360, 350, 279),
    "perf_event_open": (298, 336, 364, 319, 331, 241),
    "io_setup": (206, 245, 243, 227, 243, 0),
    "io_destroy": (207, 246, 244, 228, 244, 1),
    "io_submit": (209, 248, 246, 230, 246, 2),
    "io_getevents": (208, 247, 245, 229, 245, 4),
    "pwrite64": (18, 181, 181, 180, 181, 68),
    "fadvise64": (221, 272, 270, 233, 253, 223),
    "ioctl": (16, 54, 54, 54, 54, 29),
    "vmsplice": (278, 316, 343, 285, 309, 75),
    "clone": (56, 120, 120, 120, 120, 220),
    "exit": (60, 1, 1, 1, 1, 93),
    "exit_group": (231, 252, 248, 234, 248, 94),
    "wait4": (61, 114, 114, 114, 114, 260),
    "getpid": (39, 20, 20, 20, 20, 172),
    "prctl": (157, 172, 172, 171, 172, 167),
    "mmap": (9, 192, 192, 90, 90, 222),
    "shmat": (30, 397, 305, 397, 397, 196),
    "shmctl": (31, 396, 308, 396, 396, 195),
    "read": (0, 3, 3, 3, 3, 63),
    "write": (1, 4, 4, 4, 4, 64),
    "pread64": (17, 180, 180, 179, 180, 67),
    "openat": (257, 295, 322, 286, 288, 56),
    "close": (3, 6, 6, 6, 6, 57),
    "fcntl": (72, 55, 55, 55, 55, 25),
    "fork": (57, 2, 2, 2, 2, None),
    "vfork": (58, 190, 190, 189, 190, None),
    "getrandom": (318, 355, 384, 359, 349, 278),
    "execve": (59, 11, 11, 11, 11, 221),
    "execveat": (322, 358, 387, 362, 354, 281),
    "getrusage": (98, 77, 77, 77, 77, 165),
    "prlimit64": (302, 340, 369, 325, 334, 261),
    "fallocate": (285, 324, 352, 309, 314, 47),
    "ftruncate": (77, 93, 93, 93, 93, 46),
    "ptrace": (101, 26, 26, 26, 26, 117),
    "sched_setaffinity": (203, 241, 241, 222, 239, 122),
    "process_vm_readv": (310, 347, 376, 351, 340, 270),
    "bpf": (321, 357, 386, 361, 351, 280),
    "shmget": (29, 395, 307, 395, 395, 194),
    "setsockopt": (54, 366, 294, 339, 366, 208),
    "sendto": (44, 369, 290, 335, 369, 206),
    "pkey_mprotect": (329, 380, 394, 386, 384, 288),
}  # fmt: skip
"""Name → its number in each of the columns; None where there is no such call."""
# Calls added since 5.0 have one number everywhere.
_COMMON = {
    "io_uring_setup": 425, "io_uring_register": 427, "clone3": 435, "process_madvise": 440,
    "memfd_secret": 447, "process_mrelease": 448, "cachestat": 451, "mseal": 462,
}  # fmt: skip


def architecture(machine: str | None = None, bits: int = WORD_BITS) -> str:
    """Name of this process's system call table.

    ``uname -m`` alone does not say: under ``setarch i686`` a 64-bit process reads
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
    known = [*_COLUMNS[:-1], *_GENERIC]
    if name not in known:
        raise UnknownArchitecture(
            f"no system call numbers known for {name} ({bits} bit); "
            f"add a column to helpers/syscalls/numbers.py (known: {', '.join(sorted(known))})"
        )
    return name


def number(name: str) -> int:
    """Number of the system call ``name`` on this architecture.

    Raises LookupError where the architecture has no such call (fork on aarch64) or the table
    lacks it.
    """
    if name in _COMMON:
        return _COMMON[name]
    here = architecture()
    found = NUMBERS[name][_COLUMNS.index("generic" if here in _GENERIC else here)]
    if found is None:
        raise LookupError(f"no system call {name} on {here}")
    return found
