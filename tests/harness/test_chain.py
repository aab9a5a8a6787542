# SPDX-License-Identifier: MIT
"""C functions without the interpreter between them, vfork children, children that exec."""

import ctypes
import os

import pytest

from helpers import processes, syscalls
from helpers.memory import mapping
from helpers.observe import page_faults
from helpers.syscalls import PAGE, native_chain

pytestmark = pytest.mark.skipif(
    not native_chain.available, reason="the C library has no makecontext"
)


def test_chain_makes_its_calls_in_order():
    """Each call acts, in order, and control comes back."""
    seen = ctypes.create_string_buffer(4)
    at = ctypes.addressof(seen)
    calls = native_chain.NativeChain(3)
    for _ in range(2):  # a chain can be used again
        calls.run(("memset", (at, 1, 4)), ("memset", (at, 2, 3)), ("memset", (at, 3, 2)))
        assert seen.raw == b"\3\3\2\1"


def test_faults_are_counted_exactly():
    """Pages absent before cost one fault each, present ones none."""
    with mapping("private", 8) as region:
        region.sub(0, 3).touch()
        assert page_faults.faults_writing(region.addr, region.size) == page_faults.Faults(5, 0)
        assert page_faults.faults_reading(region.addr, region.size) == page_faults.Faults(0, 0)


def test_vfork_child_shares_memory_and_reports_its_end():
    """What a vfork child's call does is done here; an exit status or signal is an exception."""
    with mapping("private", 1) as page:
        processes.call_in_vfork_child("memset", page.addr, 7, PAGE)
        assert page.read() == b"\7" * PAGE
    with pytest.raises(processes.ChildExited, match="status 5"):
        processes.call_in_vfork_child("_exit", 5)
    with pytest.raises(processes.ChildKilled, match="SIGKILL"):
        processes.call_in_vfork_child("raise", 9)


def test_child_becomes_a_program():
    """A child that executes a program keeps its process, and ends with its input."""
    with processes.Child() as child:
        child.exec("cat")
        assert os.readlink(f"/proc/{child.pid}/exe") != os.readlink("/proc/self/exe")
        assert child.exit() == 0


def test_program_that_cannot_be_executed_is_an_error():
    """A failing exec is an OSError here."""
    with processes.Child() as child:
        assert syscalls.outcome(child.exec, "/nonexistent/program") == "ENOENT"


def test_child_leaves_beside_a_later_one():
    """A child forked later holds copies of the first one's pipes and does not keep it alive."""
    with processes.Child() as first, processes.Child():
        assert first.exit() == 0
