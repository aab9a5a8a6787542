# SPDX-License-Identifier: MIT
"""ioctl(2) requests: their numbers, blocks shared, a device's cache emptied.

Sources: include/uapi/asm-generic/ioctl.h, arch/powerpc, include/uapi/linux/fs.h.
"""

from __future__ import annotations

import fcntl
import platform
import struct

_POWERPC = platform.machine().lower().startswith("ppc")
_WRITE, _READ_WRITE, _SHIFT = (4, 6, 29) if _POWERPC else (1, 3, 30)
_BLKFLSBUF = 1 << 29 | 0x1261 if _POWERPC else 0x1261
_FICLONERANGE = _WRITE << _SHIFT | 32 << 16 | 0x94 << 8 | 13
_FIDEDUPERANGE = _READ_WRITE << _SHIFT | 24 << 16 | 0x94 << 8 | 54


def request(kind: int, number: int, size: int, write: bool = True) -> int:
    """_IOWR(kind, number, size), or _IOR where not ``write``."""
    direction = _READ_WRITE if write else 2  # _IOC_READ is 2 everywhere
    return direction << _SHIFT | size << 16 | kind << 8 | number


def clone_range(source: int, target: int, length: int) -> None:
    """FICLONERANGE: the target's first ``length`` bytes become the source's, blocks shared."""
    fcntl.ioctl(target, _FICLONERANGE, struct.pack("=qQQQ", source, 0, length, 0))


def dedupe_range(source: int, target: int, length: int) -> int:
    """FIDEDUPERANGE: equal first bytes of both come to share blocks. How many bytes did."""
    request = bytearray(
        struct.pack("=QQHHI", 0, length, 1, 0, 0) + struct.pack("=qQQiI", target, 0, 0, 0, 0)
    )
    fcntl.ioctl(source, _FIDEDUPERANGE, request)
    _, _, done, state, _ = struct.unpack_from("=qQQiI", request, 24)
    if state < 0:
        raise OSError(-state, "FIDEDUPERANGE")
    return int(done)


def flush_block_device(fd: int) -> None:
    """BLKFLSBUF: write back and drop what is cached of a block device."""
    fcntl.ioctl(fd, _BLKFLSBUF)
