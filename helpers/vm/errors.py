# SPDX-License-Identifier: MIT
"""What a person is told: progress, and the one line that says why nothing could be started."""

import sys

USAGE = 4
BROKEN = 70
"""The code of a guest that panicked, hung or ran out of time (EX_SOFTWARE of sysexits.h)."""


class VmError(Exception):
    """The message is one line that says what and how to mend it; ``code`` is the exit code:
    nothing could be started, or :data:`BROKEN`."""

    def __init__(self, message: str, code: int = USAGE) -> None:
        super().__init__(message)
        self.code = code


def status(text: str) -> None:
    """Print a line about ourselves, apart from what pytest prints."""
    print(f"vm: {text}", file=sys.stderr, flush=True)
