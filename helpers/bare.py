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
from types import TracebackType

from helpers import libc, privilege, process, scarce
from helpers.libc import PAGE
from helpers.observe import maps
from helpers.timeouts import Deadline, scaled

# The program, the same on each architecture (here in the words of x86_64):
#
#     sub $256,%rsp; mov %rsp,%rbp; mov %rbp,%rax; jmp answer   the request's address
#   loop:
#     read(0, %rbp, 256); leave unless it got something
#     load number and six arguments from (%rbp); if the number is negative: jmp store
#     syscall; jmp answer
#   store:
#     movb %sil,(%rdi); xor %eax,%eax                           for page faults
#   answer:
#     mov %rax,(%rbp); write(1, %rbp, 8); jmp loop
#   leave:
#     exit(0)
_CODE = {
    "x86_64": (62, 0, """
        4881ec000100004889e54889e8eb3c31c031ff4889eeba000100000f0585c07e
        44488b4500488b7d08488b7510488b55184c8b55204c8b45284c8b4d304885c0
        78040f05eb0540883731c048894500b801000000bf010000004889eeba080000
        000f05ebaab83c00000031ff0f05"""),
    "aarch64": (183, 0, """
        ff0304d1f3030091e003009111000014000080d2e10313aa022080d2e80780d2
        010000d41f0000f12d020054680240f9608640a9628e41a9649642a96800f8b7
        010000d40300001401000039000080d2600200f9200080d2e10313aa020180d2
        080880d2010000d4eaffff17000080d2a80b80d2010000d4"""),
    "ppc64le": (21, 2, """
        00ff2138780b3f7c780b237c600000480000603878fbe47f0001a03803000038
        02000044640083410000232c5c00814000001fe808007fe810009fe81800bfe8
        2000dfe82800ffe830001fe90000202c140080410200004414008340d000637c
        0c000048000083980000603800007ff80100603878fbe47f0800a03804000038
        020000448cffff4b000060380100003802000044"""),
    "riscv64": (243, 0, """
        130101f013040100130501006f00c0041305000093050400130600109308f003
        730000006358a004833804000335840083350401033684018336040203378402
        8337040363c60800730000006f00c0002300b500130500002330a40013051000
        930504001306800093080004730000006ff01ffa130500009308d00573000000"""),
}  # fmt: skip
"""ELF machine number, ELF flags and code; assembled with llvm-mc."""

_NUMBERS = {
    "mmap": {"x86_64": 9, "aarch64": 222, "ppc64le": 90, "riscv64": 222},
    "shmat": {"x86_64": 30, "aarch64": 196, "ppc64le": 397, "riscv64": 196},
}
"""Calls that helpers.libc makes through the C library."""

_REQUEST = 256
_BATCH = 256
"""Requests written before their answers are read: the answers fit in one page of a pipe."""
_PAYLOAD = 7 * 8  # behind the number and six arguments
_STORE = -1
_LOAD_AT = 0x400000
_ALIGN = 0x10000  # the largest page size there is


def supported() -> bool:
    """There is code for this architecture."""
    return libc.architecture() in _CODE


def _image() -> bytes:
    machine, flags, text = _CODE[libc.architecture()]
    code = bytes.fromhex("".join(text.split()))
    head = 64 + 2 * 56
    size = head + len(code)
    ident = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)
    # ELF header; PT_LOAD (read, execute); PT_GNU_STACK (read, write): see elf(5).
    return b"".join((
        ident,
        struct.pack("<HHIQQQIHHHHHH",
                    2, machine, 1, _LOAD_AT + head, 64, 0, flags, 64, 56, 2, 0, 0, 0),
        struct.pack("<IIQQQQQQ", 1, 5, 0, _LOAD_AT, _LOAD_AT, size, size, _ALIGN),
        struct.pack("<IIQQQQQQ", 0x6474E551, 6, 0, 0, 0, 0, 0, 16),
        code,
    ))  # fmt: skip


