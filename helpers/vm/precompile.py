# SPDX-License-Identifier: MIT
"""The suite, compiled on the host by the guest's own Python and pytest."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import struct
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from helpers.vm.apt import PackageCache
from helpers.vm.architectures import HOST
from helpers.vm.cache import LAYOUT, Cache
from helpers.vm.initramfs import Cpio
from helpers.vm.rootfs import INSIDE, compiler_root, host_python


class PycCache:
    """Compiled forms of the suite's modules, kept by content: guests take many times longer.

    Where it cannot be done (a cache on a file system without exec, another pytest), nothing is
    added and the guest compiles for itself.
    """

    DAYS = 14

    def __init__(self, cache: Cache, userland: str, root: Path) -> None:
        self._folder = cache.root / f"bytecode-{LAYOUT}" / userland
        self._userland = userland
        self._root = root
        self._tags: tuple[bytes, str, str] | None = None

    def prepare(self, files: Mapping[str, Path]) -> None:
        """Compile what is not there yet; files are named by their path in the guest."""
        self._folder.mkdir(parents=True, exist_ok=True)
        old = time.time() - self.DAYS * 86400
        for path in self._folder.iterdir():
            if path.name != "tags" and path.stat().st_mtime < old:
                path.unlink(missing_ok=True)
        todo = [(self._key(name, path.read_bytes()), path, name) for name, path in files.items()]
        todo = [entry for entry in todo if not (self._folder / entry[0]).exists()]
        if todo or not (self._folder / "tags").exists():
            command, environment = host_python(self._userland, self._root)
            lines = "".join(f"{key}\t{path}\t{name}\n" for key, path, name in todo)
            with contextlib.suppress(OSError):
                subprocess.run(
                    [*command, INSIDE / "compiler.py"],
                    input=lines,
                    text=True,
                    env=environment,
                    cwd=self._folder,
                    capture_output=True,
                    check=False,
                )
        with contextlib.suppress(OSError, ValueError):
            magic, plain, rewritten = json.loads((self._folder / "tags").read_text())
            self._tags = (bytes.fromhex(magic), plain, rewritten)

    @staticmethod
    def _key(name: str, source: bytes) -> str:
        return hashlib.sha256(name.encode() + b"\0" + source).hexdigest()[:32]

    def add(self, cpio: Cpio, name: str, path: Path) -> None:
        """Put the compiled forms of a module beside it."""
        source = path.read_bytes()
        kept = self._folder / self._key(name, source)
        if not self._tags or not kept.exists():
            return
        os.utime(kept)
        rewritten = kept.with_suffix(".rewritten")
        os.utime(rewritten)
        magic, plain_tag, pytest_tag = self._tags
        stem = f"{os.path.dirname(name)}/__pycache__/{Path(name).stem}".lstrip("/")
        cpio.file(f"{stem}.{plain_tag}.pyc", magic + struct.pack("<LQ", 1, 0) + kept.read_bytes())
        head = magic + struct.pack(
            "<LLL", 0, int(path.stat().st_mtime) & 0xFFFFFFFF, len(source) & 0xFFFFFFFF
        )
        cpio.file(f"{stem}.{pytest_tag}.pyc", head + rewritten.read_bytes())


def pyc_cache(suite: str, source: PackageCache) -> PycCache | None:
    """Give what compiles the suite for guests of a Debian release, where that runs on this host."""
    return PycCache(source.cache, suite, compiler_root(suite, source)) if HOST else None
