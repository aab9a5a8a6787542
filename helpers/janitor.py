"""The process that puts the machine back when a run dies.

Whatever a run is about to change is first written down as a *record*, one small JSON file in a
folder only its owner can write (``/run/memlock-tests/RUN/``). Whoever finishes with a change
undoes it and drops the record. The janitor, a process in a session of its own, waits for the
controlling process to end, in whatever way, and undoes what is still recorded, newest first.
If it was killed too, the next run finds the folder without a living owner and does the same.

A record is only read if it is a small regular file that is ours, of this format and of exactly
its kind's fields; it only says where to look. What is found there is touched only if it proves
to be the run's: by the run's random name, its inode, the value that the run wrote, the file that
it holds open (:data:`KINDS`). Whatever else is met is said in a line, kept and passed over.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import secrets
import select
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from helpers import timeouts

NAME = "memlock-tests"
RUN_NAME = re.compile(rf"{NAME}-[0-9a-f]{{16}}")
FORMAT = 2
"""Goes up when records change their meaning; those of another format are passed over."""
LARGEST = 1 << 14
"""Bytes of the longest record."""
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
        found = parent.stat()
        # Who can write to the parent can put another folder in the root's place.
        if not parent.is_absolute() or found.st_uid not in {0, os.geteuid()} or (
            found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX
        ):  # fmt: skip
            raise NoStateFolder(0, f"others can write to {parent}, where records would be kept")
        with contextlib.suppress(FileExistsError):
            root.mkdir(mode=0o700)
        if why := _not_private(root):
            raise NoStateFolder(0, f"{root} {why}; remove it")
        if not os.access(root, os.R_OK | os.W_OK | os.X_OK):
            raise NoStateFolder(0, f"{root} cannot be read or written; remove it")
    except NoStateFolder:
        raise
    except OSError as error:
        raise NoStateFolder(error.errno, f"no folder for records: {error}") from None
    return root


def _not_private(folder: Path) -> str:
    """Why this is not a folder that only this user can write; empty if it is one."""
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode):
        return "is not a folder"
    if found.st_uid != os.geteuid():
        return f"belongs to user {found.st_uid}"
    return "can be written by others" if found.st_mode & 0o022 else ""


def start_time(pid: int) -> int:
    """Start time of a process in clock ticks since boot, to tell it from a later one of the same
    number (field 22 of /proc/PID/stat). Raises ProcessLookupError."""
    return int(_stat(pid)[19])


def _stat(pid: int) -> list[str]:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        raise ProcessLookupError(f"no process {pid}") from None
    return text.rpartition(")")[2].split()  # from field 3, the state, on


def _is(pid: int, started: int) -> bool:
    """The process is that one, and has not ended (a zombie has)."""
    try:
        fields = _stat(pid)
    except ProcessLookupError:
        return False
    return fields[0] not in "ZX" and int(fields[19]) == started


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def present(path: str) -> str:
    """What a setting is now; of several words, the chosen one. Raises OSError."""
    text = Path(path).read_text().strip()
    return text[text.index("[") + 1 : text.index("]")] if "[" in text else text


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process of all runs at a time: what runs share is changed and put back in here."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


class Run:
    """One run's folder of records. Workers and cases open it by path."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def name(self) -> str:
        """The run's random name; every cgroup and folder it makes begins with it."""
        return self.folder.name.removeprefix(".")

    @classmethod
    def begin(cls) -> Run:
        """A new run owned by this process, with its janitor waiting. Raises OSError.

        The janitor makes the folder: from then on somebody is there to remove it.
        """
        state_root()  # says why not
        pid = os.getpid()
        janitor = subprocess.Popen(
            [sys.executable, "-m", "helpers.janitor", str(pid), str(start_time(pid))],
            cwd=Path(__file__).resolve().parents[1],
            env={k: v for k, v in os.environ.items() if k != "PYTEST_CURRENT_TEST"},
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert janitor.stdout is not None
        said = os.fsdecode(janitor.stdout.readline()).rstrip("\n")
        janitor.stdout.close()
        if not said.startswith("/"):
            janitor.wait()
            raise NoStateFolder(0, said or "the janitor did not start")
        run = cls(Path(said))
        run._janitor = janitor
        return run

    _janitor: subprocess.Popen[bytes]
    _held = -1

    def end(self) -> list[str]:
        """Undo what is still recorded, end the janitor, remove the folder: what went wrong."""
        problems = self.undo()
        self._janitor.kill()  # it heeds nothing less: what ends a whole group must not end it
        self._janitor.wait()
        self.remove()
        return problems

    def _write(self, name: str, value: object) -> None:
        # Whole or not at all, and on disk before the change it announces.
        temporary = self.folder / f".{name}.{os.getpid()}"
        data = json.dumps(value).encode()
        try:
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            with open(fd, "wb", buffering=0) as file:
                if file.write(data) != len(data):
                    raise OSError(28, "No space left on device")
            temporary.rename(self.folder / name)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise OSError(
                error.errno, f"no record in {self.folder}: {error.strerror}; make room there"
            ) from None

    def record(self, kind: str, **what: object) -> Path:
        """Announce a change of ``kind`` (:data:`KINDS`) before making it: the record's path.

        Raises OSError where it cannot be written: then the change must not be made.
        """
        fields = KINDS[kind][0]
        if {key: type(value) for key, value in what.items()} != fields:
            raise ValueError(f"a record of kind {kind} has {fields}, not {what}")
        if kind == "setting":
            self._note_setting(str(what["path"]))
        name = f"{time.monotonic_ns():020d}-{os.getpid()}.json"
        self._write(
            name, {"format": FORMAT, "boot": _boot(), "kind": kind, "by": os.getpid(), **what}
        )
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

    def record_this_process(self) -> None:
        """Announce this process: it ends with the run, and is known by holding its record open."""
        pid = os.getpid()
        path = self.record("process", pid=pid, started=start_time(pid))
        self._held = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def enable_memory(self, control: Path) -> None:
        """Have a cgroup's children get the memory controller (its cgroup.subtree_control).

        Runs may share the cgroup: the last one of those that need it takes it back.
        Raises OSError.
        """
        root = self.folder.parent
        with _alone(root):
            had = control.read_text().split()
            if "memory" in had:
                shared = _sharing(root, control)
                if not shared:
                    return  # it was so before any run
                had = shared[0].split()
            self.record(
                "subtree", path=str(control), inode=control.stat().st_ino, had=" ".join(had)
            )
            control.write_text("+memory")

    def undo(self, by: int | None = None) -> list[str]:
        """Undo recorded changes, newest first (only those of process ``by``, if given).

        Returns a line for each that could not be undone; its record stays.
        """
        problems = []
        try:
            if why := _not_private(self.folder):
                return [f"{self.folder} {why}; left alone"]
            names = sorted(self.folder.glob("[0-9]*.json"), reverse=True)
        except OSError as error:
            return [f"{self.folder}: {error.strerror}; left alone"]
        for path in names:
            if by is not None and not path.stem.endswith(f"-{by}"):
                continue
            try:
                _undo(path)
            except Exception as error:  # whatever is wrong with one, the others are undone
                problems.append(_line(f"{path}: {error or type(error).__name__}"))
        return problems

    def remove(self) -> None:
        """Remove the folder if no record is left in it, and the root if no run is left.

        Only what runs put there is removed.
        """
        with contextlib.suppress(OSError):
            if not list(self.folder.glob("[0-9]*.json")):
                # The lock last: until then nobody else is at it.
                for path in sorted(self.folder.iterdir(), key=lambda p: p.name == _LOCK):
                    if _OURS.fullmatch(path.name) and stat.S_ISREG(path.lstat().st_mode):
                        path.unlink()
                self.folder.rmdir()
        with contextlib.suppress(OSError):
            self.folder.parent.rmdir()


_OWNER, _LOCK = "owner.json", "janitor.lock"
_OURS = re.compile(r"janitor\.lock|owner\.json|settings|\.(owner|\d{20}-\d+)\.json\.\d+")


def _line(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)[:400]


def _read(path: Path) -> dict[str, object]:
    """What a file of ours says. Raises ValueError or OSError; never waits, whatever it is."""
    found = path.lstat()  # opening alone can hang (a FIFO) or set something off (a device)
    for wrong, why in (
        (not stat.S_ISREG(found.st_mode), "not a regular file"),
        (found.st_uid != os.geteuid(), f"not ours, but of user {found.st_uid}"),
        (found.st_mode & 0o022, "others can write it"),
        (found.st_nlink > 1, "it has several names"),
        (found.st_size > LARGEST, f"larger than {LARGEST} bytes"),
    ):
        if wrong:
            raise ValueError(f"{why}; left alone")
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(fd, "rb", buffering=0) as file:
        if not os.path.samestat(os.fstat(fd), found):
            raise ValueError("it changed while being read; left alone")
        data = file.read(LARGEST)
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise ValueError("not a record; left alone") from None
    if not isinstance(value, dict):
        raise ValueError("not a record; left alone")
    return value


_ENVELOPE: dict[str, type] = {"format": int, "boot": str, "kind": str, "by": int}


def _record(path: Path) -> dict[str, object]:
    """A record of this format with exactly its kind's fields. Raises ValueError or OSError."""
    what = _read(path)
    if what.get("format") != FORMAT:
        raise ValueError("a record of another version of the suite; left alone")
    kind = what.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(f"unknown kind {str(kind)[:40]!r}; left alone")
    if {key: type(value) for key, value in what.items()} != _ENVELOPE | KINDS[kind][0]:
        raise ValueError(f"not the fields of kind {kind}; left alone")
    return what


def _undo(path: Path) -> None:
    try:
        what = _record(path)
    except FileNotFoundError:
        return
    # What the kernel keeps ended with the boot; what is on a disk did not.
    if what["boot"] == _boot() or what["kind"] == "folder":
        KINDS[str(what["kind"])][1](path, what)
    path.unlink(missing_ok=True)


def _run_of(record: Path) -> str:
    return record.parent.name.removeprefix(".")


def _found(path: str) -> os.stat_result | None:
    """What lies at a path written in full; None if nothing does."""
    if os.path.normpath(path) != path or not os.path.isabs(path):
        raise ValueError(f"{path[:80]!r} is not a path in full; left alone")
    try:
        return os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _filesystems(found: os.stat_result) -> set[str]:
    """Types of the mounted file systems with that device number (mountinfo)."""
    device = f"{os.major(found.st_dev)}:{os.minor(found.st_dev)}"
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return {line.partition(" - ")[2].split()[0] for line in lines if line.split()[2] == device}


def _undo_process(record: Path, what: dict[str, object]) -> None:
    pid, started = int(str(what["pid"])), int(str(what["started"]))
    if pid <= 1 or pid == os.getpid() or not _is(pid, started):
        return
    fd = os.pidfd_open(pid)
    try:
        if not _is(pid, started):
            return
        if not _holds(pid, record):
            raise ValueError(f"process {pid} does not hold this record open; left alone")
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(fd, signal.SIGKILL)
    finally:
        os.close(fd)


def _holds(pid: int, path: Path) -> bool:
    wanted = path.stat()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            if os.path.samestat(link.stat(), wanted):
                return True
    return False


def _undo_cgroup(record: Path, what: dict[str, object]) -> None:
    path = Path(str(what["path"]))
    if not re.fullmatch(rf"{_run_of(record)}-\d+-[0-9a-f]{{4}}", path.name):
        raise ValueError(f"{path.name[:80]!r} is not a cgroup of this run; left alone")
    found = _found(str(path))
    if found is None:
        return
    if (
        not stat.S_ISDIR(found.st_mode)
        or found.st_uid != os.geteuid()
        or not _filesystems(found) & {"cgroup", "cgroup2"}
    ):
        raise ValueError(f"{path} is not a cgroup of ours; left alone")
    until = timeouts.until(PATIENCE)
    while True:
        for folder in [*(p.parent for p in path.glob("**/cgroup.procs"))]:
            _kill_all(folder / "cgroup.procs")
        try:
            for folder in sorted((p.parent for p in path.glob("**/cgroup.procs")), reverse=True):
                folder.rmdir()
            return
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.02)


