# SPDX-License-Identifier: MIT
"""Effects on what is read: smaps, pagemap, page flags, counters, mincore."""

from __future__ import annotations

import os
import re
import struct
from array import array
from collections.abc import Callable

from helpers import syscalls
from helpers.faults.call import Call, Effect, ReadFilter
from helpers.faults.effects.accounting import process_file, renumber
from helpers.faults.effects.conditions import CallPredicate, EffectSteps, VmaPredicate, always, file
from helpers.observe import maps, mincore, page_flags, pagemap, pagemap_scan, procmap_query
from helpers.syscalls import PAGE


def rewrite_proc_file(name: str, change: Callable[[Call, bytes], bytes]) -> Effect:
    """What the process reads from /proc/PID/``name`` is changed, to the same length."""

    def effect(call: Call) -> EffectSteps:
        yield
        new = change(call, call.data)
        if len(new) == len(call.data):
            call.write(call.args[1], new)

    return ReadFilter(process_file(name), effect)


def drop_vmflag(name: bytes, where: bytes = b"") -> Callable[[Call, bytes], bytes]:
    """A flag is missing from VmFlags (``where``: of VMAs that have this in smaps)."""

    def change(call: Call, data: bytes) -> bytes:
        records = re.split(rb"(?m)(?=^[0-9a-f]+-[0-9a-f]+ )", data)
        return b"".join(
            re.sub(rb"(VmFlags:.*) %s " % name, rb"\1" + b" " * (len(name) + 2), r)
            if where in r else r
            for r in records
        )  # fmt: skip

    return change


def rename_vmflag(
    pattern: bytes, new: bytes, without: bytes = b""
) -> Callable[[Call, bytes], bytes]:
    """Flags are shown by another name (in VMAs that have not the flag ``without``)."""

    def other(match: re.Match[bytes]) -> bytes:
        line = match[0]
        if without and b" %s " % without in line:
            return line
        return re.sub(rb" (?:%s)(?= )" % pattern, b" " + new, line)

    return lambda call, data: re.sub(rb"(?m)^VmFlags:.*$", other, data)


def renumber_field(name: bytes, new: Callable[[int], int]) -> Callable[[Call, bytes], bytes]:
    """A counter in kB is another."""
    pattern = rb"(%s:)(\s+\d+)(?= kB)" % re.escape(name)
    return lambda call, data: renumber(data, pattern, new)


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


def field_where(
    name: bytes, which: bytes, new: Callable[[int], int]
) -> Callable[[Call, bytes], bytes]:
    """A counter is another in smaps of the VMAs that match a pattern there."""
    pattern = rb"(\n%s:)(\s+\d+)(?= kB)" % name

    def change(call: Call, data: bytes) -> bytes:
        records = re.split(rb"(?m)(?=^[0-9a-f]+-[0-9a-f]+ )", data)
        return b"".join(renumber(r, pattern, new) if re.search(which, r) else r for r in records)

    return change


def rollup_misses(call: Call, data: bytes) -> bytes:
    """Locked leaves out the last of the VMAs that have any."""
    locked = [v.field_kb("Locked") for v in call.locked_of(call.shown)]
    missed = next((kb for kb in reversed(locked) if kb), 0)
    return renumber(data, rb"(Locked:)(\s+\d+)(?= kB)", lambda kb: kb - missed)


def column_in_other(column: bytes, other: bytes) -> Callable[[Call, bytes], bytes]:
    """What one counter has is shown by another."""
    pattern = rb"(%s:)(\s+\d+)(?= kB)"

    def change(call: Call, data: bytes) -> bytes:
        found = re.search(pattern % column, data)
        if not found:
            return data
        moved = int(found[2])
        without = renumber(data, pattern % column, lambda kb: 0)
        return renumber(without, pattern % other, lambda kb: kb + moved)

    return change


