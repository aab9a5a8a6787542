# SPDX-License-Identifier: MIT
"""System calls and constants by their names in C, and the headers that have them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from helpers.syscalls import constants

HEADERS = {
    "errno.h": r"errno|E[A-Z]{3,}",
    "fcntl.h": r"open|O_\w+|fallocate|posix_fadvise", "grp.h": "setgroups",
    "limits.h": "LONG_MAX", "linux/capability.h": r"CAP_\w+|__user_cap_header_struct",
    "poll.h": "poll", "sched.h": r"sched_\w+|cpu_set_t|clone|unshare", "signal.h": r"SIG\w+|kill",
    "stdint.h": "uint64_t", "stdio.h": "printf", "stdlib.h": "strtol|mkstemp|atoi",
    "string.h": r"str\w+|mem(set|cpy)", "sys/mman.h": r"m\w+", "sys/prctl.h": "prctl",
    "sys/resource.h": "prlimit|getrusage|rlim_t", "sys/shm.h": r"shm\w+",
    "sys/syscall.h": r"SYS_\w+", "linux/userfaultfd.h": r"UFFDIO_\w+", "sys/ioctl.h": "ioctl",
    "sys/uio.h": "iovec", "linux/io_uring.h": "io_uring_params",
    "sys/wait.h": r"wait|waitpid|W[A-Z]+", "unistd.h": r"\w+",
    "sys/stat.h": "fchmod",
}  # fmt: skip
"""Header → what is there for it."""


def _names(prefix: str, *leave_out: str) -> dict[int, str]:
    return {
        getattr(constants, n): n
        for n in vars(constants)
        if n.startswith(prefix) and n not in leave_out
    }


NEW = {
    "MAP_DROPPABLE", "MAP_FIXED_NOREPLACE", "MADV_COLD", "MADV_PAGEOUT", "MADV_POPULATE_READ",
    "MADV_POPULATE_WRITE", "MADV_DONTNEED_LOCKED", "MADV_COLLAPSE", "MADV_GUARD_INSTALL",
    "MADV_GUARD_REMOVE", "MREMAP_DONTUNMAP", "MLOCK_ONFAULT", "MCL_ONFAULT",
    "PR_GET_MEMORY_MERGE", "PR_SET_MEMORY_MERGE", "PROT_GROWSDOWN",
}  # fmt: skip
"""Constants that a C library's headers may be too old for."""
PROT = _names("PROT_", "PROT_RW", "PROT_NONE")
MAP = _names("MAP_", "MAP_SHARED_VALIDATE")
MCL, _MS = _names("MCL_"), {1: "MS_ASYNC", 2: "MS_INVALIDATE", 4: "MS_SYNC"}
MREMAP, _MADV, _PR = _names("MREMAP_"), _names("MADV_"), _names("PR_")
# What each argument is: a address, n length, i number, or the names of flags.
CALLS: dict[str, Sequence[Any]] = {
    "mlock": "an", "munlock": "an", "mlock2": ("a", "n", {1: "MLOCK_ONFAULT"}),
    "mlockall": (MCL,), "munlockall": "", "munmap": "an", "mprotect": ("a", "n", PROT),
    "madvise": ("a", "n", ("one", _MADV)), "msync": ("a", "n", _MS), "mincore": "anv",
    "mmap": ("a", "n", PROT, MAP, "f", "n"), "mremap": ("a", "n", "n", MREMAP, "a"),
    "brk": "a", "sbrk": "n", "shmget": ("i", "n", "o"), "shmat": "saI",
    "shmctl": ("s", ("one", {11: "SHM_LOCK", 12: "SHM_UNLOCK", 0: "IPC_RMID"}), "a"),
    "shmdt": "a", "fallocate": "finn", "read": "fan", "prctl": (("one", _PR), "i", "i", "i", "i"),
    "remap_file_pages": ("a", "n", PROT, "i", MAP), "mseal": "ani", "write": "fan", "getpid": "",
    "exit": "i", "exit_group": "i", "fork": "", "ftruncate": "fn", "getppid": "",
    "uring_create": "i", "uring_register": "fan", "uring_unregister": "f",
    "pkey_mprotect": ("a", "n", PROT, "i"),
}  # fmt: skip
BY_NUMBER = {"pkey_mprotect", "brk", "remap_file_pages", "mseal", "exit", "exit_group"}
POINTERS = {"mmap", "mremap", "shmat", "sbrk", "brk"}
NUMBERS = {
    "present_count", "mincore_count", "vmlck", "vmlck_kb", "status_kb", "locked_kb", "rollup_kb",
}  # fmt: skip
KB = {"vmlck_kb", "status_kb", "locked_kb", "rollup_kb"}


KEYWORDS = {
    "auto", "break", "case", "char", "const", "default", "do", "double", "else", "enum", "extern",
    "float", "for", "if", "int", "long", "register", "return", "short", "signed", "static",
    "struct", "switch", "union", "unsigned", "void", "while", "page", "self", "text", "main",
    "failures", "report",
}  # fmt: skip