def _kill_all(procs: Path) -> None:
    """SIGKILL to every process of a cgroup, and to no later one of the same number."""
    # 0 stands for a process of a PID namespace that is not seen from here.
    for number in {int(pid) for pid in procs.read_text().split()} - {0, os.getpid()}:
        try:
            fd = os.pidfd_open(number)
        except OSError:
            continue
        try:
            if str(number) in procs.read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(fd, signal.SIGKILL)
        finally:
            os.close(fd)


def _sharing(root: Path, control: Path, but: Path | None = None) -> list[str]:
    """What each run's record of enabling memory there says there was before."""
    found = []
    for path in root.glob("*/[0-9]*.json"):
        if path != but and RUN_NAME.fullmatch(path.parent.name):
            with contextlib.suppress(OSError, ValueError):
                what = _record(path)
                if (what["kind"], what["boot"], what.get("path")) == (
                    "subtree", _boot(), str(control),
                ):  # fmt: skip
                    found.append(str(what["had"]))
    return found


def _undo_subtree(record: Path, what: dict[str, object]) -> None:
    path = Path(str(what["path"]))
    found = _found(str(path))
    if found is None:
        return
    if (
        path.name != "cgroup.subtree_control"
        or not stat.S_ISREG(found.st_mode)
        or found.st_ino != what["inode"]
        or "cgroup2" not in _filesystems(found)
    ):
        raise ValueError(f"{path} is not the cgroup.subtree_control we changed; left alone")
    with _alone(record.parent.parent):
        ours = {*str(what["had"]).split(), "memory"}
        if set(path.read_text().split()) == ours and not _sharing(
            record.parent.parent, path, record
        ):
            path.write_text("-memory")
        record.unlink(missing_ok=True)


