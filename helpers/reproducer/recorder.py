# SPDX-License-Identifier: MIT
"""What a case does and looks at, kept call by call in a file: for a rerun that is to become a
C program.

Functions of the suite are replaced in the case's own process, so a run that is not recorded
pays nothing. All its processes append to one file, in the order in which things happened.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import resource
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from helpers import syscalls
from helpers.memory import files, huge_pages, sysv_segment
from helpers.memory.region import Region
from helpers.model import differences
from helpers.observe import (
    evidence,
    lock_accounting,
    lru_batches,
    maps,
    mincore,
    page_faults,
    page_flags,
    pagemap,
    residency,
    special_mappings,
    status,
    vmstat,
)
from helpers.processes import credentials, limit_accounts, namespaces, stub, threads, vfork
from helpers.reproducer import tracked
from helpers.syscalls import call, io_uring, log, memory_access, numa, perf_event, userfaultfd

TESTS = os.sep + "tests" + os.sep
TABLES = os.sep + "refused_calls.py"
"""Bodies of cases that are not in a case's own file."""
_LONGEST = 1 << 16
"""Bytes of contents that are kept of one read or write."""


class Recorder:
    """The file, and whose functions stand in for whose."""

    def __init__(self, path: Path, head: Mapping[str, object]) -> None:
        self.fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o666)
        self._local = threading.local()
        self._count = 0
        self._write, self._getpid = os.write, os.getpid
        self.pid = os.getpid()
        self.stopped = False
        self._put({"kind": "head", "page": syscalls.PAGE, "pid": os.getpid(),
                   "memlock": resource.getrlimit(resource.RLIMIT_MEMLOCK),
                   "effective": credentials.capabilities().effective, **head})  # fmt: skip

    def _put(self, event: Mapping[str, object]) -> None:
        self._write(self.fd, json.dumps(event).encode() + b"\n")

    @property
    def depth(self) -> int:
        """How many recorded functions this thread is in: what they call is not recorded."""
        return getattr(self._local, "depth", 0)

    @contextlib.contextmanager
    def within(self) -> Iterator[None]:
        """In a function that is recorded as a whole."""
        self._local.depth = self.depth + 1
        try:
            yield
        finally:
            self._local.depth -= 1

    def event(self, kind: str, **data: object) -> str:
        """Append an event: its number, which is an origin."""
        if self.stopped:
            return ""
        self._count += 1
        pid = self._getpid()
        number = f"{pid}.{self._count}"
        line = _test_line(pid == self.pid)
        self._put({"kind": kind, "id": number, "pid": pid, "tid": threading.get_native_id(),
                   "line": line, **data})  # fmt: skip
        return number


def _test_line(outermost: bool) -> int:
    """The line of the case's file that led here: in a child, of the function that it runs."""
    frame, found = sys._getframe(2), 0
    while frame is not None:
        if TESTS in frame.f_code.co_filename:
            found = frame.f_lineno
            if not outermost:
                break
        frame = frame.f_back  # type: ignore[assignment]
    return found


def _by_test() -> bool:
    """The function that was replaced is called by a case itself."""
    file = sys._getframe(2).f_code.co_filename
    return TESTS in file or file.endswith(TABLES)


_recorder: Recorder | None = None


class _Calls(deque[Any]):
    """Stands in for :data:`helpers.syscalls.log.calls`."""

    def append(self, made: Any) -> None:
        super().append(made)
        name, args, result = made
        if _recorder and not _recorder.depth and not result.startswith("in child"):
            shown = [a if isinstance(a, int) else f"<{a}>" for a in args]
            _recorder.event("call", name=name, args=[tracked.plain(a) for a in shown],
                            result=result)  # fmt: skip


def _replace(original: Any, new: Any) -> None:
    """Put ``new`` wherever the suite and its cases know ``original`` by a name."""
    for name, module in list(sys.modules.items()):
        path = getattr(module, "__file__", None) or ""
        if name.startswith("helpers.reproducer"):
            continue
        if name.startswith("helpers") or TESTS in path:
            for key, value in list(vars(module).items()):
                if value is original:
                    setattr(module, key, new)


