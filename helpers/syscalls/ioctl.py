# SPDX-License-Identifier: MIT
"""Numbers of ioctl(2) requests (include/uapi/asm-generic/ioctl.h, arch/powerpc)."""

from __future__ import annotations

import platform


def request(kind: int, number: int, size: int, write: bool = True) -> int:
    """_IOWR(kind, number, size), or _IOR where not ``write``."""
    powerpc = platform.machine().lower().startswith("ppc")
    direction = 6 if powerpc and write else 3 if write else 2  # _IOC_READ is 2 everywhere
    return direction << (29 if powerpc else 30) | size << 16 | kind << 8 | number