def edit_words(path: str, change: Callable[[Call, int, array[int]], array[int]]) -> Effect:
    """64-bit words read from pagemap, kpageflags or kpagecount are others."""

    def effect(call: Call) -> EffectSteps:
        yield
        words = array("Q")
        data = call.data
        words.frombytes(data[: len(data) // 8 * 8])
        if words:
            new = change(call, call.offset // 8, words[:])
            if new != words:
                call.write(call.args[1], new.tobytes())

    return ReadFilter(re.compile(path), effect)


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
    name: str,
    when: str = "after",
    *,
    other: str = "",
    behind: bool = False,
    last: bool = False,
    only: CallPredicate = always,
) -> Effect:
    """Remember the PFNs of the call's range (or the page ``behind`` it, or its ``last``)."""

    def effect(call: Call) -> EffectSteps:
        if not only(call):
            return
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
            call.record()
            _frames(call, name).update(numbers)
            if other:
                _frames(call, other).difference_update(numbers)
        yield

    return effect


def mark_killed(name: str) -> Effect:
    """Remember the PFNs of what a process has locked when a signal ends it."""

    def effect(call: Call) -> None:
        if call.args[0] & 0x7F and call.tid == call.pid:
            numbers = {n for s, e, _ in call.locked() for n in call.frames(s, e)}
            if numbers and call.record():
                _frames(call, name).update(numbers)

    return effect


def forget_frames(name: str) -> Effect:
    """Pages locked anew are no longer remembered."""

    def effect(call: Call) -> EffectSteps:
        result = yield
        low, high = call.range
        if result == 0 and low < high and call.vmas(low, high):
            _frames(call, name).difference_update(call.frames(low, high))

    return effect


def frames_show(name: str, mask: int, on: bool) -> Effect:
    """Remembered pages show flags that they do not have, or lack those they have."""

    def change(call: Call, first: int, words: array[int]) -> array[int]:
        for number in _frames(call, name):
            if first <= number < first + len(words):
                word = words[number - first]
                words[number - first] = word | mask if on else word & ~mask
        return words

    return edit_words(FLAGS, change)


def unmark_where(which: VmaPredicate) -> Effect:
    """Pages of locked VMAs like these are not PG_mlocked."""

    def change(call: Call, first: int, words: array[int]) -> array[int]:
        if not any(w & page_flags.MLOCKED for w in words):
            return words
        for process in call.others():
            for vma in call.locked_of(process.pid):
                if which(vma):
                    count = min(vma.size // PAGE, 4096)
                    for number in pagemap.pfns(vma.start, count, process.pid):
                        if number and first <= number < first + len(words):
                            words[number - first] &= ~page_flags.MLOCKED
        return words

    return edit_words(FLAGS, change)


def frozen(path: str, *names: bytes) -> Effect:
    """Counters of a file of the machine or a cgroup stay what they were when first read."""
    pattern = re.compile(rb"(?m)(^(?:Node \d+ )?(?:%s):?)(\s+\d+)" % b"|".join(names))

    def effect(call: Call) -> EffectSteps:
        yield
        first: dict[bytes, int] = call.case.setdefault(call.file, {})
        call.write(call.args[1], pattern.sub(lambda m: _stuck(first, m), call.data))

    return ReadFilter(re.compile(path), effect)


def _stuck(first: dict[bytes, int], match: re.Match[bytes]) -> bytes:
    value = first.setdefault(match[1], int(match[2]))
    width = len(match[2]) - 1
    text = str(value).rjust(width, "0")[-width:].encode()
    return match[1] + match[2][:1] + text


_MINOR, _MAJOR = 64, 72
"""Offsets of ru_minflt and ru_majflt in struct rusage of 64-bit machines."""


def count_fault(offset: int) -> Effect:
    """Each reading of the fault counters shows one fault more than there was."""

    def effect(call: Call) -> EffectSteps:
        yield
        count = call.notes["faults"] = call.notes.get("faults", 0) + 1
        at = call.args[1] + offset
        (now,) = struct.unpack("=q", call.memory(at, 8))
        call.write(at, struct.pack("=q", now + count))

    return effect


minor_fault, major_fault = count_fault(_MINOR), count_fault(_MAJOR)


def _vector(call: Call) -> bytes:
    return call.memory(call.args[2], -(-call.args[1] // PAGE))


def mincore_says(change: Callable[[bytes], bytes]) -> Effect:
    """The vector is another."""

    def effect(call: Call) -> EffectSteps:
        result = yield
        if result == 0 and call.args[1]:
            call.write(call.args[2], change(_vector(call)))

    return effect


def mincore_is_mapped(call: Call) -> EffectSteps:
    """The vector is the present bits of pagemap."""
    result = yield
    if result == 0 and call.args[1]:
        words = pagemap.entries(call.args[0], -(-call.args[1] // PAGE), call.pid)
        call.write(call.args[2], bytes(bool(w & pagemap.PRESENT) for w in words))


def mincore_of(which: VmaPredicate, byte: int) -> Effect:
    """The pages of VMAs like these all have this byte."""

    def effect(call: Call) -> EffectSteps:
        result = yield
        if result == 0 and call.args[1]:
            told = bytearray(_vector(call))
            low = call.args[0]
            for vma in call.vmas(*call.range):
                if which(vma):
                    first, last = (max(0, at - low) // PAGE for at in (vma.start, vma.end))
                    told[first:last] = bytes([byte]) * len(told[first:last])
            call.write(call.args[2], bytes(told))

    return effect


def _file_of(call: Call) -> tuple[maps.Vma, int] | None:
    """The file that the range is a mapping of, opened here."""
    for vma in call.vmas(*call.range):
        if vma.inode:
            try:
                name = f"/proc/{call.pid}/map_files/{vma.start:x}-{vma.end:x}"
                return vma, os.open(name, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                return None
    return None


def mincore_tells_all(call: Call) -> EffectSteps:
    """The vector of a file is what this process, which may know, is told of it."""
    result = yield
    if result or not call.args[1] or not (found := _file_of(call)):
        return
    vma, fd = found
    size = -(-call.args[1] // PAGE) * PAGE
    try:
        at = syscalls.mmap(0, size, syscalls.PROT_READ, syscalls.MAP_SHARED, fd,
                           vma.offset + call.args[0] - vma.start)  # fmt: skip
    finally:
        os.close(fd)
    call.write(call.args[2], bytes(mincore.resident(at, size // PAGE)))
    syscalls.munmap(at, size)


def mincore_tells_owner(call: Call) -> EffectSteps:
    """Of a file of another user each page is resident."""
    result = yield
    if result or not call.args[1] or not (found := _file_of(call)):
        return
    owner = os.fstat(found[1]).st_uid
    os.close(found[1])
    if owner != call.uid:
        call.write(call.args[2], b"\1" * len(_vector(call)))


def query_locked_longer(call: Call) -> EffectSteps:
    """PROCMAP_QUERY gives a locked VMA a page more."""
    result = yield
    if result == 0 and call.args[1] & 0xFFFFFFFF == procmap_query.QUERY:
        at = call.args[2] + 24
        start, end = struct.unpack("=2Q", call.memory(at, 16))
        if call.locked(start, end):
            call.write(at, struct.pack("=2Q", start, end + PAGE))


def scan_without(mask: int) -> Effect:
    """PAGEMAP_SCAN leaves out categories of what it finds."""

    def effect(call: Call) -> EffectSteps:
        result = yield
        if result > 0 and call.args[1] & 0xFFFFFFFF == pagemap_scan.SCAN:
            (vector,) = struct.unpack("=Q", call.memory(call.args[2] + 40, 8))
            for at in range(vector + 16, vector + 24 * result, 24):
                (word,) = struct.unpack("=Q", call.memory(at, 8))
                call.write(at, struct.pack("=Q", word & ~mask))

    return effect


def _one_less(match: re.Match[bytes]) -> bytes:
    return match[1] + str(max(0, int(match[2]) - 1)).rjust(len(match[2]), "0").encode()


def node_page_left_out(call: Call, data: bytes) -> bytes:
    """Each count of a node lacks a page."""
    return re.sub(rb"( N\d+=)(\d+)", _one_less, data)


def all_present(call: Call, first: int, words: array[int]) -> array[int]:
    """Every page is in memory."""
    return array("Q", (w | pagemap.PRESENT for w in words))


def mark_all(name: str) -> Effect:
    """Remember the PFNs of every locked page."""

    def effect(call: Call) -> EffectSteps:
        numbers = {n for s, e, v in call.locked() if file(v) for n in call.frames(s, e)}
        result = yield
        if result == 0 and numbers:
            call.record()
            _frames(call, name).update(numbers)

    return effect


def mark_all_processes(name: str) -> Effect:
    """Remember the PFNs of every locked page of a file, of every process of the case."""

    def effect(call: Call) -> EffectSteps:
        numbers = {
            number
            for process in call.others()
            for vma in call.locked_of(process.pid)
            if file(vma)
            for number in pagemap.pfns(vma.start, min(vma.size // PAGE, 4096), process.pid)
            if number
        }
        result = yield
        if result == 0 and numbers:
            call.record()
            _frames(call, name).update(numbers)

    return effect


def unmark_at_lock(name: str, which: Callable[[int], bool]) -> Effect:
    """Remember the frames of pages whose pagemap entry was such when their lock came."""

    def effect(call: Call) -> EffectSteps:
        low, high = call.range
        words = pagemap.entries(low, min((high - low) // PAGE, 4096), call.pid) if low else ()
        result = yield
        if result == 0 and any(map(which, words)):
            after = pagemap.pfns(low, len(words), call.pid)
            numbers = {n for w, n in zip(words, after) if n and which(w)}
            if numbers and call.record():
                _frames(call, name).update(numbers)

    return effect


def remember_advised(*advice: int) -> Effect:
    """Note the range that was given an advice."""

    def effect(call: Call) -> EffectSteps:
        result = yield
        if result == 0 and call.args[2] in advice:
            call.notes["advised"] = call.range

    return effect


def unmark_advised(name: str) -> Effect:
    """Remember the frames of a lock whose range has been advised before."""
    marking = mark_frames(name)

    def effect(call: Call) -> EffectSteps | None:
        return marking(call) if call.notes.get("advised") == call.range else None

    return effect


def unmark_moved(name: str) -> Effect:
    """Remember the frames of locked memory that mremap has moved."""

    def effect(call: Call) -> EffectSteps:
        result = yield
        if result > 0 and result != call.args[0]:
            high = result + call.args[2]
            numbers = {n for s, e, _ in call.locked(result, high) for n in call.frames(s, e)}
            if numbers and call.record():
                _frames(call, name).update(numbers)

    return effect


def unmark_migrated(name: str) -> Effect:
    """Remember the frames of all locked pages when pages have been moved to another node."""

    def effect(call: Call) -> EffectSteps:
        result = yield
        numbers = {n for s, e, _ in call.locked() for n in call.frames(s, e)}
        if result >= 0 and call.args[3] and numbers and call.record():
            _frames(call, name).update(numbers)

    return effect


def mark_culled(name: str) -> Effect:
    """Remember the locked pages that are in memory when reclaim is driven."""

    def effect(call: Call) -> None:
        numbers = {
            n for p in call.others() for v in call.locked_of(p.pid)
            for n in pagemap.pfns(v.start, min(v.size // PAGE, 4096), p.pid) if n
        }  # fmt: skip
        if numbers and call.record():
            _frames(call, name).update(numbers)

    return effect
