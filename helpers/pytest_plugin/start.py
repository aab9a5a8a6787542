# SPDX-License-Identifier: MIT
"""What must be so before anything runs: each refusal is one line that names the mend."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from helpers import processes
from helpers.pytest_plugin import PLUGINS
from helpers.syscalls import scarcity

REQUIRED = {"xdist": ("-n", "pytest-xdist"), "pytest_forked": ("--forked", "pytest-forked")}
"""Plugin → the option of it that we know, and the package that has it."""
NEEDED = ("skipping", "reports")
"""Plugins of pytest without which verdicts change or cannot be carried."""
UNFORKED = ("harness", "bench")
"""Folders of tests that are about the suite itself and need no process for each case."""
_OWN_DESCRIPTORS = 4
"""What the run itself opens at a time beyond what it has at its start; 3 more for a worker."""
_WEEK = 7 * 24 * 3600
NUMBERS: dict[str, tuple[float, float]] = {
    "--deadline": (0.01, _WEEK),
    "--fault-budget": (0, _WEEK),
    "--model-steps": (1, 10**8),
    "--seed": (0, 2**64 - 1),
}
"""Least and greatest value of our options that are numbers."""


def refused(text: str) -> pytest.UsageError:
    """The run does not start; the text is for the person who started it."""
    return pytest.UsageError(f"memlock-tests: {text}")


def _has(manager: pytest.PytestPluginManager, plugin: str) -> bool:
    return manager.has_plugin(plugin) or manager.has_plugin(f"{plugin}.plugin")


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    """Take the options of a plugin that is not there, so that it can be said."""
    group = parser.getgroup("memlock-tests")
    if not _has(pluginmanager, "xdist"):
        # By the method that allows short names, as xdist has it.
        group._addoption("-n", "--numprocesses", dest="missing_xdist", help="wants pytest-xdist")
    if not _has(pluginmanager, "pytest_forked"):
        group.addoption("--forked", action="store_true", help="wants pytest-forked")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Before anything of ours is configured. Raises UsageError."""
    if not __debug__:
        raise refused(
            "python -O (PYTHONOPTIMIZE) takes the assertions away, and every case would pass; "
            "run it without"
        )
    scarcity.raise_soft_limits()
    try:
        workers = len(config.getoption("tx", None) or ())
        scarcity.check_descriptors(_OWN_DESCRIPTORS + 3 * workers)
    except scarcity.SetupError as error:
        raise refused(f"a run cannot read its cases or write a result: {error.strerror}") from None
    manager = config.pluginmanager
    for name in (*NEEDED, *PLUGINS):
        if manager.is_blocked(name) or not manager.has_plugin(name):
            raise refused(f"the plugin {name} is switched off; leave out -p no:{name}")
    for plugin, asked in (
        ("pytest_forked", config.getoption("forked", False)),
        ("xdist", config.getoption("missing_xdist", None) is not None),
    ):
        if asked and not _has(manager, plugin):
            option, package = REQUIRED[plugin]
            raise refused(
                f"{option} wants {package}, which is not installed or is switched off; "
                f"pip install {package}, and no -p no:{plugin} or PYTEST_DISABLE_PLUGIN_AUTOLOAD"
            )
    check_values(config)
    if not hasattr(config, "workerinput"):
        processes.default_signals(keep_job_control=True)


def check_values(config: pytest.Config) -> None:
    """Refuse an empty word, or a number outside :data:`NUMBERS`. Raises UsageError."""
    group = config._parser.getgroup("memlock-tests")
    for option in group.options:
        _check_value(option.names()[0], getattr(config.option, option.dest, None))
    _check_value("--junitxml", getattr(config.option, "xmlpath", None))
    for argument in config.args:
        _check_value("the name of a file or folder", argument)


def _check_value(name: str, value: object) -> None:
    if isinstance(value, str) and not value.strip():
        raise refused(f"{name} has no value (an unset variable?); give it one or leave it out")
    if isinstance(value, int | float) and not isinstance(value, bool):
        least, most = NUMBERS.get(name, (-math.inf, math.inf))
        if not (least <= value <= most and abs(value) != math.inf):
            raise refused(f"{name} {value} is out of range; it wants {least:,} to {most:,}")


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """Cases of the kernel's chapters run in processes of their own, or not at all.

    Raises UsageError.
    """
    config = session.config
    if hasattr(config, "workerinput"):
        return
    if config.getoption("forked", False) or config.option.collectonly:
        return
    ours = Path(__file__).parents[2]
    for argument in config.args:
        path = config.invocation_params.dir / argument.partition("::")[0]
        if path.parent.name in UNFORKED or path.name in UNFORKED:
            continue
        raise refused(
            f"{argument} would run inside pytest itself: the settings "
            f"({config.inipath or 'no file'}, -o, PYTEST_ADDOPTS) lack --forked; add it, or run "
            f"pytest in {ours} with its own pyproject.toml"
        )
