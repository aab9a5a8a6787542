# SPDX-License-Identifier: MIT
"""Scripts that were found, or thought of, once: kernel and model agree after every call."""

from pathlib import Path

import pytest

from helpers.model import lockstep, script

SCRIPTS = sorted((Path(__file__).parent / "scripts").glob("*.txt"))

pytestmark = [
    pytest.mark.needs("stub-process", "smaps-flags", "lock-calls"),
    pytest.mark.source("mlock(2), mmap(2), mremap(2), madvise(2), fork(2), getrlimit(2)"),
]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.stem)
@pytest.mark.detects(
    "future-stays-onfault",
    "dontneed-locked-unlocks",
    "mremap-refused-unlocks",
    "truncate-uncounts",
    "writeonly-not-populated",
)
def test_script_agrees_with_model(path):
    """After each call of a kept script, errno, VmLck, VmSize, VMAs, lock flags, residency,
    contents and page marks are what the model of an address space says."""
    found = None
    try:
        lockstep.run_script(script.parse(path.read_text()))
    except script.NotApplicable as why:
        pytest.skip(f"needs a machine that the script fits: {why}")
    except lockstep.Divergence as why:
        found = why
    if found is not None:
        pytest.fail(found.report(path.name), pytrace=False)