def _undo_swap(record: Path, what: dict[str, object]) -> None:
    from helpers.pressure import swap

    path = Path(str(what["path"]))
    found = _found(str(path))
    if path.parent.name != _run_of(record):
        raise ValueError(f"{path} does not carry this run's name; left alone")
    if found is None or not swap.is_on(str(path)):
        return
    if not stat.S_ISREG(found.st_mode) or found.st_ino != what["inode"]:
        raise ValueError(f"{path} is not the swap file we made; left alone")
    swap.off(str(path))


def _undo_swap_device(record: Path, what: dict[str, object]) -> None:
    from helpers.pressure import swap

    device, backing = str(what["device"]), Path(str(what["backing"]))
    if not re.fullmatch(r"/dev/loop\d+", device) or backing.parent.name != _run_of(record):
        raise ValueError(f"{device[:80]!r} is not a loop device of this run; left alone")
    found = _found(str(backing))
    if found is not None and found.st_ino != what["inode"]:
        raise ValueError(f"{backing} is not the file we made; left alone")
    swap.release_device(device, backing)


def _undo_zram(record: Path, what: dict[str, object]) -> None:
    from helpers.pressure import swap

    name = str(what["name"])
    if not re.fullmatch(r"zram\d+", name):
        raise ValueError(f"{name[:80]!r} is no zram device; left alone")
    label = _run_of(record)[-16:]
    swap.release_zram(name, label, int(str(what["inode"])), int(str(what["size"])))


