# SPDX-License-Identifier: MIT
"""Runs each case behind ``--forked``: in a process of its own, or in its function's shared one.

The option and the marker are pytest-forked's. Its own runner is not used, because a case
here may crash, hang, be OOM-killed or leave by ``os._exit``: pytest-forked has no deadline,
ends the whole run on ``os._exit(4)``, calls any crash of an xfail case XFAIL, and spends a
temporary folder, three files and a multiprocessing import on each case.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import Any

import pytest
from _pytest.runner import runtestprotocol

from helpers.machine import timeouts
from helpers.pytest_plugin import case_process, exclusive, shared_process
from helpers.syscalls import scarcity


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("memlock-tests")
    group.addoption(
        "--deadline",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="time a case may idle before its process group is killed (default 60)",
    )
    group.addoption(
        "--timeout-multiplier",
        metavar="N",
        help="wait N times as long for everything, on a slow machine or kernel "
        f"(default: {timeouts.VARIABLE}, or 1)",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    option = config.getoption("--timeout-multiplier")
    name, text = "--timeout-multiplier", option
    if option is None:
        name, text = timeouts.VARIABLE, os.environ.get(timeouts.VARIABLE, "1")
    try:
        timeouts.multiplier(text)
    except ValueError as error:
        raise pytest.UsageError(f"memlock-tests: {name}: {error}") from None
    os.environ[timeouts.VARIABLE] = text  # of workers, and of programs we execute


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    if not (item.config.getoption("forked", False) or item.get_closest_marker("forked")):
        return None
    hook = item.ihook
    hook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    # A case that is skipped as a whole needs no process.
    with exclusive.slot(item):
        if item.get_closest_marker("skip"):
            reports = runtestprotocol(item, log=False, nextitem=nextitem)
        else:
            reports = shared_process.run(item, nextitem) or case_process.run_forked(item)
    for report in reports:
        hook.pytest_runtest_logreport(report=report)
    hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


@pytest.hookimpl(hookwrapper=True, tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Generator[None, Any, None]:
    """A case that ran out of something is no failure of the kernel's, but a broken set-up."""
    outcome = yield
    report: pytest.TestReport = outcome.get_result()
    if report.when == "call" and call.excinfo and (why := scarcity.reason(call.excinfo.value)):
        report.when, report.outcome = "setup", "failed"
        report.longrepr = f"{case_process.NOT_SET_UP}: {why}"
