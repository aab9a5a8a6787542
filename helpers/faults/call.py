# SPDX-License-Identifier: MIT
"""One system call as a fault sees it: what it may ask, and what it may do.

A fault is a set of functions, one a system call (:class:`helpers.faults.fault.Fault`); a
function is given a :class:`Call` before the call is made and, if it is a generator, resumed by
the call's result. Whatever it does goes through methods of :class:`Call`, so that noting is
acting without effect.
"""

from __future__ import annotations

import errno
import os
import re
import resource
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from helpers import syscalls
from helpers.observe import maps, pagemap, status
from helpers.syscalls import PAGE

Effect = Callable[["Call"], "Generator[None, int, None] | None"]
"""What a fault does about one system call."""
PendingEffect = tuple[str, Generator[None, int, None]]
"""A fault that has seen a call coming and is to be shown its result."""
READS = ("read", "pread64")


@dataclass(frozen=True)
class ReadFilter:
    """An effect on what is read from certain files; ``files`` matches their whole path."""

    files: re.Pattern[str]
    effect: Effect

    def __call__(self, call: Call) -> Generator[None, int, None] | None:
        return self.effect(call)


CHILD, SIGNAL, END = "child", "signal", "end"
"""Not calls: a process has been forked and has not run yet; a signal is about to arrive; a thread
is ending and has its memory still (the argument is its wait status)."""
_ADVICE = (syscalls.MADV_DONTNEED_LOCKED, syscalls.MADV_POPULATE_READ, syscalls.MADV_POPULATE_WRITE)
"""Advice by which pages are dropped and faulted in, 5.18 and 5.14: an effect needs it."""
TOP = 1 << 56
"""Above every user address."""


class SupervisorProtocol(Protocol):
    """The supervisor, as far as a call needs it."""

    tasks: dict[int, Tracee]
    acted: dict[str, int]
    refused: dict[str, str]
    notes: dict[str, dict[object, Any]]
    vforked: set[int]

    def inject(self, task: Tracee, name: str, args: Sequence[int]) -> int:
        """Have a task, standing behind a call, make another."""

    def set_memlock(self, task: Tracee, soft: int, hard: int) -> None:
        """Have a task, standing behind a call, set its own RLIMIT_MEMLOCK."""

    def interrupt(self, process: TraceeProcess, name: str, args: Sequence[int]) -> int:
        """Have another process make a call."""


@dataclass
class TraceeMemory:
    """What faults remember of an address space. ``miscount`` is added to VmLck (bytes)."""

    skew_vmlck: int = 0
    future: int = 0
    notes: dict[str, dict[object, Any]] = field(default_factory=dict)


@dataclass
class TraceeProcess:
    """A supervised process (thread group)."""

    pid: int
    space: TraceeMemory
    vforked: bool = False
    parent: TraceeProcess | None = None


@dataclass
class Tracee:
    """A thread of one, and what is to be done when its system call returns."""

    tid: int
    process: TraceeProcess
    waiting: tuple[SyscallStop, list[PendingEffect]] | None = None
    begun: bool = False


@dataclass
class SyscallStop:
    """A task standing still at one call: what all faults see of it."""

    supervisor: SupervisorProtocol
    task: Tracee
    name: str
    args: list[int]
    result: int = 0
    parent: TraceeProcess | None = None
    before_exec: TraceeMemory | None = None
    changed: dict[int, int] = field(default_factory=dict)
    answer: int | None = None
    said: int | None = None
    swallowed: bool = False
    memo: dict[object, Any] = field(default_factory=dict)


