# SPDX-License-Identifier: MIT
"""What a guest runs on: busybox, Python and pytest, from packages of a Debian release."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from helpers.vm.apt import Apt, PackageCache
from helpers.vm.architectures import ARCHES, HOST, Arch
from helpers.vm.cache import LAYOUT
from helpers.vm.errors import status
from helpers.vm.initramfs import Cpio

INSIDE = Path(__file__).parent / "guest"
"""Files that run in the guest."""


USERLANDS = ("bookworm", "trixie")
USERLAND_PACKAGES = (
    "busybox-static",
    "python3",
    "python3-pytest",
    "python3-pytest-forked",
    "python3-pytest-xdist",
    "python3-psutil",
)
# Dependencies that only a package manager or a person at a prompt needs.
NOT_IN_GUEST = frozenset(
    {"dpkg", "tar", "debconf", "media-types", "readline-common", "netbase", "tzdata"}
)
NOT_IN_GUEST_PATHS = re.compile(
    r"usr/share/|usr/lib/systemd/|usr/include/|etc/|var/|usr/lib/[^/]*/(gconv|perl|ossl-modules|engines)"
    r"|usr/lib/python3\.\d+/(test|idlelib|tkinter|lib2to3|ensurepip|pydoc_data|turtledemo|config-)"
    r"|usr/lib/python3/dist-packages/[^/]*/(tests?|testing)/"
)
APPLETS = (
    "ash", "awk", "base64", "basename", "cat", "chmod", "chown", "chroot", "clear", "cmp", "cp",
    "cut", "date", "dd", "df", "diff", "dirname", "dmesg", "du", "echo", "env", "expr", "false",
    "find", "free", "fuser", "getopt", "grep", "gunzip", "gzip", "head", "hexdump", "hostname",
    "id", "ifconfig", "insmod", "ip", "kill", "killall", "ln", "ls", "lsmod", "losetup",
    "md5sum", "mkdir", "mke2fs", "mkfifo", "mknod", "mkswap", "mktemp", "modprobe", "more",
    "mount", "mountpoint", "mv", "nproc", "od", "pidof", "pgrep", "pkill", "pmap", "poweroff",
    "printf", "ps", "pwd", "readlink", "realpath", "reboot", "rm", "rmdir", "rmmod", "sed",
    "seq", "setsid", "sh", "sha256sum", "sleep", "sort", "stat", "stty", "swapoff", "swapon",
    "sync", "sysctl", "tail", "tar", "tee", "test", "time", "timeout", "top", "touch", "tr",
    "true", "truncate", "umount", "uname", "uniq", "unshare", "uptime", "usleep", "vi", "wc",
    "which", "xargs", "xxd", "yes", "zcat",
)  # fmt: skip


def ensure_rootfs(suite: str, arch: Arch, source: PackageCache) -> Path:
    """Give the folder with base.cpio of a guest, made once from the packages of a release.

    Raises :class:`Problem`.
    """
    folder = source.cache.root / f"userland-{LAYOUT}"
    with source.cache.lock():
        # The host's own one compiles for all.
        for debian in dict.fromkeys([HOST or arch.debian, arch.debian]):
            kept = folder / f"{suite}-{debian}"
            if source.stale(kept, "base.cpio"):
                source.fresh.add(kept)
                _make(suite, ARCHES[debian], source, kept, compiler_root(suite, source))
    return folder / f"{suite}-{arch.debian}"


def compiler_root(suite: str, source: PackageCache) -> Path:
    """Where the userland lies whose Python runs on this host."""
    return source.cache.root / f"userland-{LAYOUT}" / f"{suite}-{HOST}" / "root"


def _make(suite: str, arch: Arch, source: PackageCache, kept: Path, compiler: Path) -> None:
    status(f"fetching the guest's userland ({suite}, {arch.debian}) ...")
    source.cache.room(1024)
    with source.cache.scratch() as scratch:
        apt = Apt(scratch / "apt", suite, arch.debian, source.mirror)
        packages = [
            name
            for name in apt.closure(USERLAND_PACKAGES)
            if name not in NOT_IN_GUEST and "-base" not in name
        ]
        root = scratch / "ready" / "root"
        apt.unpack(packages, root)
        merge_usr(root)
        prune(root)
        target = root / "usr/lib/python3/dist-packages/memlock_guest.py"
        shutil.copyfile(INSIDE / "memlock_guest.py", target)
        if HOST:
            compile_tree(suite, root, root if arch.debian == HOST else compiler)
        with (root.parent / "base.cpio").open("wb") as stream, Cpio(stream) as cpio:
            write_base(cpio, root)
        if arch.debian != HOST:
            shutil.rmtree(root)
        shutil.rmtree(kept, ignore_errors=True)
        kept.parent.mkdir(exist_ok=True)
        root.parent.rename(kept)


def prune(root: Path) -> None:
    """Remove what no test needs, from the inside out."""
    for path in sorted(root.rglob("*"), reverse=True):
        folder = path.is_dir() and not path.is_symlink()
        if NOT_IN_GUEST_PATHS.match(f"{path.relative_to(root)}{'/' if folder else ''}"):
            if folder:
                path.rmdir()
            else:
                path.unlink()


def merge_usr(root: Path) -> None:
    """Move /bin, /sbin and /lib* below /usr, as on an installed system."""
    for name in ("bin", "sbin", "lib", "lib64"):
        old, new = root / name, root / "usr" / name
        new.mkdir(parents=True, exist_ok=True)
        if old.is_dir() and not old.is_symlink():
            shutil.copytree(old, new, symlinks=True, dirs_exist_ok=True)
            shutil.rmtree(old)
        if not old.is_symlink():
            old.symlink_to(f"usr/{name}")


PYTHON_OF = {"bookworm": (3, 11), "trixie": (3, 13)}


def host_python(suite: str, root: Path) -> tuple[list[str], dict[str, str]]:
    """Tell how to start, on this host, the Python of a userland of the host's own architecture.

    Byte code is the same on every architecture, so it compiles for all guests of that release.
    """
    arch = ARCHES[HOST]
    version = ".".join(map(str, PYTHON_OF[suite]))
    library = root / "usr/lib" / arch.triplet
    command = [
        str(root / arch.loader),
        "--library-path",
        str(library),
        str(root / f"usr/bin/python{version}"),
        "-S",
    ]
    environment = {
        "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
        "PYTHONHOME": str(root / "usr"),
        "PYTHONPATH": str(root / "usr/lib/python3/dist-packages"),
        "PYTHONUTF8": "1",
    }
    return command, environment


def compile_tree(suite: str, root: Path, compiler: Path) -> None:
    """Compile the guest's library, so that it need not do that itself, at every boot."""
    command, environment = host_python(suite, compiler)
    version = ".".join(map(str, PYTHON_OF[suite]))
    folders = [root / f"usr/lib/python{version}", root / "usr/lib/python3"]
    subprocess.run(
        [
            *command,
            "-m",
            "compileall",
            "-q",
            "--invalidation-mode",
            "unchecked-hash",
            "-s",
            str(root),
            "-p",
            "/",
            *map(str, folders),
        ],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
    )


