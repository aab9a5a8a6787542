# SPDX-License-Identifier: MIT
"""Nothing is touched on a record's word alone, and none of them stops a later run."""

import contextlib
import json
import os
import re
import socket
import stat
import subprocess
from pathlib import Path

import pytest

from helpers import syscalls
from helpers.machine import block_devices, cleanup_process, journal, records, undo

NAME = f"{records.NAME}-0123456789abcdef"
ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.deadline(60)


@pytest.fixture
def run(tmp_path):
    """A run's folder, as a dead one leaves it."""
    root = tmp_path / records.NAME
    folder = root / NAME
    folder.mkdir(parents=True, mode=0o700)
    root.chmod(0o700)
    owner = {"boot": "another", "pid": 1, "started": 1}
    (folder / "owner.json").write_text(json.dumps(owner))
    (folder / "owner.json").chmod(0o600)
    return journal.ChangeJournal(folder)


@pytest.fixture
def own(run, tmp_path):
    """A folder that the run made, and its record, older and newer than all others."""
    made = []
    for number, where in ((1, "a"), (99, "b")):
        folder = tmp_path / where / NAME
        folder.mkdir(parents=True)
        put(run, number, record("folder", path=str(folder)))
        made.append(folder)
    return made


def record(kind: str, **what: object) -> dict[str, object]:
    return {"format": records.FORMAT, "boot": records.boot_id(), "kind": kind, "by": 1, **what}


def put(run: journal.ChangeJournal, number: int, what: object) -> Path:
    """Write a record, or just these bytes."""
    path = run.folder / f"{number:020d}-1.json"
    path.write_bytes(what if isinstance(what, bytes) else json.dumps(what).encode())
    path.chmod(0o600)
    return path


GOOD = {"path": "/nonexistent/" + NAME}


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 36)


def linked(path: Path) -> None:
    other = path.parent / "other"
    other.write_text(json.dumps(record("folder", **GOOD)))
    other.chmod(0o600)
    path.hardlink_to(other)


def bound(path: Path) -> None:
    with contextlib.chdir(path.parent), socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)


FILES = {
    "fifo": os.mkfifo,
    "socket": bound,
    "folder": Path.mkdir,
    "link": lambda path: path.symlink_to("/dev/zero"),
    "dangling link": lambda path: path.symlink_to("/nonexistent"),
    "link to itself": lambda path: path.symlink_to(path.name),
    "hard link": linked,
    "huge": sparse,
    "device": lambda path: os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5)),
}
DATA = {
    "empty": b"",
    "cut off": b'{"format": 2, "kind": "fold',
    "no utf-8": b'{"kind": "\xff\xfe"}',
    "zeros": bytes(4096),
    "200,000 brackets": b"[" * 200_000,
    "brackets": b"[" * 16_000,
    "objects": b'{"a":' * 3_000,
    "long number": b'{"format": ' + b"9" * 10_000 + b"}",
    "list": b"[1, 2]",
    "null": b"null",
    "before formats": {"kind": "folder", "by": 1, "path": GOOD["path"]},
    "older format": record("folder", **GOOD) | {"format": 1},
    "newer format": record("folder", **GOOD) | {"format": records.FORMAT + 1},
    "format is a word": record("folder", **GOOD) | {"format": "2"},
    "foreign kind": record("burn", path="/"),
    "kind is a list": record("folder", **GOOD) | {"kind": ["folder"]},
    "kind of surrogates": record("\ud800\x1b[31m", **GOOD),
    "field too few": record("folder"),
    "field too many": record("folder", **GOOD, also=1),
    "field of another type": record("folder", path=[GOOD["path"]]),
    "truth for a number": record("process", pid=True, started=1),
}


def undone(run: journal.ChangeJournal, own: list[Path], monkeypatch) -> str:
    """The one line about the dead run, all else in it being undone."""
    monkeypatch.setattr(cleanup_process, "state_root", lambda: run.folder.parent)
    number, (line,) = cleanup_process.undo_stale_runs()
    assert number == 1
    assert not any(folder.exists() for folder in own), "records older and newer are obeyed"
    assert line.isprintable(), line
    assert line.endswith("; left alone"), line
    assert len(line) <= 400
    return line


