"""C functions without the interpreter between them, vfork children, children that exec."""

import ctypes
import os

import pytest

from helpers import chain, libc, process
from helpers.libc import PAGE
from helpers.memory import mapping
from helpers.observe import rusage

pytestmark = pytest.mark.skipif(not chain.available, reason="the C library has no makecontext")


def test_chain_makes_its_calls_in_order():
    """Each call acts, in order, and control comes back."""
    seen = ctypes.create_string_buffer(4)
    at = ctypes.addressof(seen)
    calls = chain.Chain(3)
    for _ in range(2):  # a chain can be used again
        calls.run(("memset", (at, 1, 4)), ("memset", (at, 2, 3)), ("memset", (at, 3, 2)))
        assert seen.raw == b"\3\3\2\1"


def test_faults_are_counted_exactly():
    """Pages absent before cost one fault each, present ones none."""
    with mapping("private", 8) as region:
        region.sub(0, 3).touch()
        assert rusage.writing(region.addr, region.size) == rusage.Faults(5, 0)
        assert rusage.reading(region.addr, region.size) == rusage.Faults(0, 0)


def test_vfork_child_shares_memory_and_reports_its_end():
    """What a vfork child's call does is done here; an exit status or signal is an exception."""
    with mapping("private", 1) as page:
        process.vforked("memset", page.addr, 7, PAGE)
        assert page.read() == b"\7" * PAGE
    with pytest.raises(process.ChildExited, match="status 5"):
        process.vforked("_exit", 5)
    with pytest.raises(process.ChildKilled, match="SIGKILL"):
        process.vforked("raise", 9)


def test_child_becomes_a_program():
    """A child that executes a program keeps its process, and ends with its input."""
    with process.Child() as child:
        child.become("cat")
        assert os.readlink(f"/proc/{child.pid}/exe") != os.readlink("/proc/self/exe")
        assert child.leave() == 0


def test_program_that_cannot_be_executed_is_an_error():
    """A failing exec is an OSError here."""
    with process.Child() as child:
        assert libc.outcome(child.become, "/nonexistent/program") == "ENOENT"


def test_child_leaves_beside_a_later_one():
    """A child forked later holds copies of the first one's pipes and does not keep it alive."""
    with process.Child() as first, process.Child():
        assert first.leave() == 0
