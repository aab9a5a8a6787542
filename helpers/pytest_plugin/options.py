# SPDX-License-Identifier: MIT
"""Options of ours, checked at start."""

from __future__ import annotations

import os
import re
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import pytest

from helpers import memory, syscalls
from helpers.machine import mounts
from helpers.memory import files
from helpers.pytest_plugin.marks import MARKERS
from helpers.requirements import deviations, requirement
from helpers.syscalls import scarcity

budget_key = pytest.StashKey[int]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("memlock-tests")
    group.addoption(
        "--require",
        metavar="all|NAME,…",
        help="fail, instead of skip, cases that lack one of these requirements",
    )
    group.addoption(
        "--memory-budget",
        metavar="SIZE",
        help="most memory that cases may lock, e.g. 256M "
        "(default: a tenth of MemAvailable, at most 1G)",
    )
    group.addoption(
        "--file-dir",
        metavar="DIR",
        help="where file-backed cases keep their files; wants a disk file system "
        "(default: /var/tmp, the temporary folder or the current one, the first on a disk)",
    )
    group.addoption(
        "--model-steps",
        type=int,
        default=2500,
        metavar="N",
        help="steps of each random comparison of kernel and model (default 2500)",
    )
    group.addoption(
        "--seed",
        type=int,
        default=1,
        metavar="N",
        help="seed of the random cases in tests/model and tests/concurrency (default 1)",
    )
    group.addoption(
        "--list-deviations",
        action="store_true",
        help="list the known kernel bugs, with the releases that have them, and leave",
    )
    group.addoption(
        "--fail-on-deviation",
        action="store_true",
        help="exit with 1 if the kernel shows a known deviation",
    )


def pytest_cmdline_main(config: pytest.Config) -> int | None:
    if not config.getoption("--list-deviations"):
        return None
    print("\n".join(map(str, deviations.KNOWN.values())))
    return 0


def pytest_configure(config: pytest.Config) -> None:
    for text in MARKERS.values():
        config.addinivalue_line("markers", text)
    check_versions(metadata.version("pytest"), metadata.version("pytest-forked"))
    if not Path("/proc/self/status").exists():
        raise pytest.UsageError(
            "memlock-tests: /proc is not mounted and every witness is read there; "
            "mount -t proc proc /proc"
        )
    if os.readlink("/proc/self") != str(os.getpid()):
        raise pytest.UsageError(
            "memlock-tests: /proc is of another process-id namespace and shows other processes "
            "than ours; mount -t proc proc /proc (unshare --mount-proc)"
        )
    try:
        syscalls.architecture()
    except syscalls.UnknownArchitecture as error:
        raise pytest.UsageError(f"memlock-tests: {error}") from None
    try:
        requirement.parse_require_option(config.getoption("--require"))
    except requirement.UnknownRequirement as error:
        raise pytest.UsageError(f"memlock-tests: --require: {error}") from None
    config.stash[budget_key] = parse_memory_budget(config.getoption("--memory-budget"))
    directory, handed = config.getoption("--file-dir"), worker_input(config)
    try:
        mounts.image_dir = files.file_dir = (
            memory.find_file_dir(directory) if handed is None else handed["memlock_file_dir"]
        )
    except OSError as error:
        raise pytest.UsageError(
            f"memlock-tests: --file-dir {directory} is not a folder we can write to "
            f"({scarcity.reason(error) or error.strerror}); name one that is"
        ) from None
    check_writable(config.getoption("xmlpath", None), "--junitxml")


def check_versions(pytest_version: str, forked_version: str) -> None:
    """Refuse a pytest whose reports pytest-forked cannot carry. Raises UsageError."""
    numbers = [
        tuple(int(n) for n in re.findall(r"\d+", v)[:3]) for v in (pytest_version, forked_version)
    ]
    if numbers[0] >= (9, 2) and numbers[1] <= (1, 7, 5):
        raise pytest.UsageError(
            f"memlock-tests: pytest {pytest_version} with pytest-forked {forked_version} fails "
            'every forked case; pip install "pytest<9.2"'
        )


def check_writable(path: str | None, option: str) -> None:
    """Refuse a result path that cannot be made. Raises UsageError; creates nothing."""
    if path is None:
        return
    target = Path(path).absolute()
    parent = target.parent
    while not parent.exists():
        parent = parent.parent
    if target.is_dir() or not parent.is_dir() or not os.access(parent, os.W_OK):
        raise pytest.UsageError(
            f"memlock-tests: {option} {path} cannot be written; name a file in a folder you own"
        )


_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def parse_memory_budget(text: str | None) -> int:
    """Bytes that cases may lock. Raises UsageError on nonsense or on more than half of RAM."""
    available = psutil.virtual_memory().available
    if text is None:
        return int(min(available // 10, 1 << 30))
    match = re.fullmatch(r"(\d+)([KMG]?)(?:i?B)?", text, re.IGNORECASE)
    if not match:
        raise pytest.UsageError(f"memlock-tests: --memory-budget {text}: write 64M or 1G")
    size = int(match[1]) * _UNITS[match[2].upper()]
    least = 64 * syscalls.PAGE
    if not least <= size <= available // 2:
        raise pytest.UsageError(
            f"memlock-tests: --memory-budget {text} is outside {least // 1024}K to "
            f"{available // 2 // 1024}K (half of MemAvailable)"
        )
    return size


def worker_input(config: pytest.Config) -> dict[str, Any] | None:
    found: dict[str, Any] | None = getattr(config, "workerinput", None)
    return found
