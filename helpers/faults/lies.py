"""What faults do about single system calls: the parts the catalogue is put together from.

A function that returns a lie takes the condition or the amount that its faults differ in.
"""

from __future__ import annotations

import errno
import re
import struct
from array import array
from collections.abc import Callable, Generator, Iterable

from helpers import libc
from helpers.faults.supervisor import TOP, Call, Lie, Process
from helpers.libc import PAGE
from helpers.observe import maps, pagemap

Telling = Generator[None, int, None]
Test = Callable[[Call], bool]
Which = Callable[[maps.Vma], bool]
_ALL = (1 << 47) - 1


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


def readonly(vma: maps.Vma) -> bool:
    """Readable, not writable."""
    return vma.perms.startswith("r-")


def onfault(vma: maps.Vma) -> bool:
    """Locked on fault."""
    return vma.onfault


def flag(index: int, mask: int) -> Test:
    """An argument has any of these bits."""
    return lambda call: bool(call.args[index] & mask)


def is_(index: int, value: int) -> Test:
    """An argument is this."""
    return lambda call: call.args[index] == value


# Before the call.


def refuse(name: str, when: Test = always) -> Lie:
    """The call fails and is not made."""

    def lie(call: Call) -> None:
        if when(call):
            call.fail(name)

    return lie


def pretend(when: Test = always, value: int = 0) -> Lie:
    """The call returns success and is not made."""

    def lie(call: Call) -> None:
        if when(call):
            call.give(value)

    return lie


def replace(index: int, change: Callable[[int], int], when: Test = always) -> Lie:
    """An argument is another."""

    def lie(call: Call) -> None:
        if when(call):
            call.change(index, change(call.args[index]))

    return lie


def without(index: int, mask: int, when: Test = always) -> Lie:
    """Bits of an argument are lost."""
    return replace(index, lambda v: v & ~mask, when)


def adding(index: int, mask: int, when: Test = always) -> Lie:
    """Bits of an argument are set."""
    return replace(index, lambda v: v | mask, when)


