# SPDX-License-Identifier: MIT
"""The kernel's special mappings [vvar…] and [vdso], mapped anew (x86-64)."""

from __future__ import annotations

import errno
import os

from helpers import syscalls
from helpers.observe import maps
from helpers.syscalls import native_chain

ARCH_MAP_VDSO_64 = 0x2003  # arch/x86/include/uapi/asm/prctl.h


def ranges() -> list[tuple[int, int]]:
    """(start, end) of every [vvar…] and [vdso] VMA, lowest first."""
    return [(v.start, v.end) for v in maps.vmas() if v.name.startswith(("[vvar", "[vdso"))]


def remap_special_mappings() -> tuple[int, int]:
    """Unmap them all and have the kernel map them anew in the same place: (low, high).

    Only for a child: between the two calls the C library's clock would crash. Raises OSError
    where the kernel lacks ARCH_MAP_VDSO_64 (CONFIG_CHECKPOINT_RESTORE) or the vdso, and
    LookupError where the C library cannot chain calls (musl).
    """
    found = ranges()
    if syscalls.arch_prctl is None or not found:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    low, high = found[0][0], found[-1][1]
    # While it is mapped the kernel answers EEXIST, without the operation EINVAL.
    if syscalls.outcome(syscalls.arch_prctl, ARCH_MAP_VDSO_64, low) != "EEXIST":
        raise OSError(errno.EINVAL, "arch_prctl(ARCH_MAP_VDSO_64) is not there")
    # No interpreter in between: a tracer (coverage) would look at the clock.
    steps: list[native_chain.NativeCall] = [
        ("munmap", (start, end - start)) for start, end in found
    ]
    steps.append(("arch_prctl", (ARCH_MAP_VDSO_64, low)))
    native_chain.NativeChain(len(steps)).run(*steps)
    return low, high