def _packed(number: int, args: tuple[int, ...], payload: bytes = b"") -> bytes:
    words = [number, *args, *[0] * (6 - len(args))]
    packed = struct.pack("=7Q", *(w & libc.ULONG_MAX for w in words)) + payload
    return packed.ljust(_REQUEST, b"\0")


class Bare:
    """A process that has executed the image, ready for calls.

    ``before`` runs in the forked child ahead of execve(2). Raises
    :class:`helpers.process.ChildExited` where the image could not be executed.
    """

    def __init__(self, before: Callable[[], object] | None = None) -> None:
        requests, self._requests = os.pipe()
        self._answers, answers = os.pipe()
        image = os.memfd_create("bare", libc.MFD_CLOEXEC)
        os.write(image, _image())
        parent = os.getpid()
        self._status: int | None = None
        self.pid = scarce.fork()
        if self.pid == 0:
            try:
                process.die_with_parent(parent)
                os.dup2(requests, 0)
                os.dup2(answers, 1)
                if os.geteuid() != 0 and privilege.has("CAP_IPC_LOCK"):
                    privilege.pass_on("CAP_IPC_LOCK")
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
        if not Deadline(self.pid, scaled(process.DEADLINE)).wait([self._answers]):
            self.kill()
            raise process.ChildHung(f"bare process {self.pid} gave no answer")
        data = os.read(self._answers, size)
        if not data:
            status = self.wait()
            if os.WIFSIGNALED(status):
                raise process.ChildKilled(os.WTERMSIG(status))
            raise process.ChildExited(os.waitstatus_to_exitcode(status))
        return data

    def _ask(self, number: int, args: tuple[int, ...], payload: bytes = b"") -> int:
        os.write(self._requests, _packed(number, args, payload))
        return self._answer()

    def call(self, name: str, *args: int, payload: bytes = b"") -> int:
        """Make a system call there: its result as an unsigned word, or OSError.

        ``payload`` lies at :attr:`payload` during the call.
        """
        number = _NUMBERS[name][libc.architecture()] if name in _NUMBERS else libc.number(name)
        value = self._ask(number, args, payload)
        if -4096 < value < 0:
            shown = ", ".join(hex(a) for a in args)
            text = f"{name}({shown}): {os.strerror(-value)}"
            if why := scarce.of_call(name, args, -value, self.pid):
                raise scarce.SetupError(-value, f"{text}; {why}")
            raise OSError(-value, text)
        return value & libc.ULONG_MAX

    def calls(self, name: str, *each: tuple[int, ...]) -> None:
        """One system call for each tuple of arguments, many at a time; OSError if one failed."""
        number = libc.number(name)
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
        prot: int = libc.PROT_RW,
        flags: int = libc.MAP_PRIVATE | libc.MAP_ANONYMOUS,
        addr: int = 0,
        fd: int = -1,
    ) -> int:
        """mmap(2) of ``pages`` pages there: its address."""
        return self.call("mmap", addr, pages * PAGE, prot, flags, fd, 0)

    def limit(self, soft: int) -> None:
        """Set its soft RLIMIT_MEMLOCK to ``soft`` bytes, from outside (prlimit(2))."""
        hard = resource.prlimit(self.pid, resource.RLIMIT_MEMLOCK)[1]
        resource.prlimit(self.pid, resource.RLIMIT_MEMLOCK, (soft, privilege.hard_for(soft, hard)))

    def without(self, *names: str) -> Bare:
        """Lower capabilities in its effective set. Returns itself."""
        sets = privilege.capabilities(self.pid)
        effective = sets.effective
        for name in names:
            effective &= ~(1 << privilege.CAPABILITIES[name])
        words = [w >> shift & 0xFFFFFFFF for shift in (0, 32)
                 for w in (effective, sets.permitted, sets.inheritable)]  # fmt: skip
        payload = struct.pack("=Ii6I", privilege.CAPABILITY_VERSION_3, 0, *words)
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

    def __enter__(self) -> Bare:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()
        os.close(self._answers)
        os.close(self._requests)
