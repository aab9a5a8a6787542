# SPDX-License-Identifier: MIT
"""An AF_XDP socket and its umem: pinned memory that RLIMIT_MEMLOCK counts."""

from __future__ import annotations

import socket
import struct

from helpers.syscalls.constants import PAGE

_AF_XDP, _SOL_XDP, _XDP_UMEM_REG = 44, 283, 4


def create() -> socket.socket:
    """A socket; wants CAP_NET_RAW, which its umem does not. OSError as the kernel says."""
    return socket.socket(_AF_XDP, socket.SOCK_RAW, 0)


def register(where: socket.socket, addr: int, size: int) -> None:
    """Pin the range as the socket's umem, for as long as that is open. OSError as the kernel."""
    # struct xdp_umem_reg of 5.4; later fields are optional.
    where.setsockopt(_SOL_XDP, _XDP_UMEM_REG, struct.pack("=QQIIII", addr, size, PAGE, 0, 0, 0))
