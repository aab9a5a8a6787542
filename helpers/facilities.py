"""What this machine offers, each found out by doing it once, outside any case.

A probe never exercises the behaviour under test: whether locking is allowed is read from
capability sets and limits, not tried with mlock, so that a kernel whose mlock fails is
reported as failing and not as unsuitable.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from helpers import process, scarce
from helpers.probes import kinds, locking
from helpers.probes.why import Unavailable


@dataclass(frozen=True)
class Facility:
    """One answer: there, or why not (constant words), what was seen, and how to get it."""

    name: str
    available: bool
    reason: str = ""
    detail: str = ""
    remedy: str = ""
    broken: bool = False
    """Whether it is there could not be found out: who needs it has a broken set-up."""


PROBES: dict[str, Callable[[], None]] = {**locking.PROBES, **kinds.PROBES}
"""Facility name → its probe, which returns, or raises :class:`Unavailable`."""


def probe(name: str) -> Facility:
    """Run one probe in a child; one that breaks says how (``broken``)."""
    try:
        found = process.run(lambda: _outcome(name))
    except (process.ChildError, OSError) as error:
        return broken(name, error)
    return found


def broken(name: str, error: BaseException) -> Facility:
    """A facility of which the error keeps us from finding out whether it is there."""
    if why := scarce.reason(error):
        return Facility(name, False, f"{name} could not be probed", "", why, broken=True)
    text = str(error).strip().splitlines()[-1]
    return Facility(
        name, False, f"the probe of {name} broke", text, "report this as a bug", broken=True
    )


def _outcome(name: str) -> Facility:
    try:
        PROBES[name]()
    except Unavailable as why:
        if lacking := scarce.withheld(why):
            return broken(name, lacking)
        return Facility(name, False, why.reason, why.detail, why.remedy)
    return Facility(name, True)


def survey() -> dict[str, Facility]:
    """Every facility of :data:`PROBES`, probed now."""
    return {name: probe(name) for name in PROBES}
