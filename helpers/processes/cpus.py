# SPDX-License-Identifier: MIT
"""CPU affinity of a case."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from helpers.observe import lru_batches


def pin_to_one_cpu() -> None:
    """Keep this process and its later children on one CPU, for good: one batch for all."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


@contextmanager
def one_cpu() -> Iterator[None]:
    """The same for the block, then as before."""
    saved = os.sched_getaffinity(0)
    pin_to_one_cpu()
    try:
        yield
    finally:
        os.sched_setaffinity(0, saved)


def keep_to_cpu(index: int) -> None:
    """Keep this thread on one CPU of those it may use, the next for each index."""
    cpus = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cpus[index % len(cpus)]})


def mlock_drain_all() -> None:
    """Empty the batches of each CPU that this process may use; then as before."""
    saved = os.sched_getaffinity(0)
    try:
        for cpu in saved:
            os.sched_setaffinity(0, {cpu})
            lru_batches.mlock_drain_local()
    finally:
        os.sched_setaffinity(0, saved)
