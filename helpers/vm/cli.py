# SPDX-License-Identifier: MIT
"""The command line: ours first, pytest's behind it."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from helpers.vm.apt import MIRROR
from helpers.vm.errors import VmError
from helpers.vm.rootfs import USERLANDS

SUITE = Path(__file__).resolve().parents[2]
"""The checkout that this file belongs to."""

DESCRIPTION = """\
Run the suite on another kernel, in QEMU. KERNEL is a vmlinuz or bzImage, a build tree, a folder
with an unpacked kernel package, or a name such as debian:trixie or debian:sid/arm64-16k (--list).
Our options and kernels come first; everything from the first word that is neither goes to pytest
(or put -- between). Several kernels run one after the other and end in a comparison."""

EXIT = """\
exit code: pytest's own (0 nothing failed, 1 something did, …); 4 if nothing could be started, one
line says why; 70 if a guest panicked, hung, ran out of time or lost its pytest to a signal, or its
results could not be kept; 128+N if signal N ended us. With several kernels 70 comes first, then the
first code that is not 0. With --bisect: 0 verified, 1 failed or deviates, 125 anything else about
this kernel (did not boot, a case was not verified), 255 a command line that is wrong for each."""

RANGES: dict[str, tuple[float, float]] = {
    "cpus": (1, 64),
    "hugepages": (0, 1 << 20),
    "disk": (0, 1 << 20),
    "timeout": (1, 1e6),
    "boot_timeout": (1, 1e6),
}


class Parser(argparse.ArgumentParser):
    """Complains by :class:`Problem`."""

    def error(self, message: str) -> NoReturn:
        """Raise the message as one line."""
        raise VmError(f"{message} (--help says more)")


def parser() -> tuple[Parser, dict[str, bool]]:
    """Give the parser, and our option names with whether a value follows."""
    made = Parser(
        prog="python -m helpers.vm",
        usage="%(prog)s [options] KERNEL... [pytest options]",
        description=DESCRIPTION,
        epilog=EXIT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "memlock-tests"
    made.add_argument("kernels", nargs="*", metavar="KERNEL")
    guest = made.add_argument_group("the guest")
    run = made.add_argument_group("the run")
    actions = [
        guest.add_argument("--cgroup", choices=("v1", "v2"), default="v2", help="default: v2"),
        guest.add_argument("--cpus", type=int, default=1, metavar="N", help="default: 1"),
        guest.add_argument("--numa", action="store_true", help="two NUMA nodes"),
        guest.add_argument(
            "--hugepages", type=int, metavar="N",
            help="huge pages reserved at boot; default: 8 once booted, at most 64 MiB",
        ),
        guest.add_argument("--append", default="", metavar="PARAMS", help="kernel parameters"),
        guest.add_argument("--memory", metavar="SIZE", help="default: 1G, ppc64el 2G"),
        guest.add_argument("--swap", choices=("zram", "none"), default="zram"),
        guest.add_argument(
            "--disk", type=int, default=256, metavar="MIB",
            help="ext4 on a ramdisk at /var/tmp, 0 for none; default: 256",
        ),
        guest.add_argument(
            "--as", dest="user", choices=("root", "nobody"), default="root",
            help="who runs pytest; default: root",
        ),
        guest.add_argument(
            "--drop-cap", default="", metavar="CAP,…", help="capabilities pytest shall not have"
        ),
        guest.add_argument(
            "--userland", choices=USERLANDS, default=USERLANDS[0],
            help="Debian release of the guest's Python and pytest; default: bookworm",
        ),
        guest.add_argument(
            "--virtme", action="store_true",
            help="boot with virtme-ng on the files of this host instead (needs vng and 9p)",
        ),
        run.add_argument("--list", action="store_true", help="print the names of kernels, stop"),
        run.add_argument("--fetch-only", action="store_true", help="fill the cache and stop"),
        run.add_argument(
            "--refresh", action="store_true", help="fetch again what is in the cache"
        ),
        run.add_argument(
            "--bisect", action="store_true",
            help="judge one KERNEL by the cases named, for git bisect run",
        ),
        run.add_argument(
            "--timeout", type=float, default=1800, metavar="S",
            help="for a guest, from start to end; default: 1800",
        ),
        run.add_argument(
            "--boot-timeout", type=float, default=180, metavar="S",
            help="for the way to /init; default: 180",
        ),
        run.add_argument(
            "--accel", choices=("auto", "tcg", "kvm"), default="auto",
            help="auto takes KVM where a trial boot shows that it works",
        ),
        run.add_argument(
            "--out", type=Path, metavar="DIR",
            help="where results go, a folder for each kernel; default: results in the cache",
        ),
        run.add_argument(
            "--cache", type=Path, metavar="DIR", default=cache, help=f"default: {cache}"
        ),
        run.add_argument(
            "--mirror", default=os.environ.get("MEMLOCK_MIRROR", MIRROR), metavar="URL",
            help=f"default: {MIRROR}",
        ),
        run.add_argument(
            "--suite", type=Path, default=SUITE, metavar="DIR",
            help="the checkout to run; default: the one this program is part of",
        ),
    ]  # fmt: skip
    names = {name: action.nargs != 0 for action in actions for name in action.option_strings}
    return made, names | {"-h": False, "--help": False}


def split(
    words: Sequence[str], names: dict[str, bool], suite: Path
) -> tuple[list[str], tuple[str, ...]]:
    """Part our words from pytest's. Raises :class:`Problem` if one of ours comes too late."""
    position = 0
    while position < len(words):
        word = words[position]
        if word == "--":
            return list(words[:position]), tuple(words[position + 1 :])
        name, joined, _ = word.partition("=")
        if name in names:
            position += 1 + (names[name] and not joined)
        elif word.startswith("-") or is_case(word, suite):
            break
        else:
            position += 1
    theirs = words[position:]
    if "--" in theirs:
        cut = theirs.index("--")
        theirs = [*theirs[:cut], *theirs[cut + 1 :]]
    else:
        for late in theirs[1:]:
            if late.partition("=")[0] in names or re.fullmatch(r"debian:\S+", late):
                raise VmError(
                    f"{late} belongs before {theirs[0]} (or behind -- if it is meant for pytest)"
                )
    return list(words[:position]), tuple(theirs)


def is_case(word: str, suite: Path) -> bool:
    """Say if a word names cases of the suite: tests/fork, tests/fork/FILE::CASE."""
    path = word.partition("::")[0]
    return path.split("/")[0] == "tests" and (suite / path).exists()


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, tuple[str, ...]]:
    """Give our options and the words for pytest. Raises :class:`Problem`."""
    made, names = parser()
    ours, theirs = split(arguments, names, SUITE)
    for word in ours:
        name, joined, value = word.partition("=")
        if not word or (joined and not value and name in names):
            raise VmError(f"{name or 'a word'} has no value (an unset variable?)")
    options = made.parse_args(ours)
    if not options.mirror:
        raise VmError("MEMLOCK_MIRROR has no value; give it one or unset it")
    if not options.kernels and not options.list:
        raise VmError(
            "no KERNEL given: a path, a folder or a name such as debian:trixie, before pytest's "
            "options (--help says more)"
        )
    if options.bisect and (len(options.kernels) != 1 or not theirs):
        raise VmError("--bisect wants one KERNEL and the ids of cases behind it")
    for name, (low, high) in RANGES.items():
        value = getattr(options, name)
        if value is not None and not low <= value <= high:
            made.error(f"--{name.replace('_', '-')}: from {low:g} to {high:g}")
    if not options.suite.is_dir():
        raise VmError(f"--suite {options.suite}: no such folder")
    return options, theirs