class Call:
    """One system call, for one fault to look at and to change."""

    def __init__(self, stop: SyscallStop, fault: str, dry: bool) -> None:
        self._stop, self._fault, self._dry = stop, fault, dry
        self.name, self.args = stop.name, stop.args
        self.tid, self.process = stop.task.tid, stop.task.process
        self.pid = self.process.pid
        self.parent = stop.parent
        self.wet = not dry
        self.case: dict[object, Any] = stop.supervisor.notes.setdefault(fault, {})
        """What this fault remembers of the whole case, and of the address space."""
        self.notes: dict[object, Any] = self.space.notes.setdefault(fault, {})

    # What a fault may ask.

    @property
    def space(self) -> TraceeMemory:
        """The address space: after execve(2) the new one."""
        return self.process.space

    @property
    def before_exec(self) -> TraceeMemory | None:
        """After execve(2): the address space that was given up."""
        return self._stop.before_exec

    @property
    def result(self) -> int:
        """What the call returned: negative for an error."""
        return self._stop.result

    def failed(self, name: str) -> bool:
        """It returned this error."""
        return self._stop.result == -int(getattr(errno, name))

    def _once(self, key: object, ask: Callable[[], Any]) -> Any:
        memo = self._stop.memo
        if key not in memo:
            memo[key] = ask()
        return memo[key]

    @property
    def range(self) -> tuple[int, int]:
        """The call's pages [low, high), of its first two arguments; (0, 0) if they overflow."""
        addr, length = self.args[0], self.args[1]
        low, high = addr // PAGE * PAGE, -(-(addr + length) // PAGE) * PAGE
        return (low, high) if low < high < TOP else (0, 0)

    def vmas(self, low: int = 0, high: int = TOP) -> list[maps.Vma]:
        """VMAs in [low, high), as they are at this moment of the call, without their flags."""
        if low >= high:
            return []
        found: list[maps.Vma] = self._once((low, high), lambda: maps.vmas(self.pid, low, high))
        return found

    def flagged(self, low: int = 0, high: int = TOP) -> list[maps.Vma]:
        """The same with their flags, which cost the kernel ten times as much."""
        if low >= high:
            return []
        found: list[maps.Vma] = self._once(
            ("flagged", low, high), lambda: maps.smaps(self.pid, low, high)
        )
        return found

    def locked_of(self, pid: int) -> list[maps.Vma]:
        """All ``lo`` VMAs of some process."""

        def ask() -> list[maps.Vma]:
            return maps.locked(pid) if status.vmlck_kb(pid) else []

        found: list[maps.Vma] = self._once(("locked", pid), ask)
        return found

    def locked(self, low: int = 0, high: int = TOP) -> list[tuple[int, int, maps.Vma]]:
        """The ``lo`` parts of [low, high): start, end, VMA."""
        if not self.vmlck:  # no look at every page of an interpreter for what is not there
            return []
        vmas = self.locked_of(self.pid) if (low, high) == (0, TOP) else self.flagged(low, high)
        return [(max(v.start, low), min(v.end, high), v) for v in vmas if v.locked]

    def locked_bytes(self, low: int = 0, high: int = TOP) -> int:
        """Bytes of them."""
        return sum(end - start for start, end, _ in self.locked(low, high))

    def hole(self) -> int:
        """Where the call's range first has no mapping; 0 if it has none."""
        low, high = self.range
        for vma in self.vmas(low, high):
            if vma.start > low:
                return low
            low = vma.end
        return low if low < high else 0

    def absent(self, low: int, high: int) -> list[int]:
        """Addresses of the pages of [low, high) that are not in memory."""

        def ask() -> list[int]:
            words = pagemap.entries(low, min((high - low) // PAGE, 4096), self.pid)
            return [low + i * PAGE for i, w in enumerate(words) if not w & pagemap.PRESENT]

        found: list[int] = self._once(("absent", low, high), ask)
        return found

    def frames(self, low: int, high: int) -> list[int]:
        """PFNs of the pages of [low, high) that are in memory."""

        def ask() -> list[int]:
            count = min((high - low) // PAGE, 4096)
            return [n for n in pagemap.pfns(low, count, self.pid) if n]

        found: list[int] = self._once(("frames", low, high), ask)
        return found

    @property
    def vmlck(self) -> int:
        """VmLck in bytes, the true one."""
        count: int = self._once("vmlck", lambda: status.vmlck_kb(self.pid) * 1024)
        return count

    @property
    def limit(self) -> tuple[int, int]:
        """RLIMIT_MEMLOCK (soft, hard) in bytes; −1 is infinite."""

        def ask() -> tuple[int, int]:
            # prlimit(2) is refused where the process has changed its user, this is not.
            with open(f"/proc/{self.pid}/limits") as file:
                (line,) = (text for text in file if text.startswith("Max locked memory"))
            soft, hard = (-1 if n == "unlimited" else int(n) for n in line.split()[3:5])
            return soft, hard

        pair: tuple[int, int] = self._once("limit", ask)
        return pair

    def descriptor(self, index: int) -> str:
        """What an argument, a descriptor, is open on; "" if it is none."""
        try:
            return os.readlink(f"/proc/{self.tid}/fd/{self.args[index]}")
        except OSError:
            return ""

    @property
    def capable(self) -> bool:
        """CAP_IPC_LOCK is effective in the calling thread, in the first user namespace."""

        def ask() -> bool:
            same = os.stat(f"/proc/{self.tid}/ns/user").st_ino == _HERE
            return same and self.has_capability("CapEff")

        return bool(self._once("capable", ask))

    def has_capability(self, which: str) -> bool:
        """CAP_IPC_LOCK is in this set (CapEff, CapPrm) of the thread, in any user namespace."""
        sets = self._once("sets", lambda: status.fields(self.tid))
        return bool(int(sets[which], 16) >> 14 & 1)

    @property
    def uid(self) -> int:
        """The thread's effective user id."""
        return int(self._once("sets", lambda: status.fields(self.tid))["Uid"].split()[1])

    @property
    def file(self) -> str:
        """What the first argument, a descriptor, is open on."""
        return opened(self._stop)

    @property
    def shown(self) -> int:
        """The process that the file in /proc is about."""
        return int(self.file.split("/")[2])

    @property
    def data(self) -> bytes:
        """What the call has read into its buffer."""
        found: bytes = self._once("data", lambda: self.memory(self.args[1], max(0, self.result)))
        return found

    def memory(self, addr: int, length: int) -> bytes:
        """Bytes of the process."""
        with open(f"/proc/{self.tid}/mem", "rb", 0) as file:
            return os.pread(file.fileno(), length, addr)

    @property
    def offset(self) -> int:
        """Where in its file a finished read began, in bytes."""
        if self.name == "pread64":
            return self.args[3]
        with open(f"/proc/{self.tid}/fdinfo/{self.args[0]}") as file:
            return int(file.readline().split()[1]) - self.result

    def others(self) -> list[TraceeProcess]:
        """Every supervised process, this one first."""
        rest = {t.process.pid: t.process for t in self._stop.supervisor.tasks.values()}
        rest.pop(self.pid, None)
        return [self.process, *rest.values()]

    def was_vforked(self, pid: int) -> bool:
        """This child, living or not, shared its parent's memory while that stood still."""
        return pid in self._stop.supervisor.vforked

    def notes_of(self, process: TraceeProcess) -> dict[object, Any]:
        """:attr:`notes` of another process."""
        return process.space.notes.setdefault(self._fault, {})

    def known(self, pid: int) -> TraceeProcess | None:
        """The supervised process of this number."""
        task = self._stop.supervisor.tasks.get(pid)
        return task.process if task else None

    # What a fault may do. Each notes that the fault acted.

    def record(self) -> bool:
        """Note it; whether it is to be done too."""
        acted = self._stop.supervisor.acted
        acted[self._fault] = acted.get(self._fault, 0) + 1
        return not self._dry

    def _unact(self) -> None:
        acted = self._stop.supervisor.acted
        acted[self._fault] -= 1
        if not acted[self._fault]:
            del acted[self._fault]

    def set_argument(self, index: int, value: int) -> None:
        """Before the call: pass this argument instead (the process sees its own again)."""
        if self.args[index] != value & syscalls.ULONG_MAX and self.record():
            self._stop.changed[index] = value & syscalls.ULONG_MAX

    def skip_with_result(self, value: int) -> None:
        """Before the call: do not make it, return this."""
        if self.record():
            self._stop.answer = value

    def fail(self, name: str) -> None:
        """Before the call: do not make it, return this error."""
        self.skip_with_result(-int(getattr(errno, name)))

    def set_result(self, value: int) -> None:
        """After the call: return this instead."""
        if value != self.result and self.record():
            self._stop.said = value

    def set_error(self, name: str) -> None:
        """After the call: return this error instead."""
        self.set_result(-int(getattr(errno, name)))

    def inject(self, name: str, *args: int) -> int:
        """After the call: have the process make this one, unseen. Its result (0 when noting).

        An advice that is refused, by this memory or by a kernel that does not know it, is no act.
        """
        if not self.record():
            return 0
        self._stop.memo.clear()
        done = self._stop.supervisor.inject(self._stop.task, name, args)
        if name == "madvise" and done == -errno.EINVAL and args[2] in _ADVICE:
            self._stop.supervisor.refused[self._fault] = f"madvise({args[2]}): {os.strerror(-done)}"
            self._unact()
        return done

    def inject_into(self, process: TraceeProcess, name: str, *args: int) -> int:
        """Have another supervised process make a call, wherever it stands."""
        if process is self.process:
            return self.inject(name, *args)
        if not self.record():
            return 0
        return self._stop.supervisor.interrupt(process, name, args)

    def repeat(self) -> int:
        """Make the same call once more."""
        return self.inject(self.name, *self.args)

    def write(self, addr: int, data: bytes) -> None:
        """Change the process's memory: what a call has written there for it to read."""
        if self.memory(addr, len(data)) != data and self.record():
            self._stop.memo.pop("data", None)
            with open(f"/proc/{self.tid}/mem", "r+b", 0) as file:
                os.pwrite(file.fileno(), data, addr)

    def set_limit(self, soft: int, hard: int) -> None:
        """Set RLIMIT_MEMLOCK of the process from outside."""
        if self.record():
            try:
                resource.prlimit(self.pid, resource.RLIMIT_MEMLOCK, (soft, hard))
            except PermissionError:  # it has changed its user, and we lack CAP_SYS_RESOURCE
                self._stop.supervisor.set_memlock(self._stop.task, soft, hard)
            self._stop.memo.pop("limit", None)

    def skew_vmlck(self, size: int) -> None:
        """Show VmLck of this address space wrong by so many bytes (more), for good."""
        if size and self.record():
            self.space.skew_vmlck += size

    def suppress_signal(self) -> None:
        """At a signal: it does not arrive."""
        if self.record():
            self._stop.swallowed = True


def opened(stop: SyscallStop) -> str:
    """What the call's first argument, a descriptor, is open on; "" if it is none."""
    if "file" not in stop.memo:
        try:
            stop.memo["file"] = os.readlink(f"/proc/{stop.task.tid}/fd/{stop.args[0]}")
        except OSError:
            stop.memo["file"] = ""
    return str(stop.memo["file"])


_HERE = os.stat("/proc/self/ns/user").st_ino if os.path.exists("/proc/self/ns/user") else 0
