# SPDX-License-Identifier: MIT
"""C functions one after the other, with no interpreter between them.

makecontext(3) makes a context of each call, linked to the next, and swapcontext(3) or
clone(2) starts the first. So one thread can count its page faults around one memset and
nothing else, and a vfork child, which may not run the interpreter, can call two functions.
"""

from __future__ import annotations

import ctypes
from ctypes import addressof, c_int, c_void_p, create_string_buffer
from typing import Any

from helpers.syscalls import constants
from helpers.syscalls.call import DLL

_CONTEXT = 1 << 14
"""Bytes for a ucontext_t, which takes 4.5 KiB at most (aarch64)."""
_STACK = 1 << 15


available = hasattr(DLL, "makecontext")
"""The C library has these functions (musl has not)."""

NativeCall = tuple[str, tuple[int, ...]]
"""A function of the C library by name, and its integer arguments."""

if available:
    _getcontext, _swapcontext, _makecontext = DLL.getcontext, DLL.swapcontext, DLL.makecontext
    _getcontext.argtypes = [c_void_p]
    _swapcontext.argtypes = [c_void_p, c_void_p]
    # The arguments behind these three are variadic, and ctypes passes them so.
    _makecontext.argtypes, _makecontext.restype = [c_void_p, c_void_p, c_int], None


class NativeChain:
    """Room for ``length`` calls, used again and again so that its memory is warm."""

    def __init__(self, length: int) -> None:
        if not available:
            raise LookupError("the C library has no makecontext")
        self._main = create_string_buffer(_CONTEXT)
        self._contexts = [create_string_buffer(_CONTEXT) for _ in range(length)]
        self._stacks = [create_string_buffer(_STACK) for _ in range(length)]

    def prepare(self, *steps: NativeCall) -> int:
        """Address of the context that makes these calls and then goes on in :meth:`run`."""
        links = [addressof(c) for c in self._contexts[1 : len(steps)]] + [addressof(self._main)]
        for context, stack, link, (name, args) in zip(self._contexts, self._stacks, links, steps):
            _getcontext(addressof(context))
            # ucontext_t begins: flags, link, stack address, stack flags, stack size.
            fields = (c_void_p * 5).from_buffer(context)
            fields[1], fields[2], fields[4] = link, addressof(stack), _STACK
            words: list[Any] = [c_void_p(a & constants.ULONG_MAX) for a in args]
            _makecontext(addressof(context), function(name), len(args), *words)
        return addressof(self._contexts[0])

    def run(self, *steps: NativeCall) -> None:
        """Make the calls here, in this thread; what they return is lost."""
        first = self.prepare(*steps)
        if _swapcontext(addressof(self._main), first):
            raise OSError(ctypes.get_errno(), "swapcontext")


def function(name: str) -> int:
    """Address of a function of the C library."""
    address = ctypes.cast(getattr(DLL, name), c_void_p).value
    assert address is not None
    return address
