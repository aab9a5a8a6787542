"""Hands the run to its rooms: the forked runner, options and gating, faults, the report."""

import sys
from pathlib import Path

import pytest

# Also under settings that are not ours.
sys.path.insert(0, str(Path(__file__).parent))

from helpers import start

# In order of import, so that pytest can rewrite each one's assertions.
pytest_plugins = (
    "helpers.signals",
    "helpers.pressure.session",
    "helpers.forked",
    "helpers.faults.plugin",
    "helpers.gating",
    "helpers.report.terminal",
    "helpers.report.progress",
    "helpers.report.writing",
    "pytester",
)


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    start.add_missing_options(parser, pluginmanager)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    start.check(config, pytest_plugins)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    if not hasattr(session.config, "workerinput"):
        start.check_forked(session.config)
