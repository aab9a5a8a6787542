# SPDX-License-Identifier: MIT
"""What the tools that read results share: bad input is one line and exit code 4, whatever it is."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn, TextIO

from helpers.report.files import InvalidResult
from helpers.report.ktap import printable

USAGE = 4
"""Exit code of what cannot be used; 1 says something of the kernel."""


def complain(message: object) -> None:
    """One line on standard error."""
    if sys.stderr is not None:  # closed
        try:
            print(printable(f"memlock-tests: {message}"), file=sys.stderr, flush=True)
        except OSError:
            _discard(sys.stderr)


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong with the arguments."""

    def error(self, message: str) -> NoReturn:
        complain(f"{message} (see {self.prog} --help)")
        sys.exit(USAGE)


def _discard(stream: TextIO | None) -> None:
    """Let nothing of it be written any more, at the end of the interpreter neither."""
    if stream is not None:
        with open(os.devnull, "w") as nothing, contextlib.suppress(OSError):
            os.dup2(nothing.fileno(), stream.fileno())


def ended(work: Callable[[], int]) -> int:
    """The exit code of a tool's work, with what it raises for bad input and output as a line."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # LC_ALL=C
    try:
        code = work()
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader (head, less) has seen enough
        _discard(sys.stdout)
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except InvalidResult as error:
        complain(error)
    except ModuleNotFoundError as error:
        complain(f"needs {error.name}: pip install {error.name} (dependency group report)")
    except MemoryError:
        complain("there is not enough memory for this")
    except OSError as error:
        if error.filename is None:
            _discard(sys.stdout)
        complain(f"{error.filename or 'standard output'} cannot be written: {error.strerror}")
    return USAGE


def say(text: str) -> None:
    """Print to standard output, which has to be there. Raises OSError."""
    if sys.stdout is None:
        raise InvalidResult("standard output is closed: nowhere to write to")
    print(text)
