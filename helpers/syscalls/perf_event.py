# SPDX-License-Identifier: MIT
"""A perf event and its ring: another user of RLIMIT_MEMLOCK (perf_event_open(2))."""

from __future__ import annotations

import ctypes
import struct
from pathlib import Path

from helpers.syscalls import call

_SOFTWARE, _DUMMY = 1, 9
_SIZE = 112
_EXCLUDE_KERNEL, _EXCLUDE_HV = 1 << 5, 1 << 6


def open_dummy_event() -> int:
    """Descriptor of an event of this process that never occurs. OSError as the kernel says."""
    bits = _EXCLUDE_KERNEL | _EXCLUDE_HV
    words = struct.pack("=IIQQQQQ", _SOFTWARE, _SIZE, _DUMMY, 0, 0, 0, bits)
    attributes = ctypes.create_string_buffer(words.ljust(_SIZE, b"\0"), _SIZE)
    return call.syscall("perf_event_open", attributes, 0, -1, -1, 8)


def perf_event_mlock_kb() -> int:
    """kernel.perf_event_mlock_kb: what a user's rings may take for each CPU beyond the limit."""
    return int(Path("/proc/sys/kernel/perf_event_mlock_kb").read_text())


def perf_event_paranoid() -> int:
    """kernel.perf_event_paranoid: below 0 nobody's rings are limited."""
    return int(Path("/proc/sys/kernel/perf_event_paranoid").read_text())
