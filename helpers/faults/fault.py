# SPDX-License-Identifier: MIT
"""A fault: what the kernel does wrong, in one line, and its effects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from helpers.faults.call import Effect

MECHANISMS = ("argument", "result", "skipped", "side-effect", "limit", "readout", "reclaim")
"""argument: changed before the call; result: another one returned; skipped: answered without the
call; side-effect: calls the process did not make; limit: RLIMIT_MEMLOCK raised for a moment;
readout: what is read from /proc, counters, vectors; reclaim: when reclaim is driven."""


@dataclass(frozen=True)
class Fault:
    """One way to be wrong."""

    name: str
    chapter: str
    statement: str
    mechanism: str
    effects: Mapping[str, Effect]
    """System call → what is done to it."""


NONE = "none"
"""The name under which the supervisor changes nothing."""


class UnknownFault(ValueError):
    """No fault has that name; the text names the nearest."""
