# SPDX-License-Identifier: MIT
"""What this machine offers, each found out by doing it once, outside any case.

A probe never exercises the behaviour under test: whether locking is allowed is read from
capability sets and limits, not tried with mlock, so that a kernel whose mlock fails is
reported as failing and not as unsuitable.
"""

from __future__ import annotations

from collections.abc import Callable

from helpers import processes
from helpers.requirements.facility import Facility, Unavailable
from helpers.requirements.probes import locking, memory_types, readings
from helpers.syscalls import scarcity

PROBES: dict[str, Callable[[], None]] = {
    **locking.PROBES,
    **memory_types.PROBES,
    **readings.PROBES,
}
"""Facility name → its probe, which returns, or raises :class:`Unavailable`."""


def probe(name: str) -> Facility:
    """Run one probe in a child; one that breaks says how (``broken``)."""
    try:
        found = processes.run(lambda: _outcome(name))
    except (processes.ChildError, OSError) as error:
        return broken(name, error)
    return found


def broken(name: str, error: BaseException) -> Facility:
    """A facility of which the error keeps us from finding out whether it is there."""
    if why := scarcity.reason(error):
        return Facility(name, False, f"{name} could not be probed", "", why, broken=True)
    text = str(error).strip().splitlines()[-1]
    return Facility(
        name, False, f"the probe of {name} broke", text, "report this as a bug", broken=True
    )


def _outcome(name: str) -> Facility:
    try:
        PROBES[name]()
    except Unavailable as why:
        if lacking := scarcity.withheld(why):
            return broken(name, lacking)
        return Facility(name, False, why.reason, why.detail, why.remedy)
    return Facility(name, True)


def probe_all() -> dict[str, Facility]:
    """Every facility of :data:`PROBES`, probed now."""
    return {name: probe(name) for name in PROBES}
