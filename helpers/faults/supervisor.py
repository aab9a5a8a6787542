# SPDX-License-Identifier: MIT
"""The process that injects faults: it traces a case and its descendants by ptrace, call by call.

A worker of pytest starts one supervisor. For each case it is told the process, the faults,
and whether to act or only to note which of them would have.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import socket
import struct
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from helpers import syscalls
from helpers.faults.call import (
    CHILD,
    END,
    SIGNAL,
    Call,
    Effect,
    PendingEffect,
    ReadFilter,
    SyscallStop,
    Tracee,
    TraceeMemory,
    TraceeProcess,
    opened,
)
from helpers.observe import maps, status
from helpers.syscalls import ptrace, seccomp
from helpers.syscalls.ptrace import TraceeExited

_STOPS = (signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)
_RESTARTS = range(-516, -511)
_TAKES = (ptrace.ATTACH, ptrace.SEIZE)
_BELOW = 1024
"""Bytes below a stack pointer that nobody uses while the task stands still."""
_F_DUPFD, _F_DUPFD_CLOEXEC = 0, 1030


class Supervisor:
    """The loop of the supervising process over one case."""

    def __init__(self, effects: Mapping[str, Sequence[tuple[str, Effect]]], dry: bool) -> None:
        self.effects, self.dry = effects, dry
        self.options = ptrace.OPTIONS | (ptrace.TRACE_EXIT if END in effects else 0)
        self.names = {ptrace.call_number(n): n for n in effects if n not in (CHILD, SIGNAL, END)}
        self.files = {
            effect.files for _, effect in effects.get("read", ()) if isinstance(effect, ReadFilter)
        }
        self.names[ptrace.call_number("ptrace")] = "ptrace"
        if self.files:
            self.names[ptrace.call_number("openat")] = "openat"
        self.tasks: dict[int, Tracee] = {}
        self.early: set[int] = set()
        self.acted: dict[str, int] = {}
        self.refused: dict[str, str] = {}
        self.notes: dict[str, dict[object, Any]] = {}
        self.vforked: set[int] = set()
        self.problems: list[str] = []
        self.root, self.over = 0, False
        self.pending: list[tuple[int, int]] = []
        """Stops that were told while another task was waited for."""

    def follow(self, pid: int) -> None:
        """Until the seized process ``pid`` has ended; what it leaves is killed."""
        self.root = pid
        self.tasks[pid] = Tracee(pid, TraceeProcess(pid, TraceeMemory()), begun=True)
        while not self.over:
            try:
                self._stopped(*self._wait())
            except TraceeExited:
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
                os.waitpid(-1, ptrace.WALL)
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
            got, word = os.waitpid(-1, ptrace.WALL)
            while got:  # all that have something to tell: the kernel would let the first go first
                if os.WIFSTOPPED(word):
                    self.pending.append((got, word))
                else:
                    self.tasks.pop(got, None)
                    self.pending = [event for event in self.pending if event[0] != got]
                    self.over = self.over or got == self.root
                    if got in (tid, self.root):
                        raise TraceeExited(f"task {got} has ended")
                got, word = os.waitpid(-1, ptrace.WALL | os.WNOHANG)

    def _stopped(self, tid: int, word: int) -> None:
        number, event = os.WSTOPSIG(word), word >> 16
        task = self.tasks.get(tid)
        if task is None:
            self.early.add(tid)  # stopped before its parent told of it
            return
        if event == ptrace.EVENT_SECCOMP:
            self._entered(task)
        elif number == signal.SIGTRAP | 0x80:
            self._left(task)
        elif event in (ptrace.EVENT_FORK, ptrace.EVENT_VFORK, ptrace.EVENT_CLONE):
            self._forked(task, ptrace.event_message(tid), event)
            self._go_on(task)
        elif event == ptrace.EVENT_EXEC:
            self._executed(task, ptrace.event_message(tid))
            self._go_on(task)
        elif event == ptrace.EVENT_EXIT:
            self._tell(SyscallStop(self, task, END, [ptrace.event_message(tid)]))
            self._go_on(task)
        elif event == ptrace.EVENT_STOP:
            if not task.begun:
                self._begin(task)
            elif number in _STOPS:
                ptrace.ptrace(ptrace.LISTEN, tid)
            else:
                self._go_on(task)
        else:
            if SIGNAL in self.effects:
                stop = SyscallStop(self, task, SIGNAL, [number])
                self._tell(stop)
                number = 0 if stop.swallowed else number
            self._go_on(task, number)

    def _go_on(self, task: Tracee, number: int = 0) -> None:
        request = ptrace.SYSCALL if task.waiting else ptrace.CONT
        ptrace.ptrace(request, task.tid, 0, number)

    def _forked(self, task: Tracee, tid: int, event: int) -> None:
        try:
            group = int(status.fields(tid)["Tgid"])
        except (OSError, KeyError):
            group = tid
        vforked = event == ptrace.EVENT_VFORK
        if group == task.process.pid:
            new = Tracee(tid, task.process, begun=False)
        else:
            space = task.process.space if vforked else TraceeMemory()
            new = Tracee(tid, TraceeProcess(tid, space, vforked, task.process))
        if vforked:
            self.vforked.add(tid)
        self.tasks[tid] = new
        if tid in self.early:
            self.early.discard(tid)
            self._begin(new)

    def _begin(self, task: Tracee) -> None:
        """A new task's first stop."""
        task.begun = True
        process = task.process
        if process.parent is not None and not process.vforked and task.tid == process.pid:
            self._tell(SyscallStop(self, task, CHILD, [], parent=process.parent))
        self._go_on(task)

    def _executed(self, task: Tracee, former: int) -> None:
        if former != task.tid and former in self.tasks:
            task.waiting = self.tasks.pop(former).waiting
        old, task.process.space = task.process.space, TraceeMemory()
        task.process.vforked = False
        if task.waiting:
            task.waiting[0].before_exec = old

    def _tell(self, stop: SyscallStop) -> list[PendingEffect]:
        """Show a stop to every fault that wants it; those to be resumed by its result."""
        left: list[PendingEffect] = []
        for fault, effect in self.effects.get(stop.name, ()):
            if self.dry and fault in self.acted:
                continue  # that it can act in this case is all there is to note
            if isinstance(effect, ReadFilter) and not effect.files.fullmatch(opened(stop)):
                continue
            call = Call(stop, fault, self.dry)
            try:
                steps = effect(call)
                if steps is not None:
                    next(steps)
                    left.append((fault, steps))
            except (OSError, LookupError, ValueError) as error:
                self._problem(fault, stop, error)
            except StopIteration:
                pass
        return left

    def _problem(self, fault: str, stop: SyscallStop, error: Exception) -> None:
        if isinstance(error, FileNotFoundError | ProcessLookupError | KeyError):
            return  # the process has ended meanwhile
        text = f"{fault}: {stop.name}: {type(error).__name__}: {error}"
        if not self.dry and text not in self.problems:
            self.problems.append(text)

    def _entered(self, task: Tracee) -> None:
        machine = ptrace.register_layout()
        values = ptrace.registers(task.tid)
        name = self.names.get(values[machine.number])
        if name is None:
            ptrace.ptrace(ptrace.CONT, task.tid)
            return
        stop = SyscallStop(self, task, name, [values[i] for i in machine.args])
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
        steps = self._tell(stop)
        if stop.changed:
            for index, value in stop.changed.items():
                values[machine.args[index]] = value
            ptrace.set_registers(task.tid, values)
        if stop.answer is not None:
            ptrace.set_number(task.tid, -1)
        task.waiting = (stop, steps) if steps or stop.changed or stop.answer is not None else (
            None
        )  # fmt: skip
        self._go_on(task)

    def _left(self, task: Tracee) -> None:
        if task.waiting is None:
            ptrace.ptrace(ptrace.CONT, task.tid)
            return
        (stop, steps), task.waiting = task.waiting, None
        machine = ptrace.register_layout()
        values = ptrace.registers(task.tid)
        word = values[machine.result]
        stop.result = word - (1 << 64) if word >> 63 else word
        if stop.answer is not None:
            stop.result = stop.answer
        if stop.name == "openat":
            self._mark(stop)
        elif stop.name == "ptrace":
            done = stop.result >= 0
            if (stop.args[0] == ptrace.DETACH and done) or (stop.args[0] in _TAKES and not done):
                self._take_again(stop.args[1])
        stop.memo = {k: v for k, v in stop.memo.items() if k in ("file", "sets", "capable")}
        for fault, effect in steps:
            try:
                effect.send(stop.result)
            except StopIteration:
                pass
            except (OSError, LookupError, ValueError) as error:
                self._problem(fault, stop, error)
        final = stop.result if stop.said is None else stop.said
        if stop.changed or stop.answer is not None or stop.said is not None:
            values = ptrace.registers(task.tid)
            for index in stop.changed:
                values[machine.args[index]] = stop.args[index]
            values[machine.result] = final & syscalls.ULONG_MAX
            ptrace.set_registers(task.tid, values)
        ptrace.ptrace(ptrace.CONT, task.tid)

    # Files that a fault shows otherwise: their descriptors are moved to where the filter of
    # system calls sees them read. All other reads, which are most calls, run at full speed.

    def _may_show(self, tid: int, addr: int) -> bool:
        with open(f"/proc/{tid}/mem", "rb", 0) as file:
            return os.pread(file.fileno(), 5, addr) in (b"/proc", b"/sys/")

    def _mark(self, stop: SyscallStop) -> None:
        if stop.result < 0:
            return
        stop.args[0] = stop.result
        if not any(files.fullmatch(opened(stop)) for files in self.files):
            return
        command = _F_DUPFD_CLOEXEC if stop.args[2] & os.O_CLOEXEC else _F_DUPFD
        moved = self.inject(stop.task, "fcntl", (stop.result, command, seccomp.MARK))
        if moved < 0:
            code = OSError(-moved, os.strerror(-moved))
            self._problem("what is read", stop, code)
            return
        self.inject(stop.task, "close", (stop.result,))
        stop.said = moved

    # Cases that trace a process themselves: no process has two tracers, so ours lets go of it
    # for as long as the case holds it (it stands still then, and makes no call to change).

    def _release(self, tid: int) -> None:
        task = self.tasks.get(tid)
        if task is not None and self._halt(task):
            ptrace.ptrace(ptrace.DETACH, tid)

    def _take_again(self, tid: int) -> None:
        if tid in self.tasks:
            ptrace.ptrace(ptrace.SEIZE, tid, 0, self.options)

    # Calls that the process did not ask for.

    def inject(self, task: Tracee, name: str, args: Sequence[int]) -> int:
        """Have a task, standing behind a call, make another; it is left where it stood."""
        saved = ptrace.registers(task.tid)
        try:
            return self._inject(task, saved, name, args)
        finally:
            ptrace.set_registers(task.tid, saved)

    def _inject(self, task: Tracee, saved: ptrace.Registers, name: str, args: Sequence[int]) -> int:
        machine = ptrace.register_layout()
        number = ptrace.call_number(name)
        assert number is not None, name
        values = ptrace.registers(task.tid)
        values[machine.program] = self._gate(task, saved[machine.program])
        for index, value in zip(machine.args, [*args, *[0] * (6 - len(args))]):
            values[index] = value & syscalls.ULONG_MAX
        if machine.number == 15:  # x86_64: the result's register carries the number
            values[machine.result] = number
            values[machine.number] = syscalls.ULONG_MAX
        else:
            values[machine.number] = number
        ptrace.set_registers(task.tid, values)
        entered, held = False, 0
        while True:
            ptrace.ptrace(ptrace.SYSCALL, task.tid)
            _, word = self._wait(task.tid)
            if os.WSTOPSIG(word) == signal.SIGTRAP | 0x80:
                if ptrace.at_entry(task.tid):
                    entered = True
                elif entered:
                    break
            elif not word >> 16:
                held = os.WSTOPSIG(word)
        if held:
            os.kill(task.tid, held)
        found = ptrace.registers(task.tid)[machine.result]
        return found - (1 << 64) if found >> 63 else found

    def set_memlock(self, task: Tracee, soft: int, hard: int) -> None:
        """Have a task, standing behind a call, set its own RLIMIT_MEMLOCK (−1: infinite).

        The numbers are lent it below its stack pointer. Raises OSError.
        """
        data = struct.pack("=QQ", soft & syscalls.ULONG_MAX, hard & syscalls.ULONG_MAX)
        where = (ptrace.registers(task.tid)[ptrace.register_layout().stack] - _BELOW) & -16
        with open(f"/proc/{task.tid}/mem", "r+b", 0) as memory:
            old = os.pread(memory.fileno(), len(data), where)
            os.pwrite(memory.fileno(), data, where)
            done = self.inject(task, "prlimit64", (0, resource.RLIMIT_MEMLOCK, where, 0))
            os.pwrite(memory.fileno(), old, where)
        if done < 0:
            raise OSError(-done, os.strerror(-done))

    def _gate(self, task: Tracee, program: int) -> int:
        """An address in the process where a system call's instruction stands."""
        gate = ptrace.register_layout().gate
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

    def _halt(self, task: Tracee) -> bool:
        """Have a task stand still wherever it is; False if it cannot. Raises Gone."""
        if not task.begun or _uninterruptible(task.tid):
            return False
        ptrace.ptrace(ptrace.INTERRUPT, task.tid)
        while True:
            _, word = self._wait(task.tid)
            if word >> 16 == ptrace.EVENT_STOP and os.WSTOPSIG(word) == signal.SIGTRAP:
                return True
            self._stopped(task.tid, word)

    def interrupt(self, process: TraceeProcess, name: str, args: Sequence[int]) -> int:
        """Have another process make a call, and go on with whatever it was doing."""
        task = self.tasks.get(process.pid)
        try:
            if task is not None and self._halt(task):
                return self._interject(task, name, args)
        except TraceeExited:
            pass  # its end is no reason to leave alone the task that is being told
        return -errno.ESRCH

    def _interject(self, task: Tracee, name: str, args: Sequence[int]) -> int:
        machine = ptrace.register_layout()
        saved = ptrace.registers(task.tid)
        word = saved[machine.result]
        result = word - (1 << 64) if word >> 63 else word
        value = self._inject(task, saved, name, args)
        if machine.number == 15 and saved[15] < 1 << 32 and result in _RESTARTS:
            # It was asleep in a call: let it make that call anew.
            saved[machine.program] -= len(machine.gate)
            saved[machine.result], saved[15] = saved[15], syscalls.ULONG_MAX
        ptrace.set_registers(task.tid, saved)
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


def serve(where: socket.socket, effects: Callable[[Iterable[str]], Any]) -> None:
    """Answer requests (pid, faults, dry) until the other end closes; never returns."""
    own = where.fileno()
    os.closerange(3, own)
    os.closerange(own + 1, 1 << 16)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    while request := where.recv(1 << 20):
        asked = json.loads(request)
        one = Supervisor(effects(asked["faults"]), asked["dry"])
        try:
            ptrace.ptrace(ptrace.SEIZE, asked["pid"], 0, one.options)
        except (OSError, TraceeExited) as error:
            where.send(json.dumps({"refused": _REFUSED.format(error)}).encode())
            continue
        where.send(b"{}")
        try:
            one.follow(asked["pid"])
        except Exception:
            where.send(json.dumps({"broken": traceback.format_exc()}).encode())
            os._exit(1)  # whom it held is killed
        never = [f"{fault}: {why}" for fault, why in one.refused.items() if fault not in one.acted]
        said = {"acted": one.acted, "problems": one.problems + never}
        where.send(json.dumps(said).encode())
    os._exit(0)
