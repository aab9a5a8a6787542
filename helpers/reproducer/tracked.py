# SPDX-License-Identifier: MIT
"""Values that know where they were read: what a case compares them with becomes a check in C.

Only in a case that is being recorded are there any. An origin is the number of an event, or what
was computed from several: ``["-", "7.12", "7.9"]``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, SupportsIndex

from helpers.observe.lock_accounting import LockAccounting

Origin = Any
compared: list[Callable[[str, Origin, Any, bool], None]] = []
"""Told of each comparison: operator, origin, the other operand (a value, or an origin's list
behind ``"@"``), and whether it held."""


def origin_of(value: object) -> Origin | None:
    """Where a value was read; None of one that is nobody's reading."""
    return getattr(value, "origin", None)


def _other(value: object) -> Any:
    origin = origin_of(value)
    return plain(value) if origin is None else ["@", origin]


def plain(value: object) -> Any:
    """The value without its origin, as JSON has it."""
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, int):
        return int(value)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value if isinstance(value, float) else repr(value)


def _report(op: str, left: Any, right: object, held: bool) -> bool:
    for hear in compared:
        hear(op, left.origin, _other(right), held)
    return held


class TrackedInt(int):
    """A number that was read."""

    origin: Origin

    def __new__(cls, value: int, origin: Origin) -> TrackedInt:
        made = super().__new__(cls, value)
        made.origin = origin
        return made

    def __reduce__(self) -> Any:
        return TrackedInt, (int(self), self.origin)

    __hash__ = int.__hash__

    def _with(self, op: str, other: object, value: Any, swapped: bool = False) -> Any:
        if not isinstance(value, int) or not isinstance(other, int):
            return value
        there = origin_of(other)
        pair = [self.origin, int(other) if there is None else there]
        return TrackedInt(value, [op, *(reversed(pair) if swapped else pair)])

    def __add__(self, other: Any) -> Any:
        return self._with("+", other, int.__add__(self, other))

    def __radd__(self, other: Any) -> Any:
        return self._with("+", other, int.__radd__(self, other), True)

    def __sub__(self, other: Any) -> Any:
        return self._with("-", other, int.__sub__(self, other))

    def __rsub__(self, other: Any) -> Any:
        return self._with("-", other, int.__rsub__(self, other), True)

    def __mul__(self, other: Any) -> Any:
        return self._with("*", other, int.__mul__(self, other))

    def __floordiv__(self, other: Any) -> Any:
        return self._with("/", other, int.__floordiv__(self, other))

    def __eq__(self, other: object) -> Any:
        held = int.__eq__(self, other)
        return held if held is NotImplemented else _report("==", self, other, held)

    def __ne__(self, other: object) -> Any:
        held = int.__ne__(self, other)
        return held if held is NotImplemented else _report("!=", self, other, held)

    def __lt__(self, other: int) -> Any:
        held = int.__lt__(self, other)
        return held if held is NotImplemented else _report("<", self, other, held)

    def __le__(self, other: int) -> Any:
        held = int.__le__(self, other)
        return held if held is NotImplemented else _report("<=", self, other, held)

    def __gt__(self, other: int) -> Any:
        held = int.__gt__(self, other)
        return held if held is NotImplemented else _report(">", self, other, held)

    def __ge__(self, other: int) -> Any:
        held = int.__ge__(self, other)
        return held if held is NotImplemented else _report(">=", self, other, held)


class TrackedStr(str):
    """A word that was read, or the answer of a call."""

    origin: Origin

    def __new__(cls, value: str, origin: Origin) -> TrackedStr:
        made = super().__new__(cls, value)
        made.origin = origin
        return made

    def __reduce__(self) -> Any:
        return TrackedStr, (str.__str__(self), self.origin)

    __hash__ = str.__hash__

    def __eq__(self, other: object) -> Any:
        held = str.__eq__(self, other)
        return held if held is NotImplemented else _report("==", self, other, held)

    def __ne__(self, other: object) -> Any:
        held = str.__ne__(self, other)
        return held if held is NotImplemented else _report("!=", self, other, held)


class TrackedAccounting(LockAccounting):
    """Locked pages by each witness, as they were read."""

    origin: Origin

    @classmethod
    def of(cls, read: LockAccounting, origin: Origin) -> TrackedAccounting:
        """The same with its origin."""
        made = str.__new__(cls, str(read))
        made.origin = origin
        made.vmlck, made.lo = read.vmlck, read.lo
        if isinstance(read.vmlck, int):
            made.vmlck = TrackedInt(read.vmlck, ["vmlck", origin])
        if isinstance(read.lo, int):
            made.lo = TrackedInt(read.lo, ["lo", origin])
        made.pages = TrackedStr(read.pages, ["letters", origin])
        return made

    def __reduce__(self) -> Any:
        return _accounting, (str.__str__(self), self.vmlck, self.lo, self.pages, self.origin)

    __hash__ = str.__hash__
    __eq__ = TrackedStr.__eq__
    __ne__ = TrackedStr.__ne__


def _accounting(text: str, vmlck: float, lo: float, pages: str, origin: Origin) -> Any:
    made = str.__new__(TrackedAccounting, text)
    made.vmlck, made.lo, made.pages, made.origin = vmlck, lo, pages, origin
    return made


class TrackedList(list[Any]):
    """A layout, or a state of each page, that was read."""

    def __init__(self, value: Any = (), origin: Origin = None) -> None:
        super().__init__(value)
        self.origin = origin

    def __reduce__(self) -> Any:
        return TrackedList, (list(self), self.origin)

    __hash__ = None

    def __eq__(self, other: object) -> Any:
        held = list.__eq__(self, other)
        return held if held is NotImplemented else _report("==", self, other, held)

    def __ne__(self, other: object) -> Any:
        held = list.__ne__(self, other)
        return held if held is NotImplemented else _report("!=", self, other, held)

    def __getitem__(self, index: SupportsIndex | slice) -> Any:
        return list.__getitem__(self, index)


def tracked(value: Any, origin: Origin) -> Any:
    """The value with its origin, where there is a kind for it."""
    if isinstance(value, LockAccounting):
        return TrackedAccounting.of(value, origin)
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return TrackedInt(value, origin)
    if isinstance(value, str):
        return TrackedStr(value, origin)
    if isinstance(value, list):
        return TrackedList(value, origin)
    return value


def pair(left: object, right: object) -> None:
    """Report what a failed comparison did not come to: each reading beside what was expected."""
    if isinstance(left, dict) and isinstance(right, dict):
        for key in left.keys() & right.keys():
            pair(left[key], right[key])
    elif origin_of(left) is not None and type(left) is not list:
        _report("==", left, right, plain(left) == plain(right))
    elif origin_of(right) is not None:
        pair(right, left)
    elif isinstance(left, list | tuple) and isinstance(right, list | tuple):
        for one, other in zip(left, right):
            pair(one, other)
    elif type(left) is type(right) and hasattr(left, "__dataclass_fields__"):
        for name in left.__dataclass_fields__:
            pair(getattr(left, name), getattr(right, name))
