# SPDX-License-Identifier: MIT
"""Random operations on a fenced range, each compared with a model of its pages.

The seeds are fixed: a verdict is the same each time, and a failure names its seed, its step
and what led there.
"""

import random

import pytest

from helpers import syscalls
from helpers.memory import mapping
from helpers.observe import lock_accounting, maps, pagemap, status
from helpers.processes import rlimits
from helpers.syscalls import PAGE

pytestmark = [
    pytest.mark.share_process,
    pytest.mark.needs("smaps-flags"),
    pytest.mark.source("mlock(2), mmap(2), mremap(2)"),
]

PAGES = 8
SMAPS_EVERY = 20


def busy(region):
    """For each page: msync(MS_INVALIDATE) meets a locked VMA."""
    return "".join(
        "L"
        if syscalls.outcome(syscalls.msync, region.at(p), PAGE, syscalls.MS_INVALIDATE) == "EBUSY"
        else "-"
        for p in range(region.pages)
    )


class Model:
    """A page is a hole (None) or its lock: "-", "L" or "F"."""

    def __init__(self, region, how, fd, random):
        self.region, self.how, self.fd, self.random = region, how, fd, random
        self.state = ["-"] * region.pages
        self.log = []

    @property
    def letters(self):
        return "".join(page or "-" for page in self.state)

    def part(self, most=PAGES):
        first = self.random.randrange(PAGES)
        return first, self.random.randint(1, min(most, PAGES - first))

    def up_to_hole(self, first, count):
        """Pages of the range that a call works on which stops at the first hole."""
        for page in range(first, first + count):
            if self.state[page] is None:
                return range(first, page), "ENOMEM"
        return range(first, first + count), "ok"

    def act(self, text, function, *args):
        seen = syscalls.outcome(function, *args)
        self.log.append(f"{text}: {seen}")
        return seen

    def lock(self):
        first, count = self.part()
        letter = self.random.choice("LF")
        flags = syscalls.MLOCK_ONFAULT if letter == "F" else 0
        done, _ = self.up_to_hole(first, count)
        # PROT_NONE may make it ENOMEM too; the calls chapter has the errno.
        self.act(
            f"mlock2 {first}+{count} {letter}",
            syscalls.mlock2, self.region.at(first), count * PAGE, flags,
        )  # fmt: skip
        for page in done:
            self.state[page] = letter

    def unlock(self):
        first, count = self.part()
        done, expected = self.up_to_hole(first, count)
        seen = self.act(
            f"munlock {first}+{count}", syscalls.munlock, self.region.at(first), count * PAGE
        )
        assert seen == expected, f"munlock stops at a hole: {self.log[-1]}"
        for page in done:
            self.state[page] = "-"

    def unmap(self):
        first, count = self.part(3)
        self.act(f"munmap {first}+{count}", syscalls.munmap, self.region.at(first), count * PAGE)
        self.state[first : first + count] = [None] * count

    def map(self):
        first, count = self.part()
        letter = self.random.choice("--L")
        flags = self.how | syscalls.MAP_FIXED | (syscalls.MAP_LOCKED if letter == "L" else 0)
        prot = self.random.choice(
            [syscalls.PROT_RW, syscalls.PROT_RW, syscalls.PROT_READ, syscalls.PROT_NONE]
        )
        seen = self.act(
            f"mmap {first}+{count} {letter} prot {prot}",
            syscalls.mmap, self.region.at(first), count * PAGE, prot, flags, self.fd,
            first * PAGE if self.fd >= 0 else 0,
        )  # fmt: skip
        assert seen == "ok", f"mmap has room: {self.log[-1]}"
        self.state[first : first + count] = [letter] * count

    def protect(self):
        first, count = self.part()
        prot = self.random.choice([syscalls.PROT_NONE, syscalls.PROT_READ, syscalls.PROT_RW])
        _, expected = self.up_to_hole(first, count)
        seen = self.act(
            f"mprotect {first}+{count} {prot}",
            syscalls.mprotect, self.region.at(first), count * PAGE, prot,
        )  # fmt: skip
        assert seen == expected, f"mprotect stops at a hole: {self.log[-1]}"

    def grow(self):
        """A page in front of a hole grows into it, with its lock."""
        ends = [p for p in range(PAGES - 1) if self.state[p] and self.state[p + 1] is None]
        if not ends:
            return
        page = self.random.choice(ends)
        room = 1
        while page + room + 1 < PAGES and self.state[page + room + 1] is None:
            room += 1
        more = self.random.randint(1, room)
        seen = self.act(
            f"mremap grow {page} by {more}",
            syscalls.mremap, self.region.at(page), PAGE, (1 + more) * PAGE, 0,
        )  # fmt: skip
        assert seen == "ok", f"a mapping grows into the hole behind it: {self.log[-1]}"
        self.state[page + 1 : page + 1 + more] = self.state[page] * more

    def vma(self):
        """(first, count) of one of the VMAs in the range, or None: mremap wants just one."""
        found = maps.vmas("self", self.region.addr, self.region.end)
        if not found:
            return None
        vma = self.random.choice(found)
        first = (max(vma.start, self.region.addr) - self.region.addr) // PAGE
        return first, (min(vma.end, self.region.end) - self.region.addr) // PAGE - first

    def shrink(self):
        one = self.vma()
        if one is None or one[1] < 2:
            return
        first, count = one
        left = self.random.randint(1, count - 1)
        seen = self.act(
            f"mremap shrink {first}+{count} to {left}",
            syscalls.mremap, self.region.at(first), count * PAGE, left * PAGE, 0,
        )  # fmt: skip
        assert seen == "ok", f"a mapping can shrink: {self.log[-1]}"
        self.state[first + left : first + count] = [None] * (count - left)

    def move(self):
        one = self.vma()
        if one is None:
            return
        first, count = one
        skip = self.random.randrange(count)
        first, old = first + skip, self.random.randint(1, count - skip)
        new = self.random.randint(1, PAGES)
        places = [p for p in range(PAGES - new + 1) if p + new <= first or p >= first + old]
        if not places:
            return
        to = self.random.choice(places)
        seen = self.act(
            f"mremap move {first}+{old} to {to}+{new}",
            syscalls.mremap, self.region.at(first), old * PAGE, new * PAGE,
            syscalls.MREMAP_MAYMOVE | syscalls.MREMAP_FIXED, self.region.at(to),
        )  # fmt: skip
        assert seen == "ok", f"a mapping can move: {self.log[-1]}"
        letter = self.state[first]
        self.state[first : first + old] = [None] * old
        self.state[to : to + new] = [letter] * new

    def step(self):
        self.random.choice(
            [
                self.lock, self.lock, self.lock, self.unlock, self.unlock, self.unmap,
                self.map, self.map, self.protect, self.grow, self.shrink, self.move,
            ]
        )()  # fmt: skip


