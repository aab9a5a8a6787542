# SPDX-License-Identifier: MIT
"""Effects on what is counted against RLIMIT_MEMLOCK beside mlock: segments, buffers, rings."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from helpers import syscalls
from helpers.faults.call import Call, Effect, ReadFilter
from helpers.faults.effects.accounting import process_file, renumber
from helpers.faults.effects.conditions import CallPredicate, EffectSteps
from helpers.observe import status
from helpers.syscalls import PAGE, SHM_LOCK, SHM_UNLOCK

_LOCKED = 0o2000
_REGISTER, _UNREGISTER = 0, 1


def user(call: Call) -> int:
    """The real user id, by which the kernel counts, as the first user namespace knows it."""
    return int(status.fields(call.tid)["Uid"].split()[0])


def room(call: Call) -> int:
    """The soft limit in pages."""
    soft = call.limit[0]
    return 1 << 62 if soft == -1 else soft // PAGE


def in_namespace(call: Call) -> bool:
    """By a process in a user namespace of its own."""
    try:
        own, first = (os.stat(f"/proc/{pid}/ns/user").st_ino for pid in (call.tid, "self"))
    except FileNotFoundError:
        return False
    return own != first


# Segments. What a fault must know is kept for the case: sizes, and by whom each was locked.


def _case(call: Call, name: str) -> dict[Any, Any]:
    found: dict[Any, Any] = call.case.setdefault(name, {})
    return found


def know_size(call: Call) -> EffectSteps:
    """Remember how large each segment is."""
    result = yield
    if result >= 0:
        _case(call, "size")[result] = -(-call.args[1] // PAGE)
        _case(call, "locker").pop(result, None)


def _living() -> dict[int, tuple[int, int]]:
    """Segments that are locked now: id → pages, owner."""
    found = {}
    for line in Path("/proc/sysvipc/shm").read_text().splitlines()[1:]:
        words = line.split()
        if int(words[2], 8) & _LOCKED:
            found[int(words[1])] = -(-int(words[3]) // PAGE), int(words[7])
    return found


def _pages(call: Call) -> int:
    return int(_case(call, "size").get(call.args[0], 0))


def held(call: Call, whose: Callable[[dict[str, Any]], bool]) -> int:
    """Pages of living locked segments whose locker is such a one."""
    lockers, sizes = _case(call, "locker"), _case(call, "size")
    alive = [i for i in _living() if i in lockers and i in sizes and whose(lockers[i])]
    return sum(int(sizes[i]) for i in alive)


def segments(
    wrong: Callable[[Call, int, int], int],
    after: Callable[[Call, bool], None] | None = None,
) -> dict[str, Effect]:
    """SHM_LOCK is refused where ``wrong(call, user, pages)`` pages would be beyond the limit.

    ``after(call, was_locked)`` is told of each SHM_LOCK and SHM_UNLOCK that succeeded.
    """

    def effect(call: Call) -> EffectSteps:
        number, command = call.args[:2]
        if command not in (SHM_LOCK, SHM_UNLOCK):
            return
        who, pages, known = user(call), _pages(call), number in _living()
        bound = command == SHM_LOCK and pages and not known and not call.capable
        if bound and pages <= room(call) < wrong(call, who, pages):
            call.fail("ENOMEM")
            return
        result = yield
        if result != 0:
            return
        if command == SHM_LOCK and not known:
            inside = in_namespace(call)
            _case(call, "locker")[number] = {"user": who, "pid": call.pid, "inside": inside}
        if after:
            after(call, known)

    return {"shmget": know_size, "shmctl": effect}


def _note(call: Call, pages: int, who: int | None = None) -> None:
    excess, who = _case(call, "excess"), user(call) if who is None else who
    excess[who] = excess.get(who, 0) + pages


def _with_excess(call: Call, who: int, pages: int) -> int:
    """What is truly held, and what a fault has left charged or charges beside it."""
    excess = int(_case(call, "excess").get(who, 0))
    return excess + held(call, lambda by: by["user"] == who) + pages if excess else 0


def kept_by_the_dead() -> dict[str, Effect]:
    """A charge outlasts a segment that was not unlocked."""

    def all_ever(call: Call, who: int, pages: int) -> int:
        return pages + sum(
            int(_case(call, "size").get(i, 0))
            for i, by in _case(call, "locker").items()
            if by["user"] == who
        )

    def after(call: Call, was_locked: bool) -> None:
        if call.args[1] == SHM_UNLOCK:
            _case(call, "locker").pop(call.args[0], None)

    return segments(all_ever, after)


def charged_again() -> dict[str, Effect]:
    """Locking what is locked charges it again."""

    def after(call: Call, was_locked: bool) -> None:
        if was_locked and call.args[1] == SHM_LOCK:
            _note(call, _pages(call))

    return segments(_with_excess, after)


def charged_to_the_owner() -> dict[str, Effect]:
    """The segment's owner is charged too, whoever locks it."""

    def owned(call: Call, who: int, pages: int) -> int:
        lockers = _case(call, "locker")
        return pages + sum(
            size for i, (size, owner) in _living().items() if owner == who and i in lockers
        )

    return segments(owned)


