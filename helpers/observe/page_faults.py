# SPDX-License-Identifier: MIT
"""Page faults counted by the kernel (getrusage(2)), with the interpreter kept out.

A fork leaves every writable page of the interpreter copy-on-write, so plain Python code
faults at random. :func:`writing` and :func:`reading` keep the interpreter out: between the
two readings of the counters nothing runs but one C loop.
"""

from __future__ import annotations

import ctypes
import os
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from helpers.syscalls import native_chain
from helpers.syscalls.call import DLL
from helpers.syscalls.numa import no_hinting_faults


@dataclass(frozen=True)
class Faults:
    """Page faults, minor and major."""

    minor: int
    major: int


_getrusage = DLL.getrusage
_getrusage.argtypes = [ctypes.c_int, ctypes.c_void_p]
_memset = DLL.memset
_memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]


class _Timeval(ctypes.Structure):
    _fields_ = [("sec", ctypes.c_long), ("usec", ctypes.c_long)]


class _Rusage(ctypes.Structure):
    # Behind the two times: maxrss, ixrss, idrss, isrss, minflt, majflt, …
    _fields_ = [("utime", _Timeval), ("stime", _Timeval), ("longs", ctypes.c_long * 14)]


_RUSAGE_THREAD = 1
_MINFLT, _MAJFLT = 4, 5
_before, _after = _Rusage(), _Rusage()
_CLEAN, _TRIES = 3, 300


def faults_during(call: Callable[..., object], *args: object) -> Faults:
    """Faults of this thread during one call, those of the interpreter included."""
    _getrusage(_RUSAGE_THREAD, ctypes.addressof(_before))
    call(*args)
    _getrusage(_RUSAGE_THREAD, ctypes.addressof(_after))
    return Faults(
        _after.longs[_MINFLT] - _before.longs[_MINFLT],
        _after.longs[_MAJFLT] - _before.longs[_MAJFLT],
    )


def warm_up(call: Callable[..., object] = _memset, *args: object) -> None:
    """Measure ``call`` (default: an empty memset) until it costs nothing three times running.

    Raises RuntimeError if it never does: a count would then mean nothing.
    """
    _no_faults_of_the_scheduler()
    used = args or (ctypes.addressof(_before), 0, 0)
    clean = 0
    for _ in range(_TRIES):
        clean = clean + 1 if faults_during(call, *used) == Faults(0, 0) else 0
        if clean == _CLEAN:
            return
    raise RuntimeError(f"{call} itself faulted in {_TRIES} empty measurements")


def _no_faults_of_the_scheduler() -> None:
    # After a switch or a move the kernel writes the CPU's number into the restartable sequence
    # that glibc (2.35) registers, in a page of this thread that is copy-on-write after fork:
    # a fault in the middle of anything. Have it written now, by a switch and by a move.
    time.sleep(1e-6)
    allowed = os.sched_getaffinity(0)
    if len(allowed) > 1:
        for cpu in sorted(allowed)[:2]:
            os.sched_setaffinity(0, {cpu})
        os.sched_setaffinity(0, allowed)
    no_hinting_faults()


def faults_writing(addr: int, size: int, byte: int = 0x3C) -> Faults:
    """Faults while one C loop writes ``size`` bytes from ``addr``."""
    if not native_chain.available:
        warm_up()
        return faults_during(_memset, addr, byte, size)
    scratch = ctypes.create_string_buffer(min(size, _LONGEST))
    warm = ctypes.addressof(scratch), byte, len(scratch)
    return _alone("memset", warm, (addr, byte, size))


def faults_reading(addr: int, size: int) -> Faults:
    """Faults while one C loop reads ``size`` bytes from ``addr``."""
    if not native_chain.available:
        view = (ctypes.c_char * size).from_address(addr)
        # Long enough for crc32 to drop the interpreter's lock, as it does for the range itself.
        warm_up(zlib.crc32, ctypes.create_string_buffer(min(size, 1 << 16)))
        return faults_during(zlib.crc32, view)
    source, target = (ctypes.create_string_buffer(size) for _ in range(2))
    target_addr = ctypes.addressof(target)
    warm = target_addr, ctypes.addressof(source), size
    return _alone("memcpy", warm, (target_addr, addr, size))


_LONGEST = 1 << 20


def _alone(function: str, warm: tuple[int, ...], args: tuple[int, ...]) -> Faults:
    """Faults of one C call, with no interpreter between the two readings of the counters.

    A dry run with ``warm`` arguments is repeated until it costs nothing: code, stacks and
    counters are then mapped.
    """
    calls = native_chain.NativeChain(3)
    first = ("getrusage", (_RUSAGE_THREAD, ctypes.addressof(_before)))
    last = ("getrusage", (_RUSAGE_THREAD, ctypes.addressof(_after)))

    def measure(given: tuple[int, ...]) -> Faults:
        calls.run(first, (function, given), last)
        return Faults(
            _after.longs[_MINFLT] - _before.longs[_MINFLT],
            _after.longs[_MAJFLT] - _before.longs[_MAJFLT],
        )

    _no_faults_of_the_scheduler()
    clean = 0
    for _ in range(_TRIES):
        clean = clean + 1 if measure(warm) == Faults(0, 0) else 0
        if clean == _CLEAN:
            return measure(args)
    raise RuntimeError(f"{function} itself faulted in {_TRIES} dry runs")
