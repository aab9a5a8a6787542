# SPDX-License-Identifier: MIT
"""The process that puts the machine back when a run dies.

Whatever a run is about to change is first written down as a *record*, one small JSON file in a
folder only its owner can write (``/run/memlock-tests/RUN/``). Whoever finishes with a change
undoes it and drops the record. The cleanup process, in a session of its own, waits for the
controlling process to end, in whatever way, and undoes what is still recorded, newest first.
If it was killed too, the next run finds the folder without a living owner and does the same.

A record is only read if it is a small regular file that is ours, of this format and of exactly
its kind's fields; it only says where to look. What is found there is touched only if it proves
to be the run's: by the run's random name, its inode, the value that the run wrote, the file that
it holds open (:data:`KINDS`). Whatever else is met is said in a line, kept and passed over.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from helpers.machine.records import (
    FORMAT,
    LOCK,
    NAME,
    boot_id,
    not_private,
    one_at_a_time,
    printable_line,
    read_content,
    start_time,
)
from helpers.machine.undo import UNDO_BY_KIND, read_record, sharing_runs, undo_record

_SETTINGS_FILE = "settings"


class NoJournalFolder(OSError):
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
            raise NoJournalFolder(0, f"others can write to {parent}, where records would be kept")
        with contextlib.suppress(FileExistsError):
            root.mkdir(mode=0o700)
        if why := not_private(root):
            raise NoJournalFolder(0, f"{root} {why}; remove it")
        if not os.access(root, os.R_OK | os.W_OK | os.X_OK):
            raise NoJournalFolder(0, f"{root} cannot be read or written; remove it")
    except NoJournalFolder:
        raise
    except OSError as error:
        raise NoJournalFolder(error.errno, f"no folder for records: {error}") from None
    return root


class ChangeJournal:
    """One run's folder of records. Workers and cases open it by path."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def name(self) -> str:
        """The run's random name; every cgroup and folder it makes begins with it."""
        return self.folder.name.removeprefix(".")

    @classmethod
    def begin(cls) -> ChangeJournal:
        """A new run owned by this process, with its cleanup process waiting. Raises OSError.

        The cleanup process makes the folder: from then on somebody is there to remove it.
        """
        state_root()  # says why not
        pid = os.getpid()
        cleaner = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "helpers.machine.cleanup_process",
                str(pid),
                str(start_time(pid)),
            ],
            cwd=Path(__file__).resolve().parents[2],
            env={k: v for k, v in os.environ.items() if k != "PYTEST_CURRENT_TEST"},
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert cleaner.stdout is not None
        said = os.fsdecode(cleaner.stdout.readline()).rstrip("\n")
        cleaner.stdout.close()
        if not said.startswith("/"):
            cleaner.wait()
            raise NoJournalFolder(0, said or "the cleanup process did not start")
        run = cls(Path(said))
        run._cleaner = cleaner
        return run

    _cleaner: subprocess.Popen[bytes]
    _held = -1

    def end(self) -> list[str]:
        """Undo what is still recorded, end the cleanup process, remove the folder: what failed."""
        problems = self.undo()
        self._cleaner.kill()  # it heeds nothing less: what ends a whole group must not end it
        self._cleaner.wait()
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
        fields = UNDO_BY_KIND[kind][0]
        if {key: type(value) for key, value in what.items()} != fields:
            raise ValueError(f"a record of kind {kind} has {fields}, not {what}")
        if kind == "setting":
            self._note_setting(str(what["path"]))
        name = f"{time.monotonic_ns():020d}-{os.getpid()}.json"
        self._write(
            name, {"format": FORMAT, "boot": boot_id(), "kind": kind, "by": os.getpid(), **what}
        )
        return self.folder / name

    def _note_setting(self, path: str) -> None:
        if path in self.settings():
            return
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(self.folder / _SETTINGS_FILE, flags, 0o600)
        try:
            os.write(fd, f"{path}\n".encode())
        finally:
            os.close(fd)

    def settings(self) -> frozenset[str]:
        """Paths of the settings that this run has changed, undone or not."""
        try:
            return frozenset(os.fsdecode(read_content(self.folder / _SETTINGS_FILE)).splitlines())
        except FileNotFoundError:
            return frozenset()

    @contextmanager
    def change(self, kind: str, **what: object) -> Iterator[None]:
        """Record a change for the block, and undo it (if it is still there) at its end."""
        path = self.record(kind, **what)
        try:
            yield
        finally:
            undo_record(path)

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
        with one_at_a_time(root):
            had = control.read_text().split()
            if "memory" in had:
                shared = sharing_runs(root, control)
                if not shared:
                    return  # it was so before any run
                had = shared[0].split()
            self.record(
                "subtree", path=str(control), inode=control.stat().st_ino, had=" ".join(had)
            )
            control.write_text("+memory")

    def recorded(self, by: int) -> list[str]:
        """What process ``by`` has recorded and not undone: a line for each, oldest first."""
        found = []
        for path in sorted(self.folder.glob(f"[0-9]*-{by}.json")):
            try:
                what = read_record(path)
                found.append(f"{what['kind']} {what.get('path', '')}".strip())
            except (OSError, ValueError):
                continue
        return found

    def undo(self, by: int | None = None) -> list[str]:
        """Undo recorded changes, newest first (only those of process ``by``, if given).

        Returns a line for each that could not be undone; its record stays.
        """
        problems = []
        try:
            if why := not_private(self.folder):
                return [f"{self.folder} {why}; left alone"]
            names = sorted(self.folder.glob("[0-9]*.json"), reverse=True)
        except OSError as error:
            return [f"{self.folder}: {error.strerror}; left alone"]
        for path in names:
            if by is not None and not path.stem.endswith(f"-{by}"):
                continue
            try:
                undo_record(path)
            except Exception as error:  # whatever is wrong with one, the others are undone
                problems.append(printable_line(f"{path}: {error or type(error).__name__}"))
        return problems

    def remove(self) -> None:
        """Remove the folder if no record is left in it, and the root if no run is left.

        Only what runs put there is removed.
        """
        with contextlib.suppress(OSError):
            if not list(self.folder.glob("[0-9]*.json")):
                # The lock last: until then nobody else is at it.
                for path in sorted(self.folder.iterdir(), key=lambda p: p.name == LOCK):
                    if _OURS.fullmatch(path.name) and stat.S_ISREG(path.lstat().st_mode):
                        path.unlink()
                self.folder.rmdir()
        with contextlib.suppress(OSError):
            self.folder.parent.rmdir()


_OURS = re.compile(r"cleanup\.lock|owner\.json|settings|\.(owner|\d{20}-\d+)\.json\.\d+")
