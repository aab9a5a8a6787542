"""Memory pressure for cases: set up once by the controlling process, handed down by name.

The swap area and the place for cgroups are made only if a collected case needs them. Each is
recorded with the janitor first, and the machine is compared with itself at the end.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from helpers import facilities, guard, janitor, requirements, scarce
from helpers.facilities import Facility
from helpers.pressure import cgroup, swap

NAMES = requirements.PRESSURE
SWAP_SIZE = 64 << 20
_HANDED = "memlock_pressure"


@dataclass
class Pressure:
    """What a case may use: the run (for records), where cgroups go, the swap area."""

    run: janitor.Run
    parent: cgroup.Parent | None = None
    area: swap.Area | None = None
    facilities: dict[str, Facility] = field(default_factory=dict)

    @contextmanager
    def cgroup(self, limit: int = -1) -> Iterator[cgroup.Cgroup]:
        """A memory cgroup of the case's own with a hard limit in bytes (-1: none)."""
        assert self.parent is not None, 'the case lacks needs("cgroup")'
        with cgroup.make(self.run, self.parent, limit) as made:
            yield made

    @contextmanager
    def setting(self, path: str, value: str) -> Iterator[None]:
        """A sysctl or sysfs setting for the block, then its old value. For --allow-sysctl."""
        old = janitor.present(path)
        with self.run.recorded("setting", path=path, value=old, wrote=value):
            Path(path).write_text(value)
            yield


pressure_key = pytest.StashKey[Pressure]()
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


def survey(config: pytest.Config) -> dict[str, Facility]:
    """The facilities of :data:`NAMES`, made on first use by the controlling process."""
    if pressure_key not in config.stash:
        handed = getattr(config, "workerinput", {}).get(_HANDED)
        config.stash[pressure_key] = _receive(json.loads(handed)) if handed else _begin(config)
    return config.stash[pressure_key].facilities


def _missing(name: str, reason: str, detail: str, remedy: str) -> Facility:
    return Facility(name, False, reason, detail, remedy)


def _begin(config: pytest.Config) -> Pressure:
    allowed = config.getoption("--allow-sysctl")
    sysctl = Facility("allow-sysctl", True) if allowed else _missing(
        "allow-sysctl", "changing settings was not allowed", "", "pass --allow-sysctl"
    )  # fmt: skip
    try:
        scarce.check_spare()
    except scarce.SetupError as error:
        unknown = {name: facilities.broken(name, error) for name in NAMES}
        unknown["allow-sysctl"] = sysctl
        return Pressure(janitor.Run(Path("/nonexistent")), facilities=unknown)
    stack = config.stash[stack_key] = ExitStack()
    config.stash[problems_key] = problems = []
    _, config.stash[left_key] = janitor.clear_stale()
    try:
        run = janitor.Run.begin()
    except OSError as error:
        lacking = {
            name: _missing(name, "no safe folder for the janitor's records", str(error),
                           "run as root with a writable /run")
            for name in NAMES
        }  # fmt: skip
        lacking["allow-sysctl"] = sysctl
        return Pressure(janitor.Run(Path("/nonexistent")), facilities=lacking)
    stack.callback(lambda: problems.extend(run.end()))
    config.stash[before_key] = guard.snapshot(run.name)
    made = Pressure(run, facilities={"allow-sysctl": sysctl})
    try:
        made.parent = cgroup.find(run, config.getoption("--cgroup"))
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
        made.area = stack.enter_context(swap.area(run, SWAP_SIZE, config.getoption("--swap-dir")))
        made.facilities["swap-area"] = Facility("swap-area", True)
        made.facilities["swap"] = Facility("swap", True)
    except OSError as error:
        why = error.strerror or str(error)
        remedy = "pass --swap-dir on ext4 or xfs, as root with CAP_SYS_ADMIN"
        made.facilities["swap-area"] = _missing("swap-area", "no swap area of ours", why, remedy)
        made.facilities["swap"] = (
            Facility("swap", True)
            if any(not swap.of_a_run(path) for path in swap.areas())
            else _missing("swap", "no swap area", why, remedy)
        )
    return made


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """xdist: workers are handed names, never the resources themselves."""
    survey(node.config)
    made = node.config.stash[pressure_key]
    node.workerinput[_HANDED] = json.dumps(
        {
            "run": str(made.run.folder),
            "parent": made.parent and [str(made.parent.path), made.parent.version],
            "area": made.area and dataclasses.asdict(made.area),
            "facilities": [dataclasses.asdict(f) for f in made.facilities.values()],
        }
    )