def _undo_folder(record: Path, what: dict[str, object]) -> None:
    path = Path(str(what["path"]))
    if path.name != _run_of(record):
        raise ValueError(f"{path} does not carry this run's name; left alone")
    found = _found(str(path))
    if found is None:
        return
    if not stat.S_ISDIR(found.st_mode):
        raise ValueError(f"{path} is not a folder of a run; left alone")
    if found.st_uid != os.geteuid():
        raise ValueError(f"{path} belongs to somebody else; left alone")
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if not os.path.samestat(os.fstat(fd), found):
            raise ValueError(f"{path} changed while it was looked at; left alone")
        # Nothing but the swap file is ever made there: no tree is removed on a record's word.
        if others := set(os.listdir(fd)) - {"swap"}:
            raise ValueError(f"{path} holds {min(others)[:80]!r}, which is not ours; left alone")
        with contextlib.suppress(FileNotFoundError):
            os.unlink("swap", dir_fd=fd)
    finally:
        os.close(fd)
    path.rmdir()


SETTINGS = re.compile(
    r"/proc/sys/vm/[a-z_]+"
    r"|/proc/sys/kernel/(core_pattern|numa_balancing|perf_event_paranoid|randomize_va_space)"
    r"|/proc/sys/user/max_user_namespaces"
    r"|/sys/kernel/mm/(lru_gen|ksm|transparent_hugepage)/\w+"
    r"|/sys/kernel/mm/transparent_hugepage/hugepages-\d+kB/enabled"
)


