# SPDX-License-Identifier: MIT
"""Variants that share a process: each has its own verdict, and none reaches its neighbours."""

import re

import pytest

CASES = '''
import os, signal
import pytest
from helpers.requirements.inconclusive import inconclusive

ACTS = ["passes", "exits", "again", "crashes", "skips", "fails", "inconclusive", "hangs", "last"]

@pytest.mark.deadline(1)
@pytest.mark.share_process
@pytest.mark.parametrize("act", ACTS)
def test_variant(act):
    """A variant."""
    print("output of", act)
    with open("pids", "a") as file:
        file.write(f"{act} {os.getpid()}\\n")
    if act == "exits":
        os._exit(4)
    if act == "crashes":
        os.kill(os.getpid(), signal.SIGSEGV)
    if act == "skips":
        pytest.skip("needs something")
    if act == "inconclusive":
        inconclusive("the control did not move")
    if act == "hangs":
        signal.pause()
    assert act != "fails"
'''
LEAKS = {
    "MCL_FUTURE": ("syscalls.mlockall(syscalls.MCL_FUTURE)", "MCL_FUTURE is on"),
    "descriptor": ("os.open('/dev/null', os.O_RDONLY)", "fd .* is /dev/null"),
    "affinity": ("os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})", "Cpus_allowed_list"),
    "limit": ("resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))", "RLIMIT_MEMLOCK"),
    "locked": ("kept.append(syscalls.mlock(syscalls.mmap(0, 4 * PAGE), 4 * PAGE))", "VmLck"),
    "child": ("os.fork() or os._exit(0)", "children"),
    "thread": ("threading.Thread(target=signal.pause, daemon=True).start()", "Threads is 2"),
    "signals": ("signal.pthread_sigmask(signal.SIG_BLOCK, {10})", "SigBlk"),
}


def pids(suite):
    """Process of each variant that ran."""
    return dict(line.split() for line in (suite.path / "pids").read_text().splitlines())


@pytest.mark.parametrize(
    "options", [(), ("-n", "2"), ("--share-process=never",)], ids=["alone", "workers", "never"]
)
def test_each_variant_has_its_own_verdict_and_output(suite, options):
    """A crash, an exit, a hang and a failure end one variant each, with its own output."""
    suite.case(CASES)
    done = suite.run("-rA", *options)
    assert "4 failed, 3 passed, 2 skipped" in done.stdout, done.stdout + done.stderr
    for words in (
        "left by os._exit(4)",
        "killed by SIGSEGV",
        "hung: killed with its process group",
    ):
        assert words in done.stdout
    shown = re.findall(r"^output of (\w+)$", done.stdout, re.MULTILINE)
    assert len(shown) == len(set(shown)), "no output is shown with two variants"


def test_child_is_replaced_after_anything_but_a_clean_end(suite):
    """Variants share a process while they pass or are skipped; after that the next is fresh."""
    suite.case(CASES)
    suite.run()
    seen = pids(suite)
    assert seen["passes"] == seen["exits"]
    assert seen["again"] == seen["crashes"]
    assert seen["skips"] == seen["fails"]
    assert seen["inconclusive"] == seen["hangs"]
    assert len({seen[n] for n in ("exits", "crashes", "fails", "hangs", "last")}) == 5


def test_first_failure_ends_the_run(suite):
    """With -x no further variant runs, and the result says so."""
    suite.case(CASES)
    done = suite.run("-x")
    assert "1 failed, 1 passed" in done.stdout, done.stdout
    assert set(pids(suite)) == {"passes", "exits"}


@pytest.mark.parametrize("name", LEAKS)
def test_what_is_left_behind_is_a_broken_set_up(suite, name):
    """A variant that leaves its process otherwise than it was is told what it left, and is red."""
    code, words = LEAKS[name]
    suite.case(
        "import os, resource, signal, threading, pytest\n"
        "from helpers import syscalls\nfrom helpers.syscalls import PAGE\n\nkept = []\n\n"
        '@pytest.mark.share_process\n@pytest.mark.parametrize("n", [1, 2])\n'
        f'def test_leaves(n):\n    """Leaves something."""\n    if n == 1:\n        {code}\n'
    )
    done = suite.run()
    assert done.returncode == 1, done.stdout
    assert re.search(f"left behind: .*{words}", done.stdout), done.stdout
    assert "2 passed, 1 error" in done.stdout, done.stdout


@pytest.mark.parametrize(
    ("marks", "words"),
    [
        ("@pytest.mark.share_process", "wants a parametrized function"),
        ("@pytest.mark.share_process(2)\n@pytest.mark.parametrize('n', [1])", "takes no arguments"),
        (
            "@pytest.mark.exclusive\n@pytest.mark.share_process\n"
            "@pytest.mark.parametrize('n', [1])",
            "does not go with exclusive",
        ),
    ],
    ids=["plain", "arguments", "exclusive"],
)
def test_mark_that_makes_no_sense_is_refused(suite, marks, words):
    """The mark on a function that cannot share is a usage error, in one line."""
    arguments = "n" if "parametrize" in marks else ""
    suite.case(f"import pytest\n\n{marks}\ndef test_one({arguments}):\n    pass\n")
    done = suite.run()
    assert done.returncode == 4, done.stdout + done.stderr
    assert words in done.stderr


def test_module_shares_but_for_what_asks_for_its_own(suite):
    """Functions of a marked module share a process, except exclusive ones and own_process."""
    suite.case(
        "import os, pytest\n\npytestmark = pytest.mark.share_process\n\n"
        "def say(name):\n"
        '    with open("pids", "a") as file:\n'
        '        file.write(f"{name} {os.getpid()}\\n")\n\n'
        'def test_a():\n    say("a")\n\ndef test_b():\n    say("b")\n\n'
        '@pytest.mark.own_process\ndef test_own():\n    say("own")\n\n'
        'def test_c():\n    say("c")\n\ndef test_d():\n    say("d")\n\n'
        '@pytest.mark.exclusive\ndef test_exclusive():\n    say("exclusive")\n'
    )
    done = suite.run()
    assert "6 passed" in done.stdout, done.stdout + done.stderr
    seen = pids(suite)
    assert seen["a"] == seen["b"]
    assert seen["c"] == seen["d"]
    assert len({seen[name] for name in ("a", "c", "own", "exclusive")}) == 4


def test_skip_that_leaves_something_is_replaced(suite):
    """An item that skips half way is no broken set-up: the next one gets a fresh process."""
    suite.case(
        "import os, pytest\nfrom helpers.requirements.inconclusive import inconclusive\n\n"
        "pytestmark = pytest.mark.share_process\n\n"
        'def test_a():\n    os.open("/dev/null", 0)\n    inconclusive("nothing moved")\n\n'
        "def test_b():\n    pass\n"
    )
    assert "1 passed, 1 skipped" in suite.run().stdout


@pytest.mark.needs("kpageflags")
def test_case_and_idle_child_hold_no_turn(suite):
    """A forked case has no copy of the lock of a turn, nor a child that waits for its next one."""
    suite.case(
        "import os, pytest\n\n"
        "def held():\n"
        '    fds = [f"/proc/self/fd/{n}" for n in os.listdir("/proc/self/fd")]\n'
        '    return [t for t in map(os.path.realpath, fds) if "kpage" in t]\n\n'
        '@pytest.mark.share_process\n@pytest.mark.parametrize("n", [1, 2])\n'
        "def test_shares(n):\n    assert not held()\n\n"
        "def test_alone():\n    assert not held()\n"
    )
    assert "3 passed" in suite.run().stdout