def write_base(cpio: Cpio, root: Path) -> None:
    """Write the archive that every guest of an architecture has in common."""
    for name in (
        "dev",
        "proc",
        "sys",
        "tmp",
        "run",
        "root",
        "results",
        "suite",
        "etc",
        "var/tmp",
        "mnt",
        "vm",
        "boot",
    ):
        cpio.folder(name)
    cpio.device("dev/console", 5, 1)
    cpio.device("dev/null", 1, 3)
    cpio.file(
        "etc/passwd",
        b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/sh\n",
    )
    cpio.file("etc/group", b"root:x:0:\nnogroup:x:65534:\n")
    cpio.file("etc/hosts", b"127.0.0.1 localhost vm\n")
    cpio.file("etc/nsswitch.conf", b"passwd: files\ngroup: files\nhosts: files\n")
    cpio.link("etc/mtab", "/proc/self/mounts")
    cpio.link("init", "vm/init")
    there: set[str] = set()
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        there.add(name)
        if path.is_symlink() or path.is_file():
            cpio.copy(path, name)
        elif path.is_dir():
            cpio.folder(name)
    for applet in APPLETS:
        if f"usr/bin/{applet}" not in there:
            cpio.link(f"usr/bin/{applet}", "busybox")
    for applet in ("modprobe", "insmod", "reboot", "mkswap", "swapon", "swapoff"):
        cpio.link(f"usr/sbin/{applet}", "../bin/busybox")