def _undo_setting(record: Path, what: dict[str, object]) -> None:
    path, value = str(what["path"]), str(what["value"])
    if not SETTINGS.fullmatch(path) or not re.fullmatch(r"[\w.|/%@ -]{1,128}", value):
        raise ValueError(f"{path[:80]!r} is not a setting we change; left alone")
    found = _found(path)
    if found is None:
        return
    if not stat.S_ISREG(found.st_mode) or not _filesystems(found) & {"proc", "sysfs"}:
        raise ValueError(f"{path} is not a setting; left alone")
    # What somebody else has set since is theirs.
    if _is_what_we_wrote(path, str(what["wrote"]), value):
        Path(path).write_text(value)


def _is_what_we_wrote(path: str, wrote: str, before: str) -> bool:
    now = present(path)
    if path.endswith("/lru_gen/enabled") and wrote in {"y", "n"}:  # shows which of its parts are on
        return (int(now, 16) != 0) == (wrote == "y")
    if path.endswith("/nr_hugepages"):  # the kernel does as much of it as it can
        ends = sorted((int(wrote), int(before)))
        return ends[0] <= int(now) <= ends[1]
    return now == wrote


BLOCK = re.compile(r"/sys/devices/system/memory/memory\d+/state")


def _undo_memory_block(record: Path, what: dict[str, object]) -> None:
    path = str(what["path"])
    if not BLOCK.fullmatch(path):
        raise ValueError(f"{path[:80]!r} is no block of memory; left alone")
    found = _found(path)
    if found is None or Path(path).read_text().strip() != "offline":
        return
    if found.st_ino != what["inode"] or "sysfs" not in _filesystems(found):
        raise ValueError(f"{path} is not the block we took; left alone")
    Path(path).write_text("online_movable")


def _undo_module(record: Path, what: dict[str, object]) -> None:
    if what["name"] != "zram":
        raise ValueError(f"{str(what['name'])[:80]!r} is not a module we load; left alone")
    if not list(Path("/sys/block").glob("zram*")):  # else somebody has a use for it by now
        subprocess.run(["modprobe", "-r", "zram"], check=False, capture_output=True)


Action = Callable[[Path, dict[str, object]], None]
KINDS: dict[str, tuple[dict[str, type], Action]] = {
    "process": ({"pid": int, "started": int}, _undo_process),
    "cgroup": ({"path": str}, _undo_cgroup),
    "subtree": ({"path": str, "inode": int, "had": str}, _undo_subtree),
    "swap": ({"path": str, "inode": int}, _undo_swap),
    "swap-device": ({"device": str, "backing": str, "inode": int}, _undo_swap_device),
    "zram": ({"name": str, "inode": int, "size": int}, _undo_zram),
    "folder": ({"path": str}, _undo_folder),
    "setting": ({"path": str, "value": str, "wrote": str}, _undo_setting),
    "memory-block": ({"path": str, "inode": int}, _undo_memory_block),
    "module": ({"name": str}, _undo_module),
}
"""Kind of record → its fields, and how it is undone, which proves first that the thing is ours."""


