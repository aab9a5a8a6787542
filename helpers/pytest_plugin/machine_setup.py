# SPDX-License-Identifier: MIT
"""Memory pressure for cases: set up once by the controlling process, handed down by name.

The swap area and the place for cgroups are made only if a collected case needs them. Each is
recorded with the cleanup process first, and the machine is compared with itself at the end.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Generator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from helpers.machine import block_devices, cleanup_process, journal, state
from helpers.pytest_plugin import exclusive
from helpers.reclaim import cgroup, swap_area
from helpers.reclaim.setup import SWAP_SIZE, ReclaimSetup
from helpers.requirements import probing, requirement
from helpers.requirements.facility import Facility
from helpers.syscalls import scarcity

NAMES = requirement.RECLAIM
_HANDED = "memlock_pressure"


reclaim_key = pytest.StashKey[ReclaimSetup]()
stack_key = pytest.StashKey[ExitStack]()
before_key = pytest.StashKey[dict[str, list[str]]]()
problems_key = pytest.StashKey[list[str]]()
notes_key = pytest.StashKey[list[str]]()
left_key = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("memlock-tests")
    group.addoption(
        "--swap-dir",
        metavar="DIR",
        help="where the suite makes its swap file; wants ext4, xfs or btrfs "
        "(default: /var/tmp, then the temporary folder, then a loop device, then zram)",
    )
    group.addoption(
        "--cgroup",
        metavar="DIR",
        help="a cgroup folder delegated to us, for memory cgroups (default: found by trying)",
    )
    group.addoption(
        "--allow-sysctl",
        action="store_true",
        help="let cases change vm.* and /sys/kernel/mm settings and put them back",
    )


def pytest_configure(config: pytest.Config) -> None:
    for option in ("--swap-dir", "--cgroup"):
        path = config.getoption(option)
        if path and not os.path.isdir(path):
            raise pytest.UsageError(f"memlock-tests: {option} {path} is not a folder")
    path = config.getoption("--cgroup")
    if path and not os.path.exists(os.path.join(path, "cgroup.procs")):
        raise pytest.UsageError(
            f"memlock-tests: --cgroup {path} is no cgroup; name a folder of a cgroup file system "
            "with the memory controller"
        )
    config.addinivalue_line(
        "markers", "exclusive: no other case of any worker or run of this user at the same time"
    )


def setup_facilities(config: pytest.Config) -> dict[str, Facility]:
    """The facilities of :data:`NAMES`, made on first use by the controlling process."""
    if reclaim_key not in config.stash:
        handed = getattr(config, "workerinput", {}).get(_HANDED)
        config.stash[reclaim_key] = _receive(json.loads(handed)) if handed else _begin(config)
    return config.stash[reclaim_key].facilities


def _missing(name: str, reason: str, detail: str, remedy: str) -> Facility:
    return Facility(name, False, reason, detail, remedy)


def _begin(config: pytest.Config) -> ReclaimSetup:
    allowed = config.getoption("--allow-sysctl")
    sysctl = Facility("allow-sysctl", True) if allowed else _missing(
        "allow-sysctl", "changing settings was not allowed", "", "pass --allow-sysctl"
    )  # fmt: skip
    try:
        scarcity.check_spare()
    except scarcity.SetupError as error:
        unknown = {name: probing.broken(name, error) for name in NAMES}
        unknown["allow-sysctl"] = sysctl
        return ReclaimSetup(journal.ChangeJournal(Path("/nonexistent")), facilities=unknown)
    stack = config.stash[stack_key] = ExitStack()
    config.stash[problems_key] = problems = []
    _, config.stash[left_key] = cleanup_process.undo_stale_runs()
    try:
        run = journal.ChangeJournal.begin()
    except OSError as error:
        lacking = {
            name: _missing(name, "no safe folder for the cleanup process's records", str(error),
                           "run as root with a writable /run")
            for name in NAMES
        }  # fmt: skip
        lacking["allow-sysctl"] = sysctl
        return ReclaimSetup(journal.ChangeJournal(Path("/nonexistent")), facilities=lacking)
    stack.callback(lambda: problems.extend(run.end()))
    config.stash[before_key] = state.read(run.name)
    made = ReclaimSetup(run, facilities={"allow-sysctl": sysctl})
    try:
        made.parent = cgroup.find_parent(run, config.getoption("--cgroup"))
        made.facilities["cgroup"] = Facility("cgroup", True)
    except OSError as error:
        if given := config.getoption("--cgroup"):
            raise pytest.UsageError(
                f"memlock-tests: --cgroup {given}: no memory cgroup can be made in it "
                f"({error.strerror or error}); delegate one: systemd-run --scope -p Delegate=yes"
            ) from None
        made.facilities["cgroup"] = _missing(
            "cgroup", "no memory cgroup can be made", error.strerror or str(error),
            "run as root with CAP_DAC_OVERRIDE, or delegate one: systemd-run --scope "
            "-p Delegate=yes, and name it by --cgroup",
        )  # fmt: skip
    try:
        made.area = stack.enter_context(
            swap_area.area(run, SWAP_SIZE, config.getoption("--swap-dir"))
        )
        made.facilities["swap-area"] = Facility("swap-area", True)
        made.facilities["swap"] = Facility("swap", True)
    except OSError as error:
        why = error.strerror or str(error)
        remedy = "pass --swap-dir on ext4 or xfs, as root with CAP_SYS_ADMIN"
        made.facilities["swap-area"] = _missing("swap-area", "no swap area of ours", why, remedy)
        made.facilities["swap"] = (
            Facility("swap", True)
            if any(not block_devices.of_a_run(path) for path in block_devices.areas())
            else _missing("swap", "no swap area", why, remedy)
        )
    return made


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """xdist: workers are handed names, never the resources themselves."""
    setup_facilities(node.config)
    made = node.config.stash[reclaim_key]
    node.workerinput[_HANDED] = json.dumps(
        {
            "run": str(made.run.folder),
            "parent": made.parent and [str(made.parent.path), made.parent.version],
            "area": made.area and dataclasses.asdict(made.area),
            "facilities": [dataclasses.asdict(f) for f in made.facilities.values()],
        }
    )


def _receive(handed: dict[str, Any]) -> ReclaimSetup:
    run = journal.ChangeJournal(Path(handed["run"]))
    if run.folder.is_dir():
        run.record_this_process()
    return ReclaimSetup(
        run,
        handed["parent"] and cgroup.CgroupParent(Path(handed["parent"][0]), handed["parent"][1]),
        handed["area"] and swap_area.Area(**handed["area"]),
        {row["name"]: Facility(**row) for row in handed["facilities"]},
    )


@pytest.fixture
def reclaim(request: pytest.FixtureRequest) -> ReclaimSetup:
    """Memory pressure inside a cgroup of the case's own."""
    setup_facilities(request.config)
    return request.config.stash[reclaim_key]


