# SPDX-License-Identifier: MIT
"""What a person is told: progress, and the one line that says why nothing could be started."""

import sys


class VmError(Exception):
    """Nothing could be started; the message is one line that says what and how to mend it.

    ``everywhere``: no other kernel would fare better.
    """

    def __init__(self, message: str, everywhere: bool = False) -> None:
        super().__init__(message)
        self.everywhere = everywhere


def status(text: str) -> None:
    """Print a line about ourselves, apart from what pytest prints."""
    print(f"vm: {text}", file=sys.stderr, flush=True)
