# SPDX-License-Identifier: MIT
"""A parametrization that stays within one forked case.

A fork and pytest's protocol cost more than most cases do. Where the variants of a statement
leave nothing behind (each works on a mapping of its own), ``each`` takes the place and the
arguments of ``pytest.mark.parametrize`` and runs them one after the other; a failure names its
variant. Variants that need marks of their own, or a process of their own, stay parametrized.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest

from helpers.observe import timeline
from helpers.requirements.inconclusive import INCONCLUSIVE_PREFIX

_ParameterSet: Any = type(pytest.param())


def _label(names: Sequence[str], values: Sequence[object], name: object) -> str:
    if isinstance(name, str):
        return name
    return ", ".join(f"{n}={v!r}" for n, v in zip(names, values))


def each(
    argnames: str | Sequence[str],
    argvalues: Iterable[Any],
    ids: Iterable[str | None] | Callable[[Any], object] | None = None,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Run the case for each value; arguments as of ``pytest.mark.parametrize``.

    Raises TypeError for a value with marks: those belong to pytest.
    """
    names = [n.strip() for n in argnames.split(",")] if isinstance(argnames, str) else argnames
    rows: list[tuple[str, dict[str, Any]]] = []
    given = list(ids) if ids is not None and not callable(ids) else None
    for index, value in enumerate(argvalues):
        name: object = given[index] if given else None
        if isinstance(value, _ParameterSet):
            if value.marks:
                raise TypeError(f"{value}: variants with marks want pytest.mark.parametrize")
            name, values = value.id or name, list(value.values)
        else:
            values = list(value) if len(names) > 1 else [value]
        if callable(ids):
            name = "-".join(str(ids(v) or v) for v in values)
        rows.append((_label(names, values, name), dict(zip(names, values))))

    def decorate(case: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(case)
        def every(**rest: Any) -> None:
            skipped: list[str] = []
            prefix = ""
            for label, arguments in rows:
                timeline.reset()
                try:
                    case(**arguments, **rest)
                except pytest.skip.Exception as why:
                    text = str(why).removeprefix(INCONCLUSIVE_PREFIX)
                    if text != str(why):
                        prefix = INCONCLUSIVE_PREFIX
                    skipped.append(f"[{label}] {text}")
                except AssertionError as error:
                    error.args = (f"[{label}] {error}",)
                    raise
                except Exception as error:
                    error.add_note(f"[{label}]")
                    raise
            if skipped:  # the others hold; that these are not verified must still be said
                pytest.skip(prefix + "; ".join(skipped))

        signature = inspect.signature(case)
        left = [p for n, p in signature.parameters.items() if n not in names]
        every.__signature__ = signature.replace(parameters=left)  # type: ignore[attr-defined]
        return every

    return decorate
