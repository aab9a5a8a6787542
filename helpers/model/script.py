# SPDX-License-Identifier: MIT
"""Scripts: one call a line, in pages, so that they mean the same at every page size.

::

    # the text behind a # is for people
    mmap 0 8 private rw          # pages 0 to 7 of an arena of 16, always MAP_FIXED
    mlock 2.5 1                  # half pages: bytes from the middle of page 2 on
    mlock 0 max                  # max: SIZE_MAX bytes
    fork                         # what follows is done by the child, until exit
    write 0 2
    exit
    brk 3                        # the program break, 3 pages above where it was at first
    mlock h1 2                   # hN: page N of the heap that brk made
    limit size-1                 # soft RLIMIT_MEMLOCK; size: what is mapped now
    limit locked+2               # locked: what VmLck counts now

``python -m helpers.model --help`` lists every call. Nothing is expected in a script: what is
right is said by the model (:mod:`helpers.model.address_space`), step by step.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

ARENA = 16
"""Pages in the arena; what lies before and behind it is never mapped."""
HEAP = 1000
"""The model's number for the first page of the heap (``h0``)."""
HEAP_PAGES = 8
MAX = -1
"""``max`` as a count: SIZE_MAX bytes."""

KINDS = ("private", "shared", "memfd", "memfd-private")
PROTS = ("none", "r", "rw", "rx", "w")
ADVICE = (
    "dontneed", "dontneed_locked", "free", "cold", "pageout", "populate_read", "populate_write",
    "dontfork", "dofork", "wipeonfork", "keeponfork",
)  # fmt: skip
MCL = ("current", "future", "onfault")
MSYNC = ("async", "sync", "invalidate", "sync+invalidate", "async+invalidate")

CALLS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "mmap": (("page", "count", "kind", "prot"), ("locked", "populate", "nonblock", "at=")),
    "munmap": (("page", "count"), ()),
    "mprotect": (("page", "count", "prot"), ()),
    "mremap": (("page", "count", "count"), ("to=", "dontunmap")),
    "madvise": (("page", "count", "advice"), ()),
    "mlock": (("where", "length"), ()),
    "mlock2": (("where", "length", "how"), ()),
    "munlock": (("where", "length"), ()),
    "mlockall": (("mcl",), ()),
    "munlockall": ((), ()),
    "msync": (("page", "count", "sync"), ()),
    "mincore": (("page", "count"), ()),
    "read": (("touched", "count"), ()),
    "write": (("touched", "count"), ()),
    "truncate": (("size",), ()),
    "brk": (("break",), ()),
    "limit": (("limit",), ()),
    "capability": (("state",), ()),
    "fork": ((), ()),
    "exit": ((), ()),
}
"""Name → its arguments by kind, and its options."""

ARGUMENTS = f"""PAGE, COUNT: whole pages of the arena (0 to {ARENA - 1}).
WHERE, LENGTH: halves too; hN is page N of the heap; max is SIZE_MAX bytes; length 0 is allowed.
TOUCHED: a page, or hN. KIND: {", ".join(KINDS)}. PROT: {", ".join(PROTS)}.
ADVICE: {", ".join(ADVICE)}.
HOW, the flags of mlock2: 0, onfault, or a number. MCL: {", ".join(MCL)}, joined by +, or a number.
SYNC: {", ".join(MSYNC)}.
SIZE: pages of the memfd. BREAK: pages of heap. STATE, of CAP_IPC_LOCK: on, off.
LIMIT: pages, halves too; unlimited; size (what is mapped) or locked (VmLck), with +N or -N.
to=PAGE: where mremap moves to. at=PAGE: page of the memfd that mmap begins with (else that of
the same number as in the arena)."""


class ScriptError(ValueError):
    """A script that cannot be run: one line that says why."""


class NotApplicable(ScriptError):
    """A right script that does not fit this kernel, machine or privilege."""


@dataclass(frozen=True)
class Call:
    """One call: its name, arguments in pages, and options."""

    name: str
    args: tuple[int | float | str, ...] = ()
    options: tuple[str, ...] = ()

    def __str__(self) -> str:
        kinds = CALLS[self.name][0]
        words = [_show(kind, arg) for kind, arg in zip(kinds, self.args)]
        return " ".join((self.name, *words, *self.options))

    def option(self, name: str) -> int | None:
        """The page behind ``name=``, or None."""
        for text in self.options:
            if text.startswith(name + "="):
                return int(text.partition("=")[2])
        return None


def _show(kind: str, value: int | float | str) -> str:
    if isinstance(value, str):
        return value
    if kind in {"where", "touched"} and value >= HEAP:
        return "h" + _show("length", value - HEAP)
    if value == MAX:
        return "max"
    return str(int(value)) if value == int(value) else str(value)


def _number(text: str, halves: bool) -> int | float:
    if not re.fullmatch(r"\d+(\.[05])?" if halves else r"\d+", text):
        raise ScriptError(f"{text!r} is no number of {'half ' if halves else ''}pages")
    value = float(text)
    return int(value) if value == int(value) else value


