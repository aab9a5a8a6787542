# SPDX-License-Identifier: MIT
"""The model can fail: each of its rules, broken, is found out by random sequences; and what is
wrong with a script is said in one line."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from helpers.machine import timeouts
from helpers.model import generator, lockstep, script
from helpers.model.address_space import AddressSpace, Page
from helpers.model.script import Call

ROOT = Path(__file__).resolve().parents[2]


def _forked_with_locks(self, _real=AddressSpace.forked):
    child = _real(self)
    child.future = self.future
    return child


def _munlock_all_but_last(self, call, _real=AddressSpace._munlock):
    last = max(self.pages, default=0)
    kept = self.pages[last].lock if self.pages else ""
    outcome = _real(self, call)
    if self.pages:
        self.pages[last].lock = kept
    return outcome


def _unlock_keeps_future(self, call):
    self._lock_all("")
    return "ok"


def _future_is_current(self, call, _real=AddressSpace._mlockall):
    outcome = _real(self, call)
    if outcome == "ok" and "current" not in str(call.args[0]):
        self._lock_all(self.future)
    return outcome


def _grow_without_lock(self, like, at, numbers, _real=AddressSpace._extend):
    _real(self, like, at, numbers)
    for number in numbers:
        self.pages[number].lock = ""


def _whole_vma(self, call, _real=AddressSpace._lock, lock="lo"):
    outcome = _real(self, call, lock)
    first = self._span(call)[0] if call.args[1] != script.MAX else 0
    if outcome == "ok" and first in self.pages:
        for number in self.vma(first):
            self.pages[number].lock = lock
    return outcome


BROKEN = {
    "population never fails": ("_populate", lambda self, numbers: True),
    "nobody needs a right": ("_may", lambda self: True),
    "there is no limit": ("_room", lambda self, more: True),
    "the limit is a page less": (
        "_room",
        lambda self, more: self.capable or self.vmlck + more < self.limit,
    ),
    "a child inherits MCL_FUTURE": ("forked", _forked_with_locks),
    "munlock forgets the last page": ("_munlock", _munlock_all_but_last),
    "munlockall keeps MCL_FUTURE": ("_munlockall", _unlock_keeps_future),
    "MCL_FUTURE locks what is there": ("_mlockall", _future_is_current),
    "mremap grows without the lock": ("_extend", _grow_without_lock),
    "mlock locks its VMA's end": ("_mlock", _whole_vma),
    "a fault maps nothing beside": ("_around", lambda self, number: None),
    "truncation leaves pages": ("cut", lambda self: None),
    "locked memory may be dropped": (
        "_advise",
        lambda self, number, page, advice, _real=AddressSpace._advise: _real(
            self, number, page, "dontneed_locked" if advice == "dontneed" else advice
        ),
    ),
    "msync does not look at locks": ("_msync", lambda self, call: self._mincore(call)),
    "what is alike always merges": ("must_merge", lambda self, number: self.alike(number)),
    "VmLck counts what is present": (
        "vmlck",
        property(lambda self: sum(1 for p in self.pages.values() if p.lock and p.present)),
    ),
    "VmSize leaves out the stack": ("size", property(lambda self: len(self.pages))),
}


@pytest.mark.needs("stub-process", "smaps-flags", "lock-calls", "lock:64")
@pytest.mark.parametrize("rule", BROKEN)
def test_broken_rule_diverges(monkeypatch, rule):
    """A model with one wrong rule parts from the kernel within 5,000 random steps."""
    monkeypatch.setattr(AddressSpace, *BROKEN[rule])
    monkeypatch.setattr(generator, "shrink", lambda found: found)
    found = generator.run(1, 5000, 50).divergence
    assert found is not None, "the wrong rule is noticed"


@pytest.mark.needs("stub-process", "smaps-flags", "lock-calls", "lock:64")
def test_divergence_shrinks_to_script(monkeypatch):
    """What is printed of a divergence is a script that shows it again, and is short."""
    monkeypatch.setattr(*(AddressSpace, *BROKEN["munlockall keeps MCL_FUTURE"]))
    found = generator.run(1, 5000, 100).divergence
    text = found.report("seed 1")
    again = lockstep.diverges(script.parse(text))
    assert again is not None, text
    assert again.found == found.found, text
    assert len(found.calls) <= 4, text


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("mlok 0 1", "line 1: unknown call 'mlok'"),
        ("mlock 0", "line 1: mlock wants where length"),
        ("mlock 0 x", "line 1: 'x' is no number of half pages"),
        ("mmap 0 1.5 private rw", "line 1: '1.5' is no number of pages"),
        ("mmap 0 20 private rw", "line 1: mmap 0 20 private rw: outside the arena"),
        ("mmap 0 4 tape rw", "line 1: 'tape' is none of private"),
        ("mlock 0 1\nexit", "line 2: fork and exit come in pairs"),
        ("mremap 0 2 2 dontunmap", "line 1: mremap 0 2 2 dontunmap: dontunmap wants to=PAGE"),
        ("mmap 0 1 private rw lokced", "line 1: mmap has no option 'lokced'"),
    ],
)
def test_bad_script_is_one_line(tmp_path, line, says):
    """A script that cannot be read ends with status 2 and one line that names its line."""
    path = tmp_path / "bad.txt"
    path.write_text(line)
    done = subprocess.run(
        [sys.executable, "-m", "helpers.model", "run", str(path)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert f"{path}: {says}" in done.stderr


@pytest.mark.parametrize(
    "call",
    [
        Call("mlock", (2.5, 0.5)), Call("mlock", (script.HEAP + 1.5, script.MAX)),
        Call("mremap", (0, 2, 3), ("to=4", "dontunmap")), Call("limit", ("size-2",)),
        Call("mlockall", ("current+future",)), Call("mlock2", (0, 1, "onfault")),
    ],
    ids=str,
)  # fmt: skip
def test_call_reads_as_it_is_written(call):
    """A call printed and parsed is the same call."""
    assert script.parse_line(str(call)) == call


def test_pages_alike_are_one_vma():
    """Pages alike in all, with offsets that follow one another, are one VMA."""
    space = AddressSpace(1, 0, 100, True, lambda name: False)
    for number in (3, 4):
        space.pages[number] = Page("private", "rw", "lo", number)
    assert list(space.vma(3)) == [3, 4]
    space.pages[4].lock = ""
    assert list(space.vma(3)) == [3]


def driving(pid: int) -> list[psutil.Process]:
    """Children of the run that have driven a program of their own for longer than a probe."""
    found = []
    for child in psutil.Process(pid).children():
        with contextlib.suppress(psutil.Error):
            of_its_own = any(c.exe() not in {"", child.exe()} for c in child.children())
            if of_its_own and time.time() - child.create_time() > 3:
                found.append(child)
    return found


@pytest.mark.needs("hypothesis", "stub-process", "smaps-flags", "lock-calls")
@pytest.mark.deadline(120)
def test_killed_state_machine_leaves_no_file(suite):
    """A case that is killed while Hypothesis drives it leaves nothing in the temporary folder."""
    shutil.copytree(ROOT / "tests" / "model", suite.path / "tests" / "model")
    folder = suite.path / "temporary"
    folder.mkdir()
    with subprocess.Popen(
        suite.command("-k", "state_machine", "--model-steps=100000000"), cwd=suite.path,
        env=os.environ | {"TMPDIR": str(folder)}, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as run:  # fmt: skip
        until = timeouts.until(60)
        while not (cases := driving(run.pid)) and run.poll() is None and time.monotonic() < until:
            time.sleep(0.1)
        for case in cases:
            os.killpg(case.pid, signal.SIGKILL)  # as at its deadline
        text = run.communicate()[0]
    assert cases, text
    assert "killed by SIGKILL" in text, text
    assert list(folder.iterdir()) == []
