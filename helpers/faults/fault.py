# SPDX-License-Identifier: MIT
"""A fault: what the kernel does wrong, in one line, and its effects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from helpers.faults.call import Effect

MECHANISMS = ("argument", "result", "unexecuted", "behind", "limit", "shown", "pressure")
"""argument: changed before the call; result: another one returned; unexecuted: answered
without the call; behind: calls the process did not make; limit: RLIMIT_MEMLOCK raised for a
moment; shown: what is read from /proc, counters, vectors; pressure: when reclaim is driven."""


@dataclass(frozen=True)
class Fault:
    """One way to be wrong."""

    name: str
    chapter: str
    statement: str
    noticed_by: str
    mechanism: str
    lies: Mapping[str, Effect]


NONE = "none"
"""The name under which the supervisor lies about nothing."""


class UnknownFault(ValueError):
    """No fault has that name; the text names the nearest."""