def _choice(text: str, choices: Iterable[str]) -> str:
    if text not in choices:
        raise ScriptError(f"{text!r} is none of {', '.join(choices)}")
    return text


def _argument(kind: str, text: str) -> int | float | str:
    if kind in {"page", "count", "size", "break"}:
        return _number(text, False)
    if kind in {"where", "touched"}:
        heap = text.startswith("h")
        value = _number(text.removeprefix("h"), kind == "where")
        return value + HEAP if heap else value
    if kind == "length":
        return MAX if text == "max" else _number(text, True)
    if kind == "limit":
        if re.fullmatch(r"unlimited|(size|locked)([+-]\d+)?", text):
            return text
        return _number(text, True)
    if kind == "how":
        return text if text == "onfault" else _number(text, False)
    if kind == "mcl":
        if text.isdigit():
            return int(text)
        names = text.split("+")
        for name in names:
            _choice(name, MCL)
        return "+".join(name for name in MCL if name in names)
    choices = {"kind": KINDS, "prot": PROTS, "advice": ADVICE, "sync": MSYNC,
               "state": ("on", "off")}  # fmt: skip
    return _choice(text, choices[kind])


def parse_line(line: str) -> Call | None:
    """The call in a line; None for an empty one. Raises ScriptError."""
    words = line.partition("#")[0].split()
    if not words:
        return None
    name, *rest = words
    if name not in CALLS:
        raise ScriptError(f"unknown call {name!r}; known: {', '.join(CALLS)}")
    kinds, known = CALLS[name]
    if len(rest) < len(kinds):
        raise ScriptError(f"{name} wants {' '.join(kinds)}")
    args = tuple(_argument(kind, text) for kind, text in zip(kinds, rest))
    options = tuple(rest[len(kinds) :])
    for text in options:
        key, equals, value = text.partition("=")
        if key + equals not in known or (equals and not value.isdigit()):
            raise ScriptError(f"{name} has no option {text!r}; known: {' '.join(known) or 'none'}")
    call = Call(name, args, options)
    _check_range(call)
    return call


def _check_range(call: Call) -> None:
    kinds = CALLS[call.name][0]
    ranges = {"page", "where", "touched"}
    if kinds and kinds[0] in ranges:
        first, count = call.args[0], call.args[1]
        assert not isinstance(first, str)
        assert not isinstance(count, str)
        if kinds[1] == "count" and count < 1 and call.name != "mremap":
            raise ScriptError(f"{call}: a count of 1 or more")
        low, high = (HEAP, HEAP + HEAP_PAGES) if first >= HEAP else (0, ARENA)
        # A page behind the arena may be asked for: nothing is ever there.
        if not (low <= first <= high and first + max(count, 0) <= high + 1):
            raise ScriptError(f"{call}: outside the arena (0 to {ARENA}) or heap (h0 to h8)")
        if call.name == "mmap" and first + count > ARENA:
            raise ScriptError(f"{call}: the arena ends at {ARENA}")
    if call.name == "mremap":
        first, _, new = call.args
        assert not isinstance(first, str)
        assert not isinstance(new, str)
        target = call.option("to")
        if new < 1 or (first if target is None else target) + new > ARENA:
            raise ScriptError(f"{call}: the arena ends at {ARENA}")
        if call.args[1] == 0 and target is None:
            raise ScriptError(f"{call}: length 0 wants to=PAGE")
        if "dontunmap" in call.options and target is None:
            raise ScriptError(f"{call}: dontunmap wants to=PAGE")
    if (call.option("at") or 0) > 4 * ARENA:
        raise ScriptError(f"{call}: the file may have at most {4 * ARENA} pages")
    if call.name == "brk" and not 0 <= int(call.args[0]) <= HEAP_PAGES:
        raise ScriptError(f"{call}: 0 to {HEAP_PAGES} pages")
    if call.name == "truncate" and int(call.args[0]) > 4 * ARENA:
        raise ScriptError(f"{call}: at most {4 * ARENA} pages")


def parse(text: str) -> list[Call]:
    """The calls of a script. Raises ScriptError, one line that names the line."""
    calls = []
    child = False
    for number, line in enumerate(text.splitlines(), 1):
        try:
            call = parse_line(line)
            if call is None:
                continue
            if call.name in {"fork", "exit"}:
                if child == (call.name == "fork"):
                    raise ScriptError("fork and exit come in pairs, one child at a time")
                child = not child
        except ScriptError as error:
            raise ScriptError(f"line {number}: {error}") from None
        calls.append(call)
    return calls


def listing() -> str:
    """Every call with its arguments, a line each."""
    lines = []
    for name, (kinds, options) in CALLS.items():
        shown = " ".join(f"[{o}PAGE]" if o.endswith("=") else f"[{o}]" for o in options)
        lines.append(" ".join(filter(None, (name, " ".join(k.upper() for k in kinds), shown))))
    return "\n".join(lines)
