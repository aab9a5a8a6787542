# SPDX-License-Identifier: MIT
"""Calls in which an allocation fails: done or refused, counted right, and no byte lost."""

from contextlib import ExitStack

import pytest

from helpers import syscalls
from helpers.memory import mapping
from helpers.observe import lock_accounting, status
from helpers.processes import Child
from helpers.requirements.inconclusive import inconclusive
from helpers.syscalls import PAGE, fail_nth

N = 8
PART = slice(2, 6)
MOST = 400
"""Allocations of one call."""
CONTENTS = bytes(range(0x41, 0x41 + N))
CURRENT, FUTURE = syscalls.MCL_CURRENT, syscalls.MCL_FUTURE

pytestmark = [
    pytest.mark.needs("fail-nth", "allow-sysctl", "smaps-flags", "lock-all", "lock:64"),
    pytest.mark.source("fault-injection.rst", "mm/mlock.c", "a8bbf0cc3be7"),
    pytest.mark.exclusive,
]


def part(region):
    return region.at(PART.start), (PART.stop - PART.start) * PAGE


CALLS = {
    "mlock": (lambda r: syscalls.mlock(*part(r)), ""),
    "mlock-onfault": (lambda r: syscalls.mlock2(*part(r), syscalls.MLOCK_ONFAULT), ""),
    "munlock": (lambda r: syscalls.munlock(*part(r)), "whole"),
    "mlockall-current": (lambda r: syscalls.mlockall(CURRENT), "part"),
    "mlockall-both": (lambda r: syscalls.mlockall(CURRENT | FUTURE), "part"),
    "mlockall-onfault": (lambda r: syscalls.mlockall(CURRENT | syscalls.MCL_ONFAULT), "part"),
    "munlockall": (lambda r: syscalls.munlockall(), "part"),
    "mprotect": (lambda r: syscalls.mprotect(*part(r), syscalls.PROT_READ), "whole"),
    "madvise": (lambda r: syscalls.madvise(*part(r), syscalls.MADV_DONTFORK), "whole"),
    "mremap": (
        lambda r: syscalls.mremap(*part(r), 2 * part(r)[1], syscalls.MREMAP_MAYMOVE),
        "whole",
    ),
    "map-locked": (
        lambda r: syscalls.mmap(
            0, N * PAGE, flags=syscalls.MAP_PRIVATE | syscalls.MAP_ANONYMOUS | syscalls.MAP_LOCKED
        ),
        "whole",
    ),
}
"""A call, and what is locked before: of a part that is, VMAs merge when all is alike."""


def tried(region, name, number):
    """In a child of its own: the call with a failure, and what is true afterwards."""
    make, locked = CALLS[name]
    for page in range(N):
        syscalls.store(region.at(page), CONTENTS[page : page + 1])
    if locked:
        syscalls.mlock(*((region.addr, region.size) if locked == "whole" else part(region)))
    answer, reached = fail_nth.failing(number, lambda: make(region))
    seen = lock_accounting.read(region)
    whole = name == "mremap" and answer == "ok"  # the part is elsewhere then
    held = CONTENTS if whole else region.first_bytes()
    syscalls.munlockall()
    return answer, reached, (seen.vmlck, seen.lo), held, status.vmlck_pages()


@pytest.mark.parametrize("kind", ["private", "memfd-shared"])
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.detects("refused-call-miscounts", "refused-call-drops-pages")
def test_call_in_which_an_allocation_fails(reclaim, name, kind):
    """Whichever allocation of a call fails, the process lives, the call is done or says ENOMEM or
    EAGAIN, VmLck is the sum of the VMAs that are lo, no byte is lost, and munlockall leaves 0."""
    failed = 0
    with ExitStack() as stack:
        region = stack.enter_context(mapping(kind, N))
        for path in fail_nth.WAITING:
            stack.enter_context(reclaim.setting(str(path), "N"))
        for number in range(1, MOST):
            with Child() as child:
                answer, reached, counted, held, left = child.call(tried, region, name, number)
            what = f"failure of allocation {number}"
            assert answer in {"ok", "ENOMEM", "EAGAIN"}, what
            assert counted[0] == counted[1], f"{what}: VmLck, and the sum of what is lo"
            assert held == CONTENTS, f"{what}: contents"
            assert left == 0, f"{what}: VmLck after munlockall"
            if not reached:
                break
            failed += 1
        else:
            inconclusive(f"more than {MOST} allocations: the last ones were not reached")
    if not failed:
        inconclusive("no allocation was seen to fail")
