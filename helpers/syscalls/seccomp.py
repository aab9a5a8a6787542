# SPDX-License-Identifier: MIT
"""seccomp(2) filters: stop for a tracer at chosen calls, or deny them."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterable

from helpers.syscalls import call, constants
from helpers.syscalls.ptrace import register_layout

MARK = 512
"""Descriptors from here on are those whose reads the tracer wants to see."""
_PR_SET_SECCOMP, _FILTER = 22, 2
_RET_ERRNO, _RET_TRACE, _RET_ALLOW = 0x00050000, 0x7FF00000, 0x7FFF0000


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


def stop_at(numbers: Iterable[int], *, marked: Iterable[int] = ()) -> None:
    """From now on this process and its descendants stop for their tracer at these calls.

    At those ``marked`` only if their first argument, a descriptor, is :data:`MARK` or above.
    Without CAP_SYS_ADMIN this sets no_new_privs. Raises OSError where seccomp is not to be had.
    """
    _install(numbers, _RET_TRACE, marked)


def deny(numbers: Iterable[int], code: int) -> None:
    """From now on these calls fail with the errno ``code``. As :func:`stop_at` otherwise."""
    _install(numbers, _RET_ERRNO | code)


def _install(numbers: Iterable[int], action: int, marked: Iterable[int] = ()) -> None:
    def step(code: int, k: int, yes: int = 0, no: int = 0) -> bytes:
        return struct.pack("=HBBI", code, yes, no, k)

    # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_JMP|JGE|K, BPF_RET|K
    load, equal, least, leave = 0x20, 0x15, 0x35, 0x06
    steps = [
        step(load, 4), step(equal, register_layout().audit, 1, 0), step(leave, _RET_ALLOW),
        step(load, 0),
    ]  # fmt: skip
    for value in sorted(set(numbers)):
        steps += [step(equal, value, 0, 1), step(leave, action)]
    for value in sorted(set(marked)):
        steps += [
            step(equal, value, 0, 4), step(load, 16), step(least, MARK, 0, 1),
            step(leave, action), step(leave, _RET_ALLOW),
        ]  # fmt: skip
    steps.append(step(leave, _RET_ALLOW))
    code = ctypes.create_string_buffer(b"".join(steps))
    program = _Program(len(steps), ctypes.addressof(code))
    where = ctypes.addressof(program)
    try:
        call.prctl(_PR_SET_SECCOMP, _FILTER, where, 0, 0)
    except PermissionError:
        call.prctl(constants.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        call.prctl(_PR_SET_SECCOMP, _FILTER, where, 0, 0)
