"""The process that puts the machine back when a run dies.

Whatever a run is about to change is first written down as a *record*, one small JSON file in a
folder only its owner can write (``/run/memlock-tests/RUN/``). Whoever finishes with a change
undoes it and drops the record. The janitor, a process in a session of its own, waits for the
controlling process to end, in whatever way, and undoes what is still recorded, newest first.
If it was killed too, the next run finds the folder without a living owner and does the same.

A record names exactly what to undo, and undoing proves that the thing is ours before touching
it: a process by its start time, a cgroup and a folder by the run's random name, a swap area or
loop device by lying in such a folder. A record of another shape, or one that somebody else
owns, is reported and left alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import secrets
import select
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from helpers import timeouts

NAME = "memlock-tests"
RUN_NAME = re.compile(rf"{NAME}-[0-9a-f]{{16}}")
_ATTEMPTS = 20
_SETTINGS_FILE = "settings"
PATIENCE = 10.0
"""Seconds to wait for something the kernel lets go of in its own time."""


class NoStateFolder(OSError):
    """There is no folder that only this user can write for records."""


def state_root() -> Path:
    """Folder of all runs of this user: ``/run/memlock-tests``, or below XDG_RUNTIME_DIR.

    Raises :class:`NoStateFolder` where neither can be had safely.
    """
    if os.geteuid() == 0:
        parent = Path("/run")
    else:
        parent = Path(os.environ.get("XDG_RUNTIME_DIR") or "/nonexistent")
    root = parent / NAME
    try:
        with contextlib.suppress(FileExistsError):
            root.mkdir(mode=0o700)
        found = root.lstat()
    except OSError as error:
        raise NoStateFolder(error.errno, f"no folder for records: {error}") from None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise NoStateFolder(0, f"{root} is not a folder that only we can write; remove it")
    return root


def start_time(pid: int) -> float:
    """Start time of a process (psutil), to tell it from a later one of the same number.

    Raises psutil.NoSuchProcess.
    """
    return float(psutil.Process(pid).create_time())


def _is(pid: int, started: float) -> bool:
    try:
        return abs(start_time(pid) - started) < 0.05
    except psutil.NoSuchProcess:
        return False


class Run:
    """One run's folder of records. Workers and cases open it by path."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def name(self) -> str:
        """The run's random name; every cgroup and folder it makes begins with it."""
        return self.folder.name

    @classmethod
    def begin(cls) -> Run:
        """A new run owned by this process, with its janitor waiting. Raises NoStateFolder.

        The janitor makes the folder: from then on somebody is there to remove it.
        """
        state_root()  # says why not
        pid = os.getpid()
        janitor = subprocess.Popen(
            [sys.executable, "-m", "helpers.janitor", str(pid), repr(start_time(pid))],
            cwd=Path(__file__).resolve().parents[1],
            env={k: v for k, v in os.environ.items() if k != "PYTEST_CURRENT_TEST"},
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert janitor.stdout is not None
        folder = janitor.stdout.readline().decode().strip()
        janitor.stdout.close()
        if not folder:
            janitor.wait()
            raise NoStateFolder(0, "the janitor did not start")
        run = cls(Path(folder))
        run._janitor = janitor
        return run

    _janitor: subprocess.Popen[bytes]

    @classmethod
    def _new_folder(cls, pid: int, started: float) -> Run:
        # It gets its name with its owner already in it: another run must never see a folder
        # without one and take it for stale. That other run may also just be removing the root.
        name = f"{NAME}-{secrets.token_hex(8)}"
        for attempt in range(_ATTEMPTS):
            draft = cls(state_root() / f".{name}")
            try:
                draft.folder.mkdir(mode=0o700)
                draft._write("owner.json", {"pid": pid, "started": started})
                return cls(draft.folder.rename(draft.folder.with_name(name)))
            except FileNotFoundError:
                if attempt == _ATTEMPTS - 1:
                    raise
        raise AssertionError("not reached")

    def end(self) -> list[str]:
        """Undo what is still recorded, end the janitor, remove the folder: what went wrong."""
        problems = self.undo()
        self._janitor.terminate()
        self._janitor.wait()
        self.remove()
        return problems

    def _write(self, name: str, value: object) -> None:
        # Whole or not at all, and on disk before the change it announces.
        temporary = self.folder / f".{name}.{os.getpid()}"
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            os.write(fd, json.dumps(value).encode())
        finally:
            os.close(fd)
        os.rename(temporary, self.folder / name)

    def record(self, kind: str, **what: object) -> Path:
        """Announce a change of ``kind`` (:data:`UNDO`) before making it: the record's path."""
        if kind not in UNDO:
            raise ValueError(f"unknown kind of record {kind!r}")
        if kind == "setting":
            self._note_setting(str(what["path"]))
        name = f"{time.monotonic_ns():020d}-{os.getpid()}.json"
        self._write(name, {"kind": kind, "by": os.getpid(), **what})
        return self.folder / name

    def _note_setting(self, path: str) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
        fd = os.open(self.folder / _SETTINGS_FILE, flags, 0o600)
        try:
            os.write(fd, f"{path}\n".encode())
        finally:
            os.close(fd)

    def settings(self) -> frozenset[str]:
        """Paths of the settings that this run has changed, undone or not."""
        try:
            return frozenset((self.folder / _SETTINGS_FILE).read_text().splitlines())
        except FileNotFoundError:
            return frozenset()

    @contextmanager
    def recorded(self, kind: str, **what: object) -> Iterator[None]:
        """Record a change for the block, and undo it (if it is still there) at its end."""
        path = self.record(kind, **what)
        try:
            yield
        finally:
            _undo(path)

    def undo(self, by: int | None = None) -> list[str]:
        """Undo recorded changes, newest first (only those of process ``by``, if given).

        Returns a line for each that could not be undone; its record stays.
        """
        problems = []
        for path in sorted(self.folder.glob("[0-9]*.json"), reverse=True):
            if by is not None and not path.stem.endswith(f"-{by}"):
                continue
            try:
                _undo(path)
            except (OSError, ValueError, KeyError, psutil.Error) as error:
                problems.append(f"{path}: {error}")
        return problems

    def remove(self) -> None:
        """Remove the folder if no record is left in it, and the root if no run is left."""
        if not list(self.folder.glob("[0-9]*.json")):
            shutil.rmtree(self.folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.folder.parent.rmdir()


def _read(path: Path) -> dict[str, object]:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        if os.fstat(fd).st_uid != os.geteuid():
            raise ValueError("the record is not ours; left alone")
        value = json.loads(os.read(fd, 1 << 16))
    finally:
        os.close(fd)
    if not isinstance(value, dict):
        raise ValueError("not a record; left alone")
    return value


def _undo(path: Path) -> None:
    try:
        what = _read(path)
    except FileNotFoundError:
        return
    except json.JSONDecodeError:
        raise ValueError("not a record; left alone") from None
    action = UNDO.get(str(what.get("kind")))
    if action is None:
        raise ValueError(f"unknown kind {what.get('kind')!r}; left alone")
    action(what)
    path.unlink(missing_ok=True)


def _text(what: dict[str, object], key: str) -> str:
    value = what[key]
    if not isinstance(value, str):
        raise ValueError(f"{key} is not text; left alone")
    return value


def _ours(path: Path) -> Path:
    """The path, if one of its parts carries a run's random name and nothing is a link."""
    if not any(RUN_NAME.match(part) for part in path.parts) or ".." in path.parts:
        raise ValueError(f"{path} does not carry a run's name; left alone")
    return path


def _undo_process(what: dict[str, object]) -> None:
    pid, started = what["pid"], what["started"]
    if not isinstance(pid, int) or not isinstance(started, float) or pid <= 1:
        raise ValueError("not a process; left alone")
    if _is(pid, started) and pid != os.getpid():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _undo_cgroup(what: dict[str, object]) -> None:
    path = _ours(Path(_text(what, "path")))
    if not path.is_dir():
        return
    until = timeouts.until(PATIENCE)
    while True:
        for folder in [*(p.parent for p in path.glob("**/cgroup.procs"))]:
            for pid in (folder / "cgroup.procs").read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
        try:
            for folder in sorted((p.parent for p in path.glob("**/cgroup.procs")), reverse=True):
                folder.rmdir()
            return
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.02)


def _undo_subtree(what: dict[str, object]) -> None:
    path = Path(_text(what, "path"))
    if path.name != "cgroup.subtree_control" or not path.exists():
        raise ValueError(f"{path} is no cgroup.subtree_control; left alone")
    path.write_text("-memory")


def _undo_swap(what: dict[str, object]) -> None:
    from helpers.pressure import swap

    path = _ours(Path(_text(what, "path")))
    if swap.is_on(str(path)):
        swap.off(str(path))


def _undo_swap_device(what: dict[str, object]) -> None:
    from helpers.pressure import swap

    swap.release_device(_text(what, "device"), _ours(Path(_text(what, "backing"))))


def _undo_zram(what: dict[str, object]) -> None:
    from helpers.pressure import swap

    name = _text(what, "name")
    if not re.fullmatch(r"zram\d+", name):
        raise ValueError(f"{name} is no zram device; left alone")
    swap.release_zram(name, _text(what, "label"))


def _undo_folder(what: dict[str, object]) -> None:
    path = _ours(Path(_text(what, "path")))
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not RUN_NAME.match(path.name) or not stat.S_ISDIR(found.st_mode):
        raise ValueError(f"{path} is not a folder of a run; left alone")
    if found.st_uid != os.geteuid():
        raise ValueError(f"{path} belongs to somebody else; left alone")
    shutil.rmtree(path)


SETTINGS = re.compile(
    r"/proc/sys/vm/[a-z_]+"
    r"|/proc/sys/kernel/(core_pattern|numa_balancing|perf_event_paranoid|randomize_va_space)"
    r"|/proc/sys/user/max_user_namespaces"
    r"|/sys/kernel/mm/(lru_gen|ksm|transparent_hugepage)/\w+"
    r"|/sys/kernel/mm/transparent_hugepage/hugepages-\d+kB/enabled"
)


def _undo_setting(what: dict[str, object]) -> None:
    path = _text(what, "path")
    if not SETTINGS.fullmatch(path):
        raise ValueError(f"{path} is not a setting we change; left alone")
    Path(path).write_text(_text(what, "value"))


BLOCK = re.compile(r"/sys/devices/system/memory/memory\d+/state")


def _undo_memory_block(what: dict[str, object]) -> None:
    path = _text(what, "path")
    if not BLOCK.fullmatch(path):
        raise ValueError(f"{path} is no block of memory; left alone")
    if Path(path).read_text().strip() == "offline":
        Path(path).write_text("online_movable")


def _undo_module(what: dict[str, object]) -> None:
    name = _text(what, "name")
    if name not in {"loop", "zram", "brd"}:
        raise ValueError(f"{name} is not a module we load; left alone")
    subprocess.run(["modprobe", "-r", name], check=False, capture_output=True)


UNDO: dict[str, Callable[[dict[str, object]], None]] = {
    "process": _undo_process,
    "cgroup": _undo_cgroup,
    "subtree": _undo_subtree,
    "swap": _undo_swap,
    "swap-device": _undo_swap_device,
    "zram": _undo_zram,
    "folder": _undo_folder,
    "setting": _undo_setting,
    "memory-block": _undo_memory_block,
    "module": _undo_module,
}
"""Kind of record → how it is undone. Each proves first that the thing is ours."""


def stale() -> list[Run]:
    """Runs whose owner and janitor are both gone. Folders of another shape are passed over."""
    try:
        root = state_root()
    except NoStateFolder:
        return []
    found = []
    for folder in root.iterdir():
        if not RUN_NAME.fullmatch(folder.name.removeprefix(".")) or folder.is_symlink():
            continue
        try:
            owner = _read(folder / "owner.json")
            pid, started = int(str(owner["pid"])), float(str(owner["started"]))
        except (OSError, ValueError, KeyError):
            pid, started = 0, 0.0
            # A draft without an owner is either a moment old or was killed in that moment.
            with contextlib.suppress(FileNotFoundError):
                if folder.name.startswith(".") and time.time() - folder.stat().st_mtime < 60:
                    continue
        if (not pid or not _is(pid, started)) and not _janitor_lives(folder):
            found.append(Run(folder))
    return found


def _janitor_lives(folder: Path) -> bool:
    try:
        with (folder / "janitor.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def clear_stale() -> tuple[int, list[str]]:
    """Undo what dead runs left: how many runs, and what could not be undone."""
    problems: list[str] = []
    runs = stale()
    for run in runs:
        problems += run.undo()
        run.remove()
    with contextlib.suppress(OSError):
        if runs:
            state_root().rmdir()
    return len(runs), problems


def main(pid: int, started: float) -> int:
    """The janitor: wait for the owner's end, then undo. SIGTERM: the owner did it itself."""
    for number in (signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    run = Run._new_folder(pid, started)
    with (run.folder / "janitor.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            watch: int | None = os.pidfd_open(pid)
        except OSError:
            watch = None
        with contextlib.suppress(BrokenPipeError):
            print(run.folder, flush=True)
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        if watch is not None:
            select.select([watch], [], [])
        while _is(pid, started):
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                break
            time.sleep(0.1)
        problems = ["start"]
        until = timeouts.until(PATIENCE)
        while problems and time.monotonic() < until:
            problems = run.undo()
            if problems:
                time.sleep(0.2)
        run.remove()
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), float(sys.argv[2])))
