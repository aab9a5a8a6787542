# SPDX-License-Identifier: MIT
"""Live progress: a line that is rewritten on a terminal, plain and few lines elsewhere."""

import os
import pty
import re
import subprocess

import pytest

MANY = "import pytest\n\n@pytest.mark.parametrize('n', range(120))\ndef test_many(n):\n    pass\n"


def on_terminal(suite, *options):
    """What a run writes to a terminal of 80 columns."""
    ours, theirs = pty.openpty()
    try:
        with subprocess.Popen(
            suite.command("--color=no", *options), cwd=suite.path, stdout=theirs, stderr=theirs,
            stdin=theirs, env=os.environ | {"TERM": "xterm", "COLUMNS": "80"},
        ):  # fmt: skip
            os.close(theirs)
            text = b""
            while True:
                try:
                    text += os.read(ours, 65536)
                except OSError:  # EIO: everybody has closed the other end
                    return text.decode()
    finally:
        os.close(ours)


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["alone", "workers"])
def test_terminal_shows_a_line_that_is_rewritten(suite, workers):
    """On a terminal the counts are rewritten in place, and a failure is told as it happens."""
    suite.case(suite.EVERY)
    text = on_terminal(suite, *workers)
    drawn = re.findall(r"\r(\d+)/6  \d:\d\d  ([^\r\n]*)", text)
    assert [count for count, _ in drawn][-1] == "6", text
    for told in ("1 verified", "1 failed", "1 deviates", "1 not verified", "1 inconclusive"):
        assert told in drawn[-1][1]
    assert max(len(line.rstrip("\n")) for _, line in drawn) < 80, "within the terminal's width"
    early = text.index("failed: tests/calls/test_case.py::test_failed: VmLck counts both pages.")
    assert early < text.index("= FAILURES ="), "before the summary"


def test_pipe_gets_plain_lines(suite):
    """Into a pipe go a line each tenth of the run and nothing that moves a cursor."""
    suite.case(MANY)
    told = suite.run().stdout
    lines = re.findall(r"^(\d+)/120  \d:\d\d  (\d+) verified$", told, re.MULTILINE)
    assert [int(n) for n, _ in lines] == list(range(12, 121, 12))
    assert "\r" not in told
    assert "\x1b" not in told
    assert "120/120" not in suite.run("-q").stdout, "-q is silent until the summary"


def test_verbose_is_pytests_own(suite):
    """-v gives pytest's own lines, a case each; -rA still names outcomes by their words."""
    suite.case(suite.EVERY)
    assert re.search(r"test_verified PASSED +\[ *16%\]", suite.run("-v").stdout)
    assert "PASSED tests/calls/test_case.py::test_verified" in suite.run("-rA").stdout
