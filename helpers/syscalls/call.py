# SPDX-License-Identifier: MIT
"""System calls by ctypes.

Every function states its argument and result types to ctypes, and raises
:class:`OSError` naming the call and its arguments when the kernel refuses. Addresses
and lengths are bytes. The mlock family goes through ``syscall(2)`` by number, so that
no C library can substitute one call for another (old glibc fell back from mlock2 to
mlock); :data:`GLIBC` offers the C library's own wrappers beside them.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from collections.abc import Callable
from typing import Any, Protocol

from helpers.syscalls import scarcity
from helpers.syscalls.constants import ULONG_MAX
from helpers.syscalls.log import calls, plain_arguments, show_value
from helpers.syscalls.numbers import number

DLL = ctypes.CDLL(None, use_errno=True)


class AddressRange(Protocol):
    """Whole pages from ``addr``; ``size`` in bytes."""

    @property
    def addr(self) -> int: ...
    @property
    def size(self) -> int: ...


def call_failed(name: str, args: tuple[object, ...]) -> OSError:
    code = ctypes.get_errno()
    calls.append((name, plain_arguments(args), errno.errorcode.get(code, str(code))))
    shown = ", ".join(show_value(a) for a in args)
    text = f"{name}({shown}): {errno.errorcode.get(code, code)}, {os.strerror(code)}"
    if why := scarcity.of_call(name, args, code):
        return scarcity.SetupError(code, f"{text}; {why}")
    return OSError(code, text)


_syscall = DLL.syscall
_syscall.restype = ctypes.c_long


def syscall(
    name: str, *args: int | ctypes.Array[Any] | ctypes.Structure | ctypes.c_ulong | None
) -> int:
    """Call the kernel by number: the result, or :class:`OSError`.

    Integers are passed as unsigned machine words (−1 is ULONG_MAX), arrays and
    structures by reference.
    """
    words: list[Any] = [ctypes.c_long(number(name))]
    for value in args:
        if value is None:
            words.append(ctypes.c_void_p(None))
        elif isinstance(value, int):
            words.append(ctypes.c_ulong(value & ULONG_MAX))
        else:
            words.append(ctypes.byref(value))
    result: int = _syscall(*words)
    if result == -1:
        raise call_failed(name, args)
    calls.append((name, plain_arguments(args), show_value(result)))
    return result


def c_function(name: str, *argtypes: Any, restype: Any = ctypes.c_int) -> Callable[..., int]:
    function = getattr(DLL, name)
    function.argtypes = argtypes
    function.restype = restype

    def checked(*args: Any) -> int:
        result: int | None = function(*args)
        if restype is ctypes.c_void_p:
            result = result or 0
            if result == ULONG_MAX:
                raise call_failed(name, args)
        elif result == -1:
            raise call_failed(name, args)
        assert result is not None
        calls.append((name, plain_arguments(args), show_value(result)))
        return result

    # Picklable, for Child.call(syscalls.munmap, …): by the name and module of whoever asked.
    checked.__name__ = checked.__qualname__ = name
    checked.__module__ = sys._getframe(1).f_globals["__name__"]
    return checked


ADDR, SIZE, INT, LONG = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_long
prctl = c_function("prctl", INT, LONG, LONG, LONG, LONG)
unshare = c_function("unshare", INT)
TEXT = ctypes.c_char_p
arch_prctl = c_function("arch_prctl", INT, SIZE) if hasattr(DLL, "arch_prctl") else None
"""x86-64 only (arch_prctl(2))."""
LOFF = ctypes.c_longlong
vfork_clone = c_function("clone", ADDR, ADDR, INT, ADDR)
MS_BIND = 4096


def outcome(function: Callable[..., object], *args: object) -> str:
    """``"ok"``, or the name of the errno with which the call failed (``"ENOMEM"``).

    Raises what says that a resource ran out (:func:`helpers.syscalls.scarcity.reason`): no answer.
    """
    try:
        function(*args)
    except OSError as error:
        if scarcity.reason(error):
            raise
        return errno.errorcode.get(error.errno or 0, str(error.errno))
    return "ok"
