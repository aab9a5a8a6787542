# SPDX-License-Identifier: MIT
"""Random sequences from the stdlib's generator, compared with the model after every call."""

import pytest

from helpers.model import generator

pytestmark = [
    pytest.mark.needs("stub-process", "smaps-flags", "lock-calls"),
    pytest.mark.source("mlock(2), mmap(2), mremap(2), madvise(2), fork(2), getrlimit(2)"),
    pytest.mark.deadline("3600"),
]


@pytest.mark.parametrize("each", [30, 300])
def test_random_sequences_agree_with_model(request, each):
    """Whatever calls are made, in whatever order, an address space is after each of them what
    the model says: short sequences and long ones."""
    seed = request.config.getoption("--seed")
    result = generator.run(seed, request.config.getoption("--model-steps"), each)
    if result.divergence is not None:
        origin = f"--seed {seed}, sequence {result.sequences} of {each} steps"
        pytest.fail(result.divergence.report(origin), pytrace=False)
