# SPDX-License-Identifier: MIT
"""When a fault acts: conditions on a call, and choices of VMAs."""

from __future__ import annotations

from collections.abc import Callable, Generator

from helpers import syscalls
from helpers.faults.call import Call
from helpers.observe import maps, pagemap, status
from helpers.syscalls import PAGE

EffectSteps = Generator[None, int, None]


CallPredicate = Callable[[Call], bool]


VmaPredicate = Callable[[maps.Vma], bool]


ALL = (1 << 47) - 1


def always(call: Call) -> bool:
    """Whatever the call is."""
    return True


def any_vma(vma: maps.Vma) -> bool:
    """Whatever the VMA is."""
    return True


def shared(vma: maps.Vma) -> bool:
    """A shared mapping."""
    return vma.perms[3] == "s"


def file(vma: maps.Vma) -> bool:
    """A mapping of a file (a memfd is one)."""
    return bool(vma.inode)


def private_anonymous(vma: maps.Vma) -> bool:
    """Private anonymous memory."""
    return vma.perms[3] == "p" and not vma.inode


def inaccessible(vma: maps.Vma) -> bool:
    """PROT_NONE."""
    return vma.perms.startswith("---")


def writeonly(vma: maps.Vma) -> bool:
    """Writable, not readable."""
    return vma.perms.startswith("-w")


def readonly(vma: maps.Vma) -> bool:
    """Readable, not writable."""
    return vma.perms.startswith("r-")


def onfault(vma: maps.Vma) -> bool:
    """Locked on fault."""
    return vma.onfault


def flag(index: int, mask: int) -> CallPredicate:
    """An argument has any of these bits."""
    return lambda call: bool(call.args[index] & mask)


def is_(index: int, value: int) -> CallPredicate:
    """An argument is this."""
    return lambda call: call.args[index] == value


def not_leader(call: Call) -> bool:
    """By a thread other than the first."""
    return call.tid != call.pid


def in_vfork_child(call: Call) -> bool:
    """By a child that shares its parent's memory."""
    return call.process.vforked


def no_right(call: Call) -> bool:
    """By a process that may lock nothing at all."""
    return call.limit[0] == 0 and not call.capable


def has_hole(call: Call) -> bool:
    """The range has a page that is not mapped."""
    return bool(call.hole())


def has_inaccessible(call: Call) -> bool:
    """The range is mapped, with PROT_NONE in it."""
    return not call.hole() and any(inaccessible(v) for v in call.vmas(*call.range))


def past_file(call: Call) -> bool:
    """The range is mapped, accessible and of a file."""
    vmas = call.vmas(*call.range)
    return (
        not call.hole()
        and any(file(v) for v in vmas)
        and not any(inaccessible(v) for v in vmas)
        and not over_limit(call)
    )


def over_limit(call: Call) -> bool:
    """The limit forbids what mlock asks for, and the process has a limit above 0."""
    low, high = call.range
    soft = call.limit[0]
    return (
        low > 0
        and soft > 0
        and not call.capable
        and call.vmlck + high - low - call.locked_bytes(low, high) > soft // PAGE * PAGE
    )


def secret(call: Call) -> bool:
    """An mmap of secret memory."""
    return call.descriptor(4).startswith("/secretmem")


def beyond(call: Call) -> bool:
    """The mlock or mmap would exceed the limit, were it obeyed."""
    low, high = call.range if call.name != "mmap" else (PAGE, PAGE + call.args[1])
    soft = call.limit[0] // PAGE * PAGE
    return low > 0 and call.vmlck + high - low > soft


def all_beyond(call: Call) -> bool:
    """mlockall(MCL_CURRENT) would exceed the limit, were it obeyed."""
    return bool(call.args[0] & syscalls.MCL_CURRENT) and call.limit[0] < 1 << 20


def above_lowered(call: Call) -> bool:
    """More is locked than the limit allows now."""
    return not call.capable and 0 <= call.limit[0] // PAGE * PAGE < call.vmlck


def private_writable(vma: maps.Vma) -> bool:
    """Private and writable: what a write copies."""
    return vma.perms[1] == "w" and vma.perms[3] == "p"


def sealed(call: Call) -> bool:
    """The range has sealed pages."""
    low, high = call.range
    return any(s < high and low < e for s, e in call.notes.get("sealed", ()))


def may_not_split(call: Call) -> bool:
    """The range is mapped, accessible, anonymous and within the limit."""
    low, high = call.range
    if not low or has_hole(call) or over_limit(call):
        return False
    vmas = call.vmas(low, high)
    return all(private_anonymous(v) and not inaccessible(v) for v in vmas)


def all_mapped_beyond(call: Call) -> bool:
    """The whole address space is larger than the limit."""

    return status.kb("VmSize", call.pid) * 1024 > call.limit[0] // PAGE * PAGE


def large(call: Call) -> bool:
    """More than cases lock outside of a cgroup."""
    if call.name == "mlockall":
        return any(v.size >= 1 << 22 and not inaccessible(v) for v in call.vmas())
    return 1 << 22 <= call.range[1] - call.range[0] < 1 << 30


def swapped(call: Call) -> bool:
    """A page of the range is in swap."""
    low, high = call.range
    count = min((high - low) // PAGE, 4096)
    return bool(low) and pagemap.swapped_count(low, count, call.pid) > 0


def pins_locked(call: Call) -> bool:
    """An io_uring_register of fixed buffers by a process that has locked memory."""
    return call.args[1] == 0 and call.vmlck > 0
