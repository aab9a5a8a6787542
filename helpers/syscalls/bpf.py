# SPDX-License-Identifier: MIT
"""A BPF map: until 5.11 RLIMIT_MEMLOCK counted its memory (bpf(2))."""

from __future__ import annotations

import ctypes
import struct

from helpers.syscalls import call

_MAP_CREATE, _ARRAY = 0, 2


def create_array(size: int) -> int:
    """Descriptor of an array map with one value of ``size`` bytes. OSError as the kernel says."""
    fields = struct.pack("=IIIII", _ARRAY, 4, size, 1, 0)
    return call.syscall("bpf", _MAP_CREATE, ctypes.create_string_buffer(fields), len(fields))
