# SPDX-License-Identifier: MIT
"""``--record-calls DIR``: what each case does and looks at, for ``helpers.report reproduce``."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import pytest

from helpers.pytest_plugin.marks import mark_texts, statement


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("memlock-tests").addoption(
        "--record-calls",
        metavar="DIR",
        help="write what each case does and looks at into this folder, for helpers.report "
        "reproduce (cases run several times as long)",
    )


def pytest_configure(config: pytest.Config) -> None:
    if folder := config.getoption("--record-calls"):
        if config.getoption("--share-process", None) != "never":
            raise pytest.UsageError("memlock-tests: --record-calls wants --share-process=never")
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise pytest.UsageError(
                f"memlock-tests: --record-calls {folder}: {error.strerror}"
            ) from None


_own_pid = os.getpid()


def record_of(folder: Path, nodeid: str) -> Path:
    """The file that a case is recorded in."""
    return folder / f"{zlib.crc32(nodeid.encode()):08x}.jsonl"


@pytest.hookimpl(hookwrapper=True, tryfirst=True)
def pytest_runtest_setup(item: pytest.Item):  # type: ignore[no-untyped-def]
    folder = item.config.getoption("--record-calls", None)
    # A case that is skipped is not forked: pytest's own process is never recorded.
    if folder and os.getpid() != _own_pid:
        from helpers.reproducer import recorder

        path = record_of(Path(folder), item.nodeid)
        path.unlink(missing_ok=True)
        recorder.start(path, {
            "node": item.nodeid,
            "file": str(item.path),
            "statement": statement(item),
            "source": mark_texts(item, "source"),
            "deviation": mark_texts(item, "deviation"),
            "detects": mark_texts(item, "detects"),
            "needs": mark_texts(item, "needs"),
        })  # fmt: skip
    yield


@pytest.hookimpl(tryfirst=True)
def pytest_assertrepr_compare(
    config: pytest.Config, op: str, left: object, right: object
) -> list[str] | None:
    if config.getoption("--record-calls", None) and op == "==":
        from helpers.reproducer import recorder

        recorder.failed(left, right)
    return None
