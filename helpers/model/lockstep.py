# SPDX-License-Identifier: MIT
"""Kernel and model side by side: the same call to both, then every witness compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from helpers import processes
from helpers.model import executor, observation
from helpers.model.address_space import UNLIMITED_PAGES, AddressSpace
from helpers.model.differences import kernel_has
from helpers.model.executor import KernelSide
from helpers.model.observation import Observation
from helpers.model.script import HEAP, Call, NotApplicable
from helpers.syscalls import PAGE


class Divergence(AssertionError):
    """Kernel and model differ after the last of ``calls``."""

    def __init__(self, calls: Sequence[Call], found: Sequence[str]) -> None:
        self.calls, self.found = list(calls), list(found)
        super().__init__("\n".join(self.found))

    def report(self, origin: str = "") -> str:
        """The script that shows it, with what differs, as text that can be kept and run."""
        head = [f"# Linux {executor.release()}, {PAGE // 1024} kB pages{origin and ': ' + origin}"]
        lines = [f"#   {line}" for line in self.found]
        return "\n".join([*head, *map(str, self.calls), "# kernel and model differ here:", *lines])


@dataclass
class Lockstep:
    """A machine and the model of it. ``calls``: what both have been through."""

    machine: KernelSide
    spaces: list[AddressSpace]
    calls: list[Call]

    @classmethod
    def of(cls, machine: KernelSide) -> Lockstep:
        """The model of a machine that has just been made."""
        limit = machine.limit
        pages = UNLIMITED_PAGES if limit < 0 else limit // PAGE
        space = AddressSpace(machine.fixed, machine.special, pages, machine.capable, kernel_has)
        space.permitted = limit != 0
        pair = cls(machine, [space], [])
        pair._compare([])
        return pair

    @property
    def space(self) -> AddressSpace:
        """The model of the process that makes the next call."""
        return self.spaces[-1]

    def step(self, call: Call) -> str:
        """The call in both: its outcome. Raises Divergence, or Unfit before anything is done."""
        self.machine.check(call)
        if call.name == "limit":
            self._limit(call)
        found: list[str] = []
        if call.name == "fork":
            expected = "ok"
            child = self.space.forked()
        elif call.name in {"exit", "limit"}:
            expected = "ok"
        else:
            expected = self.space.apply(call)
        self.calls.append(call)
        try:
            seen = self._act(call, expected, found)
        except processes.ChildError as error:
            raise Divergence(self.calls, [f"{call}: {error}; model: {expected}"]) from None
        if call.name == "fork":
            self.spaces.append(child)
        elif call.name == "exit":
            self.spaces.pop()
            forks = [n for n, c in enumerate(self.calls) if c.name == "fork"]
            if any("lock" in str(c) for c in self.calls[forks[-1] :]):
                self.space.blur()
        elif call.name == "truncate":
            for space in self.spaces:
                space.cut()  # the file is the same in parent and child
        if seen != expected:
            found.append(f"{call}: kernel {seen}, model {expected}")
        self._compare(found)
        return expected

    def _act(self, call: Call, expected: str, found: list[str]) -> str:
        if call.name == "limit":
            return "ok"
        if call.name == "mincore":
            seen, vector = self.machine.mincore(call)
            if seen == expected == "ok":
                right = self.space.residents(call)
                gone = self.machine.look()
                first = int(call.args[0])
                for number in range(first, first + len(right)):
                    if self._may_go(number) and number not in gone.present:
                        right[number - first] = None
                if any(a != b for a, b in zip(vector, right) if b is not None):
                    found.append(f"{call}: kernel {_bits(vector)}, model {_bits(right)}")
            return seen
        return self.machine.apply(call, expected)

    def _limit(self, call: Call) -> None:
        # First in the kernel: it may not be allowed to.
        wanted = call.args[0]
        if wanted == "unlimited":
            self.machine.set_limit(-1)
        elif isinstance(wanted, str):
            self.machine.set_limit(self.space.limit_of(wanted) * PAGE)
        else:
            self.machine.set_limit(int(wanted * PAGE))
        self.space.apply(call)

    def _compare(self, found: list[str]) -> None:
        seen, space = self.machine.look(), self.space
        for name, saw, right in (
            ("VmLck", seen.vmlck, space.vmlck),
            ("VmSize", seen.size, space.size),
        ):
            if saw != right:
                found.append(f"{name}: kernel {saw} pages, model {right}")
        found += self._layout(seen)
        if seen.fixed_locks - {space.fixed_lock}:
            found.append(f"program and stack: kernel {seen.fixed_locks}, model {space.fixed_lock}")
        if seen.special_locks - {""}:
            found.append(f"special mappings are locked: {seen.special_locks}")
        if not found:
            found += self._residency(seen)
        if not found:
            found += self._boundaries(seen)
        if found:
            raise Divergence(self.calls, found)
        space.adopt(set(seen.boundaries), seen.present)

    def _layout(self, seen: Observation) -> list[str]:
        right = {number: page.shown for number, page in self.space.pages.items()}
        if seen.pages == right:
            return []
        numbers = sorted({*seen.pages, *right})
        return [
            f"page {name(n)}: kernel {_shown(seen.pages.get(n))}, model {_shown(right.get(n))}"
            for n in numbers
            if seen.pages.get(n) != right.get(n)
        ]

    def _residency(self, seen: Observation) -> list[str]:
        found = []
        for number, page in self.space.pages.items():
            there = number in seen.present
            if number in self.space.maybe:
                pass
            elif there and not page.present:
                found.append(f"page {name(number)} is present; model: it was never touched")
            elif page.present and not there:
                if not (self._may_go(number) and (number in seen.swapped or page.file)):
                    found.append(f"page {name(number)} is absent; model: present")
                else:
                    self.space.maybe.add(number)
                    continue
            if there and number in seen.contents and not found:
                byte = self.space.content(page)
                if byte is not None and seen.contents[number] != byte:
                    text = f"page {name(number)} holds {seen.contents[number]}, model: {byte}"
                    found.append(text)
            sure = there and number not in self.space.maybe and page.file is not None
            if sure and page.own == (number in seen.of_file):
                whose = ("the file's", "its own")[:: 1 if page.own else -1]
                found.append(f"page {name(number)} is {whose[0]}; model: {whose[1]}")
            exact = page.own and there and not page.mlocked_unknown
            exact = exact and not (page.lock and self.space.differs("marks-by-population"))
            if exact and seen.marks.get(number, bool(page.lock)) != bool(page.lock):
                marked, right = int(not page.lock), int(bool(page.lock))
                found.append(f"page {name(number)}: PG_mlocked {marked}, model {right}")
        return found

    def _may_go(self, number: int) -> bool:
        """Reclaim may take the page at any time: it is not locked. (Of a file, shared memory
        too, nothing is left in the page table; of private memory a swap entry is.)"""
        return not self.space.pages[number].lock

    def _boundaries(self, seen: Observation) -> list[str]:
        space = self.space
        return [
            f"two VMAs meet at page {name(n)}, alike in all: not merged"
            for n, alike in seen.boundaries.items()
            if alike and space.must_merge(n)
        ]


def name(number: int) -> str:
    """A page as scripts write it."""
    return f"h{number - HEAP}" if number >= HEAP else str(number)


def _shown(page: tuple[str, str, tuple[str, ...], int | None] | None) -> str:
    if page is None:
        return "nothing mapped"
    perms, lock, flags, offset = page
    at = "" if offset is None else f"file page {offset}"
    return ", ".join(filter(None, (perms, lock or "not locked", " ".join(flags), at)))


def _bits(vector: Sequence[bool | None]) -> str:
    return "".join("?" if bit is None else str(int(bit)) for bit in vector)


def run_script(calls: Sequence[Call], marks: bool | None = None) -> int:
    """Run a script on a fresh machine: the number of steps. Raises Divergence or Unfit."""
    with executor.fresh(observation.marks_readable() if marks is None else marks) as machine:
        pair = Lockstep.of(machine)
        for call in calls:
            pair.step(call)
        if len(pair.spaces) > 1:
            pair.step(Call("exit"))
        return len(pair.calls)


def diverges(calls: Sequence[Call]) -> Divergence | None:
    """The divergence that the calls lead to, or None (an unfit script has none)."""
    try:
        run_script(calls)
    except Divergence as found:
        return found
    except NotApplicable:
        pass
    return None
