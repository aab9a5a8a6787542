# SPDX-License-Identifier: MIT
"""``python -m helpers.vm KERNEL [pytest options]``: the suite on another kernel, in QEMU."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import errno
import functools
import signal
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from helpers import processes
from helpers.machine import timeouts
from helpers.report import compare
from helpers.report.files import InvalidResult
from helpers.report.result import load
from helpers.vm import bisect, virtme
from helpers.vm.apt import PackageCache
from helpers.vm.cache import Cache
from helpers.vm.cli import parse
from helpers.vm.config import GuestConfig, capability_numbers, parse_size
from helpers.vm.errors import VmError, status
from helpers.vm.guest_exit import BROKEN, Outcome, report
from helpers.vm.kernels import FLAVOURS, SUITES, Kernel, prepare_kernel
from helpers.vm.rootfs import ensure_rootfs
from helpers.vm.run import claimed, require_qemu, run

USAGE = 4
BISECT_WORDS = {bisect.GOOD: "good", bisect.BAD: "bad", bisect.SKIP: "cannot be judged"}
Job = Callable[[Path], Outcome]


def config_from_args(options: argparse.Namespace, theirs: tuple[str, ...]) -> GuestConfig:
    """What the command line asks of a guest. Raises :class:`Problem`."""
    if options.memory:
        parse_size(options.memory)
    try:
        longer = timeouts.scaled(1)
    except ValueError as error:
        raise VmError(f"{timeouts.VARIABLE}: {error}") from None
    return GuestConfig(
        suite=options.suite.resolve(),
        pytest=theirs,
        userland=options.userland,
        cgroup=options.cgroup,
        swap=options.swap,
        disk=options.disk,
        cpus=options.cpus,
        numa=options.numa,
        hugepages=options.hugepages,
        append=options.append,
        memory=options.memory,
        timeout=options.timeout * longer,
        boot_timeout=min(options.boot_timeout, options.timeout) * longer,
        user="" if options.user == "root" else options.user,
        drop=capability_numbers(filter(None, options.drop_cap.split(","))),
        accel=options.accel,
    )


def jobs(
    names: Sequence[str],
    config: GuestConfig,
    source: PackageCache,
    options: argparse.Namespace,
    scratch: Path,
) -> list[tuple[str, Job]]:
    """Make every kernel ready before the first boots: what is missing is told at once."""
    if options.virtme:
        trees = [virtme.tree(name, source) for name in names]
        return [(t.label, functools.partial(virtme.run, t, config)) for t in trees]
    kernels = [prepare_kernel(name, source, Path(tempfile.mkdtemp(dir=scratch))) for name in names]
    for kernel in kernels:
        if not options.fetch_only:
            require_qemu(kernel.arch)
        ensure_rootfs(config.userland, kernel.arch, source)
    return [(k.label, functools.partial(verify, k, config, source)) for k in kernels]


def verify(kernel: Kernel, config: GuestConfig, source: PackageCache, out: Path) -> Outcome:
    """Run the suite on a kernel; once more if the guest broke before pytest had begun.

    Emulation loses a boot now and then, and some kernels do not take the short way in.
    """
    outcome = run(kernel, config, source, out)
    if outcome.code == BROKEN and "pytest" not in outcome.marks and kernel.unpacked:
        status(f"{kernel.label}: {outcome.verdict}; trying its bzImage")
        outcome = run(dataclasses.replace(kernel, unpacked=None), config, source, out)
    return outcome


def main(arguments: Sequence[str]) -> int:
    """Run the suite on each kernel, one after the other. Raises :class:`Problem`."""
    try:
        options, theirs = parse(arguments)
        config = config_from_args(options, theirs)
    except VmError as problem:
        problem.everywhere = True
        raise
    processes.default_signals(keep_job_control=True)
    if options.list:
        print("\n".join(f"debian:{suite}/{flavour}" for suite in SUITES for flavour in FLAVOURS))
        return 0
    source = PackageCache(
        Cache(options.cache.expanduser().absolute()), options.mirror, options.refresh
    )
    with source.cache.scratch() as scratch:
        todo = jobs(options.kernels, config, source, options, scratch)
        if options.fetch_only:
            return 0
        results = (options.out or source.cache.root / "results").absolute()
        outcomes = []
        folders = []
        for number, (label, _) in enumerate(todo):
            earlier = sum(label == before for before, _ in todo[:number])
            folders.append(results / (f"{label}-{earlier + 1}" if earlier else label))
        with contextlib.ExitStack() as stack:
            for folder in folders:
                stack.enter_context(claimed(folder))
            for number, ((label, job), folder) in enumerate(zip(todo, folders, strict=True), 1):
                status(f"{label} ({number} of {len(todo)}) ...")
                outcomes.append(job(folder))
                report(outcomes[-1])
    if options.bisect:
        return bisected(*bisect.judge(outcomes[0]))
    if len(outcomes) > 1:
        comparison(outcomes)
    codes = [outcome.code for outcome in outcomes]
    return BROKEN if BROKEN in codes else next((code for code in codes if code), 0)


def bisected(code: int, why: str) -> int:
    """Say what git is told."""
    status(f"bisect: {code} ({BISECT_WORDS.get(code, 'the bisection ends')}): {why}")
    return code


def comparison(outcomes: Iterable[Outcome]) -> None:
    """Say what differs between the kernels that came to a result."""
    matrix = compare.Matrix()
    for outcome in outcomes:
        try:
            matrix.add(load(outcome.folder or Path()))
        except InvalidResult as error:
            status(f"{outcome.label}: left out of the comparison: {error}")
        except ModuleNotFoundError as error:
            return status(f"no comparison: needs {error.name}: pip install {error.name}")
    if len(matrix.columns) == 2:
        print(f"\n{compare.text(compare.compare_pair(matrix))}")
    elif len(matrix.columns) > 2:
        print(f"\n{matrix.text()}\n\n{matrix.markdown()}")
    return None


class Interrupted(BaseException):
    """A signal asks us to end; everything is cleaned up on the way out."""

    def __init__(self, number: int) -> None:
        self.number = number


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def stop(number: int, _frame: FrameType | None) -> NoReturn:
    """Handle a signal; only the first one, so that the clean-up is not disturbed."""
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    raise Interrupted(number)


def command() -> int:
    """Run main and turn what it raises into one line and an exit code."""
    for number in SIGNALS:
        signal.signal(number, stop)
    try:
        return main(sys.argv[1:])
    except VmError as problem:
        if "--bisect" in sys.argv:
            return bisected(bisect.END if problem.everywhere else bisect.SKIP, str(problem))
        status(str(problem))
    except Interrupted as stopped:
        status(f"stopped by {signal.Signals(stopped.number).name}")
        return 128 + stopped.number
    except OSError as error:
        hint = ": make room or give --cache DIR" if error.errno == errno.ENOSPC else ""
        status(f"{error.filename or 'vm'}: {error.strerror}{hint}")
    return USAGE


if __name__ == "__main__":
    sys.exit(command())
