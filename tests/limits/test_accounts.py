# SPDX-License-Identifier: MIT
"""Each account of RLIMIT_MEMLOCK alone and beside each other: who shares the limit with whom."""

import itertools

import pytest

from helpers import processes
from helpers.processes import limit_accounts
from helpers.processes.limit_accounts import ACCOUNTS, SECRET, USER, take, take_all, take_freed

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
