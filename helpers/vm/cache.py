# SPDX-License-Identifier: MIT
"""The folder where packages' contents are kept, so that a second run fetches nothing."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from helpers.vm.errors import VmError

LAYOUT = "2"
"""Goes up when what is kept in the cache changes its meaning."""


class Cache:
    """The folder where packages' contents are kept; one process at a time changes it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        try:
            root.mkdir(parents=True, exist_ok=True)
            (root / "tmp").mkdir(exist_ok=True)
        except OSError as error:
            raise VmError(
                f"the cache {root} cannot be made ({error.strerror}): give another one with --cache"
            ) from error
        self._sweep()

    def _sweep(self) -> None:
        """Remove what a killed run left: a folder whose lock nobody holds."""
        for lock in (self.root / "tmp").glob("*.lock"):
            with contextlib.suppress(OSError), lock.open("rb") as handle:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
                lock.unlink()

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """Give a temporary folder, removed at the end, or by the next run if this one is killed."""
        folder = Path(tempfile.mkdtemp(prefix="run-", dir=self.root / "tmp"))
        lock = folder.with_suffix(".lock")
        with lock.open("wb") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)
                lock.unlink(missing_ok=True)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the cache while something is fetched into it."""
        with (self.root / "lock").open("wb") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def room(self, mebibytes: int) -> None:
        """Refuse if the file system has not that much space left."""
        free = shutil.disk_usage(self.root).free >> 20
        if free < mebibytes:
            raise VmError(
                f"{self.root} needs {mebibytes} MiB of space and has {free}: "
                "make room or give --cache DIR"
            )
