# SPDX-License-Identifier: MIT
"""A stretch of this process's memory on which calls are made, set up kind by kind and looked at."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from helpers import syscalls
from helpers.memory import files, mappings
from helpers.memory.region import Region
from helpers.model.differences import kernel_has
from helpers.model.failing_calls import Expectation
from helpers.model.page_state import (
    COUNT,
    FIRST,
    KINDS,
    TARGET,
    TARGET_COUNT,
    UNITS,
    Pages,
    PageState,
    changed,
    locked,
    mark,
    runs,
)
from helpers.observe import maps, pagemap, status, vmstat
from helpers.syscalls import PAGE, sysv, userfaultfd

PROT = {
    "none": syscalls.PROT_NONE,
    "r": syscalls.PROT_READ,
    "rw": syscalls.PROT_RW,
    "rx": syscalls.PROT_READ | syscalls.PROT_EXEC,
}
_SOL_PACKET, _PACKET_RX_RING = 263, 5
_FIXED = syscalls.MAP_FIXED
_ANONYMOUS = syscalls.MAP_ANONYMOUS


def value_of(number: int) -> int:
    """The byte with which a unit is filled."""
    return 0x41 + number


@dataclass
class Observation:
    """What the kernel says of the arena."""

    vmlck: int
    pages: dict[int, tuple[str, str]]
    """Unit → permissions and lock flags."""
    starts: tuple[int, ...]
    """First unit of each VMA."""
    present: set[int]
    swapped: set[int]
    values: dict[int, int]


class Arena:
    """The memory, its files, and the model's account of both."""

    def __init__(self, unit: int = PAGE) -> None:
        self.unit, self.pages = unit, Pages()
        size = UNITS * unit
        reserved = mappings.reserve(size + unit)
        syscalls.munmap(reserved, size + unit)
        self.base = -(-reserved // unit) * unit
        self.fds: list[int] = []
        self.fd = -1
        self.segment = -1
        self.size = size

    def at(self, number: int) -> int:
        """Address of a unit."""
        return self.base + number * self.unit

    # Set-up

    def make(self, kind: str, first: int = FIRST, count: int = COUNT) -> None:
        """Map memory of a kind, and fill what can be filled."""
        what = KINDS[kind]
        addr, size = self.at(first), count * self.unit
        getattr(self, "_" + kind.replace("-", "_"))(addr, size)
        for number in range(first, first + count):
            self.pages[number] = PageState(
                what, what.prot, "", True if what.filled else None, value_of(number)
            )
        if not what.filled:
            return
        for number in range(first, first + count):
            if what.writable:
                syscalls.memset(self.at(number), value_of(number), 1)
            else:
                syscalls.load(self.at(number), 1)

    def _map(self, addr: int, size: int, flags: int, fd: int = -1, prot: str = "rw") -> None:
        syscalls.mmap(addr, size, PROT[prot], flags | _FIXED, fd)

    def _private(self, addr: int, size: int) -> None:
        self._map(addr, size, syscalls.MAP_PRIVATE | _ANONYMOUS)

    def _shared(self, addr: int, size: int) -> None:
        self._map(addr, size, syscalls.MAP_SHARED | _ANONYMOUS)

    def _stack(self, addr: int, size: int) -> None:
        self._map(addr, size, syscalls.MAP_PRIVATE | _ANONYMOUS | syscalls.MAP_GROWSDOWN)

    def _droppable(self, addr: int, size: int) -> None:
        self._map(addr, size, syscalls.MAP_DROPPABLE | _ANONYMOUS)

    def _hugetlb(self, addr: int, size: int) -> None:
        how = syscalls.MAP_PRIVATE | _ANONYMOUS | syscalls.MAP_HUGETLB | syscalls.MAP_NORESERVE
        self._map(addr, size, how)

    def _keep(self, fd: int) -> int:
        self.fds.append(fd)
        self.fd = fd
        return fd

    def _memfd(self, addr: int, size: int) -> None:
        self._map(addr, size, syscalls.MAP_SHARED, self._keep(files.memfd(size)))

    def _memfd_private(self, addr: int, size: int) -> None:
        self._map(addr, size, syscalls.MAP_PRIVATE, self._keep(files.memfd(size)))

    def _disk_file(self, addr: int, size: int, flags: int) -> int:
        fd = self._keep(files.scratch_file(0))
        first = (addr - self.base) // self.unit
        for number in range(size // self.unit):
            byte = bytes([value_of(first + number)])
            files.write_file(fd, byte * self.unit, number * self.unit)
        return fd if flags == os.O_RDWR else self._keep(files.opened_to_read(fd))

    def _file(self, addr: int, size: int) -> None:
        self._map(addr, size, syscalls.MAP_SHARED, self._disk_file(addr, size, os.O_RDWR))

    def _file_private(self, addr: int, size: int) -> None:
        self._map(addr, size, syscalls.MAP_PRIVATE, self._disk_file(addr, size, os.O_RDWR))

    def _file_readonly(self, addr: int, size: int) -> None:
        self._map(addr, size, syscalls.MAP_SHARED, self._disk_file(addr, size, os.O_RDONLY), "r")

    def _sysv(self, addr: int, size: int) -> None:
        segment = sysv.shmget(syscalls.IPC_PRIVATE, size, syscalls.IPC_CREAT | 0o600)
        try:
            sysv.shmat(segment, addr, 0)
        finally:
            sysv.shmctl(segment, syscalls.IPC_RMID, None)
        self.segment = segment

    def _secret(self, addr: int, size: int) -> None:
        self._map(addr, size, syscalls.MAP_SHARED, self._keep(files.secret(size)))

    def _ring(self, addr: int, size: int) -> None:
        fd = self._keep(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0).detach())
        request = struct.pack("IIII", PAGE, size // PAGE, PAGE, size // PAGE)
        with socket.socket(fileno=os.dup(fd)) as sock:
            sock.setsockopt(_SOL_PACKET, _PACKET_RX_RING, request)
        self._map(addr, size, syscalls.MAP_SHARED, fd)

    def _registered(self, addr: int, size: int) -> None:
        self._private(addr, size)
        fd = syscalls.syscall("userfaultfd", os.O_CLOEXEC | userfaultfd.USER_MODE_ONLY)
        userfaultfd.enable(self._keep(fd))
        # It answers no fault: what is touched has to be there before.
        for number in range(size // self.unit):
            syscalls.memset(addr + number * self.unit, 1, 1)
        userfaultfd.register(fd, Region(addr, size))

    def unmap(self, first: int, count: int = 1) -> None:
        """A hole."""
        syscalls.munmap(self.at(first), count * self.unit)
        for number in range(first, first + count):
            self.pages.pop(number, None)

    def lock(self, first: int, count: int, lock: str) -> None:
        """Lock (or unlock: ``""``) units, as far as they are mapped and mlock marks their kind."""
        flags = syscalls.MLOCK_ONFAULT if lock == "lo lf" else 0
        for part in runs(self.pages, first, first + count):
            if self.pages[part.start].kind.lock != "yes":
                continue
            addr, size = self.at(part.start), len(part) * self.unit
            if lock:
                syscalls.mlock2(addr, size, flags)
            else:
                syscalls.munlock(addr, size)
            changed(self.pages, part, lock=lock)

    def lock_all(self, lock: str) -> None:
        """The same with all that is mapped."""
        if lock:
            self.lock(0, UNITS, lock)

    def protect(self, first: int, count: int, prot: str) -> None:
        """mprotect."""
        syscalls.mprotect(self.at(first), count * self.unit, PROT[prot])
        changed(self.pages, range(first, first + count), prot=prot)

    def seal(self, first: int, count: int) -> None:
        """mseal: for as long as this process lives."""
        syscalls.syscall("mseal", self.at(first), count * self.unit, 0)
        changed(self.pages, range(first, first + count), sealed=True)

    def drop(self, first: int, count: int = 1) -> None:
        """Pages that are mapped and not there."""
        advice = syscalls.MADV_DONTNEED
        syscalls.madvise(self.at(first), count * self.unit, advice)
        for number in range(first, first + count):
            page = self.pages[number]
            value = 0 if page.kind.anonymous else page.value if page.kind.shared else None
            there = False if page.kind.exact else None
            changed(self.pages, [number], present=there, value=value)

    def set_inaccessible_markers(self, first: int, count: int = 1) -> None:
        """MADV_GUARD_INSTALL: mapped, and every access is a SIGSEGV."""
        advice = syscalls.MADV_GUARD_INSTALL
        syscalls.madvise(self.at(first), count * self.unit, advice)
        changed(self.pages, range(first, first + count), guarded=True, present=False, value=0)

    def truncate(self, end: int) -> None:
        """Cut the file off: units from ``end`` on are behind its end."""
        os.ftruncate(self.fd, (end - FIRST) * self.unit)
        for number in range(end, FIRST + COUNT):
            changed(self.pages, [number], ended=True, present=False, value=None)

    def make_target(self, lock: str = "lo") -> None:
        """Where a call may move memory to: private, filled, locked."""
        self.make("private", TARGET, TARGET_COUNT)
        if lock:
            self.lock(TARGET, TARGET_COUNT, lock)

    # What is seen

    def look(self) -> Observation:
        """Every witness, read once."""
        seen: dict[int, tuple[str, str]] = {}
        starts = []
        for vma in maps.smaps(low=self.base, high=self.base + self.size):
            first = (vma.start - self.base) // self.unit
            starts.append(first)
            shown = (vma.perms, vma.lock)
            for number in range(first, (vma.end - self.base) // self.unit):
                seen[number] = shown
        words = pagemap.entries(self.base, UNITS) if self.unit == PAGE else []
        present = {n for n, w in enumerate(words) if w & pagemap.PRESENT}
        swapped = {n for n, w in enumerate(words) if w & pagemap.SWAPPED}
        values = {
            n: ctypes.string_at(self.at(n), 1)[0]
            for n in present
            if seen.get(n, ("-",))[0].startswith("r")
        }
        return Observation(status.vmlck_pages(), seen, tuple(starts), present, swapped, values)

    def differences(self, seen: Observation, right: Pages, kept: str, outside: int) -> list[str]:
        """What differs from the model, a line each. ``outside``: pages locked elsewhere."""
        found = []
        counted = locked(right, kept) + outside
        if seen.vmlck != counted:
            found.append(f"VmLck: kernel {seen.vmlck} pages, model {counted}")
        for number in sorted({*seen.pages, *right}):
            page = right.get(number)
            shown = None if page is None else (page.perms, mark(page, kept))
            if seen.pages.get(number) != shown:
                found.append(f"page {number}: kernel {seen.pages.get(number)}, model {shown}")
        if self.unit == PAGE:
            found += self._contents(seen, right, kept)
        return found

    @staticmethod
    def _contents(seen: Observation, right: Pages, kept: str) -> list[str]:
        found = []
        for number, page in right.items():
            there = number in seen.present
            if page.present is False and there:
                found.append(f"page {number} is present; model: nothing brought it in")
            if page.present and not there:
                # Reclaim may take what is not locked at any time.
                gone = number in seen.swapped or not page.kind.anonymous
                free = not mark(page, kept) and (gone or page.kind.id == "droppable")
                if not free:
                    found.append(f"page {number} is absent; model: present")
            byte = seen.values.get(number)
            if byte is not None and page.value is not None and byte != page.value:
                found.append(f"page {number} holds {byte}; model: {page.value}")
        return found

    def compare(self, expected: Expectation, answer: str, before: Observation) -> list[str]:
        """What differs from what was expected of a call, a line each."""
        seen, found = self.look(), []
        if answer not in expected.answers:
            found.append(f"kernel {answer}, model {' or '.join(sorted(expected.answers))}")
        kept = "lo" if kernel_has("secret-is-locked") else ""
        outside = before.vmlck - locked(self.pages, kept)
        if expected.untouched and seen.starts != before.starts:
            found.append(f"VMAs begin at {seen.starts}, and did at {before.starts}")
        states = [self.differences(seen, s, kept, outside) for s in expected.states]
        return found + min(states, key=len)

    # Tear-down

    def close(self) -> None:
        """Unlock and unmap everything (what is sealed stays, unlocked)."""
        if syscalls.outcome(syscalls.munmap, self.base, self.size) != "ok":
            for number in range(UNITS):
                syscalls.outcome(syscalls.munlock, self.at(number), self.unit)
                syscalls.outcome(syscalls.munmap, self.at(number), self.unit)
        for fd in self.fds:
            os.close(fd)


@contextlib.contextmanager
def arena(kind: str, unit_of: str = "") -> Iterator[Arena]:
    """An arena with memory of a kind."""
    huge = kind == "hugetlb" or unit_of == "hugetlb"
    made = Arena(vmstat.huge_page_size() if huge else PAGE)
    try:
        made.make(kind)
        with mappings.watched(made.base, made.size, kind):
            yield made
    finally:
        made.close()


def show(found: Sequence[str]) -> str:
    """Differences as a block of text."""
    return "\n".join(found)
