"""The process that lies: it holds a case and its descendants by ptrace, call by call.

A worker of pytest starts one supervisor. For each case it is told the process, the faults,
and whether to act or only to note which of them would have. A fault is a set of functions,
one a system call (:class:`helpers.faults.catalogue.Fault`); a function is given a
:class:`Call` before the call is made, and if it is a generator, resumed by the call's result.
Whatever it does goes through methods of :class:`Call`, so that noting is acting without effect.
"""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import signal
import socket
import traceback
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from helpers import libc
from helpers.faults import tracing
from helpers.faults.tracing import Gone
from helpers.libc import PAGE
from helpers.observe import maps, pagemap, status

Lie = Callable[["Call"], "Generator[None, int, None] | None"]
"""What a fault does about one system call."""
READS = ("read", "pread64")


@dataclass(frozen=True)
class Shown:
    """A lie about what is read from certain files; ``files`` matches their whole path."""

    files: re.Pattern[str]
    lie: Lie

    def __call__(self, call: Call) -> Generator[None, int, None] | None:
        return self.lie(call)


CHILD, SIGNAL, END = "child", "signal", "end"
"""Not calls: a process has been forked and has not run yet; a signal is about to arrive; a thread
is ending and has its memory still (the argument is its wait status)."""
TOP = 1 << 56
"""Above every user address."""
_STOPS = (signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)
_RESTARTS = range(-516, -511)


@dataclass
class Space:
    """What faults remember of an address space. ``miscount`` is added to VmLck (bytes)."""

    miscount: int = 0
    future: int = 0
    notes: dict[str, dict[object, Any]] = field(default_factory=dict)


@dataclass
class Process:
    """A supervised process (thread group)."""

    pid: int
    space: Space
    vforked: bool = False
    parent: Process | None = None


@dataclass
class Task:
    """A thread of one, and what is to be done when its system call returns."""

    tid: int
    process: Process
    waiting: tuple[Stop, list[Generator[None, int, None]]] | None = None
    begun: bool = False


@dataclass
class Stop:
    """A task standing still at one call: what all faults see of it."""

    supervisor: Supervisor
    task: Task
    name: str
    args: list[int]
    result: int = 0
    parent: Process | None = None
    before_exec: Space | None = None
    changed: dict[int, int] = field(default_factory=dict)
    answer: int | None = None
    said: int | None = None
    swallowed: bool = False
    memo: dict[object, Any] = field(default_factory=dict)


class Call:
    """One system call, for one fault to look at and to change."""

    def __init__(self, stop: Stop, fault: str, dry: bool) -> None:
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
    def space(self) -> Space:
        """The address space: after execve(2) the new one."""
        return self.process.space

    @property
    def before_exec(self) -> Space | None:
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
        return _file(self._stop)

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

    def others(self) -> list[Process]:
        """Every supervised process, this one first."""
        rest = {t.process.pid: t.process for t in self._stop.supervisor.tasks.values()}
        rest.pop(self.pid, None)
        return [self.process, *rest.values()]

    def was_vforked(self, pid: int) -> bool:
        """This child, living or not, shared its parent's memory while that stood still."""
        return pid in self._stop.supervisor.vforked

    def notes_of(self, process: Process) -> dict[object, Any]:
        """:attr:`notes` of another process."""
        return process.space.notes.setdefault(self._fault, {})

    def known(self, pid: int) -> Process | None:
        """The supervised process of this number."""
        task = self._stop.supervisor.tasks.get(pid)
        return task.process if task else None

    # What a fault may do. Each notes that the fault acted.

    def act(self) -> bool:
        """Note it; whether it is to be done too."""
        acted = self._stop.supervisor.acted
        acted[self._fault] = acted.get(self._fault, 0) + 1
        return not self._dry

    def change(self, index: int, value: int) -> None:
        """Before the call: pass this argument instead (the process sees its own again)."""
        if self.args[index] != value & libc.ULONG_MAX and self.act():
            self._stop.changed[index] = value & libc.ULONG_MAX

    def give(self, value: int) -> None:
        """Before the call: do not make it, return this."""
        if self.act():
            self._stop.answer = value

    def fail(self, name: str) -> None:
        """Before the call: do not make it, return this error."""
        self.give(-int(getattr(errno, name)))

    def say(self, value: int) -> None:
        """After the call: return this instead."""
        if value != self.result and self.act():
            self._stop.said = value

    def say_error(self, name: str) -> None:
        """After the call: return this error instead."""
        self.say(-int(getattr(errno, name)))

    def run(self, name: str, *args: int) -> int:
        """After the call: have the process make this one, unseen. Its result (0 when noting)."""
        if not self.act():
            return 0
        self._stop.memo.clear()
        return self._stop.supervisor.inject(self._stop.task, name, args)

    def run_in(self, process: Process, name: str, *args: int) -> int:
        """Have another supervised process make a call, wherever it stands."""
        if process is self.process:
            return self.run(name, *args)
        if not self.act():
            return 0
        return self._stop.supervisor.interrupt(process, name, args)

    def again(self) -> int:
        """Make the same call once more."""
        return self.run(self.name, *self.args)

    def write(self, addr: int, data: bytes) -> None:
        """Change the process's memory: what a call has written there for it to read."""
        if self.memory(addr, len(data)) != data and self.act():
            self._stop.memo.pop("data", None)
            with open(f"/proc/{self.tid}/mem", "r+b", 0) as file:
                os.pwrite(file.fileno(), data, addr)

    def set_limit(self, soft: int, hard: int) -> None:
        """Set RLIMIT_MEMLOCK of the process from outside."""
        if self.act():
            resource.prlimit(self.pid, resource.RLIMIT_MEMLOCK, (soft, hard))
            self._stop.memo.pop("limit", None)

    def miscount(self, size: int) -> None:
        """Show VmLck of this address space wrong by so many bytes (more), for good."""
        if size and self.act():
            self.space.miscount += size

    def swallow(self) -> None:
        """At a signal: it does not arrive."""
        if self.act():
            self._stop.swallowed = True


