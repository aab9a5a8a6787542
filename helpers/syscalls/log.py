# SPDX-License-Identifier: MIT
"""The calls that this process made last, as a failure's report shows them: decoded as by strace."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence

from helpers.syscalls import constants
from helpers.syscalls.constants import PAGE, ULONG_MAX

calls: deque[tuple[str, tuple[object, ...], str]] = deque(maxlen=64)
"""Name, arguments, result (``"0"``, ``"ENOMEM"``) of each call, oldest first."""


def show_value(value: object) -> str:
    """A number as a person reads it: hexadecimal where it is an address."""
    if isinstance(value, int) and not isinstance(value, bool):
        return hex(value & ULONG_MAX) if value < 0 or value >= 1 << 20 else str(value)
    return str(value)


def plain_arguments(args: tuple[object, ...]) -> tuple[object, ...]:
    """Arguments to keep: without holding on to buffers, whose memory would then stay mapped."""
    return tuple(a if isinstance(a, int) else type(a).__name__ for a in args)


def add_remote(name: str, args: tuple[object, ...], result: str) -> None:
    """Keep a call in :data:`calls` that another process makes for this one."""
    calls.append((name, plain_arguments(args), result))


def _named(prefix: str, leave_out: Iterable[str] = ()) -> dict[int, str]:
    names = (n for n in vars(constants) if n.startswith(prefix) and n not in leave_out)
    return {getattr(constants, n): n for n in names}


def _flags(names: Mapping[int, str], zero: str = "0") -> Callable[[int], str]:
    def show(value: int) -> str:
        left, found = value, []
        for bit, name in sorted(names.items()):
            if bit and bit & (bit - 1) == 0 and left & bit:
                found.append(name)
                left &= ~bit
        return "|".join([*found, *([hex(left)] if left else [])]) or zero

    return show


def _one_of(names: Mapping[int, str]) -> Callable[[int], str]:
    return lambda value: names.get(value, show_value(value))


_prot = _flags(_named("PROT_", {"PROT_RW", "PROT_NONE"}), "PROT_NONE")
_map = _flags(_named("MAP_", {"MAP_SHARED_VALIDATE"}))
_advice = _one_of(_named("MADV_"))
_shm = _one_of({constants.SHM_LOCK: "SHM_LOCK", constants.SHM_UNLOCK: "SHM_UNLOCK",
                constants.IPC_RMID: "IPC_RMID"})  # fmt: skip
_plain, _addr = show_value, None
_fd: Callable[[int], str] = lambda v: "-1" if v in (-1, ULONG_MAX) else show_value(v)  # noqa: E731
# What each argument is; None: an address.
_ARGUMENTS: dict[str, Sequence[Callable[[int], str] | None]] = {
    "mlock": (_addr, _plain),
    "mlock2": (_addr, _plain, _flags({constants.MLOCK_ONFAULT: "MLOCK_ONFAULT"})),
    "munlock": (_addr, _plain),
    "mlockall": (_flags(_named("MCL_")),),
    "mincore": (_addr, _plain, _addr),
    "mmap": (_addr, _plain, _prot, _map, _fd, _plain),
    "mmap64": (_addr, _plain, _prot, _map, _fd, _plain),
    "munmap": (_addr, _plain),
    "mprotect": (_addr, _plain, _prot),
    "madvise": (_addr, _plain, _advice),
    "msync": (_addr, _plain, _flags({1: "MS_ASYNC", 2: "MS_INVALIDATE", 4: "MS_SYNC"})),
    "mremap": (_addr, _plain, _plain, _flags(_named("MREMAP_")), _addr),
    "shmctl": (_plain, _shm, _addr),
    "shmat": (_plain, _addr, _plain),
    "shmdt": (_addr,),
    "brk": (_addr,),
    "prctl": (_one_of(_named("PR_")), _plain, _plain, _plain, _plain),
}
_RETURN_ADDRESSES = {"mmap", "mmap64", "mremap", "shmat", "brk", "sbrk"}


def _place(value: int, regions: Sequence[tuple[str, int, int]]) -> str:
    """An address relative to the region that holds it, or stands within a page of it."""
    for name, start, size in regions:
        if start - PAGE <= value <= start + size + PAGE:
            pages, rest = divmod(value - start, PAGE)
            text = f"{pages:+d}p" if pages else ""
            return f"{name}{text}{f'+{rest}' if rest else ''}"
    return "NULL" if value == 0 else hex(value & ULONG_MAX)


def _decoded(
    name: str, args: tuple[object, ...], result: str, regions: Sequence[tuple[str, int, int]]
) -> str:
    kinds = _ARGUMENTS.get(name, ())
    shown = []
    for index, value in enumerate(args):
        kind = kinds[index] if index < len(kinds) else _plain
        if not isinstance(value, int):
            shown.append(str(value))
        elif kind is None or (kind is _plain and value >= 1 << 32):
            shown.append(_place(value, regions))
        else:
            shown.append(kind(value))
    if name in _RETURN_ADDRESSES and result.startswith("0x"):
        result = _place(int(result, 16), regions)
    return f"{name}({', '.join(shown)}) = {result}"


def lines(
    regions: Sequence[tuple[str, int, int]] = (),
    made: Iterable[tuple[str, tuple[object, ...], str]] | None = None,
) -> list[str]:
    """The calls as lines, oldest first: ``mlock2(region+1p, 4096, MLOCK_ONFAULT) = 0``.

    ``regions``: (name, address, bytes) of the ranges that addresses are given relative to.
    ``made``: calls kept earlier (default: :data:`calls`).
    """
    return [_decoded(*call, regions) for call in (calls if made is None else made)]
