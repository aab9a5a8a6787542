# SPDX-License-Identifier: MIT
"""Memory of any kind in a stub process, whose address space is that and little else."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from helpers import syscalls
from helpers.memory import files, huge_pages, sysv_segment
from helpers.memory.every_kind import MemoryKind
from helpers.memory.region import Region
from helpers.processes.stub import StubProcess
from helpers.syscalls import PAGE


def _object(kind: MemoryKind, size: int) -> int:
    """A new file that the kind is a mapping of; -1 for memory without one."""
    if kind.id == "secret":
        return files.secret(size)
    if kind.id.startswith("memfd"):
        return files.memfd(size)
    if kind.id.startswith("file"):
        return files.scratch_file(size // PAGE)
    return -1


@contextmanager
def stub_with(kind: MemoryKind, units: int) -> Iterator[tuple[StubProcess, Region]]:
    """A stub process with a mapping of ``units`` of the kind's own pages, untouched, between two
    gaps that nothing can merge with. OSError as the kernel says."""
    size = units * kind.unit
    with ExitStack() as stack:
        fd = _object(kind, size)
        if fd >= 0:
            stack.callback(os.close, fd)
        if kind.id == "thp":
            huge_pages.enable_thp()
            stack.callback(huge_pages.keep_huge_pages)
        stub = stack.enter_context(
            StubProcess(None if fd < 0 else lambda: os.set_inheritable(fd, True))
        )
        if kind.id == "sysv":
            segment = stack.enter_context(sysv_segment.segment(units))
            addr = stub.call("shmat", segment.id, 0, 0)
        else:
            addr = _place(stub, kind, size, fd)
        yield stub, Region(addr, size, kind.id, fd)


def _place(stub: StubProcess, kind: MemoryKind, size: int, fd: int) -> int:
    base = stub.mmap((size + 2 * kind.unit) // PAGE, syscalls.PROT_NONE)
    addr = -(-(base + 1) // kind.unit) * kind.unit
    shared = kind.id.endswith("shared") or kind.id == "secret"
    how = syscalls.MAP_SHARED if shared else syscalls.MAP_PRIVATE
    if kind.id == "droppable":
        how = syscalls.MAP_DROPPABLE
    if kind.id == "hugetlb":
        how |= syscalls.MAP_HUGETLB
    if fd < 0:
        how |= syscalls.MAP_ANONYMOUS
    stub.mmap(size // PAGE, syscalls.PROT_RW, how | syscalls.MAP_FIXED, addr, fd)
    if kind.id == "thp":
        stub.call("madvise", addr, size, syscalls.MADV_HUGEPAGE)
    return addr


_GRND_INSECURE = 4  # does not wait for entropy


def fill(stub: StubProcess, addr: int, size: int) -> None:
    """Write a range there, in few calls, with pages that do not compress."""
    while size > 0:
        done = stub.call("getrandom", addr, size, _GRND_INSECURE)
        addr, size = addr + done, size - done


def settle(stub: StubProcess) -> None:
    """Fold the counters of its RSS that a task keeps to itself, of up to 65 faults (before 6.2):
    done where it unmaps a page that is there (add_mm_rss_vec() in mm/memory.c)."""
    page = stub.mmap(1)
    stub.store(page)
    stub.call("munmap", page, PAGE)
