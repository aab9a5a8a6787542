# SPDX-License-Identifier: MIT
"""Deadlines: one multiplier for all, and no time counted while somebody is at work."""

import os
import time

import pytest

from helpers import processes
from helpers.machine import timeouts
from helpers.vm import payload

SLOW = """
import time, pytest

@pytest.mark.deadline(1)
def test_slow():
    time.sleep(1)
"""
NAME = timeouts.VARIABLE


@pytest.mark.parametrize("text", ["", "soon", "nan", "inf", "0", "-1", "1e308"])
@pytest.mark.parametrize("way", ["option", "variable"])
def test_bad_multiplier_is_one_line_and_exit_code_4(suite, way, text):
    """A multiplier that is no number above 0 ends the run before it begins, saying which one."""
    suite.case(SLOW)
    given = {"env": {NAME: text}} if way == "variable" else {}
    done = suite.run(*([] if given else [f"--timeout-multiplier={text}"]), **given)
    assert done.returncode == 4, done.stdout + done.stderr
    name = NAME if given else "--timeout-multiplier"
    why = f": {text!r} is not a number above 0" if text or given else " has no value"
    assert f"{name}{why}" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


@pytest.mark.parametrize("way", ["none", "option", "variable", "workers"])
def test_multiplier_lengthens_the_deadline_of_a_case(suite, way):
    """A case that is too late is in time with the option, the variable, and in a worker."""
    suite.case(SLOW)
    options = {"option": ["--timeout-multiplier=8"], "workers": ["-n1", "--timeout-multiplier=8"]}
    done = suite.run(*options.get(way, []), env={NAME: "8" if way == "variable" else "1"})
    expected = "1 failed" if way == "none" else "1 passed"
    assert expected in done.stdout, done.stdout + done.stderr


def test_multiplier_lengthens_every_deadline(monkeypatch):
    """What a child may take, and until when something is waited for, is multiplied as well."""
    monkeypatch.setenv(NAME, "8")
    with processes.Child() as child:
        child.call(time.sleep, 0.6, deadline=0.2)
    assert processes.run_program("sleep", "0.6", deadline=0.2) == ""
    assert timeouts.until(10) - time.monotonic() == pytest.approx(80, abs=5)


@pytest.mark.parametrize("accel", ["kvm", "tcg"])
def test_emulated_guest_waits_longer(monkeypatch, accel):
    """A guest multiplies by more where it is emulated, and by what its host does."""
    monkeypatch.setenv(NAME, "3")
    expected = {"kvm": 3, "tcg": 3 * payload.EMULATED}
    assert float(payload.multiplier(accel)) == expected[accel]


def spin(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass
    return "done"


def spin_below(seconds):
    return processes.run(lambda: spin(seconds), deadline=60)


@pytest.mark.parametrize("work", [spin, spin_below])
def test_child_at_work_is_not_hung(work):
    """A child that still uses CPU, itself or in a child of its own, is waited for."""
    with processes.Child() as child:
        assert child.call(work, 1.3, deadline=1) == "done"


def test_work_of_earlier_calls_does_not_excuse_a_hang():
    """A child that has worked and then sleeps for ever is killed soon after its deadline."""
    with processes.Child() as child:
        child.call(spin, 1)
        begun = time.monotonic()
        with pytest.raises(processes.ChildTimeout):
            child.call(time.sleep, 100, deadline=0.5)
        assert time.monotonic() - begun < 0.5 * timeouts.LONGEST + 5


def test_endless_work_is_killed_in_the_end():
    """A child that spins for ever is killed after a few times its deadline."""
    with processes.Child() as child, pytest.raises(processes.ChildTimeout):
        child.call(spin, 1000, deadline=0.2)


DEADLOCK = """
import os, threading, time, pytest

@pytest.mark.deadline(1)
def test_deadlock():
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()

@pytest.mark.deadline(1)
def test_spins():
    while True:
        pass

@pytest.mark.deadline(1)
def test_works():
    end = time.process_time() + 1.3
    while time.process_time() < end:
        pass
"""


def test_case_at_work_passes_and_a_deadlock_is_found(suite):
    """Of three cases over their deadline the working one passes, deadlock and endless loop fail."""
    suite.case(DEADLOCK)
    done = suite.run()
    assert "2 failed, 1 passed" in done.stdout, done.stdout
    assert done.stdout.count("the case hung: killed with its process group at its deadline") >= 2


def test_process_that_waits_for_a_cpu_is_at_work():
    """Many who share one CPU are at work for about as long as they are there, each alone."""
    cpu = min(os.sched_getaffinity(0))
    with processes.Child() as one, processes.Child() as two:
        for child in (one, two):
            child.call(os.sched_setaffinity, 0, {cpu})
            child.start(spin, 1000)
        time.sleep(1)
        before, begun = timeouts.at_work(one.pid), time.monotonic()
        time.sleep(1)
        share = (timeouts.at_work(one.pid) - before) / (time.monotonic() - begun)
    assert share > 0.8, "running and waiting for a CPU, as a part of the time"
