# SPDX-License-Identifier: MIT
"""What a case saw as it went, for a report's pictures: kept where a report is written.

Witnesses call :func:`step` and :func:`states` as they are read; nothing is asserted from it
and nothing is read for it unless :data:`recording` is set (by ``--report``, in the case's own
process). Two kinds, as ``result.json`` has them:

``timeline``  a label and a value (kB, or null) of each counter at each step
``pages``     a letter a page of each range, see :data:`LETTERS`
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from helpers import syscalls
from helpers.syscalls import log

LETTERS = {"p": "present", "s": "swapped", "a": "not mapped"}
MOST_STEPS = 40
_TOLD = {
    "mlock", "mlock2", "munlock", "mlockall", "munlockall", "mmap", "munmap", "mremap", "mprotect",
    "madvise", "brk", "shmctl", "mseal",
}  # fmt: skip
_UNSIZED = {"mlockall", "munlockall", "brk", "shmctl"}

enabled = False
"""Set in the process of a case whose run writes a report."""
Gauge = Callable[[], Mapping[str, float]]
_gauge: Gauge | None = None
_steps: list[str] = []
_values: dict[str, list[float | None]] = {}
_pages: dict[str, str] = {}


def reset() -> None:
    """Forget what was seen: a new case, or another variant of it."""
    _steps.clear()
    _values.clear()
    _pages.clear()
    log.calls.clear()


def _since() -> str:
    """The lock-related calls that this process made since the last step: ``mlock 8`` (pages)."""
    told = [_call(name, args) for name, args, _ in log.calls if name in _TOLD]
    log.calls.clear()
    runs = [(text, len(list(same))) for text, same in itertools.groupby(told)]
    return ", ".join(f"{count} × {text}" if count > 1 else text for text, count in runs[-3:])


def _call(name: str, args: tuple[object, ...]) -> str:
    size = args[1] if len(args) > 1 and name not in _UNSIZED else None
    return f"{name} {-(-size // syscalls.PAGE)}" if isinstance(size, int) else name


def sample(label: str | None = None, **values: float) -> None:
    """One reading, in kB; the label is, if None, the calls made since the last one.

    The cgroup's own counters are added inside :func:`gauging`.
    """
    if not enabled or len(_steps) >= MOST_STEPS:
        return
    seen: dict[str, float] = dict(values)
    if _gauge is not None:
        try:
            seen |= _gauge()
        except (OSError, KeyError, ValueError):
            pass  # a process or the cgroup has ended meanwhile: this picture has a gap
    _steps.append(label if label is not None else _since() or ("start" if not _steps else "again"))
    for name in {**dict.fromkeys(_values), **seen}:
        line = _values.setdefault(name, [])
        line += [None] * (len(_steps) - 1 - len(line))
        line.append(seen.get(name))


@contextmanager
def with_counters(gauge: Gauge) -> Iterator[None]:
    """Every step of the block reads these counters too."""
    global _gauge
    before, _gauge = _gauge, gauge
    try:
        yield
    finally:
        _gauge = before


def page_states(name: str, letters: str) -> None:
    """The latest state of a range's pages, a letter each."""
    if enabled:
        _pages[name] = letters


def drawn() -> list[dict[str, object]]:
    """What there is to draw: at most one timeline and one strip of pages."""
    found: list[dict[str, object]] = []
    if len(_steps) > 1:
        found.append(
            {
                "kind": "timeline",
                "unit": "kB",
                "steps": list(_steps),
                "values": {k: v + [None] * (len(_steps) - len(v)) for k, v in _values.items()},
            }
        )
    if _pages:
        found.append({"kind": "pages", "letters": LETTERS, "regions": dict(_pages)})
    return found
