"""/proc/PID/maps, smaps and smaps_rollup: the VMAs of an address space.

``lo`` in VmFlags is VM_LOCKED, ``lf`` VM_LOCKONFAULT (shown by that name since 6.2, as
``??`` before).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field

LOCKED = "lo"
_END = 1 << 64


@dataclass(frozen=True)
class Vma:
    """One VMA. Addresses are bytes; ``flags`` and ``fields`` only from :func:`smaps`."""

    start: int
    end: int
    perms: str
    offset: int
    device: str
    inode: int
    name: str
    line: str
    flags: frozenset[str] = frozenset()
    fields: dict[str, str] = field(default_factory=dict, compare=False)

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

    def field_kb(self, name: str) -> int:
        """A counter of smaps, in kB; 0 where the kernel does not print it."""
        return int(self.fields.get(name, "0").split()[0])


_MARKS = re.compile(r"^(?:([0-9a-f]+)-([0-9a-f]+) |VmFlags:(.*))", re.MULTILINE)
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


def _header(line: str) -> Vma:
    parts = line.split(None, 5)
    start, _, end = parts[0].partition("-")
    name = parts[5].strip() if len(parts) > 5 else ""
    return Vma(
        int(start, 16), int(end, 16), parts[1], int(parts[2], 16), parts[3], int(parts[4]), name,
        line.rstrip(),
    )  # fmt: skip


def parse_maps(text: str) -> list[Vma]:
    """The VMAs of a maps file's text."""
    return [_header(line) for line in text.splitlines() if line]


def parse_smaps(text: str) -> list[Vma]:
    """The VMAs of a smaps file's text, with fields and flags."""
    found: list[Vma] = []
    head: Vma | None = None
    fields: dict[str, str] = {}

    def close() -> None:
        if head is not None:
            flags = frozenset(fields.pop("VmFlags", "").split())
            found.append(
                Vma(
                    head.start,
                    head.end,
                    head.perms,
                    head.offset,
                    head.device,
                    head.inode,
                    head.name,
                    head.line,
                    flags,
                    fields,
                )
            )

    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon and key.isidentifier() and key[0].isupper():
            fields[key] = value.strip()
        elif line:
            close()
            head, fields = _header(line), {}
    close()
    return found


def vmas(pid: int | str = "self", low: int = 0, high: int = _END) -> list[Vma]:
    """VMAs overlapping [low, high) from maps (no flags: cheap)."""
    return parse_maps(_read(f"/proc/{pid}/maps", low, high))


def smaps(pid: int | str = "self", low: int = 0, high: int = _END) -> list[Vma]:
    """VMAs overlapping [low, high) from smaps, with flags and counters."""
    return parse_smaps(_read(f"/proc/{pid}/smaps", low, high))


def at(addr: int, pid: int | str = "self") -> Vma:
    """The VMA that holds ``addr``. Raises LookupError on a hole."""
    for vma in smaps(pid, addr, addr + 1):
        return vma
    raise LookupError(f"no VMA at {addr:#x} in process {pid}")


def layout(low: int, high: int, unit: int, pid: int | str = "self") -> list[tuple[int, int, str]]:
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
    for first, last, lock in layout(low, high, unit, pid):
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
    # Every VMA of an interpreter, and asked for by many cases: two lines of each are parsed.
    size, total = 0, 0
    for start, end, flags in _MARKS.findall(_read(f"/proc/{pid}/smaps")):
        if start:
            size = int(end, 16) - int(start, 16)
        elif LOCKED in flags.split():
            total += size
    return total // 1024


def rollup_kb(name: str = "Locked", pid: int | str = "self") -> int:
    """A counter of smaps_rollup in kB. ``Locked`` there is a PSS: shared pages count in parts."""
    for line in _read(f"/proc/{pid}/smaps_rollup").splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0])
    raise LookupError(f"no field {name} in /proc/{pid}/smaps_rollup")