@pytest.mark.parametrize("name", FILES)
def test_file_that_is_no_record_is_passed_over(run, own, monkeypatch, name):
    """Whatever kind of file lies among the records, it is said, kept and not waited for."""
    path = run.folder / f"{50:020d}-1.json"
    try:
        FILES[name](path)
    except PermissionError as error:
        pytest.skip(f"needs a device node: {error.strerror} (CAP_MKNOD)")
    before = path.lstat()
    line = undone(run, own, monkeypatch)
    assert path.name in line
    assert ("larger than" in line) == (name == "huge")
    assert path.lstat() == before


@pytest.mark.parametrize("name", DATA)
def test_record_that_cannot_be_read_is_passed_over(run, own, monkeypatch, name):
    """A record of another shape, version or kind is said, kept and undoes nothing."""
    path = put(run, 50, DATA[name])
    before = path.read_bytes()
    assert path.name in undone(run, own, monkeypatch)
    assert path.read_bytes() == before


@pytest.mark.needs("other-user", "CAP_CHOWN")
@pytest.mark.parametrize("which", ["record", "owner.json", "run"])
def test_what_belongs_to_another_user_is_passed_over(run, own, monkeypatch, which):
    """A record, owner or folder of records of another user is not obeyed."""
    path = put(run, 50, record("folder", **GOOD))
    foreign = {"record": path, "owner.json": run.folder / "owner.json", "run": run.folder}[which]
    os.chown(foreign, 65534, 65534)
    if which == "record":
        assert "user 65534" in undone(run, own, monkeypatch)
        return
    monkeypatch.setattr(cleanup_process, "state_root", lambda: run.folder.parent)
    number, (line,) = cleanup_process.undo_stale_runs()
    assert (number, all(folder.exists() for folder in own)) == (0, True)
    assert "user 65534" in line


@pytest.mark.parametrize("which", ["record", "run"])
def test_what_others_can_write_is_passed_over(run, tmp_path, which):
    """A record that others could have written is not obeyed."""
    folder = tmp_path / NAME
    folder.mkdir()
    path = put(run, 50, record("folder", path=str(folder)))
    (path if which == "record" else run.folder).chmod(0o777)
    (line,) = run.undo()
    assert line.endswith("left alone")
    assert folder.is_dir()


@pytest.mark.parametrize("name", ["owner.json", "cleanup.lock"])
@pytest.mark.parametrize("kind", ["fifo", "socket", "folder", "link", "huge"])
def test_broken_run_folder_is_passed_over(run, own, monkeypatch, name, kind):
    """Whatever stands in place of a run's owner or lock, that run is left as it is."""
    path = run.folder / name
    path.unlink(missing_ok=True)
    FILES[kind](path)
    if (name, kind) == ("cleanup.lock", "huge"):
        path.unlink()
        path.symlink_to(path.name)
    monkeypatch.setattr(cleanup_process, "state_root", lambda: run.folder.parent)
    number, (line,) = cleanup_process.undo_stale_runs()
    assert number == 0
    assert str(run.folder) in line
    assert all(folder.exists() for folder in own)


@pytest.mark.parametrize(
    "owner",
    [
        {"pid": 1, "started": 0.5},
        {"boot": "", "pid": "1", "started": 1},
        {"boot": ""},
        {},
        [],
        None,
        "[" * 16_000,
        "[" * 200_000,
        "\x1b[31m",
    ],
    ids=lambda owner: ascii(owner)[:24],
)
def test_run_of_another_version_is_passed_over(run, own, monkeypatch, owner):
    """A run whose owner cannot be told, as of another version of the suite, is left as it is."""
    text = owner if isinstance(owner, str) else json.dumps(owner)
    (run.folder / "owner.json").write_text(text)
    monkeypatch.setattr(cleanup_process, "state_root", lambda: run.folder.parent)
    number, (line,) = cleanup_process.undo_stale_runs()
    assert number == 0
    assert line.endswith("left alone")
    assert all(folder.exists() for folder in own)