def stale(problems: list[str]) -> Iterator[Run]:
    """Runs whose owner and janitor are both gone, each held against other cleaners while it is
    handled. What carries a run's name and is not a run's folder goes to ``problems``."""
    try:
        folders = sorted(state_root().iterdir())
    except OSError:
        return  # whoever needs it is told why
    for folder in folders:
        if not RUN_NAME.fullmatch(folder.name.removeprefix(".")):
            continue
        try:
            if why := _not_private(folder):
                raise ValueError(f"{why}; left alone")
            if _owner_lives(folder):
                continue
            with _claim(folder) as claimed:
                if claimed and not _owner_lives(folder):
                    yield Run(folder)
        except FileNotFoundError:
            continue  # it was just being removed
        except (OSError, ValueError) as error:
            problems.append(_line(f"{folder}: {getattr(error, 'strerror', None) or error}"))


def _owner_lives(folder: Path) -> bool:
    try:
        owner = _read(folder / _OWNER)
    except FileNotFoundError:
        # A draft without an owner is either a moment old or was killed in that moment.
        return folder.name.startswith(".") and time.time() - folder.stat().st_mtime < 60
    except (OSError, ValueError) as error:
        raise ValueError(f"{_OWNER}: {error}") from None
    pid, started = owner.get("pid"), owner.get("started")
    if type(pid) is not int or type(started) is not int or "boot" not in owner:
        raise ValueError(f"{_OWNER} is of another version of the suite; left alone")
    return owner["boot"] == _boot() and 0 < pid < 1 << 31 and _is(pid, started)


@contextmanager
def _claim(folder: Path) -> Iterator[bool]:
    """Hold a run's lock for the block: False where its janitor, or another cleaner, does."""
    path = folder / _LOCK
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISREG(path.lstat().st_mode):
            raise ValueError(f"{path.name} is not a regular file; left alone")
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    fd = os.open(path, flags, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
    finally:
        os.close(fd)


def clear_stale() -> tuple[int, list[str]]:
    """Undo what dead runs left: how many runs, and a line for each folder with a rest."""
    problems: list[str] = []
    number = 0
    for run in stale(problems):
        number += 1
        left = run.undo()
        run.remove()
        if left:
            more = f" (and {len(left) - 1} more in this folder)" if len(left) > 1 else ""
            problems.append(left[0] + more)
        elif run.folder.exists():
            problems.append(f"{run.folder} holds what is not ours; left alone")
    return number, problems


def _begin(pid: int, started: int) -> tuple[Run, int]:
    """A new run and the descriptor that holds its lock. Raises OSError."""
    # It gets its name with its owner and its lock already in it: another run must never see a
    # folder without them and take it for stale. That other run may also just be removing the root.
    name = f"{NAME}-{secrets.token_hex(8)}"
    for attempt in range(_ATTEMPTS):
        draft = Run(state_root() / f".{name}")
        lock = -1
        try:
            draft.folder.mkdir(mode=0o700)
            lock = os.open(draft.folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            fcntl.flock(lock, fcntl.LOCK_EX)
            draft._write(_OWNER, {"boot": _boot(), "pid": pid, "started": started})
            return Run(draft.folder.rename(draft.folder.with_name(name))), lock
        except OSError as error:
            draft.remove()
            if lock >= 0:
                os.close(lock)
            if not isinstance(error, FileNotFoundError) or attempt == _ATTEMPTS - 1:
                raise
    raise AssertionError("not reached")


def main(pid: int, started: int) -> int:
    """The janitor: wait for the owner's end, then undo. SIGKILL: the owner did it itself."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    try:
        run, lock = _begin(pid, started)
    except OSError as error:
        print(_line(f"no records can be kept: {error.strerror or error}"))
        return 1
    try:
        watch: int | None = os.pidfd_open(pid)
    except OSError:
        watch = None
    with contextlib.suppress(BrokenPipeError):
        print(run.folder, flush=True)
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    from helpers.pressure import swap  # noqa: F401  # the checkout may be gone by the owner's end

    if watch is not None and _is(pid, started):
        select.select([watch], [], [])
    while _is(pid, started):
        time.sleep(0.1)
    problems = ["start"]
    until = timeouts.until(PATIENCE)
    while problems and time.monotonic() < until:
        problems = run.undo()
        if problems:
            time.sleep(0.2)
    run.remove()
    os.close(lock)
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
