# SPDX-License-Identifier: MIT
"""The machine is left as it was, whatever ends the run, and nothing foreign is ever touched."""

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from helpers.machine import block_devices, journal, records, timeouts, undo

PRESSING = """
from helpers import syscalls
from helpers.memory import mapping
from helpers.processes import Child
import time
import pytest

@pytest.mark.needs("cgroup", "swap", "lock:64")
@pytest.mark.parametrize("n", range(40))
def test_presses(reclaim, n):
    with mapping("private", 64) as locked, mapping("private", 64) as control:
        with reclaim.cgroup() as group, Child() as child:
            group.add(child.pid)
            child.call(locked.write)
            child.call(control.write)
            child.call(syscalls.mlock, locked.addr, locked.size)
            group.reclaim()
            with open("progress", "a") as file:
                file.write("x")
            time.sleep(0.05)
"""
MARK = re.compile(rf"{records.NAME}-[0-9a-f]{{16}}")


def traces() -> list[str]:
    """All that any run of the suite has on the machine just now."""
    found = [path for path in block_devices.areas() if MARK.search(path)]
    for where in ("/run/memlock-tests", "/var/tmp", "/tmp", "/sys/fs/cgroup"):
        for folder, names, _ in os.walk(where):
            found += [f"{folder}/{n}" for n in names if MARK.match(n)]
            if where in ("/var/tmp", "/tmp"):
                names.clear()
    for process in psutil.process_iter(["cmdline", "pid", "status"]):
        command = process.info["cmdline"] or []
        if "helpers.machine.cleanup_process" not in command:
            continue
        owner = int(command[-2])
        elsewhere = owner not in family() and psutil.pid_exists(owner)
        if process.info["status"] != psutil.STATUS_ZOMBIE and not elsewhere:
            found.append(f"cleanup {process.info['pid']} {command}")
    return sorted(t for t in found if not any(name in t for name in living()))


def family() -> set[int]:
    """This process and those below it: the owners of runs that we started."""
    return {os.getpid(), *(p.pid for p in psutil.Process().children(recursive=True))}


def living() -> list[str]:
    """Names of runs whose owner lives and is none of ours: another run of the suite."""
    ours = family()
    found = []
    for owner in Path("/run/memlock-tests").glob("*/owner.json"):
        try:
            pid = json.loads(owner.read_text())["pid"]
        except (OSError, ValueError):
            continue
        if pid not in ours and psutil.pid_exists(pid):
            found.append(owner.parent.name)
    return found


def gone_after(before: list[str], patience: float = 25.0) -> list[str]:
    """What is still there of a run that was killed, once its cleanup process had its time."""
    until = timeouts.until(patience)
    while left := [t for t in traces() if t not in before]:
        if time.monotonic() > until:
            break
        time.sleep(0.05)
    return left


@pytest.fixture
def pressing(suite):
    suite.case(PRESSING)
    return suite


def begin(suite, *options):
    return subprocess.Popen(
        suite.command(*options), cwd=suite.path, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def until_pressing(suite, run) -> None:
    progress = suite.path / "progress"
    end = timeouts.until(40)
    while not progress.exists() and run.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    if not progress.exists():
        run.kill()
        text = run.communicate()[0]
        if "needs cgroup" in text or "needs swap" in text:
            pytest.skip("needs cgroup and swap: " + text[text.index("needs ") :].splitlines()[0])
        raise AssertionError(text)


@pytest.mark.deadline(120)
@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["alone", "workers"])
def test_normal_end_leaves_nothing(pressing, workers):
    """A run that ends by itself puts everything back and says nothing of it."""
    before = traces()
    done = pressing.run("-k", "3", *workers)
    assert done.returncode == 0, done.stdout
    assert "not as it was found" not in done.stdout
    assert gone_after(before, 2) == []


@pytest.mark.deadline(120)
@pytest.mark.parametrize("moment", [0.0, 0.15, 0.4, 0.8])
@pytest.mark.parametrize("whole_group", [False, True], ids=["controller", "group"])
def test_killed_run_leaves_nothing(pressing, moment, whole_group):
    """After SIGKILL of the controller, or of its whole process group, all is put back."""
    before = traces()
    with begin(pressing) as run:
        until_pressing(pressing, run)
        time.sleep(moment)
        during = [t for t in traces() if t not in before]
        (os.killpg if whole_group else os.kill)(run.pid, signal.SIGKILL)
        left = gone_after(before)
    assert any("swap" in t for t in during), f"there was something to undo: {during}"
    assert left == []


@pytest.mark.deadline(120)
@pytest.mark.parametrize("delay", [0.1, 0.3, 0.5, 0.7, 0.9, 1.2])
def test_run_killed_while_starting_leaves_nothing(pressing, delay):
    """SIGKILL at any moment of the start: what was made by then is unmade."""
    before = traces()
    with begin(pressing) as run:
        time.sleep(delay)
        os.killpg(run.pid, signal.SIGKILL)
        left = gone_after(before)
    assert left == []


@pytest.mark.deadline(120)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=str)
@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["alone", "workers"])
def test_signalled_run_leaves_nothing(pressing, number, workers):
    """Ctrl-C, SIGTERM and a lost terminal end a run, and the machine is as before."""
    before = traces()
    with begin(pressing, *workers) as run:
        until_pressing(pressing, run)
        run.send_signal(number)
        left = gone_after(before)
        run.communicate(timeout=timeouts.scaled(20))
    assert left == []