@pytest.mark.parametrize("how", ["file", "link", "fifo"])
def test_what_only_has_the_name_of_a_run_is_passed_over(run, monkeypatch, how):
    """A file or link with a run's name among the folders is left as it is."""
    path = run.folder.with_name(f"{records.NAME}-fedcba9876543210")
    {"file": Path.touch, "fifo": os.mkfifo, "link": lambda p: p.symlink_to(run.folder)}[how](path)
    monkeypatch.setattr(cleanup_process, "state_root", lambda: run.folder.parent)
    number, (line,) = cleanup_process.undo_stale_runs()
    assert (number, path.is_symlink() or path.exists()) == (1, True)
    assert line.endswith(f"{path.name}: is not a folder; left alone")


# A record that says where to look, and what is there is not the run's.


@pytest.fixture
def left_alone(run):
    """Say that an aim was looked at and left alone, its record kept."""

    def check(kind: str, **what: object) -> None:
        path = put(run, 50, record(kind, **what))
        (line,) = run.undo()
        assert "left alone" in line, line
        assert path.exists()

    return check


@pytest.mark.parametrize("which", ["no cgroup", "other name", "link"])
def test_subtree_of_others_is_left_alone(left_alone, tmp_path, which):
    """Nothing is written to a file for its name: it is the one of a cgroup that we changed."""
    file = tmp_path / ("notes" if which == "other name" else "cgroup.subtree_control")
    target = tmp_path / "precious" if which == "link" else file
    target.write_text("memory\n")
    if which == "link":
        file.symlink_to(target)
    left_alone("subtree", path=str(file), inode=target.stat().st_ino, had="")
    assert target.read_text() == "memory\n"


@pytest.fixture
def unified():
    """Root of cgroup v2, mounted somewhere."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if line.partition(" - ")[2].startswith("cgroup2 "):
            return Path(line.split()[4])
    return pytest.skip("needs cgroup v2 mounted somewhere")


def test_subtree_of_another_cgroup_is_left_alone(left_alone, unified):
    """The cgroup of a record's path may be another by now: then its controllers stay."""
    file = unified / "cgroup.subtree_control"
    before = file.read_text()
    left_alone("subtree", path=str(file), inode=file.stat().st_ino + 1, had="")
    assert file.read_text() == before


@pytest.mark.parametrize(
    "path",
    ["/sys/fs/cgroup", "{tmp}/precious", "{tmp}/" + NAME + "-1-abcd", "{tmp}/../tmp/" + NAME,
     NAME + "-1-abcd", "/sys/fs/cgroup/" + NAME + "-1-abcd/../.."],
)  # fmt: skip
def test_cgroup_of_others_is_left_alone(left_alone, tmp_path, path):
    """No process is killed and no folder removed for a name: it is a cgroup of the run's."""
    with subprocess.Popen(["sleep", "60"]) as other:
        for name in ("precious", f"{NAME}-1-abcd"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "cgroup.procs").write_text(f"{other.pid}\n")
        left_alone("cgroup", path=path.format(tmp=tmp_path))
        assert other.poll() is None
        other.kill()
    assert (tmp_path / f"{NAME}-1-abcd").is_dir()


@pytest.mark.parametrize("whose", ["parent", "neighbour"])
def test_process_of_others_is_not_signalled(left_alone, whose):
    """Of processes, only one that holds its record open is killed."""
    with subprocess.Popen(["sleep", "60"]) as other:
        pid = {"parent": os.getppid(), "neighbour": other.pid}[whose]
        left_alone("process", pid=pid, started=records.start_time(pid))
        with pytest.raises(subprocess.TimeoutExpired):
            other.wait(0.2)
        other.kill()


