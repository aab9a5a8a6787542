# SPDX-License-Identifier: MIT
"""The screen at the end: every verdict, its reason, and the exit code."""

import re
from xml.etree import ElementTree

import pytest

ROW = re.compile(r"^calls +(.*)$", re.MULTILINE)


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["alone", "workers"])
def test_every_verdict_is_told(suite, workers):
    """One line a chapter, one column a verdict; each failure explains itself; JUnit agrees."""
    suite.case(suite.EVERY)
    done = suite.run("--junitxml=out.xml", *workers)
    text = done.stdout
    assert done.returncode == 1
    header = re.search(r"^chapter +(.*)$", text, re.MULTILINE)
    assert header
    names = re.split(r"  +", header[1].strip())
    counts = dict(zip(names, map(int, ROW.search(text)[1].split())))
    assert counts == {
        "verified": 1, "deviates": 1, "failed": 1, "broken set-up": 1, "inconclusive": 1,
        "not verified": 1,
    }  # fmt: skip
    assert re.search(r"1x wrapping-length: mlock, mlock2 and munlock of \(addr, SIZE_MAX\)", text)
    assert "1x needs a unicorn" in text
    assert "inconclusive: the control did not move" in text
    assert "VmLck counts both pages." in text
    assert "VmLck in pages" in text
    assert re.search(r"Memory under test.*\n.*private 0x[0-9a-f]+-0x[0-9a-f]+ \(2 pages\)", text)
    assert "page 1 0x" in text
    assert re.search(r"^-+ Kernel -+\n\d+\.\d+", text, re.MULTILINE)

    tree = ElementTree.parse(suite.path / "out.xml")
    cases = {c.get("name"): c for c in tree.iter("testcase")}
    properties = {
        name: {p.get("name"): p.get("value") for p in case.iter("property")}
        for name, case in cases.items()
    }
    assert properties["test_verified"] == {
        "chapter": "calls", "statement": "A fact that holds.", "source": "mlock(2) NOTES",
        "claim": "W5",
    }  # fmt: skip
    assert properties["test_failed"]["statement"] == "VmLck counts both pages."
    assert "wrapping-length" in cases["test_deviates"].find("skipped").get("message")
    assert cases["test_not_verified"].find("skipped").get("message") == "needs a unicorn"


@pytest.mark.parametrize("option", [(), ("-n", "1")], ids=["alone", "worker"])
def test_deviation_fails_only_on_request(suite, option):
    """A known deviation leaves the exit code alone unless --fail-on-deviation is given."""
    suite.case(suite.DEVIANT)
    assert suite.run(*option).returncode == 0
    done = suite.run("--fail-on-deviation", *option)
    assert done.returncode == 1
    assert "1 xfailed" in done.stdout


def test_known_deviation_that_passes_is_a_failure(suite):
    """Where the probe sees the fault and the case does not, the case is the one that is wrong."""
    suite.case(suite.DEVIANT.replace('== "EINVAL"', '!= ""'))
    done = suite.run()
    assert done.returncode == 1
    assert "XPASS(strict)" in done.stdout


def test_other_error_than_the_known_deviation_is_a_failure(suite):
    """An expected failure excuses an assertion about the kernel, not a broken case."""
    suite.case(suite.DEVIANT.replace("memory.mapping(", "memory.no_such("))
    assert suite.run().returncode == 1


def test_quiet_and_plain_when_piped(suite):
    """No control characters reach a file or a pipe."""
    suite.case(suite.EVERY)
    assert "\x1b" not in suite.run().stdout
