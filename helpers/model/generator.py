# SPDX-License-Identifier: MIT
"""Random calls without a library: the stdlib's generator, and a shrinker for what it finds."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from helpers.model import executor, observation, script
from helpers.model.lockstep import Divergence, Lockstep
from helpers.model.script import ARENA, HEAP, HEAP_PAGES, MAX, Call, ScriptError
from helpers.model.shrinker import shrink

CALL_WEIGHTS = {
    "mmap": 12, "munmap": 4, "mprotect": 8, "mremap": 9, "madvise": 8, "mlock": 10, "mlock2": 7,
    "munlock": 9, "mlockall": 4, "munlockall": 2, "msync": 2, "mincore": 2, "read": 6, "write": 8,
    "truncate": 2, "brk": 4, "limit": 4, "capability": 2, "fork": 2, "exit": 2,
}  # fmt: skip
_HEAP_CALLS = {"mlock", "mlock2", "munlock", "read", "write"}


class CallGenerator:
    """Chooses calls. ``pick(n)`` gives 0 … n − 1; the nearer to 0, the simpler the call."""

    def __init__(self, pick: Callable[[int], int]) -> None:
        self.pick = pick

    def one(self, values: Sequence[str]) -> str:
        return values[self.pick(len(values))]

    def call(self, name: str, top: int) -> Call:
        """A call of this name that the script format allows; ``top``: pages of heap."""
        kinds, known = script.CALLS[name]
        options: list[str] = []
        args: list[int | float | str] = []
        if kinds and kinds[0] in {"page", "where", "touched"}:
            args += self._range(name, kinds, top)
        for kind in kinds[len(args) :]:
            args.append(self._other(kind))
        if name == "mremap":
            args, options = self._mremap()
        elif name == "mmap":
            options = [o for o in known if o != "at=" and self.pick(5) == 4]
            if str(args[2]).startswith("memfd") and self.pick(4) == 3:
                options.append(f"at={self.pick(ARENA)}")
        return Call(name, tuple(args), tuple(options))

    def _range(self, name: str, kinds: Sequence[str], top: int) -> list[int | float | str]:
        base, size = 0, ARENA
        if top and name in _HEAP_CALLS and self.pick(6) == 5:
            base, size = HEAP, top
        first: float = self.pick(size)
        room = size - int(first)
        # mmap ends with the arena; now and then others ask for a page behind it.
        beyond = int(name != "mmap" and base == 0 and self.pick(12) == 11)
        count: float = 1 + self.pick(room + beyond)
        if kinds[0] == "where" and self.pick(6) == 5:
            odd = self.pick(4)
            if odd == 3:
                count = MAX if self.pick(3) == 2 else 0
            else:
                first += 0.5 * (odd != 1)
                count -= 0.5 * (odd != 0 or first != int(first))
        return [base + first if first != int(first) else base + int(first), count]

    def _mremap(self) -> tuple[list[int | float | str], list[str]]:
        first = self.pick(ARENA)
        old = 1 + self.pick(min(6, ARENA - first))
        if self.pick(12) == 11:
            target = self.pick(ARENA)
            return [first, 0, 1 + self.pick(min(6, ARENA - target))], [f"to={target}"]
        if self.pick(2) == 0:
            new = 1 + self.pick(min(8, ARENA - first))
            return [first, old, new], []
        target = self.pick(ARENA)
        new = old if self.pick(2) == 0 else 1 + self.pick(8)
        new = min(new, ARENA - target)
        stays = ["dontunmap"] if self.pick(4) == 3 else []
        return [first, old, new], [f"to={target}", *stays]

    def _other(self, kind: str) -> int | float | str:
        if kind == "kind":
            return self.one(("private", "private", "private", "memfd", "shared", "memfd-private"))
        if kind == "prot":
            return self.one(("rw", "rw", "rw", "rw", "r", "r", "none", "none", "rx", "w"))
        if kind == "how":
            return 2 if self.pick(12) == 11 else ("onfault", 0)[self.pick(2)]
        if kind == "mcl":
            if self.pick(12) == 11:
                return (0, 8, 15, 16)[self.pick(4)]
            return self.one(("current", "future", "current+future", "current+onfault",
                             "future+onfault", "current+future+onfault", "onfault"))  # fmt: skip
        if kind == "size":
            return self.pick(ARENA + 4)
        if kind == "break":
            return self.pick(HEAP_PAGES + 1)
        if kind == "limit":
            how = self.pick(10)
            if how < 2:
                return self.one(("size", "size-1"))
            if how in {3, 4, 5}:
                return self.one(("locked", "locked+1", "locked+4", "locked-1"))
            if how == 2:
                return "unlimited"
            return (self.pick(40), 0, 0.5, 1.5)[max(0, self.pick(12) - 8)]
        if kind == "state":
            return self.one(("off", "on"))
        return self.one(script.ADVICE if kind == "advice" else script.MSYNC)


def _name(rng: random.Random, pair: Lockstep) -> str:
    while True:
        name = rng.choices(list(CALL_WEIGHTS), list(CALL_WEIGHTS.values()))[0]
        if name == "fork" and len(pair.spaces) > 1:
            continue
        if name == "exit" and len(pair.spaces) == 1:
            continue
        return name


@dataclass
class Result:
    """Steps made, in how many sequences, and the first divergence, shrunk."""

    steps: int
    sequences: int
    seed: int
    divergence: Divergence | None = None
    unfit: int = 0


def sequence(seed: str, steps: int, start: Sequence[Call] = ()) -> tuple[int, int]:
    """One sequence on a fresh machine: (steps, calls left out as unfit). Raises Divergence."""
    rng = random.Random(seed)
    chooser = CallGenerator(rng.randrange)
    done = unfit = 0
    with executor.fresh(observation.marks_readable()) as machine:
        pair = Lockstep.of(machine)
        for call in start:
            pair.step(call)
        while done < steps:
            call = chooser.call(_name(rng, pair), pair.space.top)
            try:
                if script.parse_line(str(call)) is None:
                    continue
                pair.step(call)
                done += 1
            except ScriptError:
                # Not to be made here: out of the arena, or not modelled.
                unfit += 1
    return done, unfit


def run(seed: int, steps: int, each: int = 100) -> Result:
    """``steps`` steps in sequences of ``each``; stops at the first divergence and shrinks it."""
    result = Result(0, 0, seed)
    while result.steps < steps:
        part = f"{seed}:{result.sequences}"
        try:
            done, unfit = sequence(part, min(each, steps - result.steps))
        except Divergence as found:
            result.steps += len(found.calls)
            result.divergence = shrink(found)
            return result
        result.steps += done
        result.unfit += unfit
        result.sequences += 1
    return result