@pytest.mark.parametrize(
    "where",
    ["empty", "precious", f"{NAME}/../precious", "link/" + NAME, "full/" + NAME, "file/" + NAME],
)
def test_folder_of_others_is_left_alone(left_alone, tmp_path, where):
    """A folder is removed only if it has the run's name and holds a swap file at most."""
    for folder in ("empty", "precious", NAME, f"full/{NAME}", "link", "file"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "link" / NAME).symlink_to(tmp_path / "precious")
    (tmp_path / "file" / NAME).write_text("mine")
    for kept in ("precious", f"full/{NAME}"):
        (tmp_path / kept / "letter").write_text("mine")
    left_alone("folder", path=f"{tmp_path}/{where}")
    assert len(list(tmp_path.glob("**/letter"))) == 2
    assert (tmp_path / "empty").is_dir()
    assert (tmp_path / "file" / NAME).read_text() == "mine"


SETTINGS = {
    "a file": ("/etc/hostname", "x"),
    "out of the folder": ("/proc/sys/vm/../../../etc/hostname", "x"),
    "another setting": ("/proc/sys/kernel/hostname", "x"),
    "no word": ("/proc/sys/vm/swappiness", "60\n61"),
    "nothing": ("/proc/sys/vm/swappiness", ""),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_setting_of_others_is_left_alone(left_alone, name):
    """Only settings that cases change are put back, and to a word."""
    path, value = SETTINGS[name]
    before = Path(path).read_text()
    left_alone("setting", path=path, value=value, wrote=before.strip())
    assert Path(path).read_text() == before


@pytest.mark.parametrize("now", ["7", "5"])
def test_setting_that_somebody_else_has_set_since_stays(run, monkeypatch, tmp_path, now):
    """A setting is put back only while it is what the run wrote."""
    file = tmp_path / "setting"
    file.write_text(f"{now}\n")
    monkeypatch.setattr(undo, "SETTINGS", re.compile(str(file)))
    monkeypatch.setattr(undo, "_filesystems", lambda found: {"proc"})
    put(run, 50, record("setting", path=str(file), value="3", wrote="7"))
    assert run.undo() == []
    assert file.read_text().strip() == {"7": "3", "5": "5"}[now]


def test_settings_of_a_run_are_known_when_undone(run):
    """Which settings a run has changed is known to its end, each once."""
    for _ in range(3):
        run._note_setting("/proc/sys/vm/swappiness")
    run._note_setting("/proc/sys/vm/overcommit_memory")
    assert run.undo() == []
    assert run.settings() == {"/proc/sys/vm/swappiness", "/proc/sys/vm/overcommit_memory"}
    assert len((run.folder / "settings").read_text().splitlines()) == 2
    run.remove()
    assert not run.folder.exists()


@pytest.mark.parametrize("which", ["other name", "other file"])
def test_swap_of_others_is_left_on(left_alone, monkeypatch, tmp_path, which):
    """Swap is switched off only on the very file that the run made."""
    off: list[str] = []
    monkeypatch.setattr(block_devices, "is_on", lambda path: True)
    monkeypatch.setattr(block_devices, "swapoff", off.append)
    folder = tmp_path / ("precious" if which == "other name" else NAME)
    folder.mkdir()
    (folder / "swap").touch()
    inode = (folder / "swap").stat().st_ino + (which == "other file")
    left_alone("swap", path=f"{folder}/swap", inode=inode)
    assert off == []


@pytest.mark.parametrize("name", ["ext4", "loop", "-r"])
def test_module_of_others_is_left_alone(left_alone, monkeypatch, name):
    """Only the module that the suite loads is removed."""
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: pytest.fail("modprobe was started"))
    left_alone("module", name=name)


@pytest.mark.parametrize("which", ["a file", "other block"])
def test_memory_block_of_others_is_left_alone(left_alone, monkeypatch, tmp_path, which):
    """Only the very block that the run took away is brought back."""
    file = tmp_path / "state"
    file.write_text("offline\n")
    monkeypatch.setattr(undo, "_filesystems", lambda found: {"sysfs"})
    inode = file.stat().st_ino
    if which == "other block":
        monkeypatch.setattr(undo, "BLOCK", re.compile(str(file)))
        inode += 1
    left_alone("memory-block", path=str(file), inode=inode)
    assert file.read_text() == "offline\n"


