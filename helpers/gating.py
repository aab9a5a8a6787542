"""Options, markers, requirements and known deviations: what runs, and as what.

The controlling process probes the machine once; workers are handed what it found.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import tempfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import pytest

from helpers import (
    deviations,
    facilities,
    forked,
    kernel,
    libc,
    memory,
    mounts,
    requirements,
    scarce,
)
from helpers.facilities import Facility
from helpers.pressure import session

CLAIM = re.compile(r"W\d+")
MARKERS = {
    "needs": "needs(*names): what the case requires (helpers/requirements.py)",
    "source": "source(*texts): where the behaviour is documented",
    "claim": "claim(*ids): rows of the README's table of claims (W1 …)",
    "deviation": "deviation(id): a kernel fault known to helpers/deviations.py",
    "deadline": "deadline(seconds): a limit other than --deadline for this case",
}
survey_key = pytest.StashKey[dict[str, Facility]]()
budget_key = pytest.StashKey[int]()
required_key = pytest.StashKey[str]()


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
        "--model-seed",
        "--concurrency-seed",
        type=int,
        default=1,
        metavar="N",
        help="seed of the random cases in tests/model and tests/concurrency (default 1)",
    )
    group.addoption(
        "--fail-on-deviation",
        action="store_true",
        help="exit with 1 if the kernel shows a known deviation",
    )


def pytest_configure(config: pytest.Config) -> None:
    for text in MARKERS.values():
        config.addinivalue_line("markers", text)
    check_versions(metadata.version("pytest"), metadata.version("pytest-forked"))
    if not Path("/proc/self/status").exists():
        raise pytest.UsageError(
            "memlock-tests: /proc is not mounted and every witness is read there; "
            "mount -t proc proc /proc"
        )
    try:
        libc.architecture()
    except libc.UnknownArchitecture as error:
        raise pytest.UsageError(f"memlock-tests: {error}") from None
    try:
        requirements.wanted(config.getoption("--require"))
    except requirements.UnknownRequirement as error:
        raise pytest.UsageError(f"memlock-tests: --require: {error}") from None
    config.stash[budget_key] = budget(config.getoption("--memory-budget"))
    directory, handed = config.getoption("--file-dir"), _worker_input(config)
    try:
        memory.file_dir = (
            memory.find_file_dir(directory) if handed is None else handed["memlock_file_dir"]
        )
    except OSError as error:
        raise pytest.UsageError(
            f"memlock-tests: --file-dir {directory} is not a folder we can write to "
            f"({scarce.reason(error) or error.strerror}); name one that is"
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


def budget(text: str | None) -> int:
    """Bytes that cases may lock. Raises UsageError on nonsense or on more than half of RAM."""
    available = psutil.virtual_memory().available
    if text is None:
        return int(min(available // 10, 1 << 30))
    match = re.fullmatch(r"(\d+)([KMG]?)(?:i?B)?", text, re.IGNORECASE)
    if not match:
        raise pytest.UsageError(f"memlock-tests: --memory-budget {text}: write 64M or 1G")
    size = int(match[1]) * _UNITS[match[2].upper()]
    least = 64 * libc.PAGE
    if not least <= size <= available // 2:
        raise pytest.UsageError(
            f"memlock-tests: --memory-budget {text} is outside {least // 1024}K to "
            f"{available // 2 // 1024}K (half of MemAvailable)"
        )
    return size


def _worker_input(config: pytest.Config) -> dict[str, Any] | None:
    found: dict[str, Any] | None = getattr(config, "workerinput", None)
    return found


def survey(config: pytest.Config) -> dict[str, Facility]:
    """What the machine offers: probed on first use, or handed down by the controller."""
    if survey_key not in config.stash:
        given = _worker_input(config)
        if given is None:
            config.stash[survey_key] = facilities.survey()
        else:
            rows = json.loads(given["memlock_survey"])
            config.stash[survey_key] = {row["name"]: Facility(**row) for row in rows}
    return config.stash[survey_key]


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """xdist: hand the survey to a worker."""
    rows = [dataclasses.asdict(f) for f in survey(node.config).values()]
    node.workerinput["memlock_survey"] = json.dumps(rows)
    node.workerinput["memlock_file_dir"] = memory.file_dir


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    required = requirements.wanted(config.getoption("--require"))
    for item in items:
        _describe(item)
        _gate(config, item, required)
        _expect_deviation(item)
    forked.freeze()


def _texts(item: pytest.Item, marker: str) -> list[str]:
    found = []
    for mark in item.iter_markers(marker):
        if not mark.args or mark.kwargs or not all(isinstance(a, str) for a in mark.args):
            raise pytest.UsageError(f"memlock-tests: {item.nodeid}: malformed mark {mark}")
        found += [a for a in mark.args if a not in found]
    return found


def statement(item: pytest.Item) -> str:
    """The behaviour a case proves: the first paragraph of its docstring, in one line."""
    text = (getattr(item, "obj", None) and item.obj.__doc__) or ""  # type: ignore[attr-defined]
    return " ".join(text.strip().split("\n\n")[0].split())


def _describe(item: pytest.Item) -> None:
    """Statement, chapter, sources and claims travel with every report (JUnit, workers)."""
    item.user_properties.append(("chapter", item.path.parent.name))
    item.user_properties.append(("statement", statement(item)))
    for name in ("source", "claim"):
        if texts := _texts(item, name):
            item.user_properties.append((name, "; ".join(texts)))
    for claim in _texts(item, "claim"):
        if not CLAIM.fullmatch(claim):
            raise pytest.UsageError(f"memlock-tests: {item.nodeid}: no claim {claim!r}")


def _gate(config: pytest.Config, item: pytest.Item, required: frozenset[str]) -> None:
    needs = _texts(item, "needs")
    try:
        bases = {name: requirements.base(name) for name in needs}
    except requirements.UnknownRequirement as error:
        raise pytest.UsageError(f"memlock-tests: {item.nodeid}: {error}") from None
    if not needs:
        return
    found_here = survey(config)
    if any(name in session.NAMES for name in bases.values()):
        found_here = found_here | session.survey(config)
    found = requirements.first_missing(needs, found_here, config.stash[budget_key])
    if found is None:
        return
    if found.broken:  # no answer is no reason to skip
        item.stash[required_key] = str(found)
        return
    # lock:N may lack what stands behind it (lock-calls), which the case did not name.
    lacking = {bases[found.name]} if found.name in bases else {found.name, *bases.values()}
    if asked := sorted(lacking & required):
        item.stash[required_key] = f"--require {asked[0]}: {found}"
    else:
        item.add_marker(pytest.mark.skip(reason=str(found)))
        item.user_properties.append(("missing", found.constant))


def _expect_deviation(item: pytest.Item) -> None:
    for mark in item.iter_markers("deviation"):
        known = deviations.KNOWN.get(mark.args[0]) if mark.args else None
        if known is None:
            raise pytest.UsageError(f"memlock-tests: {item.nodeid}: unknown deviation {mark}")
        if known.covers(kernel.version()):
            if _present(known.id):
                item.add_marker(
                    pytest.mark.xfail(reason=str(known), raises=AssertionError, strict=True)
                )
            else:
                item.user_properties.append(("mended", f"{known.id} ({known.range})"))
        else:
            item.user_properties.append(("known", str(known)))


_seen: dict[str, bool] = {}


def _present(name: str) -> bool:
    if name not in _seen:
        _seen[name] = deviations.present(deviations.KNOWN[name])
    return _seen[name]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if required_key in item.stash:
        pytest.fail(item.stash[required_key], pytrace=False)


def describe_machine(found: Mapping[str, Facility]) -> list[str]:
    """Header lines: kernel, rights, limits, facilities."""
    from helpers import privilege

    soft, hard = (
        "unlimited" if v == privilege.INFINITE else f"{v // 1024} kB"
        for v in privilege.memlock_limit()
    )
    held = [n for n in privilege.CAPABILITIES if privilege.has(n)]
    lacking = [n for n in privilege.CAPABILITIES if n not in held]
    caps = f"all but {' '.join(lacking) or 'none'}" if len(held) > len(lacking) else (
        " ".join(held) or "none"
    )  # fmt: skip
    uname = os.uname()
    folder = memory.file_dir or tempfile.gettempdir()
    there = [f.name for f in found.values() if f.available]
    absent = [f.name for f in found.values() if not f.available and not f.broken]
    unknown = [f.name for f in found.values() if f.broken]
    lines = [
        f"kernel {kernel.release()} ({uname.version}), {libc.architecture()}, "
        f"page size {libc.PAGE // 1024} kB, {libc.WORD_BITS} bit",
        f"uid {os.geteuid()}, capabilities: {caps}",
        f"RLIMIT_MEMLOCK: soft {soft}, hard {hard}",
        f"files on {mounts.filesystem(folder) or 'an unknown file system'}, in {folder}",
        f"facilities: {' '.join(there) or 'none'}",
    ]
    if absent:
        lines.append(f"not here: {' '.join(absent)}")
    if unknown:
        lines.append(f"not known, their probe broke: {' '.join(unknown)}")
    return lines
