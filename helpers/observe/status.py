# SPDX-License-Identifier: MIT
"""/proc/PID/status: the kernel's own account of a process (proc_pid_status(5))."""

from __future__ import annotations

import os

from helpers.syscalls import PAGE_KB


def fields(pid: int | str = "self") -> dict[str, str]:
    """Every field of the file, as text, in one read. OSError if the process is gone."""
    fd = os.open(f"/proc/{pid}/status", os.O_RDONLY | os.O_CLOEXEC)
    try:
        text = os.read(fd, 65536).decode(errors="replace")
    finally:
        os.close(fd)
    return {k: v.strip() for k, _, v in (line.partition(":") for line in text.splitlines())}


def kb(name: str, pid: int | str = "self") -> int:
    """A memory field (VmLck, VmRSS, VmSwap, VmPin, VmSize …) in kB.

    Raises KeyError where the process has no memory (a kernel thread, a zombie).
    """
    return int(fields(pid)[name].split()[0])


def vmlck_kb(pid: int | str = "self") -> int:
    """VmLck: ``mm->locked_vm`` in kB. It counts VMAs, not resident pages."""
    return kb("VmLck", pid)


def vmlck_pages(pid: int | str = "self") -> int:
    """VmLck in pages."""
    return vmlck_kb(pid) // PAGE_KB
