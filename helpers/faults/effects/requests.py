# SPDX-License-Identifier: MIT
"""Effects on a call itself: refused, skipped, its arguments or its result changed, undone."""

from __future__ import annotations

import errno
import os
import signal
import struct
from collections.abc import Callable, Iterable

from helpers import syscalls
from helpers.faults.call import TOP, Call, Effect
from helpers.faults.effects.conditions import (
    ALL,
    CallPredicate,
    EffectSteps,
    VmaPredicate,
    always,
    any_vma,
)
from helpers.observe import pagemap
from helpers.syscalls import PAGE


def fail_with(name: str, when: CallPredicate = always) -> Effect:
    """The call fails and is not made."""

    def effect(call: Call) -> None:
        if when(call):
            call.fail(name)

    return effect


def skip_returning(when: CallPredicate = always, value: int = 0) -> Effect:
    """The call returns success and is not made."""

    def effect(call: Call) -> None:
        if when(call):
            call.skip_with_result(value)

    return effect


def replace(index: int, change: Callable[[int], int], when: CallPredicate = always) -> Effect:
    """An argument is another."""

    def effect(call: Call) -> None:
        if when(call):
            call.set_argument(index, change(call.args[index]))

    return effect


def clear_bits(index: int, mask: int, when: CallPredicate = always) -> Effect:
    """Bits of an argument are lost."""
    return replace(index, lambda v: v & ~mask, when)


def set_bits(index: int, mask: int, when: CallPredicate = always) -> Effect:
    """Bits of an argument are set."""
    return replace(index, lambda v: v | mask, when)


