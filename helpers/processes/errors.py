# SPDX-License-Identifier: MIT
"""How a child can fail to answer."""

from __future__ import annotations

import signal


class ChildError(Exception):
    """A child did not give an answer."""


class ChildFailed(ChildError):
    """The function raised in the child; the text is the child's traceback."""


class ChildKilled(ChildError):
    """A signal killed the child. ``signal`` is its name (``"SIGSEGV"``)."""

    def __init__(self, number: int) -> None:
        self.signal = signal_name(number)
        super().__init__(f"child killed by {self.signal}")


class ChildExited(ChildError):
    """The child ended without an answer. ``status`` is its exit status."""

    def __init__(self, status: int) -> None:
        self.status = status
        super().__init__(f"child exited with status {status} before it answered")


class ChildTimeout(ChildError):
    """The child passed its deadline and was killed."""


def signal_name(number: int) -> str:
    """``"SIGKILL"`` for 9; ``"signal 40"`` where there is no name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