@pytest.fixture
def loop(tmp_path):
    """A loop device of somebody else's, over a file of theirs."""
    theirs = tmp_path / "theirs"
    with theirs.open("wb") as file:
        file.truncate(1 << 20)
    command = ["losetup", "--find", "--show", str(theirs)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", None) or error
        pytest.skip(f"needs a loop device: {str(said).strip()} (CAP_SYS_ADMIN, /dev/loop-control)")
    device = done.stdout.strip()
    yield device
    subprocess.run(["losetup", "--detach", device], check=True)


def test_loop_device_of_others_stays_attached(run, left_alone, tmp_path, loop):
    """A loop device is detached only where it is over the very file that the run made."""
    backing = Path(f"/sys/block/{Path(loop).name}/loop/backing_file")
    before = backing.read_text()
    theirs = tmp_path / "theirs"
    left_alone("swap-device", device=loop, backing=str(theirs), inode=theirs.stat().st_ino)
    put(run, 50, record("swap-device", device=loop, backing=f"{tmp_path}/{NAME}/swap", inode=1))
    assert run.undo() == []
    assert backing.read_text() == before


@pytest.fixture
def zram():
    """An idle zram device of somebody else's."""
    folder = Path("/sys/class/zram-control")
    try:
        number = (folder / "hot_add").read_text().strip()
    except OSError as error:
        pytest.skip(f"needs zram: {error.strerror} (modprobe zram, CAP_SYS_ADMIN)")
    yield Path(f"/sys/block/zram{number}")
    with contextlib.suppress(OSError):
        (folder / "hot_remove").write_text(number)


@pytest.mark.parametrize("which", ["idle", "of another size", "full"])
def test_zram_of_others_stays(left_alone, zram, which):
    """A zram device, idle or in use, is removed only if it is the one that the run made."""
    inode, size = zram.stat().st_ino, 1 << 20
    if which == "idle":
        inode += 1
    else:
        (zram / "disksize").write_text(str(size))
    if which == "of another size":
        size += 4096
    elif which == "full":
        subprocess.run(["mkswap", "-q", "-L", "theirs", f"/dev/{zram.name}"], check=True)
    left_alone("zram", name=zram.name, inode=inode, size=size)
    assert zram.is_dir()
    assert int((zram / "disksize").read_text()) == (0 if which == "idle" else 1 << 20)


@pytest.mark.parametrize("name", ["../sda", "sda", "zram", "zram0/../vda"])
def test_name_that_is_no_zram_device_is_left_alone(left_alone, name):
    """What is not a zram device by its name is not looked for."""
    left_alone("zram", name=name, inode=1, size=1)


@pytest.mark.needs("CAP_SYS_ADMIN", "root-user")
def test_run_among_hostile_records_is_as_any_other(suite):
    """A run that finds all of this in /run says a line for each folder and is as good as any."""
    suite.case(
        "import pytest\n@pytest.mark.needs('cgroup')\ndef test_holds():\n    '''A fact.'''\n"
    )
    names = [*FILES, *DATA]

    def hostile() -> None:
        syscalls.unshare_mounts()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run"], check=True)
        for number, name in enumerate(names):
            made = journal.ChangeJournal(
                Path("/run", records.NAME, f"{records.NAME}-{number:016x}")
            )
            made.folder.mkdir(parents=True, mode=0o700)
            made.folder.parent.chmod(0o700)
            made._write("owner.json", {"boot": "another", "pid": 1, "started": 1})
            if name in DATA:
                put(made, 50, DATA[name])
            else:
                with contextlib.suppress(PermissionError):
                    FILES[name](made.folder / f"{50:020d}-1.json")

    done = suite.run("--color=no", preexec_fn=hostile)
    assert done.returncode == 0, done.stdout + done.stderr
    said = [line for line in done.stdout.splitlines() if "left by an earlier run: " in line]
    assert len(said) in {len(names), len(names) - 1}, done.stdout
    assert "Traceback" not in done.stdout + done.stderr
