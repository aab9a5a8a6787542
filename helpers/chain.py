"""C functions one after the other, with no interpreter between them.

makecontext(3) makes a context of each call, linked to the next, and swapcontext(3) or
clone(2) starts the first. So one thread can count its page faults around one memset and
nothing else, and a vfork child, which may not run the interpreter, can call two functions.
"""

from __future__ import annotations

import ctypes
from ctypes import addressof, c_int, c_void_p, create_string_buffer
from typing import Any

from helpers import libc

_CONTEXT = 1 << 14
"""Bytes for a ucontext_t, which takes 4.5 KiB at most (aarch64)."""
_STACK = 1 << 15

_dll = ctypes.CDLL(None, use_errno=True)

available = hasattr(_dll, "makecontext")
"""The C library has these functions (musl has not)."""

Step = tuple[str, tuple[int, ...]]
"""A function of the C library by name, and its integer arguments."""

if available:
    _getcontext, _swapcontext, _makecontext = _dll.getcontext, _dll.swapcontext, _dll.makecontext
    _getcontext.argtypes = [c_void_p]
    _swapcontext.argtypes = [c_void_p, c_void_p]
    # The arguments behind these three are variadic, and ctypes passes them so.
    _makecontext.argtypes, _makecontext.restype = [c_void_p, c_void_p, c_int], None


class Chain:
    """Room for ``length`` calls, used again and again so that its memory is warm."""

    def __init__(self, length: int) -> None:
        if not available:
            raise LookupError("the C library has no makecontext")
        self._main = create_string_buffer(_CONTEXT)
        self._contexts = [create_string_buffer(_CONTEXT) for _ in range(length)]
        self._stacks = [create_string_buffer(_STACK) for _ in range(length)]

    def prepare(self, *steps: Step) -> int:
        """Address of the context that makes these calls and then goes on in :meth:`run`."""
        links = [addressof(c) for c in self._contexts[1 : len(steps)]] + [addressof(self._main)]
        for context, stack, link, (name, args) in zip(self._contexts, self._stacks, links, steps):
            _getcontext(addressof(context))
            # ucontext_t begins: flags, link, stack address, stack flags, stack size.
            fields = (c_void_p * 5).from_buffer(context)
            fields[1], fields[2], fields[4] = link, addressof(stack), _STACK
            words: list[Any] = [c_void_p(a & libc.ULONG_MAX) for a in args]
            _makecontext(addressof(context), function(name), len(args), *words)
        return addressof(self._contexts[0])

    def run(self, *steps: Step) -> None:
        """Make the calls here, in this thread; what they return is lost."""
        first = self.prepare(*steps)
        if _swapcontext(addressof(self._main), first):
            raise OSError(ctypes.get_errno(), "swapcontext")


def function(name: str) -> int:
    """Address of a function of the C library."""
    address = ctypes.cast(getattr(_dll, name), c_void_p).value
    assert address is not None
    return address