def _receive(handed: dict[str, Any]) -> Pressure:
    run = janitor.Run(Path(handed["run"]))
    if run.folder.is_dir():
        run.record_this_process()
    return Pressure(
        run,
        handed["parent"] and cgroup.Parent(Path(handed["parent"][0]), handed["parent"][1]),
        handed["area"] and swap.Area(**handed["area"]),
        {row["name"]: Facility(**row) for row in handed["facilities"]},
    )


@pytest.fixture
def pressure(request: pytest.FixtureRequest) -> Pressure:
    """Memory pressure inside a cgroup of the case's own."""
    survey(request.config)
    return request.config.stash[pressure_key]


@contextmanager
def turn(item: pytest.Item) -> Iterator[None]:
    """This case's turn: alone if it is ``exclusive``, beside the others if not.

    One lock for all workers and for all runs on the machine, on a file that is always there
    and that only root can open, so nothing is left behind and nobody else can hold it. Cases
    that share nothing do not wait unless an exclusive one is running, or is next: a second
    file is the gate that it closes while it waits for those inside to leave (flock(2) alone
    would let new ones in before it for as long as they keep coming).

    Tests of the harness take no turn: the runs inside them do, and would wait for their own.
    """
    if item.path.parent.name == "harness":
        yield
        return
    try:
        with ExitStack() as stack:
            fds = []
            for path in ("/proc/kpagecount", "/proc/kpageflags"):
                fds.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
                stack.callback(os.close, fds[-1])
            kept = stack.pop_all()
    except OSError:
        yield  # who cannot read page flags drives no machine-wide counters either
        return
    gate, room = fds
    with kept:
        alone = item.get_closest_marker("exclusive") is not None
        for fd in (gate, room):
            fcntl.flock(fd, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(gate, fcntl.LOCK_UN)
        yield


def after_case(item: pytest.Item, pid: int) -> None:
    """Undo what the ended case ``pid`` recorded and could not undo itself."""
    made = item.config.stash.get(pressure_key, None)
    if made is not None and made.run.folder.is_dir():
        made.run.undo(by=pid)


@pytest.hookimpl(trylast=True)  # the workers have ended by then
def pytest_sessionfinish(session: pytest.Session) -> None:
    config = session.config
    if stack_key not in config.stash:
        return
    problems = config.stash[problems_key]
    made = config.stash.get(pressure_key, None)  # None: interrupted while it was made
    changed = made.run.settings() if made is not None else None
    try:
        config.stash[stack_key].close()
    except (OSError, ValueError) as error:  # its record stays: the janitor has a try of its own
        problems.append(str(error))
    if made is not None and changed is not None and before_key in config.stash:
        lines, config.stash[notes_key] = guard.differences(
            config.stash[before_key], made.run.name, changed
        )
        problems += lines
    if problems and session.exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def described(made: Pressure) -> list[str]:
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
    made = config.stash.get(pressure_key, None)
    if made is not None and (made.parent or made.area):
        for line in described(made):
            terminalreporter.write_line(line)
    for line in config.stash.get(notes_key, []):
        terminalreporter.write_line(f"changed by somebody else meanwhile: {line}")
    for line in config.stash.get(left_key, []):  # not this run's doing, so no failure of it
        terminalreporter.write_line(f"left by an earlier run: {line}")
    if problems := config.stash.get(problems_key, []):
        terminalreporter.section("the machine is not as it was found", "=")
        for line in problems:
            terminalreporter.write_line(line)