def _file(stop: Stop) -> str:
    if "file" not in stop.memo:
        try:
            stop.memo["file"] = os.readlink(f"/proc/{stop.task.tid}/fd/{stop.args[0]}")
        except OSError:
            stop.memo["file"] = ""
    return str(stop.memo["file"])


_TAKES = (tracing.ATTACH, tracing.SEIZE)
_F_DUPFD, _F_DUPFD_CLOEXEC = 0, 1030
_HERE = os.stat("/proc/self/ns/user").st_ino if os.path.exists("/proc/self/ns/user") else 0


class Supervisor:
    """The loop of the supervising process over one case."""

    def __init__(self, lies: Mapping[str, Sequence[tuple[str, Lie]]], dry: bool) -> None:
        self.lies, self.dry = lies, dry
        self.options = tracing.OPTIONS | (tracing.TRACE_EXIT if END in lies else 0)
        self.names = {tracing.number(n): n for n in lies if n not in (CHILD, SIGNAL, END)}
        self.files = {lie.files for _, lie in lies.get("read", ()) if isinstance(lie, Shown)}
        self.names[tracing.number("ptrace")] = "ptrace"
        if self.files:
            self.names[tracing.number("openat")] = "openat"
        self.tasks: dict[int, Task] = {}
        self.early: set[int] = set()
        self.acted: dict[str, int] = {}
        self.notes: dict[str, dict[object, Any]] = {}
        self.vforked: set[int] = set()
        self.problems: list[str] = []
        self.root, self.over = 0, False
        self.pending: list[tuple[int, int]] = []
        """Stops that were told while another task was waited for."""

    def follow(self, pid: int) -> None:
        """Until the seized process ``pid`` has ended; what it leaves is killed."""
        self.root = pid
        self.tasks[pid] = Task(pid, Process(pid, Space()), begun=True)
        while not self.over:
            try:
                self._stopped(*self._wait())
            except Gone:
                pass
            except ChildProcessError:
                return
        for tid in self.tasks.keys() | self.early:
            try:
                os.kill(tid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        while True:
            try:
                os.waitpid(-1, tracing.WALL)
            except ChildProcessError:
                return

    def _wait(self, tid: int = -1) -> tuple[int, int]:
        """The next stop of this task, or of any. Raises Gone if that task, or the case, ended.

        The kernel is always asked for all: the end of a leader that was killed is not told
        before its threads have been waited for.
        """
        while True:
            found = next((event for event in self.pending if tid in (-1, event[0])), None)
            if found is not None:
                self.pending.remove(found)
                return found
            got, word = os.waitpid(-1, tracing.WALL)
            while got:  # all that have something to tell: the kernel would let the first go first
                if os.WIFSTOPPED(word):
                    self.pending.append((got, word))
                else:
                    self.tasks.pop(got, None)
                    self.pending = [event for event in self.pending if event[0] != got]
                    self.over = self.over or got == self.root
                    if got in (tid, self.root):
                        raise Gone(f"task {got} has ended")
                got, word = os.waitpid(-1, tracing.WALL | os.WNOHANG)

    def _stopped(self, tid: int, word: int) -> None:
        number, event = os.WSTOPSIG(word), word >> 16
        task = self.tasks.get(tid)
        if task is None:
            self.early.add(tid)  # stopped before its parent told of it
            return
        if event == tracing.EVENT_SECCOMP:
            self._entered(task)
        elif number == signal.SIGTRAP | 0x80:
            self._left(task)
        elif event in (tracing.EVENT_FORK, tracing.EVENT_VFORK, tracing.EVENT_CLONE):
            self._forked(task, tracing.event_message(tid), event)
            self._go_on(task)
        elif event == tracing.EVENT_EXEC:
            self._executed(task, tracing.event_message(tid))
            self._go_on(task)
        elif event == tracing.EVENT_EXIT:
            self._tell(Stop(self, task, END, [tracing.event_message(tid)]))
            self._go_on(task)
        elif event == tracing.EVENT_STOP:
            if not task.begun:
                self._begin(task)
            elif number in _STOPS:
                tracing.ptrace(tracing.LISTEN, tid)
            else:
                self._go_on(task)
        else:
            if SIGNAL in self.lies:
                stop = Stop(self, task, SIGNAL, [number])
                self._tell(stop)
                number = 0 if stop.swallowed else number
            self._go_on(task, number)

    def _go_on(self, task: Task, number: int = 0) -> None:
        request = tracing.SYSCALL if task.waiting else tracing.CONT
        tracing.ptrace(request, task.tid, 0, number)

    def _forked(self, task: Task, tid: int, event: int) -> None:
        try:
            group = int(status.fields(tid)["Tgid"])
        except (OSError, KeyError):
            group = tid
        vforked = event == tracing.EVENT_VFORK
        if group == task.process.pid:
            new = Task(tid, task.process, begun=False)
        else:
            space = task.process.space if vforked else Space()
            new = Task(tid, Process(tid, space, vforked, task.process))
        if vforked:
            self.vforked.add(tid)
        self.tasks[tid] = new
        if tid in self.early:
            self.early.discard(tid)
            self._begin(new)

    def _begin(self, task: Task) -> None:
        """A new task's first stop."""
        task.begun = True
        process = task.process
        if process.parent is not None and not process.vforked and task.tid == process.pid:
            self._tell(Stop(self, task, CHILD, [], parent=process.parent))
        self._go_on(task)

    def _executed(self, task: Task, former: int) -> None:
        if former != task.tid and former in self.tasks:
            task.waiting = self.tasks.pop(former).waiting
        old, task.process.space = task.process.space, Space()
        task.process.vforked = False
        if task.waiting:
            task.waiting[0].before_exec = old

    def _tell(self, stop: Stop) -> list[Generator[None, int, None]]:
        """Show a stop to every fault that wants it; those to be resumed by its result."""
        left: list[Generator[None, int, None]] = []
        for fault, lie in self.lies.get(stop.name, ()):
            if self.dry and fault in self.acted:
                continue  # that it can act in this case is all there is to note
            if isinstance(lie, Shown) and not lie.files.fullmatch(_file(stop)):
                continue
            call = Call(stop, fault, self.dry)
            try:
                telling = lie(call)
                if telling is not None:
                    next(telling)
                    left.append(telling)
            except (OSError, LookupError, ValueError) as error:
                self._problem(fault, stop, error)
            except StopIteration:
                pass
        return left

    def _problem(self, fault: str, stop: Stop, error: Exception) -> None:
        if isinstance(error, FileNotFoundError | ProcessLookupError | KeyError):
            return  # the process has ended meanwhile
        text = f"{fault}: {stop.name}: {type(error).__name__}: {error}"
        if not self.dry and text not in self.problems:
            self.problems.append(text)

    def _entered(self, task: Task) -> None:
        machine = tracing.machine()
        values = tracing.registers(task.tid)
        name = self.names.get(values[machine.number])
        if name is None:
            tracing.ptrace(tracing.CONT, task.tid)
            return
        stop = Stop(self, task, name, [values[i] for i in machine.args])
        if name == "openat":
            if self._may_show(task.tid, stop.args[1]):
                task.waiting = (stop, [])
            self._go_on(task)
            return
        if name == "ptrace":
            if stop.args[0] in _TAKES:
                self._release(stop.args[1])
            task.waiting = (stop, [])
            self._go_on(task)
            return
        telling = self._tell(stop)
        if stop.changed:
            for index, value in stop.changed.items():
                values[machine.args[index]] = value
            tracing.set_registers(task.tid, values)
        if stop.answer is not None:
            tracing.set_number(task.tid, -1)
        task.waiting = (stop, telling) if telling or stop.changed or stop.answer is not None else (
            None
        )  # fmt: skip
        self._go_on(task)

    def _left(self, task: Task) -> None:
        if task.waiting is None:
            tracing.ptrace(tracing.CONT, task.tid)
            return
        (stop, telling), task.waiting = task.waiting, None
        machine = tracing.machine()
        values = tracing.registers(task.tid)
        word = values[machine.result]
        stop.result = word - (1 << 64) if word >> 63 else word
        if stop.answer is not None:
            stop.result = stop.answer
        if stop.name == "openat":
            self._mark(stop)
        elif stop.name == "ptrace":
            done = stop.result >= 0
            if (stop.args[0] == tracing.DETACH and done) or (stop.args[0] in _TAKES and not done):
                self._take_again(stop.args[1])
        stop.memo = {k: v for k, v in stop.memo.items() if k in ("file", "sets", "capable")}
        for lie in telling:
            try:
                lie.send(stop.result)
            except StopIteration:
                pass
            except (OSError, LookupError, ValueError) as error:
                self._problem("", stop, error)
        final = stop.result if stop.said is None else stop.said
        if stop.changed or stop.answer is not None or stop.said is not None:
            values = tracing.registers(task.tid)
            for index in stop.changed:
                values[machine.args[index]] = stop.args[index]
            values[machine.result] = final & libc.ULONG_MAX
            tracing.set_registers(task.tid, values)
        tracing.ptrace(tracing.CONT, task.tid)

    # Files that a fault shows otherwise: their descriptors are moved to where the filter of
    # system calls sees them read. All other reads, which are most calls, run at full speed.

    def _may_show(self, tid: int, addr: int) -> bool:
        with open(f"/proc/{tid}/mem", "rb", 0) as file:
            return os.pread(file.fileno(), 5, addr) in (b"/proc", b"/sys/")

    def _mark(self, stop: Stop) -> None:
        if stop.result < 0:
            return
        stop.args[0] = stop.result
        if not any(files.fullmatch(_file(stop)) for files in self.files):
            return
        command = _F_DUPFD_CLOEXEC if stop.args[2] & os.O_CLOEXEC else _F_DUPFD
        moved = self.inject(stop.task, "fcntl", (stop.result, command, tracing.MARK))
        if moved < 0:
            code = OSError(-moved, os.strerror(-moved))
            self._problem("what is read", stop, code)
            return
        self.inject(stop.task, "close", (stop.result,))
        stop.said = moved

    # Cases that trace a process themselves: no process has two tracers, so ours lets go of it
    # for as long as the case holds it (it stands still then, and makes no call to lie about).

    def _release(self, tid: int) -> None:
        task = self.tasks.get(tid)
        if task is not None and self._halt(task):
            tracing.ptrace(tracing.DETACH, tid)

    def _take_again(self, tid: int) -> None:
        if tid in self.tasks:
            tracing.ptrace(tracing.SEIZE, tid, 0, self.options)

    # Calls that the process did not ask for.

    def inject(self, task: Task, name: str, args: Sequence[int]) -> int:
        """Have a task, standing behind a call, make another; it is left where it stood."""
        saved = tracing.registers(task.tid)
        try:
            return self._inject(task, saved, name, args)
        finally:
            tracing.set_registers(task.tid, saved)

    def _inject(self, task: Task, saved: tracing.Registers, name: str, args: Sequence[int]) -> int:
        machine = tracing.machine()
        number = tracing.number(name)
        assert number is not None, name
        values = tracing.registers(task.tid)
        values[machine.program] = self._gate(task, saved[machine.program])
        for index, value in zip(machine.args, [*args, *[0] * (6 - len(args))]):
            values[index] = value & libc.ULONG_MAX
        if machine.number == 15:  # x86_64: the result's register carries the number
            values[machine.result] = number
            values[machine.number] = libc.ULONG_MAX
        else:
            values[machine.number] = number
        tracing.set_registers(task.tid, values)
        entered, held = False, 0
        while True:
            tracing.ptrace(tracing.SYSCALL, task.tid)
            _, word = self._wait(task.tid)
            if os.WSTOPSIG(word) == signal.SIGTRAP | 0x80:
                if tracing.at_entry(task.tid):
                    entered = True
                elif entered:
                    break
            elif not word >> 16:
                held = os.WSTOPSIG(word)
        if held:
            os.kill(task.tid, held)
        found = tracing.registers(task.tid)[machine.result]
        return found - (1 << 64) if found >> 63 else found

    def _gate(self, task: Task, program: int) -> int:
        """An address in the process where a system call's instruction stands."""
        gate = tracing.machine().gate
        with open(f"/proc/{task.tid}/mem", "rb", 0) as memory:
            if os.pread(memory.fileno(), len(gate), program - len(gate)) == gate:
                return program - len(gate)
            vdso = next(v for v in maps.vmas(task.tid) if v.name == "[vdso]")
            text = os.pread(memory.fileno(), vdso.size, vdso.start)
        at = text.find(gate)
        while gate[0] == 1 and at % 4:  # instructions of four bytes
            at = text.find(gate, at + 1)
        if at < 0:
            raise LookupError(f"no system call in the vdso of {task.tid}")
        return vdso.start + at

    def _halt(self, task: Task) -> bool:
        """Have a task stand still wherever it is; False if it cannot. Raises Gone."""
        if not task.begun or _uninterruptible(task.tid):
            return False
        tracing.ptrace(tracing.INTERRUPT, task.tid)
        while True:
            _, word = self._wait(task.tid)
            if word >> 16 == tracing.EVENT_STOP and os.WSTOPSIG(word) == signal.SIGTRAP:
                return True
            self._stopped(task.tid, word)

    def interrupt(self, process: Process, name: str, args: Sequence[int]) -> int:
        """Have another process make a call, and go on with whatever it was doing."""
        task = self.tasks.get(process.pid)
        try:
            if task is not None and self._halt(task):
                return self._interject(task, name, args)
        except Gone:
            pass  # its end is no reason to leave alone the task that is being told
        return -errno.ESRCH

    def _interject(self, task: Task, name: str, args: Sequence[int]) -> int:
        machine = tracing.machine()
        saved = tracing.registers(task.tid)
        word = saved[machine.result]
        result = word - (1 << 64) if word >> 63 else word
        value = self._inject(task, saved, name, args)
        if machine.number == 15 and saved[15] < 1 << 32 and result in _RESTARTS:
            # It was asleep in a call: let it make that call anew.
            saved[machine.program] -= len(machine.gate)
            saved[machine.result], saved[15] = saved[15], libc.ULONG_MAX
        tracing.set_registers(task.tid, saved)
        self._go_on(task)
        return value


def _uninterruptible(tid: int) -> bool:
    with open(f"/proc/{tid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] == "D"


_REFUSED = (
    "no process can be supervised here ({}); run as root, in a container with --cap-add "
    "SYS_PTRACE, with sysctl kernel.yama.ptrace_scope below 3"
)

# The supervisor as a service: one process, one case after the other.


def serve(where: socket.socket, lies: Callable[[Iterable[str]], Any]) -> None:
    """Answer requests (pid, faults, dry) until the other end closes; never returns."""
    own = where.fileno()
    os.closerange(3, own)
    os.closerange(own + 1, 1 << 16)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    while request := where.recv(1 << 20):
        asked = json.loads(request)
        one = Supervisor(lies(asked["faults"]), asked["dry"])
        try:
            tracing.ptrace(tracing.SEIZE, asked["pid"], 0, one.options)
        except (OSError, Gone) as error:
            where.send(json.dumps({"refused": _REFUSED.format(error)}).encode())
            continue
        where.send(b"{}")
        try:
            one.follow(asked["pid"])
        except Exception:
            where.send(json.dumps({"broken": traceback.format_exc()}).encode())
            os._exit(1)  # whom it held is killed
        where.send(json.dumps({"acted": one.acted, "problems": one.problems}).encode())
    os._exit(0)
