# SPDX-License-Identifier: MIT
"""/proc/PID/maps, smaps and smaps_rollup: the VMAs of an address space.

``lo`` in VmFlags is VM_LOCKED, ``lf`` VM_LOCKONFAULT (shown by that name since 6.2, as
``??`` before).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from helpers.syscalls import PAGE
from helpers.syscalls.call import AddressRange

LOCKED = "lo"
_END = 1 << 64


@dataclass(frozen=True)
class Vma:
    """One VMA. Addresses are bytes; ``flags`` and ``text`` only from :func:`smaps`."""

    start: int
    end: int
    perms: str
    offset: int
    device: str
    inode: int
    name: str
    line: str
    flags: frozenset[str] = frozenset()
    text: str = field(default="", compare=False, repr=False)
    """The lines below the first, as smaps has them."""

    @property
    def size(self) -> int:
        """Length in bytes."""
        return self.end - self.start

    @property
    def kb(self) -> int:
        """Length in kB."""
        return self.size // 1024

    @property
    def locked(self) -> bool:
        """VM_LOCKED is set."""
        return LOCKED in self.flags

    @property
    def onfault(self) -> bool:
        """VM_LOCKONFAULT is set (``lf``; ``??`` before 6.2)."""
        # Other flags are shown as ?? too, but not on memory that can be locked.
        return "lf" in self.flags or (self.locked and "??" in self.flags)

    @property
    def lock(self) -> str:
        """``""``, ``"lo"``, ``"lo lf"``; or ``"lf"`` alone, which no right kernel shows."""
        return " ".join(name for name, on in (("lo", self.locked), ("lf", self.onfault)) if on)

    def number(self, name: str) -> int:
        """A number of smaps as it stands there; 0 where the kernel does not print it."""
        # Most VMAs that are read are an interpreter's, and nobody asks for their counters.
        match = re.search(rf"^{name}:\s+(\d+)", self.text, re.MULTILINE)
        return int(match[1]) if match else 0

    def field_kb(self, name: str) -> int:
        """A counter of smaps, in kB; 0 where the kernel does not print it."""
        return self.number(name)


_FIRST = re.compile(
    r"^([0-9a-f]+)-([0-9a-f]+) (\S+) ([0-9a-f]+) (\S+) (\d+)[ \t]*(.*)$", re.MULTILINE
)
_HEADER = re.compile(rb"^([0-9a-f]+)-([0-9a-f]+) ", re.MULTILINE)


def _read(path: str, low: int = 0, high: int = _END) -> str:
    """Text of the VMAs overlapping [low, high).

    The file is in order of addresses and made as it is read, so reading stops behind
    ``high``, and only what was asked for is decoded and parsed.
    """
    data = bytearray()
    heads: list[tuple[int, int, int]] = []
    whole = low <= 0 and high >= _END
    done = 0
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        while chunk := os.read(fd, 1 << 16):
            data += chunk
            if whole:
                continue
            lines = data.rfind(b"\n") + 1
            found = _HEADER.finditer(data, done, lines)
            heads += [(int(m[1], 16), int(m[2], 16), m.start()) for m in found]
            done = lines
            if heads and heads[-1][0] >= high:
                break
    finally:
        os.close(fd)
    if not whole:
        first = next((at for _, end, at in heads if end > low), len(data))
        last = next((at for start, _, at in heads if start >= high), len(data))
        data = data[first:last]
    return data.decode(errors="surrogateescape")


def _vmas(text: str, flagged: bool) -> list[Vma]:
    heads = list(_FIRST.finditer(text))
    found = []
    for head, end in zip(heads, [*(h.start() for h in heads[1:]), len(text)]):
        start, stop, perms, offset, device, inode, name = head.groups()
        rest, flags = "", frozenset[str]()
        if flagged:
            rest = text[head.end() + 1 : end]
            flags = frozenset(rest.partition("VmFlags:")[2].split("\n", 1)[0].split())
        found.append(
            Vma(
                int(start, 16), int(stop, 16), perms, int(offset, 16), device, int(inode),
                name.strip(), head[0].rstrip(), flags, rest,
            )
        )  # fmt: skip
    return found


def parse_maps(text: str) -> list[Vma]:
    """The VMAs of a maps file's text."""
    return _vmas(text, flagged=False)


