"""``--report DIR``: result.json as the run goes, KTAP and tmt's results.yaml at its end."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from helpers import gating
from helpers.pressure import session as pressing
from helpers.report import formats, result, terminal

_RAN = {pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("memlock-tests").addoption(
        "--report",
        metavar="DIR",
        help="write result.json, result.ktap and results.yaml (tmt) into this folder",
    )


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    folder = config.getoption("--report")
    if not folder or hasattr(config, "workerinput"):
        return
    try:  # by doing: a folder may look writable and not be (proc, read-only mounts)
        Path(folder).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise pytest.UsageError(
            f"memlock-tests: --report {folder} cannot be written ({error.strerror}); "
            "name a folder that can"
        ) from None
    config.pluginmanager.register(Reports(config, Path(folder)), "memlock-reports")


class Reports:
    """Writes the result of a run in the controlling process."""

    def __init__(self, config: pytest.Config, folder: Path) -> None:
        self.config, self.folder = config, folder
        self.writer: result.Writer | None = None

    def pytest_runtest_logstart(self) -> None:
        if self.writer is None:
            self._begin()

    def _begin(self) -> result.Writer:
        found = gating.survey(self.config) | (
            pressing.survey(self.config) if pressing.pressure_key in self.config.stash else {}
        )
        self.writer = result.Writer(self.folder, found.values())
        return self.writer

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        behaviour = self.config.stash[terminal.behaviours_key].get(nodeid)
        if self.writer is not None and behaviour is not None:
            self.writer.add(behaviour)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        behaviours = list(self.config.stash[terminal.behaviours_key].values())
        writer = self.writer or self._begin()
        # Ended by hand, by -x or for an error: what was not run has no verdict in here.
        whole = not (session.shouldstop or session.shouldfail) and session.exitstatus in _RAN
        extra = self.config.stash.get(result.extra_key, {})
        writer.finish(behaviours, int(session.exitstatus), complete=whole, extra=extra)
        (self.folder / "result.ktap").write_text(formats.ktap(behaviours))
        (self.folder / "results.yaml").write_text(formats.tmt(behaviours))
