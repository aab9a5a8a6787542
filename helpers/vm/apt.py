# SPDX-License-Identifier: MIT
"""Debian's packages, by an apt that leaves the host's own alone."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from helpers.vm.cache import Cache
from helpers.vm.errors import VmError

MIRROR = "http://deb.debian.org/debian"


@dataclass
class PackageCache:
    """Where packages come from and where their contents are kept."""

    cache: Cache
    mirror: str = MIRROR
    refresh: bool = False
    fresh: set[Path] = field(default_factory=set)

    def stale(self, kept: Path, sign: str) -> bool:
        """Say if what is kept must be fetched: this file is not there, or refresh is asked for."""
        return not (kept / sign).exists() or (self.refresh and kept not in self.fresh)


class Apt:
    """Debian's archive, seen through an apt whose whole state is in a folder of ours."""

    KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"

    def __init__(self, folder: Path, suite: str, arch: str, mirror: str) -> None:
        for tool, package in (("apt-get", "apt"), ("dpkg", "dpkg")):
            if not shutil.which(tool):
                raise VmError(
                    f"{tool} is not there, and kernels and userland come as Debian packages: "
                    f"install {package}"
                )
        if not os.path.exists(self.KEYRING):
            raise VmError(f"{self.KEYRING} is not there: apt install debian-archive-keyring")
        self.what = f"{suite}/{arch}"
        self._mirror = mirror
        self._folder = folder
        for name in ("lists/partial", "cache/archives/partial", "etc"):
            (folder / name).mkdir(parents=True)
        (folder / "status").touch()
        (folder / "etc/sources.list").write_text(
            f"deb [arch={arch} signed-by={self.KEYRING}] {mirror} {suite} main\n"
        )
        settings = {
            "Dir::Etc": folder / "etc",
            "Dir::Etc::sourcelist": folder / "etc/sources.list",
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::Etc::parts": "/dev/null",
            "Dir::Etc::main": "/dev/null",
            "Dir::Etc::preferences": "/dev/null",
            "Dir::Etc::preferencesparts": "/dev/null",
            "Dir::State": folder,
            "Dir::State::lists": folder / "lists",
            "Dir::State::status": folder / "status",
            "Dir::Cache": folder / "cache",
            "APT::Architecture": arch,
            "APT::Architectures": arch,
            "APT::Sandbox::User": "root",
            "APT::Update::Error-Mode": "any",
            "APT::Install-Recommends": "false",
            "Acquire::Languages": "none",
            "Acquire::Retries": "2",
            "Acquire::http::Timeout": "30",
        }
        # The host's way to the network (proxies, certificates) holds for us too; its hooks do not.
        inherited = subprocess.run(
            ["apt-config", "dump"], capture_output=True, text=True, check=False
        ).stdout
        wanted = [
            line
            for line in inherited.splitlines()
            if re.match(r"Acquire::(https?|Check|Max-ValidTime|Min-ValidTime)", line)
            and '""' not in line
        ]
        lines = wanted + [f'{name} "{value}";' for name, value in settings.items()]
        self._config = folder / "apt.conf"
        self._config.write_text("\n".join(lines) + "\n")
        self._run("apt-get", "-qq", "update")

    def _run(self, *command: str, cwd: Path | None = None) -> str:
        environment = {**os.environ, "APT_CONFIG": str(self._config), "LC_ALL": "C"}
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=environment, cwd=cwd
        )
        if done.returncode:
            said = re.findall(r"^E: .*", done.stderr, re.MULTILINE) or [done.stderr.strip()]
            if command[0] == "apt-cache":
                raise VmError(
                    f"{self.what} has no package {command[-1]}: "
                    "name another suite or flavour (--list shows them)"
                )
            raise VmError(
                f"cannot fetch {self.what} from {self._mirror} ({said[0][:200]}): "
                "check the network, or name a mirror with --mirror URL"
            )
        return done.stdout

    def field(self, package: str, name: str) -> str:
        """Give one field of the newest version of a package, empty if it has none."""
        shown = self._run("apt-cache", "show", "--no-all-versions", package)
        found = re.search(rf"^{name}: (.*)$", shown, re.MULTILINE)
        return found[1] if found else ""

    def closure(self, packages: Sequence[str]) -> list[str]:
        """Name the packages that apt would install for these on an empty system."""
        shown = self._run("apt-get", "-s", "install", *packages)
        return re.findall(r"^Inst (\S+)", shown, re.MULTILINE)

    def kernel_packages(self, meta: str) -> list[str]:
        """Name the packages with the kernel behind a meta package such as linux-image-amd64."""
        found: list[str] = []
        todo = [meta]
        while todo:
            package = todo.pop()
            found.append(package)
            depends = re.findall(
                r"linux-(?:image|binary|modules|base)-[^\s,|]*\d[^\s,|]*",
                self.field(package, "Depends"),
            )
            todo += [name for name in depends if name not in found and name not in todo]
        return found[1:]

    def unpack(self, packages: Sequence[str], target: Path) -> None:
        """Download packages and unpack them into a folder."""
        debs = self._folder / "debs"
        debs.mkdir(exist_ok=True)
        target.mkdir(parents=True, exist_ok=True)
        self._run("apt-get", "-qq", "download", *packages, cwd=debs)
        for deb in sorted(debs.iterdir()):
            done = subprocess.run(
                ["dpkg", "-x", deb, target], capture_output=True, text=True, check=False
            )
            if done.returncode:
                said = done.stderr.strip().splitlines() or ["no reason given"]
                raise VmError(f"{deb.name} cannot be unpacked: {said[-1]}")
            deb.unlink()
