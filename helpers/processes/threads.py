# SPDX-License-Identifier: MIT
"""Threads that meet in the kernel: the same range, the same pages, calls at the same time.

ctypes gives up the interpreter's lock during a call, so calls of several threads do run, and
wait for each other, inside the kernel. What each thread does follows from the seed alone; how
they interleave does not, so a failure may want several runs with the seed it names.
"""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from helpers import syscalls
from helpers.memory import Region, mapping
from helpers.observe import lock_accounting, maps, pagemap, status
from helpers.processes.cpus import keep_to_cpu

ThreadBody = Callable[[random.Random], object]


def run_threads(
    workers: Sequence[ThreadBody], rounds: int, seed: int, pinned: bool = False
) -> None:
    """Each worker in a thread of its own, ``rounds`` times, all from one barrier on.

    ``pinned``: each thread keeps to one CPU, so that a call's work is in one CPU's batches.
    Raises the first exception of a worker, once all have ended.
    """
    barrier = threading.Barrier(len(workers))
    failures: list[BaseException] = []

    def work(index: int, worker: ThreadBody) -> None:
        rng = random.Random(f"{seed}:{index}")
        try:
            if pinned:
                keep_to_cpu(index)
            barrier.wait()
            for _ in range(rounds):
                worker(rng)
        except BaseException as error:
            failures.append(error)

    saved = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=work, args=pair) for pair in enumerate(workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(saved)
    if failures:
        raise failures[0]


def random_part(region: Region, rng: random.Random) -> tuple[int, int]:
    """Address and length of some pages of the region, from the first byte of the first on."""
    first = rng.randrange(region.pages)
    pages = rng.randint(1, region.pages - first)
    return region.at(first), pages * syscalls.PAGE


def check_unraced() -> list[int]:
    """VmLck in pages after mlock2, munlock, mlock2 and munlockall of a fresh mapping of 4 pages.

    ``[4, 0, 4, 0]`` in a process that holds no other lock: the calls that raced are obeyed.
    """
    seen = []
    with mapping("private", 4) as fresh:
        for whole in (False, True):
            syscalls.mlock2(fresh.addr, fresh.size, syscalls.MLOCK_ONFAULT)
            seen.append(status.vmlck_pages())
            if whole:
                syscalls.munlockall()
            else:
                syscalls.munlock(fresh.addr, fresh.size)
            seen.append(status.vmlck_pages())
    return seen


@dataclass(frozen=True)
class Invariants:
    """What must hold of a process at rest, whatever happened before. Counts in pages."""

    vmlck: int
    lo: int
    absent: tuple[int, ...]
    """Pages of the region that are ``lo`` without ``lf``, and not present."""


def read_invariants(region: Region) -> Invariants:
    """The witnesses of this process, and residency of a region whose memory is readable."""
    vmlck = status.vmlck_pages()
    lo = maps.locked_kb() // syscalls.PAGE_KB
    letters = lock_accounting.page_letters(region)
    there = pagemap.present(region.addr, region.pages)
    absent = tuple(
        n for n in range(region.pages) if letters[n] == lock_accounting.LOCKED and not there[n]
    )
    return Invariants(vmlck, lo, absent)