# Beside 8 locked pages, 8 more are asked for while MAP_FIXED or mremap replaces them.
@pytest.mark.needs("lock:16")
@pytest.mark.parametrize(
    ("kind", "seed"), [("private", 1), ("private", 2), ("shared", 3), ("memfd-shared", 4)]
)
def test_random_operations_match_model(kind, seed):
    """After each of 250 random lock, unlock, map, unmap, protect and remap operations, VmLck
    counts exactly the pages that a model says are locked, and those are the lo VMAs."""
    how = syscalls.MAP_PRIVATE if kind == "private" else syscalls.MAP_SHARED
    with mapping(kind, PAGES) as region:
        fd = region.fd
        how |= syscalls.MAP_ANONYMOUS if fd < 0 else 0
        model = Model(region, how, fd, random.Random(seed))
        for step in range(1, 251):
            model.step()
            letters = model.letters
            where = f"seed {seed}, step {step}: {'; '.join(model.log[-4:])}"
            expected = PAGES - letters.count("-")
            assert status.vmlck_pages() == expected, f"VmLck is wrong after {where}"
            locked = letters.replace("F", "L")
            assert busy(region) == locked, f"msync finds other pages locked after {where}"
            if step % SMAPS_EVERY == 0:
                seen = lock_accounting.read(region)
                assert seen.pages == letters, f"the lo VMAs differ after {where}"
                assert seen.lo == expected, f"something else is lo after {where}"


@pytest.mark.needs("lock:16", "limit:16")
@pytest.mark.claim("W17")
@pytest.mark.source("kselftest mlock-random-test")
@pytest.mark.parametrize("seed", [5, 6])
def test_random_locks_match_model(seed):
    """Without privilege and with a limit of just the range, 200 random, unaligned locks and
    unlocks within it all succeed; after each, count and residency match a model."""
    dice = random.Random(seed)
    with mapping("private", 16) as region, rlimits.unprivileged_with_limit(region.size):
        state = ["-"] * 16
        present = [False] * 16  # None: was unlocked, and may be reclaimed
        for step in range(1, 201):
            start = dice.randrange(region.size)
            length = dice.randint(0, min(region.size - start, 6 * PAGE))
            letter = dice.choice("LF-")
            addr = region.addr + start
            if letter == "-":
                seen = syscalls.outcome(syscalls.munlock, addr, length)
            else:
                seen = syscalls.outcome(syscalls.mlock2, addr, length, int(letter == "F"))
            where = f"seed {seed}, step {step}: {letter} of {length} bytes from {start}"
            assert seen == "ok", f"refused: {where}"
            last = -(-(start + length) // PAGE) if length or start % PAGE else start // PAGE
            for page in range(start // PAGE, last):
                state[page] = letter
                if letter == "L":
                    present[page] = True
                elif letter == "-" and present[page]:
                    present[page] = None
            assert status.vmlck_pages() == 16 - state.count("-"), f"VmLck is wrong after {where}"
            resident = pagemap.present(region.addr, 16)
            wrong = [p for p in range(16) if present[p] not in (None, resident[p])]
            assert wrong == [], f"pages are resident, or absent, wrongly after {where}"
            if step % SMAPS_EVERY == 0:
                assert lock_accounting.page_letters(region) == "".join(state), (
                    f"lo differs after {where}"
                )
