# SPDX-License-Identifier: MIT
"""Hypothesis drives kernel and model through the same calls and shrinks what diverges."""

import os

import pytest

from helpers.model import executor, observation, script
from helpers.model.generator import CallGenerator
from helpers.model.lockstep import Divergence, Lockstep

pytestmark = [
    pytest.mark.needs("hypothesis", "stub-process", "smaps-flags", "lock-calls"),
    pytest.mark.source("mlock(2), mmap(2), mremap(2), madvise(2), fork(2), getrlimit(2)"),
    pytest.mark.deadline("3600"),
]

STEPS = 50
"""Steps of one example."""


def state_machine():
    """The class of the state machine; Hypothesis is imported by who needs it."""
    from hypothesis import strategies
    from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

    @strategies.composite
    def calls(draw, name):
        dice = CallGenerator(lambda n: draw(strategies.integers(0, n - 1)))
        return dice.call(name, script.HEAP_PAGES)

    class KernelAndModel(RuleBasedStateMachine):
        """One bare process an example; every rule is a call."""

        steps = 0

        def __init__(self):
            super().__init__()
            self.fresh = executor.fresh(observation.marks_readable())
            self.pair = Lockstep.of(self.fresh.__enter__())

        def step(self, call):
            try:
                script.parse_line(str(call))
                self.pair.step(call)
            except script.ScriptError:
                return  # not to be made here: out of the arena, or not modelled
            type(self).steps += 1

        def teardown(self):
            self.fresh.__exit__(None, None, None)

    def make(name):
        def call_it(self, call):
            self.step(call)

        made = rule(call=calls(name))(call_it)
        if name in {"fork", "exit"}:
            return precondition(lambda self: len(self.pair.spaces) == 1 + (name == "exit"))(made)
        return made

    rules = {f"do_{name}": make(name) for name in script.CALLS}
    return type("KernelAndModel", (KernelAndModel,), rules)


def test_state_machine_finds_no_difference(request):
    """No sequence of calls that Hypothesis tries leads an address space away from the model."""
    # A path that nobody can make: a case that is killed removes no folder.
    os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = "/dev/null/none"
    from hypothesis import HealthCheck, Phase, Verbosity, seed, settings
    from hypothesis.stateful import run_state_machine_as_test

    steps = request.config.getoption("--model-steps")
    chosen = request.config.getoption("--seed")
    machine = state_machine()
    how = settings(
        max_examples=max(1, steps // STEPS), stateful_step_count=STEPS, deadline=None,
        database=None, suppress_health_check=list(HealthCheck), verbosity=Verbosity.quiet,
        phases=[Phase.generate, Phase.shrink], report_multiple_bugs=False,
    )  # fmt: skip
    found = None
    try:
        run_state_machine_as_test(seed(chosen)(machine), settings=how)
    except Divergence as why:
        found = why
    if found is not None:
        pytest.fail(found.report(f"--seed {chosen}, Hypothesis"), pytrace=False)
    assert machine.steps >= steps // 4, "Hypothesis made steps enough to speak of"
