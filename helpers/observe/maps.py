"""/proc/PID/maps, smaps and smaps_rollup: the VMAs of an address space.

``lo`` in VmFlags is VM_LOCKED, ``lf`` VM_LOCKONFAULT (shown by that name since 6.2, as
``??`` before; see :func:`onfault_letters`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field

LOCKED = "lo"


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
        """VM_LOCKONFAULT is set (any kernel: see :func:`onfault_letters`)."""
        return self.locked and bool(self.flags & {"lf", "??"})

    def field_kb(self, name: str) -> int:
        """A counter of smaps, in kB; 0 where the kernel does not print it."""
        return int(self.fields.get(name, "0").split()[0])


def onfault_letters(flags: str) -> str:
    """Name of VM_LOCKONFAULT in a VmFlags line: ``lf`` since 6.2, ``??`` before."""
    return "lf" if " lf" in f" {flags}" else "??"


_START = re.compile(rb"^([0-9a-f]+)-[0-9a-f]+ ", re.MULTILINE)
_END = 1 << 64


def _read(path: str, high: int) -> str:
    """The file, at least up to the VMA that begins at or behind ``high``."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        chunks = []
        while chunk := os.read(fd, 1 << 18):
            chunks.append(chunk)
            # The kernel ends a chunk with a VMA's last line, and walks the page tables of
            # every VMA it prints: stop where nobody asks any more.
            if any(int(start, 16) >= high for start in _START.findall(chunk)):
                break
    finally:
        os.close(fd)
    return b"".join(chunks).decode(errors="surrogateescape")


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


def _overlapping(vmas: list[Vma], low: int, high: int) -> list[Vma]:
    return [v for v in vmas if v.start < high and v.end > low]


def vmas(pid: int | str = "self", low: int = 0, high: int = _END) -> list[Vma]:
    """VMAs overlapping [low, high) from maps (no flags: cheap)."""
    return _overlapping(parse_maps(_read(f"/proc/{pid}/maps", high)), low, high)


_RANGE = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) ", re.MULTILINE)


def _within(text: str, low: int, high: int) -> str:
    """The part of a smaps text about VMAs overlapping [low, high): parsing all costs most."""
    first, last = len(text), len(text)
    for head in _RANGE.finditer(text):
        if int(head[1], 16) >= high:
            last = head.start()
            break
        if int(head[2], 16) > low:
            first = min(first, head.start())
    return text[first:last]


def smaps(pid: int | str = "self", low: int = 0, high: int = _END) -> list[Vma]:
    """VMAs overlapping [low, high) from smaps, with flags and counters."""
    return parse_smaps(_within(_read(f"/proc/{pid}/smaps", high), low, high))


def at(addr: int, pid: int | str = "self") -> Vma:
    """The VMA that holds ``addr``. Raises LookupError on a hole."""
    for vma in smaps(pid, addr, addr + 1):
        return vma
    raise LookupError(f"no VMA at {addr:#x} in process {pid}")


def layout(low: int, high: int, unit: int, pid: int | str = "self") -> list[tuple[int, int, str]]:
    """VMAs in [low, high) as (first, last + 1, lock), in ``unit`` bytes from ``low``.

    ``lock`` is ``""``, ``"lo"`` or ``"lo lf"``: the shape of a locked range in one list.
    """
    shape = []
    for v in smaps(pid, low, high):
        lock = "lo lf" if v.onfault else "lo" if v.locked else ""
        shape.append(((max(v.start, low) - low) // unit, (min(v.end, high) - low) // unit, lock))
    return shape


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
    return total_kb(lambda v: v.locked, pid)


def rollup_kb(name: str = "Locked", pid: int | str = "self") -> int:
    """A counter of smaps_rollup in kB. ``Locked`` there is a PSS: shared pages count in parts."""
    for line in _read(f"/proc/{pid}/smaps_rollup", _END).splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0])
    raise LookupError(f"no field {name} in /proc/{pid}/smaps_rollup")
