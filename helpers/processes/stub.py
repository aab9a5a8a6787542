# SPDX-License-Identifier: MIT
"""A process without an interpreter: a loop of machine code that makes the calls it is told.

Whatever is measured of a Python process's whole address space (mlockall, MCL_FUTURE, the
program break, the stack) moves while it is measured, and its address space is larger than
most limits. A :class:`Bare` process has one page of code, a stack and the kernel's own
mappings; between two calls it does nothing, so its parent can read its counters and VMAs
at leisure.
"""

from __future__ import annotations

import os
import resource
import struct
from collections.abc import Callable

from helpers import syscalls
from helpers.machine.timeouts import Deadline, scaled
from helpers.observe import maps
from helpers.processes import child, credentials, errors, rlimits
from helpers.processes.stub_code import _image
from helpers.syscalls import PAGE, scarcity

_REQUEST = 256
_BATCH = 256
"""Requests written before their answers are read: the answers fit in one page of a pipe."""
_PAYLOAD = 7 * 8  # behind the number and six arguments
_STORE = -1


def _packed(number: int, args: tuple[int, ...], payload: bytes = b"") -> bytes:
    words = [number, *args, *[0] * (6 - len(args))]
    packed = struct.pack("=7Q", *(w & syscalls.ULONG_MAX for w in words)) + payload
    return packed.ljust(_REQUEST, b"\0")


class StubProcess:
    """A process that has executed the image, ready for calls.

    ``before`` runs in the forked child ahead of execve(2). Raises
    :class:`helpers.processes.errors.ChildExited` where the image could not be executed.
    """

    def __init__(self, before: Callable[[], object] | None = None) -> None:
        requests, self._requests = os.pipe()
        self._answers, answers = os.pipe()
        image = os.memfd_create("bare", syscalls.MFD_CLOEXEC)
        os.write(image, _image())
        parent = os.getpid()
        self._status: int | None = None
        self.pid = scarcity.fork()
        if self.pid == 0:
            try:
                child.die_with_parent(parent)
                os.dup2(requests, 0)
                os.dup2(answers, 1)
                if os.geteuid() != 0 and credentials.has_capability("CAP_IPC_LOCK"):
                    credentials.make_ambient("CAP_IPC_LOCK")
                if before is not None:
                    before()
                os.execve(image, ["bare"], {})
            finally:
                os._exit(127)
        for fd in (requests, answers, image):
            os.close(fd)
        self.buffer = self._answer()

    def _answer(self) -> int:
        return self._answers_to(1)[0]

    def _answers_to(self, requests: int) -> tuple[int, ...]:
        data = b""
        while len(data) < 8 * requests:
            data += self._some(8 * requests - len(data))
        return struct.unpack(f"={requests}q", data)

    def _some(self, size: int) -> bytes:
        if not Deadline(self.pid, scaled(child.CALL_TIMEOUT)).wait([self._answers]):
            self.kill()
            raise errors.ChildTimeout(f"bare process {self.pid} gave no answer")
        data = os.read(self._answers, size)
        if not data:
            status = self.wait()
            if os.WIFSIGNALED(status):
                raise errors.ChildKilled(os.WTERMSIG(status))
            raise errors.ChildExited(os.waitstatus_to_exitcode(status))
        return data

    def _ask(self, number: int, args: tuple[int, ...], payload: bytes = b"") -> int:
        os.write(self._requests, _packed(number, args, payload))
        return self._answer()

    def call(self, name: str, *args: int, payload: bytes = b"") -> int:
        """Make a system call there: its result as an unsigned word, or OSError.

        ``payload`` lies at :attr:`payload` during the call.
        """
        number = syscalls.number(name)
        value = self._ask(number, args, payload)
        if -4096 < value < 0:
            shown = ", ".join(hex(a) for a in args)
            text = f"{name}({shown}): {os.strerror(-value)}"
            if why := scarcity.of_call(name, args, -value, self.pid):
                raise scarcity.SetupError(-value, f"{text}; {why}")
            raise OSError(-value, text)
        return value & syscalls.ULONG_MAX

    def calls(self, name: str, *each: tuple[int, ...]) -> None:
        """One system call for each tuple of arguments, many at a time; OSError if one failed."""
        number = syscalls.number(name)
        for first in range(0, len(each), _BATCH):
            batch = each[first : first + _BATCH]
            os.write(self._requests, b"".join(_packed(number, args) for args in batch))
            for args, value in zip(batch, self._answers_to(len(batch))):
                if -4096 < value < 0:
                    shown = ", ".join(hex(a) for a in args)
                    raise OSError(-value, f"{name}({shown}): {os.strerror(-value)}")

    @property
    def payload(self) -> int:
        """Address of a call's payload in the bare process."""
        return self.buffer + _PAYLOAD

    def store(self, addr: int, byte: int = 0x5A) -> None:
        """Write ``byte`` at ``addr``; ChildKilled if the kernel answers with a signal."""
        self._ask(_STORE, (addr, byte))

    def mmap(
        self,
        pages: int,
        prot: int = syscalls.PROT_RW,
        flags: int = syscalls.MAP_PRIVATE | syscalls.MAP_ANONYMOUS,
        addr: int = 0,
        fd: int = -1,
    ) -> int:
        """mmap(2) of ``pages`` pages there: its address."""
        return self.call("mmap", addr, pages * PAGE, prot, flags, fd, 0)

    def limit(self, soft: int) -> None:
        """Set its soft RLIMIT_MEMLOCK to ``soft`` bytes, from outside (prlimit(2))."""
        hard = resource.prlimit(self.pid, resource.RLIMIT_MEMLOCK)[1]
        resource.prlimit(
            self.pid, resource.RLIMIT_MEMLOCK, (soft, rlimits.hard_limit_for(soft, hard))
        )

    def without(self, *names: str) -> StubProcess:
        """Lower capabilities in its effective set. Returns itself."""
        sets = credentials.capabilities(self.pid)
        effective = sets.effective
        for name in names:
            effective &= ~(1 << credentials.CAPABILITIES[name])
        words = [w >> shift & 0xFFFFFFFF for shift in (0, 32)
                 for w in (effective, sets.permitted, sets.inheritable)]  # fmt: skip
        payload = struct.pack("=Ii6I", credentials.CAPABILITY_VERSION_3, 0, *words)
        self.call("capset", self.payload, self.payload + 8, payload=payload)
        return self

    def trim(self) -> None:
        """Unmap what lies below the stack page in use: the smallest address space there is."""
        stack = maps.vmas(self.pid, self.buffer, self.buffer + 1)[0]
        used = self.buffer // PAGE * PAGE
        if stack.start < used:
            self.call("munmap", stack.start, used - stack.start)

    def wait(self) -> int:
        """Wait status once it has ended."""
        if self._status is None:
            _, self._status = os.waitpid(self.pid, 0)
        return self._status

    def kill(self) -> int:
        """SIGKILL it and wait: the wait status."""
        if self._status is None:
            os.kill(self.pid, 9)
        return self.wait()

    def __enter__(self) -> StubProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        os.close(self._answers)
        os.close(self._requests)
