# SPDX-License-Identifier: MIT
"""The process that waits for a run's end and undoes what is left."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import select
import signal
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from helpers.machine import timeouts
from helpers.machine.journal import ChangeJournal, state_root
from helpers.machine.records import (
    LOCK,
    NAME,
    OWNER,
    RELEASE_TIMEOUT,
    RUN_NAME,
    boot_id,
    is_running,
    not_private,
    printable_line,
    read_file,
)

_ATTEMPTS = 20


def stale_runs(problems: list[str]) -> Iterator[ChangeJournal]:
    """Runs whose owner and cleanup process are gone, each held against other cleaners while it is
    handled. What carries a run's name and is not a run's folder goes to ``problems``."""
    try:
        folders = sorted(state_root().iterdir())
    except OSError:
        return  # whoever needs it is told why
    for folder in folders:
        if not RUN_NAME.fullmatch(folder.name.removeprefix(".")):
            continue
        try:
            if why := not_private(folder):
                raise ValueError(f"{why}; left alone")
            if _owner_lives(folder):
                continue
            with _claim(folder) as claimed:
                if claimed and not _owner_lives(folder):
                    yield ChangeJournal(folder)
        except FileNotFoundError:
            continue  # it was just being removed
        except (OSError, ValueError) as error:
            problems.append(
                printable_line(f"{folder}: {getattr(error, 'strerror', None) or error}")
            )


def _owner_lives(folder: Path) -> bool:
    try:
        owner = read_file(folder / OWNER)
    except FileNotFoundError:
        # A draft without an owner is either a moment old or was killed in that moment.
        return folder.name.startswith(".") and time.time() - folder.stat().st_mtime < 60
    except (OSError, ValueError) as error:
        raise ValueError(f"{OWNER}: {error}") from None
    pid, started = owner.get("pid"), owner.get("started")
    if type(pid) is not int or type(started) is not int or "boot" not in owner:
        raise ValueError(f"{OWNER} is of another version of the suite; left alone")
    return owner["boot"] == boot_id() and 0 < pid < 1 << 31 and is_running(pid, started)


@contextmanager
def _claim(folder: Path) -> Iterator[bool]:
    """Hold a run's lock for the block: False where another cleaner does."""
    path = folder / LOCK
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


def undo_stale_runs() -> tuple[int, list[str]]:
    """Undo what dead runs left: how many runs, and a line for each folder with a rest."""
    problems: list[str] = []
    number = 0
    for run in stale_runs(problems):
        number += 1
        left = run.undo()
        run.remove()
        if left:
            more = f" (and {len(left) - 1} more in this folder)" if len(left) > 1 else ""
            problems.append(left[0] + more)
        elif run.folder.exists():
            problems.append(f"{run.folder} holds what is not ours; left alone")
    return number, problems


def _begin(pid: int, started: int) -> tuple[ChangeJournal, int]:
    """A new run and the descriptor that holds its lock. Raises OSError."""
    # It gets its name with its owner and its lock already in it: another run must never see a
    # folder without them and take it for stale. That other run may also just be removing the root.
    name = f"{NAME}-{secrets.token_hex(8)}"
    for attempt in range(_ATTEMPTS):
        draft = ChangeJournal(state_root() / f".{name}")
        lock = -1
        try:
            draft.folder.mkdir(mode=0o700)
            lock = os.open(draft.folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            fcntl.flock(lock, fcntl.LOCK_EX)
            draft._write(OWNER, {"boot": boot_id(), "pid": pid, "started": started})
            return ChangeJournal(draft.folder.rename(draft.folder.with_name(name))), lock
        except OSError as error:
            draft.remove()
            if lock >= 0:
                os.close(lock)
            if not isinstance(error, FileNotFoundError) or attempt == _ATTEMPTS - 1:
                raise
    raise AssertionError("not reached")


def main(pid: int, started: int) -> int:
    """The cleanup process: wait for the owner's end, then undo. SIGKILL: it did it itself."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    try:
        run, lock = _begin(pid, started)
    except OSError as error:
        print(printable_line(f"no records can be kept: {error.strerror or error}"))
        return 1
    try:
        watch: int | None = os.pidfd_open(pid)
    except OSError:
        watch = None
    with contextlib.suppress(BrokenPipeError):
        print(run.folder, flush=True)
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115

    if watch is not None and is_running(pid, started):
        select.select([watch], [], [])
    while is_running(pid, started):
        time.sleep(0.1)
    problems = ["start"]
    until = timeouts.until(RELEASE_TIMEOUT)
    while problems and time.monotonic() < until:
        problems = run.undo()
        if problems:
            time.sleep(0.2)
    run.remove()
    os.close(lock)
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
