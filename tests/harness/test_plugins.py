# SPDX-License-Identifier: MIT
"""Plugins of others: none of them changes a verdict, or what the run ends with."""

import json
from importlib import metadata

import pytest

POINTS = {point.name: point for point in metadata.entry_points(group="pytest11")}
OPTIONS = {
    "asyncio": (),
    "html": ("--html=page.html",),
    "pytest_cov": ("--cov=helpers", "--cov-report="),
    "pytest_order": ("--order-scope=module",),
    "randomly": ("--randomly-seed=7",),
    "repeat": ("--count=1",),
    "rerunfailures": ("--reruns=2", "--only-rerun=."),
    "sugar": ("--force-sugar",),
    "timeout": ("--timeout=30",),
}
"""Plugin → options by which it does what it is for."""
WITH = {"html": ("html_fixtures", "metadata")}
OURS = {"xdist", "pytest_forked"}
CASES = '''
import os, random
from pathlib import Path

@pytest.mark.flaky(reruns=3)
@pytest.mark.order("last")
def test_second_try():
    """What fails the first time failed."""
    tried = Path("tried")
    if not tried.exists():
        tried.write_text("")
        raise AssertionError("the first time")

@pytest.mark.timeout(20)
def test_killed():
    """A case that is killed."""
    os.kill(os.getpid(), 9)

@pytest.mark.repeat(1)
def test_random():
    """A seed of the suite's own gives the same sequence."""
    assert random.Random("memlock").random() == random.Random("memlock").random()
'''


def run(suite, plugins, options=()):
    """Exit code, and the verdict of each case by its name, with no other plugin but these."""
    (suite.path / "tried").unlink(missing_ok=True)
    away = [f"-pno:{name}" for name in POINTS if name not in {*plugins, *OURS}]
    done = suite.run("--report=out", *away, *options)
    said = done.stdout + done.stderr
    assert "INTERNALERROR" not in said, said
    assert (suite.path / "out").exists(), said
    found = json.loads((suite.path / "out" / "result.json").read_text())
    assert found["complete"], said
    names = (row["id"].partition("::")[2].partition("[")[0] for row in found["behaviours"])
    return done.returncode, {n: row["verdict"] for n, row in zip(names, found["behaviours"])}


@pytest.fixture
def cases(suite):
    marks = ("flaky", "order", "timeout", "repeat")
    text = (suite.path / "pyproject.toml").read_text()
    (suite.path / "pyproject.toml").unlink()
    listed = "".join(f'    "{mark}: of a plugin",\n' for mark in marks)
    (suite.path / "pyproject.toml").write_text(
        text.replace("xfail_strict", f"markers = [\n{listed}]\nxfail_strict")
    )
    suite.case(suite.EVERY + CASES)
    suite.away = ()
    return suite


@pytest.mark.parametrize(
    ("name", "workers"),
    [*((name, ()) for name in (*OPTIONS, "all")), ("rerunfailures", ("-n2",)), ("all", ("-n2",))],
    ids=lambda value: value if isinstance(value, str) else "".join(value),
)
def test_plugin_of_others_changes_no_verdict(cases, name, workers):
    """Each plugin alone and all together: the same verdicts and exit code as without."""
    wanted = [name] if name != "all" else list(OPTIONS)
    if lacking := [plugin for plugin in wanted if plugin not in POINTS]:
        pytest.skip(f"needs {' '.join(lacking)}: pip install --group plugins")
    plugins = [*wanted, *(p for each in wanted for p in WITH.get(each, ()))]
    options = [option for each in wanted for option in OPTIONS[each]]
    code, seen = run(cases, plugins, (*options, *workers))
    assert (code, seen) == run(cases, ())
    assert seen["test_second_try"] == seen["test_killed"] == "failed"
    assert seen["test_random"] == "verified"
