# SPDX-License-Identifier: MIT
"""Other processes, and who they are: children, credentials, limits, CPUs."""

from helpers.processes.child import (
    CALL_TIMEOUT,
    Child,
    T,
    default_signals,
    die_with_parent,
    send_signal,
)
from helpers.processes.errors import (
    ChildError,
    ChildExited,
    ChildFailed,
    ChildKilled,
    ChildTimeout,
    signal_name,
)
from helpers.processes.oneshot import run, run_program
from helpers.processes.vfork import call_in_vfork_child

__all__ = [
    "CALL_TIMEOUT",
    "Child",
    "ChildError",
    "ChildExited",
    "ChildFailed",
    "ChildKilled",
    "ChildTimeout",
    "T",
    "call_in_vfork_child",
    "default_signals",
    "die_with_parent",
    "run",
    "run_program",
    "send_signal",
    "signal_name",
]
