# SPDX-License-Identifier: MIT
"""The ways to lock a range, and what each leaves in its VMAs. Nothing here asserts."""

from __future__ import annotations

from dataclasses import dataclass

from helpers import syscalls
from helpers.syscalls.call import AddressRange

Call = tuple[str, *tuple[int, ...]]
"""Name of a call on a range, and the flags that it takes behind the range."""


def issue(entry_point: syscalls.LockCalls, call: Call, addr: int, length: int) -> int:
    """Make a call of the family on ``length`` bytes: 0. OSError as the kernel says."""
    name, *flags = call
    made: int = getattr(entry_point, name)(addr, length, *flags)
    return made


@dataclass(frozen=True)
class LockMethod:
    """A call that locks a range, or unlocks it."""

    id: str
    call: Call
    flags: str
    """VmFlags that it leaves (proc_pid_smaps(5)): ``lo``, ``lo lf`` or none."""
    populates: bool
    """Every page is present when it returns."""

    def lock(self, region: AddressRange) -> None:
        """Apply it to the whole region."""
        issue(syscalls.RAW, self.call, region.addr, region.size)


MLOCK = LockMethod("mlock", ("mlock",), "lo", True)
MLOCK2 = LockMethod("mlock2", ("mlock2", 0), "lo", True)
MLOCK2_ONFAULT = LockMethod("onfault", ("mlock2", syscalls.MLOCK_ONFAULT), "lo lf", False)
MUNLOCK = LockMethod("munlock", ("munlock",), "", False)
METHODS = {m.id: m for m in (MLOCK, MLOCK2, MLOCK2_ONFAULT, MUNLOCK)}
CALLS = {m.id: m.call for m in (MLOCK, MLOCK2, MLOCK2_ONFAULT)}
"""What locks a range → its call."""
FLAGS = {name: method.flags for name, method in METHODS.items()}


def apply(region: AddressRange, method: str) -> None:
    """Lock or unlock the region by the method of that id."""
    METHODS[method].lock(region)


def mlock(region: AddressRange) -> None:
    """mlock(2) of the whole region."""
    MLOCK.lock(region)


def munlock(region: AddressRange) -> None:
    """munlock(2) of the whole region."""
    MUNLOCK.lock(region)


def mlock_onfault(region: AddressRange) -> None:
    """mlock2(2) with MLOCK_ONFAULT of the whole region."""
    MLOCK2_ONFAULT.lock(region)