def parse_smaps(text: str) -> list[Vma]:
    """The VMAs of a smaps file's text, with flags and counters."""
    return _vmas(text, flagged=True)


def vmas(pid: int | str = "self", low: int = 0, high: int = _END) -> list[Vma]:
    """VMAs overlapping [low, high) from maps (no flags: cheap)."""
    return parse_maps(_read(f"/proc/{pid}/maps", low, high))


def smaps(pid: int | str = "self", low: int = 0, high: int = _END) -> list[Vma]:
    """VMAs overlapping [low, high) from smaps, with flags and counters."""
    return parse_smaps(_read(f"/proc/{pid}/smaps", low, high))


def locked(pid: int | str = "self") -> list[Vma]:
    """The ``lo`` VMAs of smaps: the same as choosing them from all, at a fraction of the cost."""
    text = "\n" + _read(f"/proc/{pid}/smaps")
    found, end = [], 0
    while (mark := text.find(" lo", end)) >= 0:
        start = text.rfind("\n", 0, mark) + 1
        end = text.find("\n", mark)
        if text.startswith("VmFlags:", start):  # and not a file's name
            first = text.find("\n", max(0, text.rfind("\nVmFlags:", 0, start - 1) + 1)) + 1
            found += parse_smaps(text[first : end + 1])
    return [v for v in found if v.locked]


def at(addr: int, pid: int | str = "self") -> Vma:
    """The VMA that holds ``addr``. Raises LookupError on a hole."""
    for vma in smaps(pid, addr, addr + 1):
        return vma
    raise LookupError(f"no VMA at {addr:#x} in process {pid}")


def layout(region: AddressRange, pid: int | str = "self") -> list[tuple[int, int, str]]:
    """VMAs of a region as (first page, last page + 1, lock flags), pages counted from its start."""
    return layout_between(region.addr, region.addr + region.size, PAGE, pid)


def layout_between(
    low: int, high: int, unit: int, pid: int | str = "self"
) -> list[tuple[int, int, str]]:
    """VMAs in [low, high) as (first, last + 1, lock), in ``unit`` bytes from ``low``.

    ``lock`` is :attr:`Vma.lock`: the shape of a locked range in one list.
    """
    return [(first, end, lock) for first, end, _, _, lock in pieces(low, high, unit, pid)]


def pieces(
    low: int, high: int, unit: int, pid: int | str = "self"
) -> list[tuple[int, int, str, int, str]]:
    """VMAs in [low, high) as (first, last + 1, perms, file offset, lock).

    As :func:`layout`; the offset of the VMA's start in its file is in ``unit`` too.
    """
    return [
        (
            (max(v.start, low) - low) // unit,
            (min(v.end, high) - low) // unit,
            v.perms,
            v.offset // unit,
            v.lock,
        )
        for v in smaps(pid, low, high)
    ]


def locks(low: int, high: int, unit: int, pid: int | str = "self") -> list[tuple[int, int, str]]:
    """:func:`layout` with equal neighbours joined: what is locked, in however many VMAs.

    Kernels differ in when they join neighbours that were faulted in apart (seen on 5.10).
    """
    joined: list[tuple[int, int, str]] = []
    for first, last, lock in layout_between(low, high, unit, pid):
        if joined and joined[-1][1:] == (first, lock):
            joined[-1] = (joined[-1][0], last, lock)
        else:
            joined.append((first, last, lock))
    return joined


def total_kb(counted: Callable[[Vma], bool], pid: int | str = "self") -> int:
    """Summed size in kB of the VMAs for which ``counted`` holds."""
    return sum(v.kb for v in smaps(pid) if counted(v))


def locked_kb(pid: int | str = "self") -> int:
    """Summed size in kB of the ``lo`` VMAs: what VmLck must equal."""
    return sum(v.kb for v in locked(pid))


def rollup_kb(name: str = "Locked", pid: int | str = "self") -> int:
    """A counter of smaps_rollup in kB. ``Locked`` there is a PSS: shared pages count in parts."""
    for line in _read(f"/proc/{pid}/smaps_rollup").splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0])
    raise LookupError(f"no field {name} in /proc/{pid}/smaps_rollup")
