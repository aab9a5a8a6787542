# SPDX-License-Identifier: MIT
"""Each account of RLIMIT_MEMLOCK alone and beside each other: who shares the limit with whom."""

import functools
import itertools
import resource

import pytest

from helpers import processes
from helpers.memory import sysv_segment
from helpers.processes import Child, credentials, limit_accounts, rlimits
from helpers.processes.limit_accounts import ACCOUNTS, SECRET, USER, take, take_all, take_freed
from helpers.syscalls import PAGE

LIMIT, FIRST = 32, 12
PINNING = {USER, SECRET}

pytestmark = [
    pytest.mark.share_process,
    pytest.mark.needs("other-user", "root-user", "limit:64"),
    pytest.mark.source("getrlimit(2) RLIMIT_MEMLOCK"),
]


def marks(*names):
    """What these accounts need, and where they are documented."""
    needs = [need for name in names for need in ACCOUNTS[name].needs]
    sources = [ACCOUNTS[name].source for name in dict.fromkeys(names)]
    return [pytest.mark.needs(*needs)] * bool(needs) + [pytest.mark.source(*sources)]


def by_account(*names):
    """``name``: each of these accounts (default: all)."""
    return pytest.mark.parametrize(
        "name", [pytest.param(name, id=name, marks=marks(name)) for name in names or ACCOUNTS]
    )


def by_pair():
    """``first``, ``second``: each account before each other; perf only beside what cannot have
    its counter."""
    return pytest.mark.parametrize(
        ("first", "second"),
        [
            pytest.param(a, b, id=f"{a}-then-{b}", marks=marks(a, b))
            for a, b in itertools.permutations(ACCOUNTS, 2)
            if "perf" not in (a, b) or not {ACCOUNTS[a].counter, ACCOUNTS[b].counter} & PINNING
        ],
    )


@by_account()
@pytest.mark.detects("fixed-buffer-unlimited", "zero-copy-unlimited", "perf-ring-unlimited")
def test_limit_is_reached_exactly(name):
    """A user without CAP_IPC_LOCK takes the limit's pages in two or in one, is refused one page
    more with the account's own errno, and a refusal has charged nothing."""

    def alone():
        limit_accounts.ordinary(LIMIT, name)
        answers = take_all(name, LIMIT + 1, FIRST, LIMIT - FIRST + 1, LIMIT - FIRST, 4)
        limit_accounts.give(name)
        limit_accounts.give(name)
        return answers, take_freed(name, LIMIT, name), take(name, 4)

    no = limit_accounts.refusal(name)
    answers, whole, more = processes.run(alone)
    assert answers == [no, "ok", no, "ok", no], "over, a part, over the rest, the rest, any more"
    assert (whole, more) == ("ok", no), "given back: the whole limit in one, and no more"


@by_pair()
@pytest.mark.detects(
    "fixed-buffer-counted-alone",
    "umem-counted-alone",
    "zero-copy-counted-alone",
    "secret-counted-alone",
)
def test_accounts_of_one_counter_share_the_limit(first, second):
    """What one account has taken is missing to another of the same counter, to the page, and to
    none of another counter; given back, it can be had by the other at once."""
    together = limit_accounts.counter(first) == limit_accounts.counter(second)
    room = LIMIT - FIRST if together else LIMIT

    def both():
        limit_accounts.ordinary(LIMIT, first, second)
        begun = take(first, FIRST)
        over, fits = take(second, room + 1), take(second, room)
        limit_accounts.give(first)
        return begun, over, fits, take_freed(second if together else first, FIRST, first)

    begun, over, fits, after = processes.run(both)
    assert begun == "ok", f"{FIRST} pages by {first}"
    assert over == limit_accounts.refusal(second), f"{room + 1} pages by {second}"
    assert fits == "ok", f"{room} pages by {second}"
    assert after == "ok", "as many as were given back"


@by_account()
@pytest.mark.source("capabilities(7) CAP_IPC_LOCK")
@pytest.mark.detects(
    "shm-bound-in-spite-of-capability",
    "fixed-buffer-bound-in-spite-of-capability",
    "umem-bound-in-spite-of-capability",
)
def test_capability_opens_the_limit(name):
    """CAP_IPC_LOCK lets an account go beyond the limit, where the kernel asks for it; whether
    pages taken so are counted all the same shows once it is given up."""

    def capable():
        limit_accounts.ordinary(LIMIT, name, capability="CAP_IPC_LOCK")
        beyond = take(name, 2 * LIMIT)
        limit_accounts.without_capability("CAP_IPC_LOCK")
        return beyond, take(name, LIMIT)

    beyond, after = processes.run(capable)
    account = ACCOUNTS[name]
    if limit_accounts.refusal(name) == "EFAULT":
        assert (beyond, after) == ("EFAULT", "ok"), "secret memory counted by user asks for none"
    else:
        assert beyond == "ok", "with the capability"
        assert after == (account.refusal if account.counts_capable else "ok"), "and without it"


@by_account()
def test_limit_zero_refuses_the_first_page(name):
    """At limit 0 no account gives a page: mlock, MAP_LOCKED and SHM_LOCK refuse with EPERM as
    unprivileged, the others as beyond the limit."""

    def child():
        limit_accounts.ordinary(0, name)
        return take(name, 4)

    unprivileged = {"mlock", "mlock-onfault", "map-locked", "shm-lock"}
    expected = "EPERM" if name in unprivileged else limit_accounts.refusal(name)
    assert processes.run(child) == expected, "four pages"


@by_account()
@pytest.mark.needs("limit-infinite")
def test_unlimited_process_is_refused_nothing(name):
    """Without a limit every account goes beyond any, without CAP_IPC_LOCK."""

    def child():
        unlimited = rlimits.RLIM_INFINITY
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (unlimited, unlimited))
        limit_accounts.prepare(name)
        uid = sysv_segment.unused_uid()
        credentials.set_user(uid, uid)
        return take(name, 4 * LIMIT)

    assert processes.run(child) == "ok", "pages beyond what others may take"


@by_account("shm-lock", "io-uring", "xdp", "zero-copy")
def test_count_is_the_users_and_the_limit_the_processs(name):
    """What a user's processes have taken together is compared with the limit of the process that
    asks: one of a lower limit is refused where another is not."""
    uid = sysv_segment.unused_uid()
    with Child() as high, Child() as low:
        for child in (high, low):
            child.call(functools.partial(limit_accounts.ordinary, LIMIT, name, uid=uid))
        low.call(rlimits.set_soft_memlock, (FIRST + 4) * PAGE)
        no = limit_accounts.refusal(name)
        assert high.call(take, name, FIRST) == "ok", "within both limits"
        assert low.call(take_all, name, 5, 4, 4) == [no, "ok", no], "to the lower limit"
        left = LIMIT - FIRST - 4
        assert high.call(take_all, name, left + 1, left) == [no, "ok"], "to the higher"


@by_account("shm-lock", "zero-copy")
def test_race_for_the_last_pages_is_lost_to_the_page(name):
    """Processes of a user that take pages at the same time get as many together as the limit
    has."""
    uid, size = sysv_segment.unused_uid(), 4
    with Child() as one, Child() as two:
        for child in (one, two):
            child.call(functools.partial(limit_accounts.ordinary, LIMIT, name, uid=uid))
        for child in (one, two):
            child.start(take_all, name, *[size] * (LIMIT // size))
        answers = one.result() + two.result()
    assert answers.count("ok") == LIMIT // size, "so many takes succeed"
    assert answers.count(limit_accounts.refusal(name)) == LIMIT // size, "and the others do not"
