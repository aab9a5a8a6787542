# SPDX-License-Identifier: MIT
"""Effects of calls on a file upon the locked mappings of it."""

from __future__ import annotations

import os
import struct
from array import array

from helpers import syscalls
from helpers.faults.call import Call, Effect
from helpers.faults.effects.conditions import (
    CallPredicate,
    EffectSteps,
    VmaPredicate,
    always,
    any_vma,
)
from helpers.faults.effects.shown import FLAGS, edit_words
from helpers.observe import maps, page_flags, pagemap
from helpers.syscalls import PAGE


def direct(call: Call) -> bool:
    """The first argument is a descriptor for direct I/O."""
    with open(f"/proc/{call.tid}/fdinfo/{call.args[0]}") as file:
        words = dict(line.split(":", 1) for line in file if ":" in line)
    return bool(int(words["flags"], 8) & os.O_DIRECT)


def locked_mappings(call: Call) -> list[maps.Vma]:
    """The locked mappings of the file that the first argument, a descriptor, is open on."""
    try:
        inode = os.stat(f"/proc/{call.tid}/fd/{call.args[0]}").st_ino
    except OSError:
        return []
    return [vma for _, _, vma in call.locked() if vma.inode == inode]


def ignored_where_locked(call: Call) -> None:
    """A direct write to a file with locked mappings returns its length and is not made."""
    if direct(call) and locked_mappings(call):
        call.skip_with_result(call.args[2])


def unlocks(when: CallPredicate = always) -> Effect:
    """The call unlocks the locked mappings of its file."""

    def effect(call: Call) -> EffectSteps:
        found = locked_mappings(call) if when(call) else []
        result = yield
        if result >= 0:
            for vma in found:
                call.inject("munlock", vma.start, vma.size)

    return effect


def drops(which: VmaPredicate = any_vma, when: CallPredicate = always) -> Effect:
    """The call takes every page out of the locked mappings of its file, and out of no other."""

    def effect(call: Call) -> EffectSteps:
        found = [v for v in locked_mappings(call) if which(v)] if when(call) else []
        result = yield
        if result >= 0:
            for vma in found:
                call.inject("madvise", vma.start, vma.size, syscalls.MADV_DONTNEED_LOCKED)

    return effect


def stale(call: Call) -> EffectSteps:
    """A direct write leaves what a locked private mapping of the file shows as it was."""
    found = [v for v in locked_mappings(call) if v.perms[3] == "p"] if direct(call) else []
    low, high = call.args[3], call.args[3] + call.args[2]
    parts = [
        (at, call.memory(at, PAGE))
        for v in found
        for at in range(v.start, v.end, PAGE)
        if low <= v.offset + at - v.start < high
    ]
    result = yield
    if result >= 0:
        for at, old in parts:
            call.write(at, old)


def remember_absent(when: CallPredicate = always) -> Effect:
    """Note which pages of the locked mappings of a file the call took away."""

    def effect(call: Call) -> EffectSteps:
        acts = when(call)
        result = yield
        if acts and result >= 0:
            for vma in locked_mappings(call):
                lost = call.absent(vma.start, vma.end)
                if lost:
                    call.notes.setdefault("absent", set()).update(lost)

    return effect


def _unmarked(call: Call, first: int, words: array[int]) -> array[int]:
    for addr in call.notes.get("absent", ()):
        (number,) = pagemap.pfns(addr, 1, call.pid)
        if number and first <= number < first + len(words):
            words[number - first] &= ~page_flags.MLOCKED
    return words


unmarked_when_back = edit_words(FLAGS, _unmarked)
"""Pages that were taken away and are there again are not PG_mlocked."""


_INVAL_INODE = 2


def served(name: str, *rest: int) -> Effect:
    """When a FUSE server has a file dropped, a call is made on every locked mapping of a file."""

    def effect(call: Call) -> EffectSteps:
        if call.file != "/dev/fuse" or call.args[2] < 16:
            return
        code, unique = struct.unpack("=iQ", call.memory(call.args[1] + 4, 12))
        if unique or code != _INVAL_INODE:
            return
        yield
        for process in call.others():
            for vma in call.locked_of(process.pid):
                if vma.inode:
                    call.inject_into(process, name, vma.start, vma.size, *rest)

    return effect