def given_to_the_unlocker() -> dict[str, Effect]:
    """SHM_UNLOCK by another user gives nothing back to the locker."""

    def after(call: Call, was_locked: bool) -> None:
        by = _case(call, "locker").get(call.args[0])
        if call.args[1] == SHM_UNLOCK and was_locked and by and by["user"] != user(call):
            _note(call, _pages(call), by["user"])

    return segments(_with_excess, after)


def follows_the_process() -> dict[str, Effect]:
    """What a process has locked counts for whatever user it becomes."""
    return segments(lambda call, who, pages: pages + held(call, lambda by: by["pid"] == call.pid))


def shared_inside() -> dict[str, Effect]:
    """In a user namespace the user's whole count is compared with the limit."""

    def whole(call: Call, who: int, pages: int) -> int:
        return pages + held(call, lambda by: by["user"] == who) if in_namespace(call) else 0

    return segments(whole)


def left_by_refused_huge(call: Call) -> EffectSteps:
    """A huge segment that was refused stays charged."""
    result = yield
    if result == -errno.EPERM and call.args[2] & 0o4000:
        _note(call, -(-call.args[1] // PAGE))
    elif result >= 0:
        _case(call, "size")[result] = -(-call.args[1] // PAGE)


def huge_leaks() -> dict[str, Effect]:
    """Effects for :func:`left_by_refused_huge`."""
    return segments(_with_excess) | {"shmget": left_by_refused_huge}


def locked_before(call: Call) -> bool:
    """SHM_LOCK by a user of whom a segment went locked."""
    who, living = user(call), _living()
    lockers = _case(call, "locker")
    gone = any(by["user"] == who and number not in living for number, by in lockers.items())
    return call.args[1] == SHM_LOCK and gone


def locked_inside(call: Call) -> bool:
    """SHM_LOCK outside by a user who has locked segments in a user namespace."""
    who = user(call)
    return (
        call.args[1] == SHM_LOCK
        and not in_namespace(call)
        and held(call, lambda by: by["user"] == who and by["inside"]) > 0
    )


def knowing_lockers(lifted: Effect) -> dict[str, Effect]:
    """An effect on SHM_LOCK that asks who has locked what."""

    def effect(call: Call) -> EffectSteps:
        number, command = call.args[:2]
        steps = lifted(call) if command == SHM_LOCK else None
        if steps:
            next(steps, None)
        result = yield
        if result == 0 and command == SHM_LOCK:
            by = {"user": user(call), "pid": call.pid, "inside": in_namespace(call)}
            _case(call, "locker").setdefault(number, by)
        elif result == 0 and command == SHM_UNLOCK:
            _case(call, "locker").pop(number, None)
        if steps:
            try:
                steps.send(result)
            except StopIteration:
                pass

    return {"shmget": know_size, "shmctl": effect}


def ceiling_ignored(call: Call) -> EffectSteps:
    """SHM_LOCK that only a ceiling refuses succeeds."""
    within = in_namespace(call) and call.args[1] == SHM_LOCK and _pages(call) <= room(call)
    result = yield
    if within and result == -errno.ENOMEM:
        call.set_result(0)


# Buffers of io_uring, umems, sends, rings.


def _buffer(call: Call) -> int:
    """Pages of a fixed buffer that is to be registered."""
    word = "=Q" if syscalls.WORD_BITS == 64 else "=I"
    size = struct.calcsize(word)
    (length,) = struct.unpack(word, call.memory(call.args[2] + size, size))
    return int(-(-length // PAGE))


def registers(call: Call) -> bool:
    """A fixed buffer of io_uring is to be registered."""
    return call.args[1] == _REGISTER


def buffer_fits_alone(call: Call) -> bool:
    """Such a one that is within the limit itself."""
    return registers(call) and _buffer(call) <= room(call)


def buffer_beyond(call: Call) -> bool:
    """Such a one that is not."""
    return registers(call) and _buffer(call) > room(call)


def umem(call: Call) -> bool:
    """A umem is to be registered."""
    return call.args[1:3] == [283, 4]


def umem_fits_alone(call: Call) -> bool:
    """One that is within the limit itself."""
    if not umem(call):
        return False
    _, length = struct.unpack("=QQ", call.memory(call.args[3], 16))
    return bool(-(-length // PAGE) <= room(call))


def umem_beyond(call: Call) -> bool:
    """One that is not."""
    return umem(call) and not umem_fits_alone(call)


def zero_copy(call: Call) -> bool:
    """A zero-copy send."""
    return bool(call.args[3] & 0x4000000)


def zero_copy_fits_alone(call: Call) -> bool:
    """One that is within the limit itself."""
    return zero_copy(call) and call.args[2] // PAGE + 2 <= room(call)


def perf_ring(call: Call) -> bool:
    """An mmap of a perf event."""
    return "perf_event" in call.descriptor(4)


def beside_capability(lifted: Effect, when: CallPredicate) -> Effect:
    """The effect only for who has CAP_IPC_LOCK in a user namespace."""

    def effect(call: Call) -> EffectSteps | None:
        if not (in_namespace(call) and call.has_capability("CapEff") and when(call)):
            return None
        return lifted(call)

    return effect


def buffers_kept(call: Call) -> EffectSteps:
    """A fixed buffer stays charged that was not unregistered."""
    charges: list[tuple[int, int, int, int]] = call.case.setdefault("charges", [])
    who, instance = user(call), call.args[0]
    if call.args[1] == _UNREGISTER:
        result = yield
        if result == 0:
            gone = [c for c in charges if c[1:3] == (call.pid, instance)]
            for charge in gone[-1:]:
                charges.remove(charge)
        return
    if not registers(call) or call.capable:
        return
    pages = _buffer(call)
    if pages <= room(call) < pages + sum(c[3] for c in charges if c[0] == who):
        call.fail("ENOMEM")
        return
    result = yield
    if result == 0:
        charges.append((who, call.pid, instance, pages))


def map_beyond(call: Call) -> bool:
    """A BPF array that is to be made is larger than the limit."""
    if call.args[0]:
        return False
    _, _, size, _ = struct.unpack("=IIII", call.memory(call.args[1], 16))
    return bool(size // PAGE >= room(call))


def _no_pins(call: Call) -> EffectSteps:
    yield
    call.write(call.args[1], renumber(call.data, rb"(VmPin:\t)( *\d+)(?= kB)", lambda kb: 0))


pins_hidden = ReadFilter(process_file("status"), _no_pins)
"""VmPin shows nothing."""
