# SPDX-License-Identifier: MIT
"""A function in a vfork child, which shares its parent's address space."""

from __future__ import annotations

import ctypes
import os
import signal

from helpers import syscalls
from helpers.processes.errors import ChildExited, ChildKilled
from helpers.syscalls import native_chain


def call_in_vfork_child(function: str, *args: int) -> None:
    """Call a function of the C library in a vfork child: CLONE_VM | CLONE_VFORK, own stack.

    The child shares our memory and we stand still until it ends, so it may run no
    interpreter: clone(2) starts it in setcontext(3), which calls ``function(*args)`` and
    then ``_exit(0)``. What the function returned is lost; its effect is here.

    Raises LookupError where the C library has no makecontext (musl), ChildKilled or
    ChildExited if the child ended otherwise.
    """
    calls = native_chain.NativeChain(2)
    first = calls.prepare((function, args), ("_exit", (0,)))
    stack = ctypes.create_string_buffer(1 << 15)
    top = (ctypes.addressof(stack) + len(stack) - 256) & ~63
    flags = syscalls.CLONE_VM | syscalls.CLONE_VFORK | signal.SIGCHLD
    pid = syscalls.vfork_clone(native_chain.function("setcontext"), top, flags, first)
    status = os.waitpid(pid, 0)[1]
    if os.WIFSIGNALED(status):
        raise ChildKilled(os.WTERMSIG(status))
    if status:
        raise ChildExited(os.waitstatus_to_exitcode(status))