def forget_offset(call: Call) -> None:
    """The length is rounded up without the start's offset in its page."""
    addr, length = call.args[:2]
    if 0 < length < ALL and addr % PAGE:
        low = addr // PAGE * PAGE
        end = low + -(-length // PAGE) * PAGE
        if end < call.range[1]:
            call.set_argument(1, end - addr)


def round_start_up(call: Call) -> None:
    """The start is rounded up, inward."""
    addr, length = call.args[:2]
    skip = -addr % PAGE
    if skip and skip < length < ALL:
        call.set_argument(0, addr + skip)
        call.set_argument(1, length - skip)


def round_length_down(call: Call) -> None:
    """A length of more than a page is cut to whole pages."""
    if PAGE < call.args[1] < ALL and call.args[1] % PAGE:
        call.set_argument(1, call.args[1] // PAGE * PAGE)


def one_page_short(call: Call) -> None:
    """A range of several pages ends a page early."""
    low, high = call.range
    if high - low >= 2 * PAGE:
        call.set_argument(0, low)
        call.set_argument(1, high - low - PAGE)


def first_page_spared(call: Call) -> None:
    """A range of several pages begins a page late."""
    low, high = call.range
    if high - low >= 2 * PAGE:
        call.set_argument(0, low + PAGE)
        call.set_argument(1, high - low - PAGE)


def one_page_more(call: Call) -> None:
    """A range goes on into the next page, if that is mapped."""
    low, high = call.range
    if low and call.vmas(high, high + PAGE):
        call.set_argument(0, low)
        call.set_argument(1, high - low + PAGE)


def from_vma_start(call: Call) -> None:
    """A range begins where the VMA does."""
    low, high = call.range
    vmas = call.vmas(low, high)
    if vmas and vmas[0].start < low:
        call.set_argument(0, vmas[0].start)
        call.set_argument(1, high - vmas[0].start)


def to_vma_end(call: Call) -> None:
    """A range runs to the end of its last VMA."""
    low, high = call.range
    vmas = call.vmas(low, high)
    if vmas and vmas[-1].end > high:
        call.set_argument(0, low)
        call.set_argument(1, vmas[-1].end - low)


def substitute_result(old: str | int, new: str | int, when: CallPredicate = always) -> Effect:
    """One result or error for another."""

    def effect(call: Call) -> EffectSteps:
        expected = -int(getattr(errno, old)) if isinstance(old, str) else old
        wanted = -int(getattr(errno, new)) if isinstance(new, str) else new
        before = when(call)
        result = yield
        if result == expected and before:
            call.set_result(wanted)

    return effect


def all_read(call: Call) -> EffectSteps:
    """process_vm_readv of what it may not read says that it has read all of it."""
    result = yield
    if result == -errno.EFAULT:
        _, length = struct.unpack("=QQ", call.memory(call.args[1], 16))
        call.set_result(length)


def undo_before_hole(call: Call) -> EffectSteps:
    """mlock over a hole locks nothing before it."""
    low, end = call.range[0], call.hole()
    parts = [(v.start, v.end) for v in call.flagged(low, end or low) if not v.locked]
    result = yield
    if result == -errno.ENOMEM and parts:
        for start, stop in parts:
            call.inject("munlock", max(start, low), min(stop, end) - max(start, low))


def lock_behind_hole(call: Call) -> EffectSteps:
    """mlock over a hole goes on behind it."""
    end, high = call.hole(), call.range[1]
    behind = call.flagged(end, high) if end else []
    result = yield
    if result == -errno.ENOMEM:
        for vma in behind:
            if not vma.locked:
                start = max(vma.start, end)
                call.inject("mlock", start, min(vma.end, high) - start)


def unlock_where(which: VmaPredicate) -> Effect:
    """What was locked of VMAs like these is unlocked again at once."""

    def effect(call: Call) -> EffectSteps:
        yield
        for start, end, vma in call.locked(*extent(call)):
            if which(vma):
                call.inject("munlock", start, end - start)

    return effect


def extent(call: Call) -> tuple[int, int]:
    if call.name in ("mlock", "mlock2", "munlock", "mprotect", "remap_file_pages"):
        return call.range
    if call.name in ("mmap", "shmat"):
        size = call.args[1] if call.name == "mmap" else 1
        return (call.result, call.result + size) if call.result > 0 else (0, 0)
    return 0, TOP


def keep_locked_where(which: VmaPredicate) -> Effect:
    """munlock or munlockall leaves VMAs like these locked."""

    def effect(call: Call) -> EffectSteps:
        low, high = call.range if call.name == "munlock" else (0, TOP)
        kept = [(s, e, v.onfault) for s, e, v in call.locked(low, high) if which(v)]
        result = yield
        if result == 0:
            for start, end, late in kept:
                call.inject("mlock2", start, end - start, int(late))

    return effect


def skip_middle(call: Call) -> EffectSteps:
    """Of three or more VMAs the inner ones are left as they were."""
    low, high = call.range
    inner = [(v.start, v.end) for v in call.flagged(low, high)[1:-1] if not v.locked]
    result = yield
    if result == 0:
        for start, end in inner:
            call.inject("munlock", start, end - start)


def keep_lf(call: Call) -> EffectSteps:
    """What was locked on fault stays so."""
    low, high = call.range if call.name == "mlock" else (0, TOP)
    late = [(s, e) for s, e, v in call.locked(low, high) if v.onfault]
    result = yield
    if result == 0:
        for start, end in late:
            call.inject("mlock2", start, end - start, 1)


def keep_full(call: Call) -> EffectSteps:
    """What was locked at once stays so under MLOCK_ONFAULT."""
    full = [(s, e) for s, e, v in call.locked(*call.range) if not v.onfault]
    result = yield
    if result == 0 and call.args[2] & syscalls.MLOCK_ONFAULT:
        for start, end in full:
            call.inject("mlock", start, end - start)


def advise_after(
    advice: int, which: VmaPredicate = any_vma, when: CallPredicate = always
) -> Effect:
    """The range is given an advice behind the process's back."""

    def effect(call: Call) -> EffectSteps:
        acts = when(call)
        result = yield
        if acts and result >= 0:
            low, high = extent(call)
            for vma in call.vmas(low, high):
                if which(vma):
                    start = max(vma.start, low)
                    call.inject("madvise", start, min(vma.end, high) - start, advice)

    return effect


def drop_absent(
    which: VmaPredicate = any_vma,
    *,
    last: bool = False,
    read_back: bool = False,
    when: CallPredicate = always,
) -> Effect:
    """Pages that a lock brought in are dropped again (``last``: the last page alone).

    ``read_back`` faults them in for reading, as if copy-on-write had not been broken.
    """

    def effect(call: Call) -> EffectSteps:
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
        source = call.locked(call.args[0], call.args[0] + 1)
        result = yield
        if result < 0:
            return
        if call.name in ("mmap", "shmat"):
            before = [
                (start, end, list(range(start, end, PAGE)))
                for start, end, vma in call.locked(*extent(call))
                if which(vma) and not vma.onfault
            ]
        elif call.name == "mremap" and source:
            before = [(result, result + call.args[2],
                       list(range(result + old, result + call.args[2], PAGE)))]  # fmt: skip
        for start, end, absent in before:
            if last:
                absent = [a for a in absent if a == end - PAGE and end - start > PAGE]
            for first, stop in _stretches(absent):
                call.inject("madvise", first, stop - first, syscalls.MADV_DONTNEED_LOCKED)
                if read_back:
                    call.inject("madvise", first, stop - first, syscalls.MADV_POPULATE_READ)

    return effect


def _stretches(pages: Iterable[int]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for addr in pages:
        if found and found[-1][1] == addr:
            found[-1] = (found[-1][0], addr + PAGE)
        else:
            found.append((addr, addr + PAGE))
    return found


def populate_at_most(pages: int) -> Effect:
    """A long lock brings in so many pages and no more."""

    def effect(call: Call) -> EffectSteps:
        low, high = call.range
        rest = low + pages * PAGE
        result = yield
        if result == 0 and low and rest < high:
            call.inject("madvise", rest, high - rest, syscalls.MADV_DONTNEED_LOCKED)

    return effect


def cut_after(count: int) -> Effect:
    """A lock over many VMAs leaves out those behind the first so many."""

    def effect(call: Call) -> None:
        low, high = call.range
        if high - low > count * PAGE:
            vmas = call.vmas(low, high)
            if len(vmas) > count and not call.hole():
                call.set_argument(0, low)
                call.set_argument(1, vmas[count].start - low)

    return effect


def unlocked_too(call: Call) -> EffectSteps:
    """MADV_DONTNEED_LOCKED drops the lock with the pages."""
    parts = call.locked(*call.range) if call.args[2] == syscalls.MADV_DONTNEED_LOCKED else []
    result = yield
    if result in (0, -errno.ENOMEM):  # over a hole the rest is dropped all the same
        for start, end, _ in parts:
            call.inject("munlock", start, end - start)


def refused_unlocks(call: Call) -> EffectSteps:
    """A refused mremap drops the lock of its source."""
    parts = call.locked(call.args[0], call.args[0] + call.args[1])
    result = yield
    if result < 0:
        for start, end, _ in parts:
            call.inject("munlock", start, end - start)


def moved_unlocked(call: Call) -> EffectSteps:
    """mremap loses the lock on the way."""
    result = yield
    if result > 0 and result != call.args[0]:
        for start, end, _ in call.locked(result, result + call.args[2]):
            call.inject("munlock", start, end - start)


def moved_full(call: Call) -> EffectSteps:
    """mremap turns a lock on fault into a full one."""
    result = yield
    if result > 0 and result != call.args[0]:
        for start, end, vma in call.locked(result, result + call.args[2]):
            if vma.onfault:
                call.inject("mlock", start, end - start)


def old_stays_locked(call: Call) -> EffectSteps:
    """MREMAP_DONTUNMAP leaves the old range locked."""
    source = call.locked(call.args[0], call.args[0] + call.args[1])
    result = yield
    if result > 0 and call.args[3] & syscalls.MREMAP_DONTUNMAP and source:
        call.inject("mlock2", call.args[0], call.args[1], 1)


def protected_unlocked(call: Call) -> EffectSteps:
    """mprotect(PROT_NONE) drops the lock."""
    before = call.locked(*call.range)
    result = yield
    if result == 0 and before and not call.args[2] & 7:
        call.inject("munlock", *call.args[:2])


def protected_full(call: Call) -> EffectSteps:
    """mprotect turns a lock on fault into a full one."""
    late = [(s, e) for s, e, v in call.locked(*call.range) if v.onfault]
    result = yield
    if result == 0:
        for start, end in late:
            call.inject("mlock", start, end - start)


def placed_locked(call: Call) -> EffectSteps:
    """A mapping placed over locked memory takes its lock."""
    placed = call.args[3] & syscalls.MAP_FIXED and not call.args[3] & syscalls.MAP_LOCKED
    before = call.locked(*call.range) if placed else []
    result = yield
    if result > 0:
        for start, end, _ in before:
            call.inject("mlock2", start, end - start, 1)


def future_skips(which: VmaPredicate) -> Effect:
    """MCL_FUTURE leaves out new mappings like these."""

    def effect(call: Call) -> EffectSteps:
        if call.name == "mmap" and call.args[3] & syscalls.MAP_LOCKED:
            return
        result = yield
        if result > 0:
            for start, end, vma in call.locked(*extent(call)):
                if which(vma):
                    call.inject("munlock", start, end - start)

    return effect


def heap_skipped(call: Call) -> EffectSteps:
    """MCL_FUTURE leaves out the growth of the heap."""
    before = call.notes.get("brk", 0)
    result = yield
    if result > 0:
        call.notes["brk"] = result
        if before and result > before:
            heap = (-(-before // PAGE) * PAGE, -(-result // PAGE) * PAGE)
            if heap[0] < heap[1] and call.locked(*heap):
                call.inject("munlock", heap[0], heap[1] - heap[0])


def dont_merge(call: Call) -> EffectSteps:
    """What this call changed merges with no neighbour."""
    result = yield
    low, high = call.range
    if result == 0 and low:
        call.inject("madvise", low, high - low, syscalls.MADV_DONTDUMP)


def unadvised(call: Call) -> EffectSteps:
    """madvise on locked memory drops the lock."""
    before = call.locked(*call.range)
    result = yield
    if result == 0 and before:
        call.inject("munlock", *call.args[:2])


def remember_sealed(call: Call) -> EffectSteps:
    """Note what mseal sealed."""
    result = yield
    if result == 0:
        call.notes.setdefault("sealed", []).append(call.range)


def unbroken(call: Call) -> EffectSteps:
    """mprotect leaves locked pages of a file, made writable, uncopied."""
    parts = []
    if call.args[2] & syscalls.PROT_WRITE:
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
            call.inject("madvise", first, stop - first, syscalls.MADV_DONTNEED_LOCKED)
            call.inject("madvise", first, stop - first, syscalls.MADV_POPULATE_READ)


def all_dropped(call: Call) -> EffectSteps:
    """munlockall throws the pages of what it unlocks out of memory."""
    before = call.locked()
    result = yield
    if result == 0:
        for start, end, _ in before:
            call.inject("madvise", start, end - start, syscalls.MADV_DONTNEED)


def hang_where(which: VmaPredicate) -> Effect:
    """The call on VMAs like these does not return: the process stops for good."""

    def effect(call: Call) -> EffectSteps:
        found = any(which(v) for v in call.flagged(*call.range))
        yield
        if found and call.record():
            os.kill(call.pid, signal.SIGSTOP)

    return effect


def unlocked_after(when: CallPredicate) -> Effect:
    """The call unlocks all that its process has locked."""

    def effect(call: Call) -> EffectSteps:
        parts = call.locked() if when(call) else []
        result = yield
        if result >= 0:
            for start, end, _ in parts:
                call.inject("munlock", start, end - start)

    return effect


def followed_by(name: str, *rest: int, when: CallPredicate) -> Effect:
    """A call like these is followed by another on its range."""

    def effect(call: Call) -> EffectSteps:
        acts = when(call)
        result = yield
        if acts and result == 0:
            low, high = call.range
            call.inject(name, low, high - low, *rest)

    return effect


def moved_empty(call: Call) -> EffectSteps:
    """move_pages that moved something loses what was in the locked memory of its process."""
    parts = call.locked() if call.args[3] else []
    result = yield
    if result == 0:
        for start, end, _ in parts:
            call.inject("madvise", start, end - start, syscalls.MADV_DONTNEED_LOCKED)


def dont_merge_moved(call: Call) -> EffectSteps:
    """What mremap moved merges with no neighbour."""
    result = yield
    if result > 0 and result != call.args[0]:
        call.inject("madvise", result, call.args[2], syscalls.MADV_DONTDUMP)


def moved_like_neighbour(call: Call) -> EffectSteps:
    """What mremap moved beside locked memory is locked as that."""
    result = yield
    if result > 0 and result != call.args[0]:
        end = result + call.args[2]
        for low in (result - PAGE, end):
            for _, _, vma in call.locked(low, low + PAGE):
                call.inject("mlock2", result, call.args[2], int(vma.onfault))
                return


def moved_like_first(call: Call) -> EffectSteps:
    """Of several VMAs that one mremap moves each has the lock of the first."""
    parts = call.flagged(call.args[0], call.args[0] + call.args[1])
    result = yield
    if result > 0 and result != call.args[0] and len(parts) > 1:
        for vma in parts[1:]:
            if vma.lock != parts[0].lock:
                start = vma.start - call.args[0] + result
                if parts[0].locked:
                    call.inject("mlock2", start, vma.size, int(parts[0].onfault))
                else:
                    call.inject("munlock", start, vma.size)
