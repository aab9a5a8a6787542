# SPDX-License-Identifier: MIT
"""Lines at the head of a run: kernel, rights, limits, facilities."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping

import pytest

from helpers import syscalls
from helpers.machine import kernel_version
from helpers.memory import files
from helpers.processes import credentials, rlimits
from helpers.pytest_plugin import requirements
from helpers.requirements.facility import Facility


def header_lines(found: Mapping[str, Facility]) -> list[str]:
    """Header lines: kernel, rights, limits, facilities."""

    soft, hard = (
        "unlimited" if v == rlimits.RLIM_INFINITY else f"{v // 1024} kB"
        for v in rlimits.memlock_limit()
    )
    held = [n for n in credentials.CAPABILITIES if credentials.has_capability(n)]
    lacking = [n for n in credentials.CAPABILITIES if n not in held]
    caps = f"all but {' '.join(lacking) or 'none'}" if len(held) > len(lacking) else (
        " ".join(held) or "none"
    )  # fmt: skip
    uname = os.uname()
    folder = files.file_dir or tempfile.gettempdir()
    there = [f.name for f in found.values() if f.available]
    absent = [f.name for f in found.values() if not f.available and not f.broken]
    unknown = [f.name for f in found.values() if f.broken]
    lines = [
        f"kernel {kernel_version.release()} ({uname.version}), {syscalls.architecture()}, "
        f"page size {syscalls.PAGE // 1024} kB, {syscalls.WORD_BITS} bit",
        f"uid {os.geteuid()}, capabilities: {caps}",
        f"RLIMIT_MEMLOCK: soft {soft}, hard {hard}",
        f"files on {syscalls.filesystem_type(folder) or 'an unknown file system'}, in {folder}",
        f"facilities: {' '.join(there) or 'none'}",
    ]
    if absent:
        lines.append(f"not here: {' '.join(absent)}")
    if unknown:
        lines.append(f"not known, their probe broke: {' '.join(unknown)}")
    return lines


def pytest_report_header(config: pytest.Config) -> list[str]:
    return header_lines(requirements.facilities_here(config))
