# SPDX-License-Identifier: MIT
"""The last archive of a guest: the checkout, and what this run asks for."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from helpers.machine import timeouts
from helpers.vm.config import GuestConfig
from helpers.vm.initramfs import Cpio
from helpers.vm.kernels import Kernel
from helpers.vm.precompile import PycCache
from helpers.vm.rootfs import INSIDE

LITTER = {
    ".git", ".tox", ".venv", "venv", "__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache",
}  # fmt: skip
SWAP_SIZE = 512 << 20
EMULATED = 4
"""What a guest without KVM multiplies its timeouts by: emulation is ten times as slow, and
time at work is not counted."""


def thorough_options(results: str, files: str) -> list[str]:
    """Options by which pytest verifies most in a machine that is thrown away.

    With "=": pytest takes the words behind unknown options for paths until it has read
    conftest.py.
    """
    return [
        f"--report={results}",
        f"--junitxml={results}/junit.xml",
        "--allow-sysctl",
        f"--file-dir={files}",
    ]


def multiplier(accel: str) -> str:
    """The guest's setting of :data:`helpers.machine.timeouts.VARIABLE`: more if emulated."""
    return f"{min(1e6, timeouts.scaled(1 if accel == 'kvm' else EMULATED)):g}"


def suite_files(suite: Path) -> Iterator[str]:
    """Name the files of a checkout: what git knows or would, or all but the litter."""
    done = None
    if (suite / ".git").exists() and shutil.which("git"):
        trust = f"safe.directory={suite}"
        command = ["git", "-c", trust, "-C", str(suite), "ls-files", "-zco", "--exclude-standard"]
        done = subprocess.run(command, capture_output=True, check=False)
    if done and done.returncode == 0:
        for name in dict.fromkeys(os.fsdecode(done.stdout).split("\0")):
            if name and os.path.lexists(suite / name):
                yield name
        return
    for base, folders, names in os.walk(suite):
        folders[:] = sorted(set(folders) - LITTER)
        for name in sorted(names):
            yield os.path.relpath(os.path.join(base, name), suite)


def write_suite(
    config: GuestConfig,
    kernel: Kernel,
    target: IO[bytes],
    code: PycCache | None,
    accel: str = "tcg",
) -> None:
    """Append the last archive: the suite and what this run asks of the guest."""
    colour = sys.stdout.isatty()
    command = ["python3", "-m", "pytest", "-p", "memlock_guest"]
    command += [*thorough_options("/results", "/var/tmp"), *config.pytest]
    if config.user or config.drop:
        drop = ",".join(map(str, config.drop))
        command = ["python3", "-S", "/vm/launcher.py", config.user, drop, *command]
    settings: dict[str, object] = {
        "VM_CGROUP": config.cgroup,
        "VM_SWAP": config.swap,
        "VM_SWAP_SIZE": SWAP_SIZE,
        "VM_DISK": config.disk,
        "VM_FILES": "/var/tmp",
        "VM_HUGEPAGES": "" if config.hugepages is None else config.hugepages,
        "VM_PORT": kernel.arch.results,
        "VM_AS": config.user,
        "VM_TTY": "1" if colour else "",
    }
    exports = {
        "COLUMNS": str(shutil.get_terminal_size((120, 40)).columns),
        timeouts.VARIABLE: multiplier(accel),
        "TERM": os.environ.get("TERM", "dumb") if colour else "dumb",
    }
    lines = [f"{name}={shlex.quote(str(value))}" for name, value in settings.items()]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in exports.items()]
    names = list(suite_files(config.suite))
    if code:
        code.prepare(
            {
                f"/suite/{name}": config.suite / name
                for name in names
                if name.endswith(".py") and "\n" not in name and "\t" not in name
            }
        )
    with Cpio(target) as cpio:
        cpio.file("vm/init", (INSIDE / "init").read_bytes(), 0o755)
        cpio.file("vm/setup", (INSIDE / "setup").read_bytes())
        cpio.file("vm/launcher.py", (INSIDE / "launcher.py").read_bytes())
        cpio.file("vm/config", ("\n".join(lines) + "\n").encode())
        cpio.file("vm/command", f"exec {shlex.join(command)}\n".encode())
        cpio.folder("suite")
        for name in names:
            cpio.copy(config.suite / name, f"suite/{name}")
            if code and name.endswith(".py"):
                code.add(cpio, f"/suite/{name}", config.suite / name)