def _whole(original: Callable[..., Any], note: Callable[..., Any]) -> Callable[..., Any]:
    """A function that is recorded as one event, behind the call; what it returns may be tracked.

    ``note(recorder, value, *args)`` records, and returns what the case is given.
    """

    @functools.wraps(original)
    def made(*args: Any, **more: Any) -> Any:
        recorder = _recorder
        if recorder is None or recorder.depth or recorder.stopped:
            return original(*args, **more)
        with recorder.within():
            value = original(*args, **more)
            return note(recorder, value, *args, **more)

    return made


def _whole_function(original: Callable[..., Any], note: Callable[..., Any]) -> None:
    _replace(original, _whole(original, note))


def _looks() -> None:
    """Readings: their value is tracked, and is what the C program must see."""

    def look(function: Callable[..., Any], name: str, *parameters: str, **given: Any) -> None:
        defaults = {"pid": "self", **given}

        def note(recorder: Recorder, value: Any, *args: Any, **more: Any) -> Any:
            found = {**defaults, **dict(zip(parameters, args)), **more}
            data = {k: _argument(v) for k, v in found.items()}
            number = recorder.event("look", name=name, at=data, value=_seen(value))
            return tracked.tracked(value, number)

        _whole_function(function, note)

    look(status.vmlck_pages, "vmlck", "pid")
    look(status.vmlck_kb, "vmlck_kb", "pid")
    look(status.kb, "status_kb", "name", "pid")
    look(maps.layout, "layout", "region", "pid", unit=syscalls.PAGE)
    look(maps.layout_between, "layout", "low", "high", "unit", "pid")
    look(maps.locks, "locks", "low", "high", "unit", "pid")
    look(maps.pieces, "pieces", "low", "high", "unit", "pid")
    look(maps.locked_kb, "locked_kb", "pid")
    look(maps.rollup_kb, "rollup_kb", "name", "pid")
    look(lock_accounting.read, "accounting", "region", "pid")
    look(lock_accounting.page_letters, "letters", "region", "pid")
    look(pagemap.present, "present", "addr", "pages", "pid")
    look(pagemap.present_count, "present_count", "addr", "pages", "pid")
    look(pagemap.anonymous, "anonymous", "addr", "pages", "pid")
    look(residency.mapped_bits, "present", "region")
    look(residency.anon_bits, "anonymous", "region")
    look(residency.mincore_bits, "mincore", "region")
    look(mincore.resident, "mincore", "addr", "pages")
    look(mincore.resident_count, "mincore_count", "addr", "pages")
    look(page_flags.mlocked, "mlocked", "region", "pid")
    look(memory_access.load, "bytes", "addr", "size")

    def at(recorder: Recorder, value: maps.Vma, addr: int, pid: int | str = "self") -> maps.Vma:
        recorder.event("look", name="vma", at={"addr": addr, "pid": _argument(pid)},
                       value=[value.lock, value.perms])  # fmt: skip
        return value

    _whole_function(maps.at, at)

    def vmas(recorder: Recorder, value: Any, pid: Any = "self", low: int = 0, high: int = 0) -> Any:
        if high and high - low < 1 << 30:
            seen = [[max(v.start, low) - low, min(v.end, high) - low, v.perms] for v in value]
            recorder.event("look", name="vmas", at={"low": low, "high": high, "unit": 1,
                           "pid": _argument(pid)}, value=seen)  # fmt: skip
        else:
            recorder.event("pass", name="all VMAs")
        return value

    _whole_function(maps.vmas, vmas)

    def smaps(
        recorder: Recorder, value: Any, pid: Any = "self", low: int = 0, high: int = 0
    ) -> Any:
        if high and high - low < 1 << 30:
            seen = [[(max(v.start, low) - low) // syscalls.PAGE,
                     (min(v.end, high) - low) // syscalls.PAGE, v.lock] for v in value]  # fmt: skip
            recorder.event("look", name="layout", at={"low": low, "high": high,
                           "unit": syscalls.PAGE, "pid": _argument(pid)}, value=seen)  # fmt: skip
        else:
            recorder.event("pass", name="all of smaps")
        return value

    _whole_function(maps.smaps, smaps)

    def frames(recorder: Recorder, value: Any, addr: int, pages: int, *pids: int | str) -> Any:
        shots = value if isinstance(value, list) else [value]
        seen = {
            "mlocked": [_bits(s.mlocked) for s in shots],
            "present": [_bits(s.present) for s in shots],
            "shared": [_bits(a == b != 0 for a, b in zip(shots[0].pfns, s.pfns))
                       for s in shots[1:]],
            "counts": [list(s.counts) for s in shots],
        }  # fmt: skip
        data = {"addr": addr, "pages": pages, "pids": list(pids or ("self",))}
        number = recorder.event("look", name="frames", at=data, value=seen)
        return [_Shot.of(s, number, i) for i, s in enumerate(shots)] if (
            isinstance(value, list)) else _Shot.of(value, number, 0)  # fmt: skip

    _whole_function(page_flags.snapshot, frames)
    _whole_function(page_flags.snapshot_processes, frames)

    def faults(name: str) -> Callable[..., Any]:
        def note(recorder: Recorder, value: Any, addr: int, size: int, byte: int = 0x3C) -> Any:
            data = {"addr": addr, "size": size, "byte": byte, "pid": "self"}
            seen = [value.minor, value.major]
            number = recorder.event("look", name=name, at=data, value=seen)
            return page_faults.Faults(
                tracked.TrackedInt(value.minor, ["minor", number]),
                tracked.TrackedInt(value.major, ["major", number]),
            )

        return note

    _whole_function(page_faults.faults_writing, faults("faults_writing"))
    _whole_function(page_faults.faults_reading, faults("faults_reading"))

    for name in ("pfns", "entries", "swapped_count"):
        _ignored(getattr(pagemap, name), name)
    for function in (
        differences.kernel_has,
        limit_accounts.secret_counter,
        maps.total_kb,
        maps.locked,
        vmstat.read,
        status.fields,
        credentials.capabilities,
    ):
        _ignored(function, function.__name__)


class _Shot(page_flags.Snapshot):
    """A snapshot whose bits are tracked."""

    origin: Any

    @classmethod
    def of(cls, shot: page_flags.Snapshot, number: str, index: int) -> _Shot:
        made = cls(shot.entries, shot.pfns, shot.flags, shot.counts)
        object.__setattr__(made, "origin", [number, index])
        return made

    @property
    def mlocked(self) -> list[bool]:
        return tracked.TrackedList(self.bits(page_flags.MLOCKED), ["mlocked", *self.origin])

    @property
    def present(self) -> list[bool]:
        seen = [e >= pagemap.PRESENT for e in self.entries]
        return tracked.TrackedList(seen, ["present", *self.origin])


def _ignored(function: Callable[..., Any], name: str) -> None:
    """A reading that the C program cannot check: what the case concludes from it is not known."""

    def note(recorder: Recorder, value: Any, *args: Any, **more: Any) -> Any:
        recorder.event("pass", name=name)
        return value

    _whole_function(function, note)


def _bits(flags: Any) -> str:
    return "".join("1" if flag else "0" for flag in flags)


def _argument(value: Any) -> Any:
    if isinstance(value, Region):
        return [value.addr, value.size]
    if hasattr(value, "addr") and hasattr(value, "size"):
        return [value.addr, value.size]
    return tracked.plain(value)


def _seen(value: Any) -> Any:
    if isinstance(value, bytes):
        return value[:_LONGEST].hex()
    if isinstance(value, list) and value and isinstance(value[0], bool):
        return _bits(value)
    return tracked.plain(value)


def _accesses() -> None:
    """Reads and writes of memory by the processor."""

    def written(recorder: Recorder, _: Any, region: Region, byte: int = 0x5A) -> None:
        recorder.event("memset", addr=region.addr, size=region.size, byte=byte)

    def touched(recorder: Recorder, _: Any, region: Region, byte: int = 0xA5) -> None:
        recorder.event("touch", addr=region.addr, size=region.size, byte=byte)

    def read(recorder: Recorder, value: bytes, region: Region) -> bytes:
        data = {"addr": region.addr, "size": region.size, "pid": "self"}
        recorder.event("look", name="bytes", at=data, value=_seen(value))
        return value

    def first(recorder: Recorder, value: bytes, region: Region) -> bytes:
        data = {"addr": region.addr, "size": region.size, "pid": "self"}
        recorder.event("look", name="first_bytes", at=data, value=_seen(value))
        return value

    for name, note in (("write", written), ("touch", touched), ("read", read),
                       ("first_bytes", first)):  # fmt: skip
        setattr(Region, name, _before_whole(getattr(Region, name), note))

    def memset(recorder: Recorder, _: Any, addr: int, byte: int, size: int) -> None:
        recorder.event("memset", addr=addr, size=size, byte=byte)

    def store(recorder: Recorder, _: Any, addr: int, data: bytes) -> None:
        recorder.event("store", addr=addr, data=data[:_LONGEST].hex())

    _replace(memory_access.memset, _before_whole(memory_access.memset, memset))
    _replace(memory_access.store, _before_whole(memory_access.store, store))

    def through_proc(recorder: Recorder, _: Any, addr: int, data: bytes) -> None:
        recorder.event("write_proc", addr=addr, data=data[:_LONGEST].hex(), to="self")

    _whole_function(memory_access.write_proc_self_mem, through_proc)


def _before_whole(original: Callable[..., Any], note: Callable[..., Any]) -> Callable[..., Any]:
    """As :func:`_whole`; an access that is to kill the process is recorded before it."""
    reads = original.__name__ in ("read", "first_bytes")

    @functools.wraps(original)
    def made(*args: Any, **more: Any) -> Any:
        recorder = _recorder
        if recorder is None or recorder.depth or recorder.stopped:
            return original(*args, **more)
        with recorder.within():
            if reads:
                number = recorder.event("read", addr=args[0].addr, size=args[0].size)
                del number
                return note(recorder, original(*args, **more), *args, **more)
            note(recorder, None, *args, **more)
            return original(*args, **more)

    return made


def _actions() -> None:
    """What prepares memory, rights and limits."""

    def memfd(recorder: Recorder, fd: int, size: int) -> int:
        recorder.event("memfd", fd=fd, size=size)
        return fd

    def scratch(recorder: Recorder, fd: int, pages: int, directory: object = None) -> int:
        recorder.event("file", fd=fd, pages=pages)
        return fd

    _whole_function(files.memfd, memfd)

    def secret(recorder: Recorder, fd: int, size: int) -> int:
        recorder.event("secret", fd=fd, size=size)
        return fd

    def opened(recorder: Recorder, new: int, fd: int) -> int:
        recorder.event("opened_to_read", fd=new, of=fd)
        return new

    def enabled(recorder: Recorder, _: Any, fd: int, features: int = 0) -> None:
        recorder.event("uffd", name="enable", fd=fd, words=[features])

    def registered(
        recorder: Recorder, _: Any, fd: int, region: Any, mode: int = userfaultfd.MISSING
    ) -> None:
        recorder.event("uffd", name="register", fd=fd, words=[region.addr, region.size, mode])

    _whole_function(userfaultfd.enable, enabled)
    _whole_function(userfaultfd.register, registered)

    _whole_function(files.secret, secret)
    _whole_function(files.opened_to_read, opened)
    _whole_function(files.scratch_file, scratch)

    def write_file(recorder: Recorder, _: Any, fd: int, data: bytes, offset: int = 0) -> None:
        recorder.event("pwrite", fd=fd, data=data[:_LONGEST].hex(), offset=offset)

    _whole_function(files.write_file, write_file)

    def drained(recorder: Recorder, _: Any) -> None:
        recorder.event("drain")

    _whole_function(lru_batches.mlock_drain_local, drained)

    def capset(recorder: Recorder, _: Any, sets: credentials.CapabilitySets) -> None:
        recorder.event("capset", effective=sets.effective, permitted=sets.permitted)

    _whole_function(credentials.set_capabilities, capset)

    def namespace(recorder: Recorder, _: Any) -> None:
        recorder.event("user_namespace")

    _whole_function(namespaces.enter_user_namespace, namespace)

    def vforked(recorder: Recorder, _: Any, function: str, *args: int) -> None:
        recorder.event("vfork", function=function, args=list(args))

    _replace(vfork.call_in_vfork_child, _vforked(vfork.call_in_vfork_child, vforked))

    def affinity(recorder: Recorder, _: Any, pid: int, cpus: Any) -> None:
        recorder.event("affinity", cpus=len(set(cpus)))

    os.sched_setaffinity = _whole(os.sched_setaffinity, affinity)

    def asked(function: Callable[..., Any], args: tuple[Any, ...]) -> str:
        return getattr(function, "__name__", "?")

    def outcome(recorder: Recorder, value: str, function: Any, *args: Any) -> str:
        return tracked.TrackedStr(value, recorder.event("outcome", value=value,
                                                        of=asked(function, args)))  # fmt: skip

    original = call.outcome

    @functools.wraps(original)
    def answered(function: Callable[..., object], *args: object) -> str:
        value = original(function, *args)
        if _recorder is None or _recorder.depth or _recorder.stopped:
            return value
        return outcome(_recorder, value, function, *args)

    _replace(original, answered)

    for name in ("create", "register", "unregister"):
        ring: Any = getattr(io_uring, name)
        _replace(ring, _as_call(ring, f"uring_{name}"))
    for function, why in (
        (threads.run_threads, "threads that race each other"),
        (io_uring.clone_buffers, "buffers of io_uring that are cloned"),
        (perf_event.open_dummy_event, "perf, whose allowance a user's rings have in common"),
        (special_mappings.remap_special_mappings, "the vdso, mapped anew"),
        (huge_pages.enable_thp, "transparent huge pages"),
        (sysv_segment.set_owner, "a segment given to another user"),
        (numa.move_pages, "move_pages(2)"),
        (page_faults.faults_during, "page faults of a function of the interpreter"),
    ):
        _replace(function, _impossible(function, why))


def _vforked(original: Callable[..., Any], note: Callable[..., Any]) -> Callable[..., Any]:
    return _whole(original, note)


def _as_call(original: Any, name: str) -> Callable[..., Any]:
    """A function that C has one for too: recorded as a system call is."""

    @functools.wraps(original)
    def made(*args: Any) -> Any:
        recorder = _recorder
        if recorder is None or recorder.depth or recorder.stopped:
            return original(*args)
        numbers = list(args) or [1]
        try:
            with recorder.within():
                value = original(*args)
        except OSError as error:
            recorder.event("call", name=name, args=numbers, result=syscalls_errno(error))
            raise
        recorder.event("call", name=name, args=numbers, result=log.show_value(value or 0))
        return value

    return made


def _impossible(original: Any, why: str) -> Callable[..., Any]:
    @functools.wraps(original)
    def made(*args: Any, **more: Any) -> Any:
        if _recorder and not _recorder.depth:
            _recorder.event("cannot", why=why)
        return original(*args, **more)

    return made


_ANYBODY = ("setuid", "seteuid", "setresuid", "setresgid", "setgroups")
_BY_TESTS = (
    "ftruncate", "pwrite", "pread", "close", "fsync", "fdatasync", "dup", "write", "read", "lseek",
    "posix_fadvise", "fchmod", "open", "pipe", "memfd_create", "posix_fallocate", "readv", "writev",
    "posix_spawnp", "set_inheritable", "sched_yield", "pidfd_open", "preadv", "pwritev",
)  # fmt: skip


def _os_functions() -> None:
    for name in (*_ANYBODY, *_BY_TESTS):
        setattr(os, name, _os_function(name, getattr(os, name), name in _ANYBODY))
    fork, waitpid, kill = os.fork, os.waitpid, os.kill

    @functools.wraps(fork)
    def forked() -> int:
        recorder, parent = _recorder, os.getpid()
        pid = fork()
        if recorder and not recorder.stopped:
            recorder.event("fork", parent=parent, child=pid or os.getpid())
        return pid

    @functools.wraps(waitpid)
    def waited(pid: int, options: int) -> tuple[int, int]:
        found = waitpid(pid, options)
        if _recorder and found[0]:
            _recorder.event("wait", child=found[0], status=found[1])
        return found

    @functools.wraps(kill)
    def killed(pid: int, number: int) -> None:
        if _recorder:
            _recorder.event("kill", child=pid, signal=int(number))
        kill(pid, number)

    os.fork, os.waitpid, os.kill = forked, waited, killed
    for name in ("execv", "execve", "execvp"):
        setattr(os, name, _executed(getattr(os, name)))
    setrlimit, prlimit = resource.setrlimit, resource.prlimit

    @functools.wraps(setrlimit)
    def limited(which: int, limits: tuple[int, int]) -> None:
        setrlimit(which, limits)
        if _recorder and not _recorder.depth:
            _recorder.event("rlimit", which=int(which), of=0, soft=limits[0], hard=limits[1])

    @functools.wraps(prlimit)
    def prlimited(pid: int, which: int, limits: tuple[int, int] | None = None) -> tuple[int, int]:
        old = prlimit(pid, which, limits) if limits is not None else prlimit(pid, which)
        if _recorder and not _recorder.depth and limits is not None:
            _recorder.event("rlimit", which=int(which), of=pid, soft=limits[0], hard=limits[1])
        return old

    resource.setrlimit, resource.prlimit = limited, prlimited


def _os_function(name: str, original: Any, anybody: bool) -> Any:
    @functools.wraps(original)
    def made(*args: Any, **named: Any) -> Any:
        if _recorder is None or _recorder.depth or not (anybody or _by_test()):
            return original(*args, **named)
        try:
            value = original(*args, **named)
        except OSError as error:
            _recorder.event("os", name=name, args=[_seen(a) for a in args], error=error.errno)
            raise
        more = {"effective": credentials.capabilities().effective} if anybody else {}
        _recorder.event("os", name=name, args=[_seen(a) for a in args], value=_seen(value), **more)
        return value

    return made


def _executed(original: Any) -> Any:
    @functools.wraps(original)
    def made(path: Any, *more: Any) -> Any:
        if _recorder is None or _recorder.depth:
            return original(path, *more)
        _recorder.event("exec", path=path if isinstance(path, str) else "")
        try:
            with _recorder.within():
                return original(path, *more)
        except OSError as error:
            _recorder.event("exec_failed", error=error.errno)
            raise

    return made


def _stub_process() -> None:
    def call(self: stub.StubProcess, name: str, *args: int, payload: bytes = b"") -> int:
        recorder = _recorder
        if recorder is None or recorder.depth:
            return original(self, name, *args, payload=payload)
        try:
            value = original(self, name, *args, payload=payload)
        except OSError as error:
            recorder.event("call", name=name, args=list(args), actor=self.pid,
                           result=syscalls_errno(error))  # fmt: skip
            raise
        recorder.event("call", name=name, args=list(args), actor=self.pid,
                       result=log.show_value(value))  # fmt: skip
        return value

    original = stub.StubProcess.call
    stub.StubProcess.call = functools.wraps(original)(call)  # type: ignore[method-assign]

    def calls(self: stub.StubProcess, name: str, *each: tuple[int, ...]) -> None:
        many(self, name, *each)
        if _recorder and not _recorder.depth:
            for args in each:
                _recorder.event("call", name=name, args=list(args), actor=self.pid, result="0")

    many = stub.StubProcess.calls
    stub.StubProcess.calls = functools.wraps(many)(calls)  # type: ignore[method-assign]

    def store(
        recorder: Recorder, _: Any, self: stub.StubProcess, addr: int, byte: int = 0x5A
    ) -> Any:
        recorder.event("memset", addr=addr, size=1, byte=byte, actor=self.pid)

    stub.StubProcess.store = _before_whole(stub.StubProcess.store, store)  # type: ignore[method-assign]

    def without(recorder: Recorder, value: Any, self: stub.StubProcess, *names: str) -> Any:
        recorder.event("lower", names=list(names), actor=self.pid)
        return value

    stub.StubProcess.without = _whole(stub.StubProcess.without, without)  # type: ignore[method-assign]


def syscalls_errno(error: OSError) -> str:
    """The name of an error's number."""
    import errno

    return errno.errorcode.get(error.errno or 0, str(error.errno))


def start(path: Path, head: Mapping[str, object]) -> Recorder:
    """Record this process and its descendants from now on. Raises OSError."""
    global _recorder
    recorder = Recorder(path, head)
    log_calls = _Calls(log.calls, log.calls.maxlen)
    for module in list(sys.modules.values()):
        if getattr(module, "calls", None) is log.calls and module is not log:
            module.calls = log_calls  # type: ignore[attr-defined]
    log.calls = log_calls
    _looks()
    _accesses()
    _actions()
    _os_functions()
    _stub_process()

    def compared(op: str, origin: Any, other: Any, held: bool) -> None:
        if _recorder and not _recorder.depth:
            _recorder.event("compare", op=op, of=origin, other=other, held=held)

    tracked.compared.append(compared)
    evidence.enabled = False
    _recorder = recorder
    return recorder


def failed(left: object, right: object) -> None:
    """An assertion did not hold: note what was expected of each reading, and stop."""
    if _recorder is None or _recorder.stopped:
        return
    _recorder.event("failed")
    tracked.pair(left, right)
    _recorder.stopped = True
