# SPDX-License-Identifier: MIT
"""The kernel's side: a bare process that makes the calls, and what is seen of it from outside.

The process has one page of code, a stack, and what it is told to map, so VmLck and VmSize are
compared exactly, mlockall included. ``fork`` is a vfork with memory of its own: the parent
stands still while the child makes the calls.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import resource
import signal
import struct
from collections.abc import Iterator
from pathlib import Path

from helpers import processes, syscalls
from helpers.model import script
from helpers.model.address_space import value_of
from helpers.model.observation import (
    _ADVISED,
    _VMA,
    Observation,
    _is_special,
    _kb,
    _known,
    _lock,
    _whole,
)
from helpers.model.script import ARENA, HEAP, HEAP_PAGES, MAX, Call, NotApplicable
from helpers.observe import page_flags, pagemap
from helpers.processes import credentials, namespaces, rlimits, stub_code
from helpers.processes.stub import StubProcess
from helpers.syscalls import PAGE

BASE = 1 << 33
"""Address of the arena: nothing of a bare process is near."""
_FD = 9  # the memfd, there

_MCL = {
    "current": syscalls.MCL_CURRENT,
    "future": syscalls.MCL_FUTURE,
    "onfault": syscalls.MCL_ONFAULT,
}
_PROT = {
    "none": 0,
    "r": syscalls.PROT_READ,
    "rw": syscalls.PROT_RW,
    "rx": syscalls.PROT_READ | syscalls.PROT_EXEC,
    "w": syscalls.PROT_WRITE,
}
_ADVICE = {name: getattr(syscalls, "MADV_" + name.upper()) for name in script.ADVICE}
_SINCE = {"dontneed_locked": "5.18", "populate_read": "5.14", "populate_write": "5.14"}
_OPTIONS = {"locked": syscalls.MAP_LOCKED, "populate": syscalls.MAP_POPULATE,
            "nonblock": syscalls.MAP_NONBLOCK}  # fmt: skip
_MSYNC = {
    "async": syscalls.MS_ASYNC,
    "sync": syscalls.MS_SYNC,
    "invalidate": syscalls.MS_INVALIDATE,
}
_PR_SET_NAME, _PR_GET_NAME = 15, 16


class KernelSide:
    """A bare process with an empty arena. Raises Unfit where it cannot be made."""

    def __init__(self, marks: bool = True) -> None:
        if not stub_code.supported():
            raise NotApplicable(f"no machine code for a bare process on {syscalls.architecture()}")
        self.memfd = os.memfd_create("model", syscalls.MFD_CLOEXEC)
        try:
            os.ftruncate(self.memfd, ARENA * PAGE)
            self.bare = StubProcess(functools.partial(_prepare, self.memfd))
        except BaseException:
            os.close(self.memfd)
            raise
        self.marks = marks
        self.pids = [self.bare.pid]
        self._opened: dict[int, tuple[int, int, int, int]] = {}
        try:
            self.bare.trim()
            top = self.bare.call("brk", 0)
            self.heap = -(-top // PAGE) * PAGE
            self.bare.call("brk", self.heap)
            self.fixed, self.special = self._image()
        except BaseException:
            self.__exit__()
            raise

    @property
    def pid(self) -> int:
        """The process that makes the next call."""
        return self.pids[-1]

    @property
    def capable(self) -> bool:
        """CAP_IPC_LOCK is effective there, and counts."""
        mask = 1 << credentials.CAPABILITIES["CAP_IPC_LOCK"]
        held = credentials.capabilities(self.pid).effective & mask
        return bool(held) and namespaces.in_initial_user_namespace()

    @property
    def limit(self) -> int:
        """Its soft RLIMIT_MEMLOCK in bytes, −1 for unlimited."""
        return resource.prlimit(self.pid, resource.RLIMIT_MEMLOCK)[0]

    def _files(self) -> tuple[int, int, int, int]:
        if self.pid not in self._opened:
            names = ("smaps", "pagemap", "status", "mem")
            opened = [os.open(f"/proc/{self.pid}/{n}", os.O_RDONLY | os.O_CLOEXEC) for n in names]
            self._opened[self.pid] = (opened[0], opened[1], opened[2], opened[3])
        return self._opened[self.pid]

    def _image(self) -> tuple[int, int]:
        """Pages of program and stack, and of the kernel's own mappings."""
        fixed = special = 0
        for start, end, _, _, _, flags in _VMA.findall(_whole(self._files()[0])):
            pages = (int(end, 16) - int(start, 16)) // PAGE
            if int(start, 16) >> 63:
                continue  # the gate: in no account
            if _is_special(flags.split()):
                special += pages
            else:
                fixed += pages
        return fixed, special

    def at(self, where: float) -> int:
        """Address of a page, or of the middle of one."""
        if where >= HEAP:
            return self.heap + int((where - HEAP) * PAGE)
        return BASE + int(where * PAGE)

    # Calls

    def apply(self, call: Call, expected: str = "ok") -> str:
        """Make the call there: ``"ok"`` or the name of its errno. Raises Unfit.

        A ``write`` that is ``expected`` to succeed is a store, which a fault would kill
        (ChildKilled); one that is not is made by the kernel, which answers EFAULT.
        """
        self._expected = expected
        try:
            function = getattr(self, "_" + call.name, None)
            if function is not None:
                outcome: str = function(call)
                return outcome
            self._plain(call)
        except OSError as error:
            return errno.errorcode.get(error.errno or 0, str(error.errno))
        return "ok"

    def check(self, call: Call) -> None:
        """Raises Unfit, before anything is done, for a call that cannot be made here."""
        if call.name == "madvise":
            advice = str(call.args[2])
            if advice in _SINCE and not _advice_known(advice):
                since = f"a kernel from {_SINCE[advice]} on"
                raise NotApplicable(f"{call}: no MADV_{advice.upper()} here; {since}")
        if call.name == "capability" and call.args[0] == "on":
            mask = 1 << credentials.CAPABILITIES["CAP_IPC_LOCK"]
            permitted = credentials.capabilities(self.pid).permitted & mask
            if not (permitted and namespaces.in_initial_user_namespace()):
                raise NotApplicable("capability on: CAP_IPC_LOCK is not permitted here")

    def _plain(self, call: Call) -> None:
        args: list[int] = []
        kinds = script.CALLS[call.name][0]
        for kind, value in zip(kinds, call.args):
            if isinstance(value, str):
                args.append(self._word(kind, value))
            elif kind in {"page", "where"}:
                args.append(self.at(value))
            elif value == MAX:
                args.append(syscalls.SIZE_MAX)
            elif kind in {"count", "length"}:
                args.append(int(value * PAGE))
            else:
                args.append(self._flags(int(value)) if kind == "mcl" else int(value))
        self.bare.call(call.name, *args)

    @staticmethod
    def _flags(value: int) -> int:
        # ppc64 has bits of its own; those that nobody knows stay as they are.
        bits = list(_MCL.values())
        known = sum(bit for n, bit in enumerate(bits) if value >> n & 1)
        return known | (value >> 3 << 3 if value > 7 else 0)

    @staticmethod
    def _word(kind: str, value: str) -> int:
        tables = {"prot": _PROT, "advice": _ADVICE, "sync": _MSYNC, "mcl": _MCL,
                  "how": {"onfault": syscalls.MLOCK_ONFAULT}}  # fmt: skip
        return sum(tables[kind][name] for name in value.split("+"))

    def _mmap(self, call: Call) -> str:
        first, count, kind, prot = call.args
        assert isinstance(first, int)
        assert isinstance(count, int)
        how = syscalls.MAP_FIXED | sum(_OPTIONS.get(o, 0) for o in call.options)
        how |= syscalls.MAP_PRIVATE if "private" in str(kind) else syscalls.MAP_SHARED
        fd, offset = -1, 0
        if str(kind).startswith("memfd"):
            at = call.option("at")
            fd, offset = _FD, (first if at is None else at) * PAGE
        else:
            how |= syscalls.MAP_ANONYMOUS
        self.bare.call("mmap", self.at(first), count * PAGE, _PROT[str(prot)], how, fd, offset)
        return "ok"

    def _mremap(self, call: Call) -> str:
        first, old, new = (int(a) for a in call.args)
        target = call.option("to")
        if target is None:
            self.bare.call("mremap", self.at(first), old * PAGE, new * PAGE, 0, 0)
            return "ok"
        how = syscalls.MREMAP_MAYMOVE | syscalls.MREMAP_FIXED
        if "dontunmap" in call.options:
            how |= syscalls.MREMAP_DONTUNMAP
        self.bare.call("mremap", self.at(first), old * PAGE, new * PAGE, how, self.at(target))
        return "ok"

    def _madvise(self, call: Call) -> str:
        advice = str(call.args[2])
        if advice in _SINCE and not _advice_known(advice):
            raise NotApplicable(
                f"{call}: no MADV_{advice.upper()} here; a kernel from {_SINCE[advice]} on"
            )
        self._plain(call)
        return "ok"

    def _mincore(self, call: Call) -> str:
        self._plain(Call("mincore", call.args))
        return "ok"

    def mincore(self, call: Call) -> tuple[str, list[bool]]:
        """Outcome and vector of mincore(2)."""
        first, count = call.args
        assert isinstance(first, int)
        assert isinstance(count, int)
        try:
            self.bare.call("mincore", self.at(first), count * PAGE, self.bare.payload)
        except OSError as error:
            return errno.errorcode.get(error.errno or 0, str(error.errno)), []
        vector = os.pread(self._files()[3], count, self.bare.payload)
        return "ok", [bool(byte & 1) for byte in vector]

    def _read(self, call: Call) -> str:
        # The kernel reads the name of a task: a read fault, and EFAULT in place of a signal.
        first, count = call.args
        assert isinstance(first, int)
        assert isinstance(count, int)
        for number in range(first, first + count):
            self.bare.call("prctl", _PR_SET_NAME, self.at(number))
        return "ok"

    def _write(self, call: Call) -> str:
        first, count = call.args
        assert isinstance(first, int)
        assert isinstance(count, int)
        for number in range(first, first + count):
            if self._expected != "ok":
                self.bare.call("prctl", _PR_GET_NAME, self.at(number))
            self.bare.store(self.at(number), value_of(number))
        return "ok"

    def _truncate(self, call: Call) -> str:
        os.ftruncate(self.memfd, int(call.args[0]) * PAGE)
        return "ok"

    def _brk(self, call: Call) -> str:
        wanted = self.heap + int(call.args[0]) * PAGE
        return "ok" if self.bare.call("brk", wanted) == wanted else "refused"

    def _limit(self, call: Call) -> str:
        raise AssertionError("the caller knows how much: set_limit")

    def set_limit(self, size: int) -> None:
        """Set the soft limit in bytes (−1: unlimited). Raises Unfit above the hard one."""
        hard = resource.prlimit(self.pid, resource.RLIMIT_MEMLOCK)[1]
        try:
            both = (size, rlimits.hard_limit_for(size, hard))
            resource.prlimit(self.pid, resource.RLIMIT_MEMLOCK, both)
        except (ValueError, PermissionError):
            text = f"{hard // PAGE} pages" if hard >= 0 else "unlimited"
            raise NotApplicable(
                f"the hard RLIMIT_MEMLOCK is {text}; ulimit -H -l unlimited"
            ) from None

    def _capability(self, call: Call) -> str:
        sets = credentials.capabilities(self.pid)
        mask = 1 << credentials.CAPABILITIES["CAP_IPC_LOCK"]
        wanted = sets.effective & ~mask
        if call.args[0] == "on":
            wanted |= mask
        words = [w >> shift & 0xFFFFFFFF for shift in (0, 32)
                 for w in (wanted, sets.permitted, sets.inheritable)]  # fmt: skip
        payload = struct.pack("=Ii6I", credentials.CAPABILITY_VERSION_3, 0, *words)
        self.bare.call("capset", self.bare.payload, self.bare.payload + 8, payload=payload)
        return "ok"

    def _fork(self, _call: Call) -> str:
        self.bare.call("clone", syscalls.CLONE_VFORK | signal.SIGCHLD)
        self.pids.append(self.bare.call("getpid"))
        return "ok"

    def _exit(self, _call: Call) -> str:
        child = self.bare.call("exit", 0)  # its parent answers, with what clone returned
        self._close(self.pids.pop())
        self.bare.call("wait4", child, 0, 0, 0)
        return "ok"

    # Witnesses

    def look(self) -> Observation:
        """Every witness, read once."""
        smaps, _, status, _ = self._files()
        text = os.pread(status, 8192, 0)
        seen = Observation(
            _kb(text, b"VmLck:"),
            _kb(text, b"VmSize:"),
            {},
            {},
            set(),
            set(),
            set(),
            set(),
            set(),
            {},
            {},
        )
        before: tuple[int, bytes] | None = None
        for start, end, perms, offset, inode, flags in _VMA.findall(_whole(smaps)):
            low, high = int(start, 16), int(end, 16)
            words = flags.split()
            number = self._number(low)
            lock = _lock(words)
            if number is None:
                if not low >> 63:
                    special = _is_special(words)
                    (seen.special_locks if special else seen.fixed_locks).add(lock)
                before = None
                continue
            advice = tuple(name for flag, name in _ADVISED.items() if flag in words)
            shown = (perms.decode(), lock, advice)
            first = int(offset, 16) // PAGE
            hidden = b" ".join(w for w in words if w != b"sd")
            if before is not None and before[0] == low:
                seen.boundaries[number] = before[1] == hidden
            for index in range((high - low) // PAGE):
                where = first + index if inode != b"0" else None
                seen.pages[number + index] = (*shown, where)
            before = (high, hidden)
        self._look_at_pages(seen)
        return seen

    def _number(self, addr: int) -> int | None:
        if BASE <= addr < BASE + ARENA * PAGE:
            return (addr - BASE) // PAGE
        if self.heap <= addr < self.heap + HEAP_PAGES * PAGE:
            return HEAP + (addr - self.heap) // PAGE
        return None

    def _look_at_pages(self, seen: Observation) -> None:
        _, entries, _, memory = self._files()
        numbers: dict[int, int] = {}
        spans = [(0, BASE, ARENA)]
        if any(n >= HEAP for n in seen.pages):
            spans.append((HEAP, self.heap, HEAP_PAGES))
        for first, addr, count in spans:
            words = struct.unpack(f"={count}Q", os.pread(entries, count * 8, addr // PAGE * 8))
            for index, word in enumerate(words):
                number = first + index
                if word & pagemap.PRESENT:
                    seen.present.add(number)
                    if seen.pages.get(number, ("-",))[0][0] == "r":
                        at = addr + index * PAGE
                        seen.contents[number] = os.pread(memory, 1, at)[0]
                    if word & pagemap.FILE_OR_SHARED:
                        seen.of_file.add(number)
                    elif self.marks:
                        numbers[number] = word & pagemap.PFN_MASK
                elif word & pagemap.SWAPPED:
                    seen.swapped.add(number)
        if numbers:
            for number, word in zip(numbers, page_flags.kpageflags(list(numbers.values()))):
                if not word & (page_flags.ZERO_PAGE | page_flags.COMPOUND | page_flags.KSM):
                    seen.marks[number] = bool(word & page_flags.MLOCKED)

    def _close(self, pid: int) -> None:
        for fd in self._opened.pop(pid, ()):
            os.close(fd)

    def __enter__(self) -> KernelSide:
        return self

    def __exit__(self, *_: object) -> None:
        for pid in list(self._opened):
            self._close(pid)
        os.close(self.memfd)
        self.bare.__exit__(None, None, None)


def _prepare(memfd: int) -> None:
    """Ahead of execve: what moves pages for reasons of its own is switched off; one CPU."""
    syscalls.prctl(syscalls.PR_SET_THP_DISABLE, 1, 0, 0, 0)
    with contextlib.suppress(OSError):
        syscalls.prctl(syscalls.PR_SET_MEMORY_MERGE, 0, 0, 0, 0)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    os.dup2(memfd, _FD)


def _advice_known(name: str) -> bool:
    if name not in _known:
        addr = syscalls.mmap(0, PAGE)
        seen = syscalls.outcome(syscalls.madvise, addr, PAGE, _ADVICE[name])
        syscalls.munmap(addr, PAGE)
        _known[name] = seen != "EINVAL"
    return _known[name]


@contextlib.contextmanager
def fresh(marks: bool = True) -> Iterator[KernelSide]:
    """A new machine. Raises Unfit where a bare process cannot be made."""
    try:
        made = KernelSide(marks)
    except (processes.ChildError, OSError) as error:
        raise NotApplicable(f"no bare process: {error}") from error
    with made:
        yield made


def release() -> str:
    """Kernel release, for a script's head."""
    return Path("/proc/sys/kernel/osrelease").read_text().strip()
