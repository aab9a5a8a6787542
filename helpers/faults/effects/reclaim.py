# SPDX-License-Identifier: MIT
"""Effects when reclaim is driven."""

from __future__ import annotations

import errno
import re

from helpers import syscalls
from helpers.faults.call import TOP, Call, Effect
from helpers.faults.effects.conditions import EffectSteps, VmaPredicate, any_vma, swapped
from helpers.observe import maps

_DRIVES = re.compile(
    r"/sys/fs/cgroup/.*/memory\.(?:force_empty|reclaim|high|max|limit_in_bytes)"
    r"|/proc/sys/vm/drop_caches"
)


def _drives(call: Call) -> bool:
    """The call makes the kernel look for pages to take."""
    if call.name == "write":
        return bool(_DRIVES.fullmatch(call.file))
    advice = call.args[2] if call.name == "madvise" else call.args[3]
    return advice == syscalls.MADV_PAGEOUT


def under_pressure(which: VmaPredicate = any_vma) -> Effect:
    """When reclaim is driven, locked memory loses its protection behind everybody's back."""

    def effect(call: Call) -> EffectSteps:
        if not _drives(call):
            return
        own: list[maps.Vma] = []
        for process in call.others():
            found = [v for v in call.locked_of(process.pid) if which(v)]
            if process is call.process:
                own = found
                continue
            for vma in found:
                call.inject_into(process, "munlock", vma.start, vma.size)
                # A page that has just left the unevictable list would outlast the first pass.
                call.inject_into(process, "madvise", vma.start, vma.size, syscalls.MADV_PAGEOUT)
        if own:
            # The caller cannot make a call before the one that it is about to make: that one
            # is put off.
            call.skip_with_result(0)
            yield
            for vma in own:
                call.inject("munlock", vma.start, vma.size)
                call.inject("madvise", vma.start, vma.size, syscalls.MADV_PAGEOUT)
            call.set_result(call.repeat())

    return effect


def held_under_pressure(call: Call) -> EffectSteps:
    """What was unlocked before stays protected when reclaim is driven."""
    if _drives(call):
        held = [
            (process, low, high)
            for process in call.others()
            if process is not call.process
            for low, high in call.notes_of(process).get("unlocked", ())
        ]
        for process, low, high in held:
            call.inject_into(process, "mlock2", low, high - low, 1)
        if held:
            yield
            for process, low, high in held:
                call.inject_into(process, "munlock", low, high - low)


def remember_unlocked(call: Call) -> EffectSteps:
    """Note what munlock or munlockall unlocks."""
    low, high = call.range if call.name == "munlock" else (0, TOP)
    ranges = [(s, e) for s, e, _ in call.locked(low, high)]
    result = yield
    if result == 0:
        call.notes.setdefault("unlocked", []).extend(ranges)


def swapped_left(call: Call) -> EffectSteps:
    """mlock marks the range and leaves in swap what is there."""
    if swapped(call):
        call.skip_with_result(0)
        yield
        call.inject("mlock2", *call.args[:2], 1)


def living_reaped(call: Call) -> EffectSteps:
    """process_mrelease of a living process succeeds and takes its locked pages."""
    result = yield
    if result == -errno.EINVAL and not call.args[1]:
        for process in call.others():
            if process is not call.process:
                for vma in call.locked_of(process.pid):
                    drop = syscalls.MADV_DONTNEED_LOCKED
                    call.inject_into(process, "madvise", vma.start, vma.size, drop)
        call.set_result(0)


def reaper_unlocks_caller(call: Call) -> EffectSteps:
    """process_mrelease unlocks what its caller has locked."""
    result = yield
    if result == 0:
        for start, end, _ in call.locked():
            call.inject("munlock", start, end - start)
