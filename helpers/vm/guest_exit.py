# SPDX-License-Identifier: MIT
"""How a guest ended, in a line: pytest's code, or a guest that broke."""

from __future__ import annotations

import errno
import json
import re
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from helpers.report import files
from helpers.vm.config import GuestConfig
from helpers.vm.console import Console
from helpers.vm.errors import VmError, status

BROKEN = 70
"""The code of a guest that panicked, hung or ran out of time (EX_SOFTWARE of sysexits.h)."""


@dataclass
class Outcome:
    """How a guest ended: ``code`` is pytest's or :data:`BROKEN`, ``marks`` are in seconds."""

    label: str
    code: int
    verdict: str
    seconds: float
    release: str = "?"
    marks: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    tail: list[str] = field(default_factory=list)
    folder: Path | None = None

    def lose(self, error: OSError) -> None:
        """Its results could not be kept: it is no result, whatever pytest said."""
        self.code = BROKEN
        why = unwritten(self.folder, error)
        if why not in self.verdict:
            self.verdict += f", but {why}"


def unwritten(out: Path | None, error: OSError) -> str:
    """What is wrong with a folder for results, and how to mend it."""
    room = "make room there or " if error.errno in {errno.ENOSPC, errno.EDQUOT} else ""
    return f"{out} cannot be written ({error.strerror}): {room}give another folder with --out"


def classify_exit(
    label: str, console: Console, late: str, config: GuestConfig, errors: str, status: int | None
) -> Outcome:
    """Tell a failing case (pytest's code) from a guest that broke (70).

    ``late`` names the deadline that passed, if any; ``errors`` is what QEMU said, ``status`` its
    exit code. Raises :class:`Problem` where there never was a guest.
    """
    release = console.said.get("init", "?")
    outcome = Outcome(label, BROKEN, "", 0.0, release, console.marks, console.notes)
    if "error" in console.said:
        raise VmError(f"{label}: {console.said['error']}")
    where = "while pytest ran" if "pytest" in console.marks else "before pytest started"
    ended = console.said.get("end", "")
    if ended.isdigit():
        outcome.code = int(ended)
        outcome.verdict = f"pytest ended with {ended}"
        if outcome.code > 128:  # the shell's way to tell of a signal
            outcome.verdict = f"pytest was killed by {signal.Signals(outcome.code - 128).name}"
            outcome.code, outcome.tail = BROKEN, console.lines(20)
        return outcome
    outcome.tail = console.lines(20)
    panic = re.findall(rb"Kernel panic[^\n]*", console.tail)
    said = errors.strip().splitlines() or [f"status {status}"]
    if panic:
        outcome.verdict = f"the guest panicked {where}: {panic[-1].decode(errors='replace')[:160]}"
    elif late == "init":
        outcome.verdict = f"the guest never reached its /init within {config.boot_timeout:.0f} s"
        if not console.tail:
            outcome.verdict += (
                "; nothing on its console: the kernel wants drivers for a serial console "
                "(CONFIG_SERIAL_8250_CONSOLE or the like) and an initramfs (CONFIG_BLK_DEV_INITRD)"
            )
    elif late:
        silent = time.monotonic() - console.last
        outcome.verdict = (
            f"the guest ran out of time ({config.timeout:.0f} s, --timeout) {where}, "
            f"silent for the last {silent:.0f} s"
        )
    elif status and not console.marks:
        raise VmError(f"{label}: QEMU gave up ({said[-1]})")
    else:
        outcome.verdict = f"the guest was gone {where} without a word (QEMU's status {status})"
    return outcome


def report(outcome: Outcome) -> None:
    """Say in one line how a guest ended, and show the end of its console if it broke."""
    if outcome.folder:
        facts = {
            "kernel": outcome.label,
            "release": outcome.release,
            "code": outcome.code,
            "verdict": outcome.verdict,
            "seconds": round(outcome.seconds, 1),
            "marks": {name: round(at, 2) for name, at in outcome.marks.items()},
            "notes": outcome.notes,
            "console": outcome.tail,
        }
        try:
            with files.replaced_file(outcome.folder / "outcome.json") as stream:
                json.dump(facts, stream, indent=1)
        except OSError as error:
            outcome.lose(error)
    times = " ".join(
        f"{label} {outcome.marks[mark]:.1f} s,"
        for mark, label in (("init", "booted"), ("first", "first test"))
        if mark in outcome.marks
    )
    status(
        f"{outcome.label} ({outcome.release}): {outcome.verdict} "
        f"({times} all {outcome.seconds:.1f} s; results in {outcome.folder})"
    )
    for note in outcome.notes:
        status(f"{outcome.label}: {note}")
    for line in outcome.tail:
        print(f"    | {line}", file=sys.stderr)