def forget_offset(call: Call) -> None:
    """The length is rounded up without the start's offset in its page."""
    addr, length = call.args[:2]
    if 0 < length < _ALL and addr % PAGE:
        low = addr // PAGE * PAGE
        end = low + -(-length // PAGE) * PAGE
        if end < call.range[1]:
            call.change(1, end - addr)


def round_start_up(call: Call) -> None:
    """The start is rounded up, inward."""
    addr, length = call.args[:2]
    skip = -addr % PAGE
    if skip and skip < length < _ALL:
        call.change(0, addr + skip)
        call.change(1, length - skip)


def round_length_down(call: Call) -> None:
    """A length of more than a page is cut to whole pages."""
    if PAGE < call.args[1] < _ALL and call.args[1] % PAGE:
        call.change(1, call.args[1] // PAGE * PAGE)


def one_page_short(call: Call) -> None:
    """A range of several pages ends a page early."""
    low, high = call.range
    if high - low >= 2 * PAGE:
        call.change(0, low)
        call.change(1, high - low - PAGE)


def first_page_spared(call: Call) -> None:
    """A range of several pages begins a page late."""
    low, high = call.range
    if high - low >= 2 * PAGE:
        call.change(0, low + PAGE)
        call.change(1, high - low - PAGE)


def one_page_more(call: Call) -> None:
    """A range goes on into the next page, if that is mapped."""
    low, high = call.range
    if low and call.vmas(high, high + PAGE):
        call.change(0, low)
        call.change(1, high - low + PAGE)


def from_vma_start(call: Call) -> None:
    """A range begins where the VMA does."""
    low, high = call.range
    vmas = call.vmas(low, high)
    if vmas and vmas[0].start < low:
        call.change(0, vmas[0].start)
        call.change(1, high - vmas[0].start)


def to_vma_end(call: Call) -> None:
    """A range runs to the end of its last VMA."""
    low, high = call.range
    vmas = call.vmas(low, high)
    if vmas and vmas[-1].end > high:
        call.change(0, low)
        call.change(1, vmas[-1].end - low)


def not_leader(call: Call) -> bool:
    """By a thread other than the first."""
    return call.tid != call.pid


def in_vfork_child(call: Call) -> bool:
    """By a child that shares its parent's memory."""
    return call.process.vforked


def no_right(call: Call) -> bool:
    """By a process that may lock nothing at all."""
    return call.limit[0] == 0 and not call.capable


# After the call.


def answers(old: str | int, new: str | int, when: Test = always) -> Lie:
    """One result or error for another."""

    def lie(call: Call) -> Telling:
        expected = -int(getattr(errno, old)) if isinstance(old, str) else old
        wanted = -int(getattr(errno, new)) if isinstance(new, str) else new
        before = when(call)
        result = yield
        if result == expected and before:
            call.say(wanted)

    return lie


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


def undo_before_hole(call: Call) -> Telling:
    """mlock over a hole locks nothing before it."""
    low, end = call.range[0], call.hole()
    parts = [(v.start, v.end) for v in call.vmas(low, end or low) if not v.locked]
    result = yield
    if result == -errno.ENOMEM and parts:
        for start, stop in parts:
            call.run("munlock", max(start, low), min(stop, end) - max(start, low))


def lock_behind_hole(call: Call) -> Telling:
    """mlock over a hole goes on behind it."""
    end, high = call.hole(), call.range[1]
    behind = call.vmas(end, high) if end else []
    result = yield
    if result == -errno.ENOMEM:
        for vma in behind:
            if not vma.locked:
                start = max(vma.start, end)
                call.run("mlock", start, min(vma.end, high) - start)


def unlock_where(which: Which) -> Lie:
    """What was locked of VMAs like these is unlocked again at once."""

    def lie(call: Call) -> Telling:
        yield
        for start, end, vma in call.locked(*_extent(call)):
            if which(vma):
                call.run("munlock", start, end - start)

    return lie


def _extent(call: Call) -> tuple[int, int]:
    if call.name in ("mlock", "mlock2", "munlock", "mprotect", "remap_file_pages"):
        return call.range
    if call.name in ("mmap", "shmat"):
        size = call.args[1] if call.name == "mmap" else 1
        return (call.result, call.result + size) if call.result > 0 else (0, 0)
    return 0, TOP


def keep_locked_where(which: Which) -> Lie:
    """munlock or munlockall leaves VMAs like these locked."""

    def lie(call: Call) -> Telling:
        low, high = call.range if call.name == "munlock" else (0, TOP)
        kept = [(s, e, v.onfault) for s, e, v in call.locked(low, high) if which(v)]
        result = yield
        if result == 0:
            for start, end, late in kept:
                call.run("mlock2", start, end - start, int(late))

    return lie


def skip_middle(call: Call) -> Telling:
    """Of three or more VMAs the inner ones are left as they were."""
    low, high = call.range
    inner = [(v.start, v.end) for v in call.vmas(low, high)[1:-1] if not v.locked]
    result = yield
    if result == 0:
        for start, end in inner:
            call.run("munlock", start, end - start)


def keep_lf(call: Call) -> Telling:
    """What was locked on fault stays so."""
    low, high = call.range if call.name == "mlock" else (0, TOP)
    late = [(s, e) for s, e, v in call.locked(low, high) if v.onfault]
    result = yield
    if result == 0:
        for start, end in late:
            call.run("mlock2", start, end - start, 1)


def keep_full(call: Call) -> Telling:
    """What was locked at once stays so under MLOCK_ONFAULT."""
    full = [(s, e) for s, e, v in call.locked(*call.range) if not v.onfault]
    result = yield
    if result == 0 and call.args[2] & libc.MLOCK_ONFAULT:
        for start, end in full:
            call.run("mlock", start, end - start)


def advise_after(advice: int, which: Which = any_vma, when: Test = always) -> Lie:
    """The range is given an advice behind the process's back."""

    def lie(call: Call) -> Telling:
        acts = when(call)
        result = yield
        if acts and result >= 0:
            low, high = _extent(call)
            for vma in call.vmas(low, high):
                if which(vma):
                    start = max(vma.start, low)
                    call.run("madvise", start, min(vma.end, high) - start, advice)

    return lie


def drop_absent(
    which: Which = any_vma, *, last: bool = False, read_back: bool = False, when: Test = always
) -> Lie:
    """Pages that a lock brought in are dropped again (``last``: the last page alone).

    ``read_back`` faults them in for reading, as if copy-on-write had not been broken.
    """

    def lie(call: Call) -> Telling:
        if not when(call):
            return
        before: list[tuple[int, int, list[int]]] = []
        if call.name in ("mlock", "mlock2", "mlockall", "mprotect"):
            low, high = call.range if call.name != "mlockall" else (0, TOP)
            for vma in call.vmas(low, high):
                if which(vma):
                    start, end = max(vma.start, low), min(vma.end, high)
                    before.append((start, end, call.absent(start, end)))
        old = call.args[1] if call.name == "mremap" else 0
        source = {v.start for v in call.vmas(call.args[0], call.args[0] + 1) if v.locked}
        result = yield
        if result < 0:
            return
        if call.name in ("mmap", "shmat"):
            before = [
                (start, end, list(range(start, end, PAGE)))
                for start, end, vma in call.locked(*_extent(call))
                if which(vma) and not vma.onfault
            ]
        elif call.name == "mremap" and source:
            before = [(result, result + call.args[2],
                       list(range(result + old, result + call.args[2], PAGE)))]  # fmt: skip
        for start, end, absent in before:
            if last:
                absent = [a for a in absent if a == end - PAGE and end - start > PAGE]
            for first, stop in _stretches(absent):
                call.run("madvise", first, stop - first, libc.MADV_DONTNEED_LOCKED)
                if read_back:
                    call.run("madvise", first, stop - first, libc.MADV_POPULATE_READ)

    return lie


def _stretches(pages: Iterable[int]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for addr in pages:
        if found and found[-1][1] == addr:
            found[-1] = (found[-1][0], addr + PAGE)
        else:
            found.append((addr, addr + PAGE))
    return found


# What mlockall leaves behind.


def follow_future(call: Call) -> Telling:
    """Remember MCL_FUTURE of an address space (for lies about what becomes of it)."""
    result = yield
    if result == 0:
        call.space.future = 0 if call.name == "munlockall" else call.args[0] & ~libc.MCL_CURRENT


def keep_future(call: Call) -> Telling:
    """MCL_FUTURE outlasts the call that should end it."""
    before = call.space.future
    ends = call.name == "munlockall" or not call.args[0] & libc.MCL_FUTURE
    result = yield
    if result == 0 and not ends:
        call.space.future = call.args[0] & ~libc.MCL_CURRENT
    elif result == 0:
        call.space.future = 0
        if before & libc.MCL_FUTURE:
            call.run("mlockall", before)
            call.space.future = before if call.wet else 0


def cancel_future(call: Call) -> Telling:
    """The call also ends MCL_FUTURE."""
    result = yield
    if result == 0 and call.space.future & libc.MCL_FUTURE:
        kept = [(s, e, v.onfault) for s, e, v in call.locked()]
        call.run("munlockall")
        for start, end, late in kept:
            call.run("mlock2", start, end - start, int(late))
        call.space.future = 0


def inherit_future(call: Call) -> None:
    """A forked child, or an executed program, keeps MCL_FUTURE."""
    assert call.parent is not None
    future = call.parent.space.future
    if future & libc.MCL_FUTURE:
        call.run("mlockall", future)
        call.space.future = future


def exec_keeps_future(call: Call) -> Telling:
    """MCL_FUTURE outlasts execve(2)."""
    result = yield
    if result == 0 and call.before_exec and call.before_exec.future & libc.MCL_FUTURE:
        call.run("mlockall", call.before_exec.future)


def exec_keeps_count(call: Call) -> Telling:
    """VmLck outlasts execve(2)."""
    before = call.vmlck
    result = yield
    if result == 0:
        call.miscount(before)


def exec_raises_limit(call: Call) -> Telling:
    """execve(2) raises the soft limit to the hard one."""
    result = yield
    soft, hard = call.limit
    if result == 0 and soft != hard:
        call.set_limit(hard, hard)


# fork


def _parents_locks(call: Call, which: Which) -> list[tuple[int, int, bool]]:
    assert call.parent is not None
    return [
        (v.start, v.end, v.onfault) for v in call.vmas_of(call.parent.pid) if v.locked and which(v)
    ]


def child_locked(which: Which = any_vma, only: int | None = None) -> Lie:
    """A forked child has its parent's locks."""

    def lie(call: Call) -> None:
        for start, end, late in _parents_locks(call, which):
            call.run("mlock2", start, end - start, int(late) if only is None else only)

    return lie


def child_counted(call: Call) -> None:
    """A forked child starts with its parent's VmLck."""
    assert call.parent is not None
    call.miscount(sum(e - s for s, e, _ in _parents_locks(call, any_vma)))


def child_copied(which: Which) -> Lie:
    """A forked child gets its copies at once."""

    def lie(call: Call) -> None:
        for start, end, _ in _parents_locks(call, which):
            call.run("madvise", start, end - start, libc.MADV_POPULATE_WRITE)

    return lie


def _child_of(call: Call) -> bool:
    """The call has forked a process with memory of its own."""
    child = call.known(call.result) if call.result > 0 else None
    return child is not None and child.parent is call.process and not child.vforked


def parent_unlocked(call: Call) -> Telling:
    """fork takes the parent's locks away."""
    yield
    if _child_of(call):
        for start, end, _ in call.locked():
            call.run("munlock", start, end - start)


def parent_uncounted(call: Call) -> Telling:
    """fork sets the parent's VmLck to 0."""
    yield
    if _child_of(call) and call.locked():
        call.miscount(-call.vmlck)


# Limits


def lifted(when: Test, extra: int | None = None) -> Lie:
    """A call that the limit refuses is made after all.

    With ``extra``, only if the limit lacks no more than so many bytes; else up to the hard one.
    """

    def lie(call: Call) -> Telling:
        soft, hard = call.limit
        if soft == -1 or call.capable or not when(call):
            return
        result = yield
        refused = result in (-errno.ENOMEM, -errno.EAGAIN, -errno.EPERM)
        if call.name == "brk":
            refused = result < call.args[0]
        wanted = hard if extra is None else soft + extra
        if not refused or wanted == soft or (hard != -1 and wanted > hard):
            return
        call.set_limit(wanted, hard)
        again = call.again()
        call.set_limit(soft, hard)
        if again >= 0:
            call.say(again)

    return lie


def lifted_unlocked(call: Call) -> Telling:
    """A mapping under MCL_FUTURE that the limit forbids is made without its lock."""
    soft, hard = call.limit
    asked = call.args[3] & libc.MAP_LOCKED
    result = yield
    if result != -errno.EAGAIN or asked or call.capable or soft == hard:
        return
    call.set_limit(hard, hard)
    again = call.again()
    if again > 0:
        call.run("munlock", again, call.args[1])
        call.say(again)
    call.set_limit(soft, hard)


def full_refused(name: str) -> Lie:
    """A lock that reaches the limit exactly is refused."""

    def lie(call: Call) -> Telling:
        result = yield
        soft = call.limit[0]
        reached = (
            result >= 0 and soft > 0 and not call.capable and call.vmlck == soft // PAGE * PAGE
        )
        if reached and call.name == "mmap" and call.locked(*_extent(call)):
            call.run("munmap", *(result, call.args[1]))
            call.say_error(name)
        elif reached and call.name in ("mlock", "mlock2"):
            call.run("munlock", *call.args[:2])
            call.say_error(name)
        elif reached and call.name == "mremap" and call.args[2] > call.args[1]:
            call.say_error(name)

    return lie


def relock_counted(call: Call) -> None:
    """Pages locked already count against the limit once more."""
    low, high = call.range
    soft = call.limit[0]
    bound = low and soft > 0 and not call.capable and not over_limit(call)
    if bound and call.vmlck + high - low > soft // PAGE * PAGE:
        call.fail("ENOMEM")


def counted_together(call: Call) -> None:
    """The limit holds for all of a family's address spaces together."""
    low, high = call.range
    soft = call.limit[0]
    if low and soft > 0 and not call.capable and not over_limit(call):
        spaces = {id(p.space): p for p in call.others()}
        total = sum(_vmlck(p) for p in spaces.values())
        if total > call.vmlck and total + high - low > soft // PAGE * PAGE:
            call.fail("ENOMEM")


def _vmlck(process: Process) -> int:
    from helpers.observe import status

    try:
        return status.vmlck_kb(process.pid) * 1024
    except (OSError, KeyError):
        return 0


def bound_capable(name: str, when: Test) -> Lie:
    """CAP_IPC_LOCK does not help beyond the limit."""

    def lie(call: Call) -> None:
        soft = call.limit[0]
        if soft != -1 and call.capable and when(call):
            call.fail(name)

    return lie


def beyond(call: Call) -> bool:
    """The mlock or mmap would exceed the limit, were it obeyed."""
    low, high = call.range if call.name != "mmap" else (PAGE, PAGE + call.args[1])
    soft = call.limit[0] // PAGE * PAGE
    return low > 0 and call.vmlck + high - low > soft


def all_beyond(call: Call) -> bool:
    """mlockall(MCL_CURRENT) would exceed the limit, were it obeyed."""
    return bool(call.args[0] & libc.MCL_CURRENT) and call.limit[0] < 1 << 20


def above_lowered(call: Call) -> bool:
    """More is locked than the limit allows now."""
    return not call.capable and 0 <= call.limit[0] // PAGE * PAGE < call.vmlck


def refused_partly(call: Call) -> Telling:
    """mlock over the limit locks as much as fits."""
    over = over_limit(call)
    low, high = call.range
    room = call.limit[0] // PAGE * PAGE - call.vmlck
    result = yield
    if over and result == -errno.ENOMEM and 0 < room < high - low:
        call.run("mlock", low, room)


def limit_more(call: Call) -> Telling:
    """A soft limit that is set comes out a page higher."""
    wants = call.args[1] == 8 and call.args[2]
    result = yield
    soft, hard = call.limit
    if wants and result == 0 and soft != -1 and (hard == -1 or soft + PAGE <= hard):
        call.set_limit(soft + PAGE, hard)


def limit_ignored(call: Call) -> None:
    """A soft limit that is set stays what it was."""
    if call.args[1] == 8 and call.args[2] and not call.args[3]:
        call.give(0)


def grow_over_limit(call: Call) -> None:
    """Growth of a locked stack beyond the limit is let through."""
    soft, hard = call.limit
    if call.args[0] == 11 and soft != hard and soft != -1 and not call.notes.get("grown"):
        call.notes["grown"] = True
        call.set_limit(hard, hard)
        call.swallow()


# mremap, mmap


def moved_unlocked(call: Call) -> Telling:
    """mremap loses the lock on the way."""
    result = yield
    if result > 0 and result != call.args[0]:
        for start, end, _ in call.locked(result, result + call.args[2]):
            call.run("munlock", start, end - start)


def moved_full(call: Call) -> Telling:
    """mremap turns a lock on fault into a full one."""
    result = yield
    if result > 0 and result != call.args[0]:
        for start, end, vma in call.locked(result, result + call.args[2]):
            if vma.onfault:
                call.run("mlock", start, end - start)


def old_stays_locked(call: Call) -> Telling:
    """MREMAP_DONTUNMAP leaves the old range locked."""
    source = call.locked(call.args[0], call.args[0] + call.args[1])
    result = yield
    if result > 0 and call.args[3] & libc.MREMAP_DONTUNMAP and source:
        call.run("mlock2", call.args[0], call.args[1], 1)


def protected_unlocked(call: Call) -> Telling:
    """mprotect(PROT_NONE) drops the lock."""
    before = call.locked(*call.range)
    result = yield
    if result == 0 and before and not call.args[2] & 7:
        call.run("munlock", *call.args[:2])


def protected_full(call: Call) -> Telling:
    """mprotect turns a lock on fault into a full one."""
    late = [(s, e) for s, e, v in call.locked(*call.range) if v.onfault]
    result = yield
    if result == 0:
        for start, end in late:
            call.run("mlock", start, end - start)


def placed_locked(call: Call) -> Telling:
    """A mapping placed over locked memory takes its lock."""
    placed = call.args[3] & libc.MAP_FIXED and not call.args[3] & libc.MAP_LOCKED
    before = call.locked(*call.range) if placed else []
    result = yield
    if result > 0:
        for start, end, _ in before:
            call.run("mlock2", start, end - start, 1)


def future_skips(which: Which) -> Lie:
    """MCL_FUTURE leaves out new mappings like these."""

    def lie(call: Call) -> Telling:
        if call.name == "mmap" and call.args[3] & libc.MAP_LOCKED:
            return
        result = yield
        if result > 0:
            for start, end, vma in call.locked(*_extent(call)):
                if which(vma):
                    call.run("munlock", start, end - start)

    return lie


def heap_skipped(call: Call) -> Telling:
    """MCL_FUTURE leaves out the growth of the heap."""
    before = call.notes.get("brk", 0)
    result = yield
    if result > 0:
        call.notes["brk"] = result
        if before and result > before:
            heap = (-(-before // PAGE) * PAGE, -(-result // PAGE) * PAGE)
            if heap[0] < heap[1] and call.locked(*heap):
                call.run("munlock", heap[0], heap[1] - heap[0])


def dont_merge(call: Call) -> Telling:
    """What this call changed merges with no neighbour."""
    result = yield
    low, high = call.range
    if result == 0 and low:
        call.run("madvise", low, high - low, libc.MADV_DONTDUMP)


# VmLck, as it is shown and as it is kept.


def _process_file(call: Call, name: str) -> int:
    match = re.fullmatch(rf"/proc/(\d+)/(?:task/\d+/)?{name}", call.file)
    return int(match[1]) if match else 0


def _renumber(data: bytes, pattern: bytes, change: Callable[[int], int]) -> bytes:
    def other(match: re.Match[bytes]) -> bytes:
        width = len(match[2])
        value = max(0, change(int(match[2])))
        return match[1] + str(value).rjust(width).encode()[-width:]

    return re.sub(pattern, other, data)


_VMLCK = rb"(VmLck:\t)( *\d+)(?= kB)"


def show_vmlck(change: Callable[[Call, int, int], int]) -> Lie:
    """VmLck in status is another: a function of the call, the process and its kB."""

    def lie(call: Call) -> Telling:
        pid = _process_file(call, "status")
        if pid:
            yield
            data = call.data
            call.write(call.args[1], _renumber(data, _VMLCK, lambda kb: change(call, pid, kb)))

    return lie


def _kb_of(which: Which) -> Callable[[Call, int, int], int]:
    def change(call: Call, pid: int, kb: int) -> int:
        if not kb:
            return kb
        return kb - sum(v.kb for v in call.vmas_of(pid) if v.locked and which(v))

    return change


def leave_out(which: Which) -> Lie:
    """VmLck leaves out VMAs like these."""
    return show_vmlck(_kb_of(which))


def _resident_kb(call: Call, pid: int, kb: int) -> int:
    rest = [v for v in call.vmas_of(pid) if v.locked]
    return kb - sum(v.kb - v.field_kb("Rss") for v in rest)


count_resident = show_vmlck(_resident_kb)
"""VmLck counts pages in memory in place of ranges."""


def _never_less(call: Call, pid: int, kb: int) -> int:
    process = call.known(pid)
    if process is None:
        return kb
    notes = call.notes_of(process)
    notes["most"] = max(kb, notes.get("most", 0))
    return int(notes["most"])


never_falls = show_vmlck(_never_less)
"""VmLck never falls."""


def _miscounted(call: Call, pid: int, kb: int) -> int:
    process = call.known(pid)
    return kb + (process.space.miscount // 1024 if process else 0)


show_miscount = show_vmlck(_miscounted)
"""VmLck with what faults have added."""


def one_page_less(call: Call, pid: int, kb: int) -> int:
    """A page is missing of whatever is locked."""
    return kb - PAGE // 1024 if kb else kb


def miscounts(size: Callable[[Call, int, int], int]) -> Lie:
    """VmLck is wrong after the call by ``size(call, locked bytes before, after)``."""

    def lie(call: Call) -> Telling:
        low, high = _touched(call)
        before = call.locked_bytes(low, high)
        result = yield
        if call.name == "mremap":
            # Source and target, before and after, are judged by what was asked for.
            call.miscount(size(call, before if result > 0 else 0, 0) if result > 0 else 0)
        elif result >= 0:
            low, high = _touched(call)
            call.miscount(size(call, before, call.locked_bytes(low, high)))

    return lie


def _touched(call: Call) -> tuple[int, int]:
    if call.name == "mmap":
        return _extent(call) if call.result else call.range
    return call.range


def growth(call: Call, before: int, after: int) -> int:
    """mremap: minus the growth of a locked mapping."""
    grown = call.args[2] - call.args[1]
    return -grown if before and grown > 0 and call.args[1] else 0


def shrinkage(call: Call, before: int, after: int) -> int:
    """mremap: what a locked mapping was shortened by."""
    cut = call.args[1] - call.args[2]
    return cut if before and cut > 0 else 0


def duplicate(call: Call, before: int, after: int) -> int:
    """mremap of length 0: minus the new mapping."""
    return -call.args[2] if not call.args[1] else 0


def kept(call: Call, before: int, after: int) -> int:
    """What the call took away."""
    return max(0, before - after)


def one_kept(call: Call, before: int, after: int) -> int:
    """One page of what the call took away, if it was several."""
    return PAGE if before - after >= 2 * PAGE else 0


def unadded(call: Call, before: int, after: int) -> int:
    """Minus what the call added."""
    return -max(0, after - before)


def one_unadded(call: Call, before: int, after: int) -> int:
    """Minus one page of what the call added, if it was several."""
    return -PAGE if after - before >= 2 * PAGE else 0


def again_added(call: Call, before: int, after: int) -> int:
    """What was locked before counts once more."""
    return before if after else 0


def heap_uncounted(call: Call) -> Telling:
    """A heap that grows locked is not counted."""
    before = call.notes.get("brk", 0)
    result = yield
    if result > 0:
        call.notes["brk"] = result
        start, end = (-(-a // PAGE) * PAGE for a in (before, result))
        if before and start < end and call.locked(start, end):
            call.miscount(start - end)


def heap_kept(call: Call) -> Telling:
    """A locked heap that shrinks keeps its count."""
    before = call.notes.get("brk", 0)
    asked = call.args[0]
    start, end = (-(-a // PAGE) * PAGE for a in (asked, before))
    had = call.locked_bytes(start, end) if asked and before and start < end else 0
    result = yield
    if result > 0:
        call.notes["brk"] = result
        if result == asked:
            call.miscount(had)


def attach_uncounted(call: Call) -> Telling:
    """A segment attached under MCL_FUTURE is not counted."""
    result = yield
    if result > 0:
        call.miscount(-sum(v.size for v in call.vmas(result, result + 1) if v.locked))


def stack_uncounted(call: Call, pid: int, kb: int) -> int:
    """A locked stack counts a page less."""
    grows = [v for v in call.vmas_of(pid) if v.locked and "gd" in v.flags] if kb else []
    return kb - PAGE // 1024 if grows else kb


# smaps, pagemap, page flags, counters


def edit(name: str, change: Callable[[Call, bytes], bytes]) -> Lie:
    """What the process reads from /proc/PID/``name`` is changed, to the same length."""

    def lie(call: Call) -> Telling:
        if _process_file(call, name):
            yield
            data = call.data
            new = change(call, data)
            if len(new) == len(data):
                call.write(call.args[1], new)

    return lie


def drop_vmflag(name: bytes, header: bytes = b"") -> Callable[[Call, bytes], bytes]:
    """A flag is missing from VmFlags (``header``: of VMAs whose first line has that)."""

    def change(call: Call, data: bytes) -> bytes:
        records = re.split(rb"(?m)(?=^[0-9a-f]+-[0-9a-f]+ )", data)
        return b"".join(
            re.sub(rb"(VmFlags:.*) %s " % name, rb"\1" + b" " * (len(name) + 2), r)
            if header in r.split(b"\n", 1)[0] else r
            for r in records
        )  # fmt: skip

    return change


def renumber_field(name: bytes, new: Callable[[int], int]) -> Callable[[Call, bytes], bytes]:
    """A counter in kB is another."""
    pattern = rb"(%s:)(\s+\d+)(?= kB)" % re.escape(name)
    return lambda call, data: _renumber(data, pattern, new)


def locked_is_rss(call: Call, data: bytes) -> bytes:
    """Locked counts shared pages in full."""

    def other(match: re.Match[bytes]) -> bytes:
        return match[1] + match[2] + match[3] + match[2] if match[4].strip() != b"0" else match[0]

    def one(match: re.Match[bytes]) -> bytes:
        rss, locked = match[1], match[3]
        if int(locked) == 0 or int(rss) == int(locked):
            return match[0]
        return match[0][: -len(locked)] + str(int(rss)).rjust(len(locked)).encode()

    return re.sub(rb"\nRss:(\s+\d+) kB((?:\n(?!Locked)\w+:.*)*)\nLocked:(\s+\d+)", one, data)


def edit_words(path: str, change: Callable[[Call, int, array[int]], array[int]]) -> Lie:
    """64-bit words read from pagemap, kpageflags or kpagecount are others."""

    def lie(call: Call) -> Telling:
        if re.fullmatch(path, call.file):
            yield
            words = array("Q")
            data = call.data
            words.frombytes(data[: len(data) // 8 * 8])
            if words:
                new = change(call, call.offset // 8, words[:])
                if new != words:
                    call.write(call.args[1], new.tobytes())

    return lie


PAGEMAP, FLAGS, COUNTS = r"/proc/\d+/pagemap", "/proc/kpageflags", "/proc/kpagecount"


def clear(
    mask: int, least: int = 1, last: bool = False
) -> Callable[[Call, int, array[int]], array[int]]:
    """Bits are missing (``last``: of the last word read, of at least ``least``)."""

    def change(call: Call, first: int, words: array[int]) -> array[int]:
        if len(words) < least:
            return words
        if last:
            words[-1] &= ~mask
            return words
        return array("Q", (w & ~mask for w in words))

    return change


def one_more(call: Call, first: int, words: array[int]) -> array[int]:
    """Each count that is not 0 is one more."""
    return array("Q", (w + 1 if w else 0 for w in words))


def one_at_most(call: Call, first: int, words: array[int]) -> array[int]:
    """No count is above 1."""
    return array("Q", (min(w, 1) for w in words))


def _frames(call: Call, name: str) -> set[int]:
    """A set of PFNs kept for the whole case."""
    found: set[int] = call.case.setdefault(name, set())
    return found


def mark_frames(
    name: str, when: str = "after", *, other: str = "", behind: bool = False, last: bool = False
) -> Lie:
    """Remember the PFNs of the call's range (or the page ``behind`` it, or its ``last``)."""

    def lie(call: Call) -> Telling:
        low, high = call.range
        if behind:
            low, high = high, high + PAGE
        if last:
            low = max(low, high - PAGE)
        if call.name in ("exit_group", "munlockall", "execve"):
            ranges = [(s, e) for s, e, _ in call.locked()]
        else:
            ranges = [(s, e) for s, e, _ in call.locked(low, high)]
        numbers = {n for s, e in ranges for n in call.frames(s, e)} if when == "before" else set()
        if call.name != "exit_group":
            result = yield
            if result < 0:
                return
        if when == "after" and low < high:
            numbers = set(call.frames(low, high)) if call.vmas(low, high) else set()
        if numbers:
            call.act()
            _frames(call, name).update(numbers)
            if other:
                _frames(call, other).difference_update(numbers)
        yield

    return lie


def forget_frames(name: str) -> Lie:
    """Pages locked anew are no longer remembered."""

    def lie(call: Call) -> Telling:
        result = yield
        low, high = call.range
        if result == 0 and low < high and call.vmas(low, high):
            _frames(call, name).difference_update(call.frames(low, high))

    return lie


def frames_show(name: str, mask: int, on: bool) -> Lie:
    """Remembered pages show flags that they do not have, or lack those they have."""

    def change(call: Call, first: int, words: array[int]) -> array[int]:
        for number in _frames(call, name):
            if first <= number < first + len(words):
                word = words[number - first]
                words[number - first] = word | mask if on else word & ~mask
        return words

    return edit_words(FLAGS, change)


def unmark_where(which: Which) -> Lie:
    """Pages of locked VMAs like these are not PG_mlocked."""

    def change(call: Call, first: int, words: array[int]) -> array[int]:
        if not any(w & pagemap.MLOCKED for w in words):
            return words
        for process in call.others():
            for vma in call.vmas_of(process.pid):
                if vma.locked and which(vma):
                    count = min(vma.size // PAGE, 4096)
                    for number in pagemap.pfns(vma.start, count, process.pid):
                        if number and first <= number < first + len(words):
                            words[number - first] &= ~pagemap.MLOCKED
        return words

    return edit_words(FLAGS, change)


def frozen(path: str, *names: bytes) -> Lie:
    """Counters of a file of the machine or a cgroup stay what they were when first read."""
    pattern = re.compile(rb"(?m)(^(?:Node \d+ )?(?:%s):?)(\s+\d+)" % b"|".join(names))

    def lie(call: Call) -> Telling:
        if not re.fullmatch(path, call.file):
            return
        yield
        first: dict[bytes, int] = call.case.setdefault(call.file, {})
        call.write(
            call.args[1],
            pattern.sub(lambda m: _stuck(first, m), call.data),
        )

    return lie


def _stuck(first: dict[bytes, int], match: re.Match[bytes]) -> bytes:
    value = first.setdefault(match[1], int(match[2]))
    width = len(match[2]) - 1
    text = str(value).rjust(width, "0")[-width:].encode()
    return match[1] + match[2][:1] + text


_MINOR, _MAJOR = 64, 72
"""Offsets of ru_minflt and ru_majflt in struct rusage of 64-bit machines."""


def count_fault(offset: int) -> Lie:
    """Each reading of the fault counters shows one fault more than there was."""

    def lie(call: Call) -> Telling:
        yield
        count = call.notes["faults"] = call.notes.get("faults", 0) + 1
        at = call.args[1] + offset
        (now,) = struct.unpack("=q", call.memory(at, 8))
        call.write(at, struct.pack("=q", now + count))

    return lie


minor_fault, major_fault = count_fault(_MINOR), count_fault(_MAJOR)


# mincore


def _vector(call: Call) -> bytes:
    return call.memory(call.args[2], -(-call.args[1] // PAGE))


def mincore_says(change: Callable[[bytes], bytes]) -> Lie:
    """The vector is another."""

    def lie(call: Call) -> Telling:
        result = yield
        if result == 0 and call.args[1]:
            call.write(call.args[2], change(_vector(call)))

    return lie


# Pressure

_DRIVES = re.compile(
    r"/sys/fs/cgroup/.*/memory\.(?:force_empty|reclaim|high|max|limit_in_bytes)"
    r"|/proc/sys/vm/drop_caches"
)


def _drives(call: Call) -> bool:
    """The call makes the kernel look for pages to take."""
    if call.name == "write":
        return bool(_DRIVES.fullmatch(call.file))
    advice = call.args[2] if call.name == "madvise" else call.args[3]
    return advice == libc.MADV_PAGEOUT


def under_pressure(which: Which = any_vma) -> Lie:
    """When reclaim is driven, locked memory loses its protection behind everybody's back."""

    def lie(call: Call) -> Telling:
        if not _drives(call):
            return
        own: list[maps.Vma] = []
        for process in call.others():
            found = [v for v in call.vmas_of(process.pid) if v.locked and which(v)]
            if process is call.process:
                own = found
                continue
            for vma in found:
                call.run_in(process, "munlock", vma.start, vma.size)
                # A page that has just left the unevictable list would outlast the first pass.
                call.run_in(process, "madvise", vma.start, vma.size, libc.MADV_PAGEOUT)
        if own:
            # The caller cannot make a call before the one that it is about to make: that one
            # is put off.
            call.give(0)
            yield
            for vma in own:
                call.run("munlock", vma.start, vma.size)
                call.run("madvise", vma.start, vma.size, libc.MADV_PAGEOUT)
            call.say(call.again())

    return lie


def held_under_pressure(call: Call) -> Telling:
    """What was unlocked before stays protected when reclaim is driven."""
    if _drives(call):
        held = [
            (process, low, high)
            for process in call.others()
            if process is not call.process
            for low, high in call.notes_of(process).get("unlocked", ())
        ]
        for process, low, high in held:
            call.run_in(process, "mlock2", low, high - low, 1)
        if held:
            yield
            for process, low, high in held:
                call.run_in(process, "munlock", low, high - low)


def remember_unlocked(call: Call) -> Telling:
    """Note what munlock or munlockall unlocks."""
    low, high = call.range if call.name == "munlock" else (0, TOP)
    ranges = [(s, e) for s, e, _ in call.locked(low, high)]
    result = yield
    if result == 0:
        call.notes.setdefault("unlocked", []).extend(ranges)


# Odds and ends that one fault each is made of.


def private_writable(vma: maps.Vma) -> bool:
    """Private and writable: what a write copies."""
    return vma.perms[1] == "w" and vma.perms[3] == "p"


def unadvised(call: Call) -> Telling:
    """madvise on locked memory drops the lock."""
    before = call.locked(*call.range)
    result = yield
    if result == 0 and before:
        call.run("munlock", *call.args[:2])


def remember_sealed(call: Call) -> Telling:
    """Note what mseal sealed."""
    result = yield
    if result == 0:
        call.notes.setdefault("sealed", []).append(call.range)


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


def unbroken(call: Call) -> Telling:
    """mprotect leaves locked pages of a file, made writable, uncopied."""
    parts = []
    if call.args[2] & libc.PROT_WRITE:
        for start, end, vma in call.locked(*call.range):
            if vma.perms[1:4:2] == "-p":
                words = pagemap.entries(start, (end - start) // PAGE, call.pid)
                parts += [
                    (start + i * PAGE)
                    for i, w in enumerate(words)
                    if not vma.inode or w & pagemap.FILE_OR_SHARED
                ]
    result = yield
    if result == 0:
        for first, stop in _stretches(parts):
            call.run("madvise", first, stop - first, libc.MADV_DONTNEED_LOCKED)
            call.run("madvise", first, stop - first, libc.MADV_POPULATE_READ)


def all_dropped(call: Call) -> Telling:
    """munlockall throws the pages of what it unlocks out of memory."""
    before = call.locked()
    result = yield
    if result == 0:
        for start, end, _ in before:
            call.run("madvise", start, end - start, libc.MADV_DONTNEED)


def all_present(call: Call, first: int, words: array[int]) -> array[int]:
    """Every page is in memory."""
    return array("Q", (w | pagemap.PRESENT for w in words))


def failed_unlocks(call: Call) -> Telling:
    """A failed execve drops the locks."""
    result = yield
    if result < 0:
        for start, end, _ in call.locked():
            call.run("munlock", start, end - start)


def failed_cancels(call: Call) -> Telling:
    """A failed execve cancels MCL_FUTURE."""
    result = yield
    if result < 0:
        _cancel(call)


def refused_cancels(call: Call) -> Telling:
    """A refused mlockall cancels MCL_FUTURE."""
    result = yield
    if result == 0:
        call.space.future = call.args[0] & ~libc.MCL_CURRENT
    else:
        _cancel(call)


def _cancel(call: Call) -> None:
    if call.space.future & libc.MCL_FUTURE:
        kept = [(s, e, v.onfault) for s, e, v in call.locked()]
        call.run("munlockall")
        for start, end, late in kept:
            call.run("mlock2", start, end - start, int(late))
        call.space.future = 0


def end_unlocks(call: Call) -> Telling:
    """When a vfork child has ended, its parent's locks are gone."""
    result = yield
    if result > 0 and call.was_vforked(result):
        for start, end, _ in call.locked():
            call.run("munlock", start, end - start)


def all_mapped_beyond(call: Call) -> bool:
    """The whole address space is larger than the limit."""
    from helpers.observe import status

    return status.kb("VmSize", call.pid) * 1024 > call.limit[0] // PAGE * PAGE


def mark_all(name: str) -> Lie:
    """Remember the PFNs of every locked page."""

    def lie(call: Call) -> Telling:
        numbers = {n for s, e, v in call.locked() if file(v) for n in call.frames(s, e)}
        result = yield
        if result == 0 and numbers:
            call.act()
            _frames(call, name).update(numbers)

    return lie


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


def swapped_left(call: Call) -> Telling:
    """mlock marks the range and leaves in swap what is there."""
    if swapped(call):
        call.give(0)
        yield
        call.run("mlock2", *call.args[:2], 1)
