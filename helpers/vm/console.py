# SPDX-License-Identifier: MIT
"""A guest's console: our marks taken out, a log kept, and what pytest says shown."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import IO

TROUBLE = re.compile(
    r"\] (Kernel panic|BUG:|Oops|Internal error|general protection|Unable to handle)"
)
MARK = re.compile(rb"\x1b_vm:([a-z]+) ?([^\x1b]*)\x1b\\")


class Console:
    """Reads the guest's console: takes our marks out, keeps a log, shows what pytest says."""

    def __init__(self, log: Path, show: IO[bytes], started: float | None = None) -> None:
        self._log = log.open("wb", buffering=0)
        self.unwritten: OSError | None = None
        """Why the log is cut off, if it is: the guest need not end for that."""
        self._show = show
        self._held = b""
        self.showing = False
        self.started = time.monotonic() if started is None else started
        self.last = self.started
        self.marks: dict[str, float] = {}
        self.said: dict[str, str] = {}
        self.notes: list[str] = []
        self.tail = b""

    def __enter__(self) -> Console:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def feed(self, data: bytes) -> None:
        """Take what came from the guest."""
        self.last = time.monotonic()
        data = self._held + data.replace(b"\r", b"")
        self._held = b""
        position = 0
        for match in MARK.finditer(data):
            self._text(data[position : match.start()])
            self._mark(match[1].decode(), match[2].decode("ascii", "replace"))
            position = match.end()
        rest = data[position:]
        escape = rest.rfind(b"\x1b_")
        if escape < 0 and rest.endswith(b"\x1b"):
            escape = len(rest) - 1
        if escape >= 0 and (len(rest) - escape < 64 or rest[escape:].startswith(b"\x1b_vm:inline")):
            rest, self._held = rest[:escape], rest[escape:]
        self._text(rest)

    def _mark(self, word: str, text: str) -> None:
        self.marks.setdefault(word, self.last - self.started)
        self.said[word] = text
        if word == "note":
            self.notes.append(text)
        elif word == "pytest":
            self.showing = True
        elif word in ("tar", "inline", "end"):
            self.showing = False

    def _text(self, data: bytes) -> None:
        if data:
            self._keep(data)
            self.tail = (self.tail + data)[-8192:]
            if self.showing:
                self._show.write(data)
                self._show.flush()

    def _keep(self, data: bytes) -> None:
        try:
            while data and self.unwritten is None:
                data = data[self._log.write(data) :]
        except OSError as error:
            self.unwritten = error

    def close(self) -> None:
        """Write out what was held back."""
        self._text(self._held)
        self._held = b""
        self._log.close()

    def lines(self, count: int) -> list[str]:
        """Give the last lines, printable, or those around the first sign of a kernel in trouble."""
        text = self.tail.decode("utf-8", "replace")
        text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
        lines = [
            "".join(c if c.isprintable() else " " for c in line).rstrip()
            for line in text.split("\n")
        ]
        lines = [line[:200] for line in lines if line]
        trouble = [number for number, line in enumerate(lines) if TROUBLE.search(line)]
        start = max(0, trouble[0] - 3) if trouble else len(lines) - count
        return lines[max(0, start) :][:count]
