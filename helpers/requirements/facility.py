# SPDX-License-Identifier: MIT
"""One thing a machine may offer, and why it may not."""

from __future__ import annotations

import errno
from dataclasses import dataclass

from helpers.observe import status


@dataclass(frozen=True)
class Facility:
    """One answer: there, or why not (constant words), what was seen, and how to get it."""

    name: str
    available: bool
    reason: str = ""
    detail: str = ""
    remedy: str = ""
    broken: bool = False
    """Whether it is there could not be found out: who needs it has a broken set-up."""


ROOT = "run as root"


class Unavailable(Exception):
    """Raised by a probe: ``reason`` (constant), ``detail`` (what was seen), ``remedy``."""

    def __init__(self, reason: str, detail: str = "", remedy: str = "") -> None:
        super().__init__(reason)
        self.reason, self.detail, self.remedy = reason, detail, remedy


def unavailable_call(name: str, error: OSError, since: str) -> Unavailable:
    """For a system call that the kernel has from ``since`` on, or that a filter forbids."""
    if error.errno in {errno.ENOSYS, errno.EPERM} and status.fields().get("Seccomp") == "2":
        return Unavailable(
            f"{name} is not available", f"{error} (under a seccomp filter)",
            f"a kernel from {since} on, and a seccomp profile that lets {name} through",
        )  # fmt: skip
    return Unavailable(f"{name} is not available", str(error), f"a kernel from {since} on")
