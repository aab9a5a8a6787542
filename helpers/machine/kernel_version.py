# SPDX-License-Identifier: MIT
"""The running kernel's release, as a version to compare, for what cannot be probed."""

from __future__ import annotations

import os
import re
from pathlib import Path


def parse(release: str) -> tuple[int, int, int]:
    """``"6.12.107+deb13-amd64"`` → (6, 12, 107). Raises ValueError on anything else.

    A release without a third number (``7.2-rc1``, ``6.18``) has patch level 0.
    """
    match = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", release)
    if not match:
        raise ValueError(f"not a kernel release: {release!r}")
    return int(match[1]), int(match[2]), int(match[3] or 0)


def release() -> str:
    """uname -r of this kernel, also under ``setarch --uname-2.6`` (personality(2) UNAME26)."""
    try:
        return Path("/proc/sys/kernel/osrelease").read_text().strip()
    except OSError:
        return os.uname().release


def version() -> tuple[int, int, int]:
    """The running kernel's (major, minor, patch)."""
    return parse(release())
