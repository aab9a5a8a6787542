# SPDX-License-Identifier: MIT
"""Lawful differences between kernels, each with its probe."""

from __future__ import annotations

import functools
import os
import resource

from helpers import processes, syscalls
from helpers.machine import kernel_version
from helpers.observe import maps
from helpers.requirements import deviations
from helpers.syscalls import PAGE


@functools.cache
def kernel_has(name: str) -> bool:
    """Whether this kernel has one of :data:`~helpers.model.address_space.KERNEL_DIFFERENCES`.

    A known fault only within the range where it is excusable, so that the model cannot be
    taught by the kernel it is to judge.
    """
    known = deviations.KNOWN.get(name)
    if name == "wrapping-length" and known is not None:
        # By munlock alone, which needs no right: its probe locks as well.
        return known.in_range(kernel_version.version()) and _munlock_wraps()
    if known is not None:
        return known.in_range(kernel_version.version()) and deviations.is_present(known)
    return {
        "dontunmap-anonymous-only": _dontunmap_anonymous_only,
        "mremap-unmaps-first": _mremap_unmaps_first,
        "populate-passes-holes": _populate_passes_holes,
        "marks-by-population": _marks_by_population,
        "mremap-moves-several": _mremap_moves_several,
        "mremap-looks-late": _mremap_looks_late,
        "secret-is-locked": _secret_is_locked,
    }[name]()


def _munlock_wraps() -> bool:
    addr = syscalls.mmap(0, PAGE)
    try:
        return syscalls.outcome(syscalls.munlock, addr, syscalls.SIZE_MAX) == "ok"
    finally:
        syscalls.munmap(addr, PAGE)


def _dontunmap_anonymous_only() -> bool:
    how = syscalls.MREMAP_MAYMOVE | syscalls.MREMAP_DONTUNMAP
    addr = syscalls.mmap(0, PAGE, syscalls.PROT_RW, syscalls.MAP_SHARED | syscalls.MAP_ANONYMOUS)
    try:
        return syscalls.outcome(syscalls.mremap, addr, PAGE, PAGE, how) == "EINVAL"
    finally:
        syscalls.munmap(addr, PAGE)


def _populate_passes_holes() -> bool:
    addr = syscalls.mmap(0, 2 * PAGE, syscalls.PROT_NONE)
    syscalls.munmap(addr, PAGE)
    seen = syscalls.outcome(syscalls.madvise, addr, 2 * PAGE, syscalls.MADV_POPULATE_READ)
    syscalls.munmap(addr + PAGE, PAGE)
    return seen == "EINVAL" and kernel_version.version() < (6, 12, 0)


def _mremap_moves_several() -> bool:
    how = syscalls.MREMAP_MAYMOVE | syscalls.MREMAP_FIXED
    addr = syscalls.mmap(0, 4 * PAGE)
    syscalls.mprotect(addr, PAGE, syscalls.PROT_READ)
    try:
        seen = syscalls.outcome(syscalls.mremap, addr, 2 * PAGE, 2 * PAGE, how, addr + 2 * PAGE)
        return seen == "ok"
    finally:
        syscalls.munmap(addr, 4 * PAGE)


def _mremap_looks_late() -> bool:
    addr = syscalls.mmap(0, 2 * PAGE)
    syscalls.munmap(addr, 2 * PAGE)
    seen = syscalls.outcome(syscalls.mremap, addr, 2 * PAGE, PAGE)
    return seen == "ok" and kernel_version.version() < (5, 16, 0)  # 550a7d60bd5e


def _secret_is_locked() -> bool:
    try:
        fd = syscalls.syscall("memfd_secret", 0)
    except OSError:
        return False
    try:
        os.ftruncate(fd, PAGE)
        addr = syscalls.mmap(0, PAGE, syscalls.PROT_RW, syscalls.MAP_SHARED, fd)
        found = maps.at(addr).locked
        syscalls.munmap(addr, PAGE)
    finally:
        os.close(fd)
    return found


def _marks_by_population() -> bool:
    # Not by a probe: it would excuse faults that the model is to notice.
    return kernel_version.version() < (5, 18, 0)


def _mremap_unmaps_first() -> bool:
    return processes.run(_refused_move_leaves_hole)


def _refused_move_leaves_hole() -> bool:
    # Refused by RLIMIT_AS, which is looked at beside RLIMIT_MEMLOCK and needs no lock.
    addr = syscalls.mmap(0, 4 * PAGE)
    syscalls.munmap(addr + PAGE, PAGE)
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (1 << 20, hard))
    how = syscalls.MREMAP_MAYMOVE | syscalls.MREMAP_FIXED
    syscalls.outcome(syscalls.mremap, addr, PAGE, 2 * PAGE, how, addr + 2 * PAGE)
    return (
        syscalls.outcome(syscalls.msync, addr + 2 * PAGE, 2 * PAGE, syscalls.MS_ASYNC) == "ENOMEM"
    )
