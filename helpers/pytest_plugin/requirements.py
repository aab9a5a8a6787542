# SPDX-License-Identifier: MIT
"""Options, markers, requirements and known deviations: what runs, and as what.

The controlling process probes the machine once; workers are handed what it found.
"""

from __future__ import annotations

import dataclasses
import gc
import json
from collections.abc import Iterator
from typing import Any

import pytest

from helpers.memory import files
from helpers.pytest_plugin import case_process, machine_setup
from helpers.pytest_plugin.deviations import expect_deviation
from helpers.pytest_plugin.marks import describe_item, mark_texts
from helpers.pytest_plugin.options import budget_key, worker_input
from helpers.requirements import probing, requirement
from helpers.requirements.facility import Facility

facilities_key = pytest.StashKey[dict[str, Facility]]()
require_failure_key = pytest.StashKey[str]()


def facilities_here(config: pytest.Config) -> dict[str, Facility]:
    """What the machine offers: probed on first use, or handed down by the controller."""
    if facilities_key not in config.stash:
        given = worker_input(config)
        if given is None:
            config.stash[facilities_key] = probing.probe_all()
        else:
            rows = json.loads(given["memlock_survey"])
            config.stash[facilities_key] = {row["name"]: Facility(**row) for row in rows}
    return config.stash[facilities_key]


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """xdist: hand the survey to a worker."""
    rows = [dataclasses.asdict(f) for f in facilities_here(node.config).values()]
    node.workerinput["memlock_survey"] = json.dumps(rows)
    node.workerinput["memlock_file_dir"] = files.file_dir


@pytest.hookimpl(hookwrapper=True)
def pytest_collection() -> Iterator[None]:
    gc.disable()  # it collects nothing of thousands of items that stay: a fifth of the time
    yield
    gc.enable()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    required = requirement.parse_require_option(config.getoption("--require"))
    for item in items:
        describe_item(item)
        _gate(config, item, required)
        expect_deviation(item)
    case_process.freeze_gc()


def _gate(config: pytest.Config, item: pytest.Item, required: frozenset[str]) -> None:
    needs = mark_texts(item, "needs")
    try:
        bases = {name: requirement.name_of(name) for name in needs}
    except requirement.UnknownRequirement as error:
        raise pytest.UsageError(f"memlock-tests: {item.nodeid}: {error}") from None
    if not needs:
        return
    found_here = facilities_here(config)
    # Collecting changes nothing on the machine: what has to be set up is not known then.
    if config.option.collectonly:
        found_here = found_here | {name: Facility(name, True) for name in machine_setup.NAMES}
    elif any(name in machine_setup.NAMES for name in bases.values()):
        found_here = found_here | machine_setup.setup_facilities(config)
    found = requirement.first_unmet(needs, found_here, config.stash[budget_key])
    if found is None:
        return
    if found.broken:  # no answer is no reason to skip
        item.stash[require_failure_key] = str(found)
        return
    # lock:N may lack what stands behind it (lock-calls), which the case did not name.
    lacking = {bases[found.name]} if found.name in bases else {found.name, *bases.values()}
    if asked := sorted(lacking & required):
        item.stash[require_failure_key] = f"--require {asked[0]}: {found}"
    else:
        item.add_marker(pytest.mark.skip(reason=str(found)))
        item.user_properties.append(("missing", found.constant))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if require_failure_key in item.stash:
        pytest.fail(item.stash[require_failure_key], pytrace=False)