@pytest.mark.deadline(120)
def test_killed_worker_leaves_nothing(pressing):
    """SIGKILL of an xdist worker: the run goes on or ends, and the machine is as before."""
    before = traces()
    with begin(pressing, "-n", "2") as run:
        until_pressing(pressing, run)
        workers = [
            p for p in psutil.Process(run.pid).children()
            if "helpers.machine.cleanup_process" not in " ".join(p.cmdline())
        ]  # fmt: skip
        workers[0].kill()
        run.communicate(timeout=timeouts.scaled(100))
        left = gone_after(before)
    assert left == []


@pytest.mark.deadline(120)
def test_later_run_clears_what_a_dead_cleanup_process_left(pressing):
    """Controller and cleanup process killed: the next run finds the records and undoes them."""
    before = traces()
    with begin(pressing) as run:
        until_pressing(pressing, run)
        for child in psutil.Process(run.pid).children():
            if "helpers.machine.cleanup_process" in " ".join(child.cmdline()):
                child.kill()
        os.killpg(run.pid, signal.SIGKILL)
    assert gone_after(before, 1), "something was left behind"
    done = pressing.run("-k", "test_presses and 39")
    assert "1 passed" in done.stdout, done.stdout
    assert gone_after(before, 1) == []


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / f"{records.NAME}-0123456789abcdef"
    folder.mkdir(mode=0o700)
    return journal.ChangeJournal(folder)


def test_link_in_place_of_a_folder_is_not_followed(run, tmp_path):
    """A symbolic link with a run's name is not a folder of ours."""
    precious = tmp_path / "precious"
    precious.mkdir()
    link = tmp_path / f"{records.NAME}-fedcba9876543210"
    link.symlink_to(precious)
    run.record("folder", path=str(link))
    (problem,) = run.undo()
    assert "left alone" in problem
    assert precious.is_dir()


def test_process_is_signalled_only_if_it_proves_to_be_ours(run):
    """A pid is only signalled if its start time is the recorded one and it holds its record."""
    with subprocess.Popen(["sleep", "60"]) as other:
        started = records.start_time(other.pid)
        run.record("process", pid=other.pid, started=started - 100)
        assert run.undo() == []
        assert other.poll() is None, "another process of that number lives on"
        path = run.record("process", pid=other.pid, started=started)
        (problem,) = run.undo()
        assert "does not hold this record open" in problem
        assert other.poll() is None, "a process that is not the run's lives on"
        path.unlink()
        other.kill()
    path = run.record("process", pid=os.getpid(), started=0)
    with path.open() as held, subprocess.Popen(["sleep", "60"], stdin=held) as ours:
        proof = {"pid": ours.pid, "started": records.start_time(ours.pid)}
        path.write_text(json.dumps(json.loads(path.read_text()) | proof))
        assert run.undo() == []
        assert ours.wait(10) == -signal.SIGKILL


@pytest.mark.needs("other-user", "CAP_CHOWN")
def test_record_of_another_owner_is_left_alone(run, tmp_path):
    """A record that somebody else wrote is not obeyed."""
    folder = tmp_path / f"{records.NAME}-00000000000000ff"
    folder.mkdir()
    path = run.record("folder", path=str(folder))
    os.chown(path, 65534, 65534)
    (problem,) = run.undo()
    assert "not ours" in problem
    assert folder.is_dir()


def test_records_are_undone_newest_first(run, monkeypatch):
    """What was made last is unmade first, and only once."""
    order = []
    kind = ({"n": int}, lambda record, what: order.append(what["n"]))
    monkeypatch.setitem(undo.UNDO_BY_KIND, "test", kind)
    for n in range(4):
        run.record("test", n=n)
    assert run.undo() == []
    assert run.undo() == []
    assert order == [3, 2, 1, 0]


@pytest.mark.parametrize("where", ["/nonexistent", "/proc"])
def test_swap_folder_that_serves_not_is_said(suite, where):
    """--swap-dir that is no folder is a usage error; one that cannot hold swap is a reason."""
    suite.case(PRESSING)
    done = suite.run("--swap-dir", where, "-k", "39")
    if where == "/nonexistent":
        assert done.returncode == 4
        assert "--swap-dir /nonexistent is not a folder" in done.stderr
    else:
        assert done.returncode == 0, done.stdout
        assert "Traceback" not in done.stdout


@pytest.mark.parametrize(
    ("inode", "size"), [(0, 0), (1, 4096), (1, 8192)], ids=["another", "in-use", "other-size"]
)
def test_foreign_zram_device_is_left_alone(run, tmp_path, monkeypatch, inode, size):
    """A zram device that is not the recorded one, or is set up by somebody else, stays."""
    block = tmp_path / "sys/block/zram7"
    block.mkdir(parents=True)
    (block / "disksize").write_text(str(size))
    monkeypatch.setattr(
        "helpers.machine.block_devices.Path",
        lambda *p: Path(tmp_path, *(part.lstrip("/") for part in p)),
    )
    monkeypatch.setattr("helpers.machine.block_devices._label", lambda device: "somebody's")
    found = block.stat().st_ino if inode else 0
    run.record("zram", name="zram7", inode=found, size=4096)
    (problem,) = run.undo()
    assert "left alone" in problem
    assert not (block / "reset").exists()
    assert not (tmp_path / "sys/class").exists()