def undo_changes(item: pytest.Item, pid: int) -> list[str]:
    """What process ``pid`` recorded and did not undo itself, now undone: a line for each."""
    made = item.config.stash.get(reclaim_key, None)
    if made is None or not made.run.folder.is_dir():
        return []
    left = made.run.recorded(by=pid)
    if left:
        made.run.undo(by=pid)
    return left


def after_case(item: pytest.Item, pid: int) -> None:
    """Undo what the ended case ``pid`` recorded and could not undo itself."""
    made = item.config.stash.get(reclaim_key, None)
    if made is not None and made.run.folder.is_dir():
        made.run.undo(by=pid)


@pytest.hookimpl(trylast=True)  # the workers have ended by then
def pytest_sessionfinish(session: pytest.Session) -> None:
    config = session.config
    if stack_key not in config.stash:
        return
    problems = config.stash[problems_key]
    made = config.stash.get(reclaim_key, None)  # None: interrupted while it was made
    changed = made.run.settings() if made is not None else None
    try:
        with exclusive.no_case_runs():
            config.stash[stack_key].close()
    except (OSError, ValueError) as error:  # its record stays for the cleanup process
        problems.append(str(error))
    if made is not None and changed is not None and before_key in config.stash:
        lines, config.stash[notes_key] = state.diff(
            config.stash[before_key], made.run.name, changed
        )
        problems += lines
    if problems and session.exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def described(made: ReclaimSetup) -> list[str]:
    """What the pressure of this session was made of."""
    lines = []
    if made.parent:
        lines.append(f"pressure in memory cgroups v{made.parent.version} at {made.parent.path}")
    if made.area:
        lines.append(f"swapped to {made.area.how}, {made.area.size >> 20} MiB at {made.area.path}")
        lines += [f"  not to {reason}" for reason in made.area.instead]
    return lines


@pytest.hookimpl(hookwrapper=True)
def pytest_terminal_summary(
    terminalreporter: Any, config: pytest.Config
) -> Generator[None, None, None]:
    yield
    made = config.stash.get(reclaim_key, None)
    if made is not None and (made.parent or made.area):
        for line in described(made):
            terminalreporter.write_line(line)
    for line in config.stash.get(notes_key, []):
        terminalreporter.write_line(f"changed by somebody else meanwhile: {line}")
    for line in config.stash.get(left_key, []):  # not this run's doing, so no failure of it
        terminalreporter.write_line(f"left by an earlier run: {line}; see what it is and remove it")
    if problems := config.stash.get(problems_key, []):
        terminalreporter.section("the machine is not as it was found", "=")
        for line in problems:
            terminalreporter.write_line(line)
