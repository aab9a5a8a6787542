# SPDX-License-Identifier: MIT
"""What an address space is after each call, by the manual.

Sources: mlock(2), mmap(2), mremap(2), mprotect(2), madvise(2), brk(2), fork(2), getrlimit(2),
msync(2), mincore(2), Documentation/mm/unevictable-lru.rst; where they are silent or wrong, the
kernel's source. What differs between kernels is data: :data:`DIFFERENCES`.

The space is a dict of pages, not of VMAs: neighbours that are alike are one VMA, except where
the kernel may keep them apart (see :meth:`Space.adopt`).
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from helpers.model.script import ARENA, HEAP, HEAP_PAGES, MAX, Call, NotApplicable, ScriptError

UNLIMITED_PAGES = 1 << 62
"""Pages in an unlimited RLIMIT_MEMLOCK."""
LOCKED, ONFAULT = "lo", "lo lf"

KERNEL_DIFFERENCES = {
    "wrapping-length": "mlock and munlock of SIZE_MAX bytes succeed as if the length were 0, "
    "where the manual has EINVAL (all kernels to 7.3)",
    "onfault-populates-prot-none": "mlock2(MLOCK_ONFAULT) of PROT_NONE memory: ENOMEM (to 5.17)",
    "dontunmap-leaks-vmlck": "MREMAP_DONTUNMAP counts locked pages twice (6.13 to 7.2.12)",
    "dontunmap-strips-lock": "MREMAP_DONTUNMAP of a part unlocks the whole VMA (to 7.2.12)",
    "dontunmap-anonymous-only": "MREMAP_DONTUNMAP of shared or file memory: EINVAL (to 5.12)",
    "mremap-unmaps-first": "mremap unmaps the target before it looks at limits, so that a move "
    "that is refused leaves a hole, and its locks are not counted against the limit",
    "populate-passes-holes": "MADV_POPULATE goes on behind a hole, and says ENOMEM at the end "
    "(seen on 6.1)",
    "mremap-moves-several": "mremap moves several VMAs at once, holes between them too (from 6.17)",
    "mremap-looks-late": "mremap shrinks or unmaps before it sees that nothing is at its source "
    "(to 5.15)",
    "secret-is-locked": "secret memory is lo and counts in VmLck (5.14 to 7.1)",
    "marks-by-population": "a lock marks pages PG_mlocked as it populates, so not where it fails "
    "before that (to 5.17)",
    "merging-range-enomem": "a lock over VMAs that merge meanwhile: ENOMEM (6.3, 6.4)",
}
"""Name → what such a kernel does. The manual's rule is followed where a name is absent."""


@dataclass
class SharedObject:
    """Shared memory: its size in pages, and the first byte of each page that was ever used."""

    size: int
    cache: dict[int, int] = field(default_factory=dict)


@dataclass(slots=True)
class Page:
    """A mapped page. ``offset``: its page in the file, or of the address where it was made."""

    kind: str
    prot: str
    lock: str
    offset: int
    file: SharedObject | None = None
    flags: frozenset[str] = frozenset()
    present: bool = False
    own: bool = False  # private memory with a page of its own, not the zero page or the file's
    value: int | None = 0  # its first byte; None: not known
    mlocked_unknown: bool = False  # was in two processes, or paged out: PG_mlocked is not exact
    family: int = 0  # equal, not 0: one anon_vma, so that neighbours merge for certain

    @property
    def private(self) -> bool:
        return self.kind in {"private", "memfd-private"}

    @property
    def writable(self) -> bool:
        return "w" in self.prot

    @property
    def readable(self) -> bool:
        return self.prot != "none" and "r" in self.prot

    @property
    def shown(self) -> tuple[str, str, tuple[str, ...], int | None]:
        """What /proc/PID/smaps says of it: permissions, lock, advice, page in the file."""
        perms = "".join(c if c in self.prot and self.prot != "none" else "-" for c in "rwx")
        return (
            perms + ("p" if self.private else "s"),
            self.lock,
            tuple(sorted(self.flags)),
            None if self.file is None else self.offset,
        )


_families = itertools.count(1)


class AddressSpace:
    """The state; :meth:`apply` makes one call and says how it ends."""

    def __init__(
        self,
        fixed: int,
        special: int,
        limit: int,
        capable: bool,
        differs: Callable[[str], bool],
    ) -> None:
        """``fixed``: pages of program and stack, ``special``: of the kernel's own mappings."""
        self.pages: dict[int, Page] = {}
        self.fixed, self.special = fixed, special
        self.fixed_lock = ""
        self.future = ""
        self.limit, self.capable = limit, capable
        self.permitted = limit > 0  # a limit of half a page lets the calls through
        self.differs = differs
        self.memfd = SharedObject(ARENA)
        self.top = 0  # the program break, in pages of heap
        self.leaked = 0  # pages in VmLck for good (dontunmap-leaks-vmlck)
        self.maybe: set[int] = set()  # pages that may have become present
        self.written: set[int] = set()  # private pages whose VMA has an anon_vma now
        self.loose: set[int] = set()  # boundaries at which no merge was tried
        self.seams: set[int] = set()  # boundaries that the kernel keeps between alike pages

    # What is seen of it

    @property
    def vmlck(self) -> int:
        """VmLck in pages."""
        locked = sum(1 for p in self.pages.values() if p.lock)
        return locked + (self.fixed if self.fixed_lock else 0) + self.leaked

    @property
    def size(self) -> int:
        """VmSize in pages."""
        return len(self.pages) + self.fixed + self.special

    def alike(self, number: int) -> bool:
        """Pages ``number`` − 1 and ``number`` could be of one VMA."""
        a, b = self.pages.get(number - 1), self.pages.get(number)
        if a is None or b is None or a.file is not b.file or a.shown[:3] != b.shown[:3]:
            return False
        return a.offset + 1 == b.offset

    def must_merge(self, number: int) -> bool:
        """They must be of one VMA: alike, of one anon_vma or none, and a merge was tried."""
        if not self.alike(number) or number in self.loose:
            return False
        return self.pages[number - 1].family == self.pages[number].family

    def vma(self, number: int) -> range:
        """The pages of the VMA that holds this one."""
        first, last = number, number + 1
        while first not in self.seams and self.alike(first):
            first -= 1
        while last not in self.seams and self.alike(last):
            last += 1
        return range(first, last)

    def adopt(self, boundaries: set[int], present: set[int]) -> None:
        """Learn what a kernel may decide: which alike neighbours it keeps in VMAs of their own,
        and which pages it mapped beside those it had to (fault-around)."""
        self.seams = {n for n in boundaries if self.alike(n)}
        for number in self.maybe:
            if number in self.pages:
                self.pages[number].present = number in present
        self.maybe.clear()
        for number in sorted(self.pages):
            if number not in self.seams and self.alike(number):
                self._same(self.pages[number - 1].family, self.pages[number].family)
        for number in list(self.pages):
            whole = self.vma(number)
            if whole[0] != number:
                continue
            members = [self.pages[n] for n in whole]
            family = max(p.family for p in members)
            if not family and any(n in self.written for n in whole):
                family = next(_families)
            for page in members:
                page.family = family
        self.written.clear()

    def _same(self, one: int, other: int) -> None:
        """Two names of one anon_vma, now that a VMA has both."""
        if one and other and one != other:
            for page in self.pages.values():
                if page.family == other:
                    page.family = one

    # Faults and population

    def _fault(self, number: int, write: bool) -> bool:
        """The page becomes present; False where its file has ended (SIGBUS)."""
        page = self.pages[number]
        if page.file is not None and not page.present and not write:
            self._around(number)
        if page.private and write:
            self.written.add(number)  # its anon_vma is made first, though the fault may fail
        if page.file is not None and not page.own:
            if page.offset >= page.file.size:
                return False
            page.file.cache.setdefault(page.offset, 0)
        if page.private and write and not page.own:
            page.value = 0 if page.file is None else page.file.cache[page.offset]
            page.own, page.mlocked_unknown = True, False
        page.present = True
        self.maybe.discard(number)
        return True

    def _around(self, number: int) -> None:
        """A read fault in a file may map what is cached of the same VMA."""
        for step in (-1, 1):
            at = number
            while self.alike(at if step < 0 else at + 1):
                at += step
                page = self.pages[at]
                if not page.present and page.file and page.offset in page.file.cache:
                    self.maybe.add(at)

    def _populate(self, numbers: Iterable[int]) -> bool:
        """As the kernel populates locked memory: in order, up to the first failure."""
        for number in numbers:
            page = self.pages[number]
            if page.lock == ONFAULT:
                if page.prot == "none" and self.differs("onfault-populates-prot-none"):
                    return False
                continue
            if page.prot == "none":
                return False
            if not self._fault(number, page.private and page.writable):
                return False
        return True

    def _populate_each(self, numbers: Iterable[int]) -> None:
        """Ignoring errors, which end the population of their VMA only."""
        skip = -1  # a page whose VMA has failed before it
        for number in numbers:
            if number == skip and self.alike(number):
                skip += 1
            elif not self._populate([number]):
                skip = number + 1

    # Limits

    def _may(self) -> bool:
        return self.permitted or self.capable

    def _room(self, more: int) -> bool:
        return self.capable or self.vmlck + more <= self.limit

    # The calls

    def apply(self, call: Call) -> str:
        """Make the call: ``"ok"`` or the name of its errno."""
        function: Callable[[Call], str] = getattr(self, "_" + call.name)
        return function(call)

    def _span(self, call: Call) -> tuple[int, int]:
        """[first, last) in pages of an unaligned range, rounded outward."""
        where, length = call.args[0], call.args[1]
        assert not isinstance(where, str)
        assert not isinstance(length, str)
        first = int(where)
        last = -int(-(where + length) // 1) if length or where != first else first
        return first, last

    def _mmap(self, call: Call) -> str:
        first, count, kind, prot = call.args
        assert isinstance(first, int)
        assert isinstance(count, int)
        lock = self.future
        if "locked" in call.options:
            if not self._may():
                return "EPERM"
            lock = lock or LOCKED
        if lock and not self._room(count):
            return "EAGAIN"
        file = (
            None if kind == "private" else SharedObject(count) if kind == "shared" else self.memfd
        )
        at = call.option("at")
        base = 0 if kind == "shared" else first if at is None or file is None else at
        numbers = range(first, first + count)
        self._forget(numbers)
        for number in numbers:
            self.pages[number] = Page(str(kind), str(prot), lock, base + number - first, file)
        if lock or ("populate" in call.options and "nonblock" not in call.options):
            self._populate_each(numbers)
        return "ok"

    def _forget(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            self.pages.pop(number, None)
            self.loose -= {number, number + 1}

    def _munmap(self, call: Call) -> str:
        first, last = self._span(call)
        self._forget(range(first, last))
        return "ok"

    def _up_to_hole(self, first: int, last: int) -> tuple[range, str]:
        for number in range(first, last):
            if number not in self.pages:
                return range(first, number), "ENOMEM"
        return range(first, last), "ok"

    def _mprotect(self, call: Call) -> str:
        done, outcome = self._up_to_hole(*self._span(call))
        populate = []
        for number in done:
            page = self.pages[number]
            was, page.prot = page.writable, str(call.args[2])
            if page.private and page.lock and page.writable and not was:
                populate.append(number)
        self._populate_each(populate)
        return outcome

    def _wrapped(self, call: Call) -> str | None:
        """The outcome of a length that wraps, or None."""
        if call.args[1] != MAX:
            return None
        if not self.differs("wrapping-length"):
            return "EINVAL"
        if call.args[0] != int(call.args[0]):
            raise NotApplicable(f"{call}: max wants a whole page to start from")
        return "ok"

    def _mlock(self, call: Call) -> str:
        return self._lock(call, LOCKED)

    def _mlock2(self, call: Call) -> str:
        how = call.args[2]
        if how not in {0, 1, "onfault"}:
            return "EINVAL"
        return self._lock(call, LOCKED if how == 0 else ONFAULT)

    def _lock(self, call: Call, lock: str) -> str:
        if not self._may():
            return "EPERM"
        wrapped = self._wrapped(call)
        first, last = (0, 0) if wrapped else self._span(call)
        already = sum(1 for n in range(first, last) if n in self.pages and self.pages[n].lock)
        if not self._room(last - first) and not self._room(last - first - already):
            return "ENOMEM"
        if wrapped:
            return wrapped
        done, outcome = self._up_to_hole(first, last)
        for number in done:
            self.pages[number].lock = lock
        if outcome == "ok" and not self._populate(done):
            outcome = "ENOMEM"
        return outcome

    def _munlock(self, call: Call) -> str:
        if wrapped := self._wrapped(call):
            return wrapped
        done, outcome = self._up_to_hole(*self._span(call))
        for number in done:
            self.pages[number].lock = ""
        return outcome

    def _mlockall(self, call: Call) -> str:
        flags = str(call.args[0]).split("+")
        if isinstance(call.args[0], int):
            names = ("current", "future", "onfault")
            flags = [n for bit, n in enumerate(names) if call.args[0] >> bit & 1]
            if call.args[0] > 7:
                return "EINVAL"
        if not {"current", "future"} & set(flags):
            return "EINVAL"
        if not self._may():
            return "EPERM"
        if "current" in flags and not self.capable and self.size > self.limit:
            return "ENOMEM"
        lock = ONFAULT if "onfault" in flags else LOCKED
        self.future = lock if "future" in flags else ""
        if "current" in flags:
            self._lock_all(lock)
            self._populate_each(sorted(self.pages))
        return "ok"

    def _munlockall(self, call: Call) -> str:
        self.future = ""
        self._lock_all("")
        return "ok"

    def _lock_all(self, lock: str) -> None:
        self.fixed_lock = lock
        for page in self.pages.values():
            page.lock = lock

    def _mremap(self, call: Call) -> str:
        first, old, new = (int(a) for a in call.args)
        target = call.option("to")
        stays = "dontunmap" in call.options
        if first not in self.pages or (not old and target == first):
            raise NotApplicable(f"{call}: not modelled from a hole, or from what it unmaps")
        if target is not None and first < target + new and target < first + old:
            return "EINVAL"
        if stays and old != new:
            return "EINVAL"
        vma = self.vma(first)
        crosses = first + old > vma[-1] + 1
        if crosses and (target is not None or old >= new):
            raise NotApplicable(f"{call}: not modelled across VMAs")
        if crosses:
            return "EFAULT"
        locked = bool(self.pages[first].lock)
        near = target in {first + old, first - new}  # the target may merge with the source
        if stays and locked and (near or old < len(vma)) and self.differs("dontunmap-strips-lock"):
            raise NotApplicable(f"{call}: this kernel has the known fault dontunmap-strips-lock")
        early = target is not None and self.differs("mremap-unmaps-first")
        if early and target is not None:
            self._forget(range(target, target + new))
        if new < old:
            self._forget(range(first + new, first + old))
            old = new
        only = self.pages[first].kind == "private" or not self.differs("dontunmap-anonymous-only")
        if stays and not only:
            return "EINVAL"
        if not old and self.pages[first].private:
            return "EINVAL"
        if locked and new > old and not self._room(new - old):
            return "EAGAIN"
        if target is None:
            return self._grow(first, old, new, vma)
        self._forget(range(target, target + new))
        self._move(first, old, new, target, stays)
        return "ok"

    def _grow(self, first: int, old: int, new: int, vma: range) -> str:
        end = first + old
        more = range(end, first + new)
        if not more:
            self.loose |= {end}
            return "ok"
        if end != vma[-1] + 1 or any(n in self.pages for n in more):
            return "ENOMEM"
        self._extend(self.pages[first], first, more)
        self.loose |= {first + new}
        if self.pages[first].lock:
            self._populate_each(more)
        return "ok"

    def _extend(self, like: Page, at: int, numbers: Iterable[int]) -> None:
        for number in numbers:
            page = copy.copy(like)
            page.offset = like.offset + number - at
            page.present = page.own = page.mlocked_unknown = False
            page.value = 0
            self.pages[number] = page

    def _move(self, first: int, old: int, new: int, target: int, stays: bool) -> None:
        head = self.pages[first]
        # An anonymous VMA without pages is made anew where it goes (copy_vma).
        fresh = head.file is None and not head.family
        moved = {target + i: self.pages[first + i] for i in range(old)}
        for number in range(first, first + old):
            del self.pages[number]
        for number, page in moved.items():
            if stays:
                kept = copy.copy(page)
                kept.present = kept.own = kept.mlocked_unknown = False
                kept.lock, kept.value = "", 0
                if kept.private:
                    kept.family = next(_families)
                self.pages[number - target + first] = kept
            if fresh:
                page.offset = number
        if stays and head.lock and self.differs("dontunmap-leaks-vmlck"):
            self.leaked += old
        self.pages.update(moved)
        # Of length 0, it is the same memory mapped a second time.
        more = range(target + old, target + new)
        self._extend(head, target, more)
        self.loose |= {first, first + old, target, target + new}
        if head.lock:
            self._populate_each(more)

    def _madvise(self, call: Call) -> str:
        first, last = self._span(call)
        advice = call.args[2]
        if advice in {"populate_read", "populate_write"}:
            return self._advise_populate(range(first, last), advice == "populate_write")
        hole = False
        for number in range(first, last):
            page = self.pages.get(number)
            if page is None:
                hole = True
            elif not self._advise(number, page, str(advice)):
                return "EINVAL"
        return "ENOMEM" if hole else "ok"

    def _advise(self, number: int, page: Page, advice: str) -> bool:
        """One page of an madvise; False: EINVAL, and no page of its VMA or behind it is done."""
        changes = {"dontfork": ("dc", True), "dofork": ("dc", False),
                   "wipeonfork": ("wf", True), "keeponfork": ("wf", False)}  # fmt: skip
        if advice in changes:
            if advice == "wipeonfork" and page.kind != "private":
                return False
            flag, on = changes[advice]
            page.flags = page.flags | {flag} if on else page.flags - {flag}
            return True
        if page.lock and advice != "dontneed_locked":
            return False
        if advice == "free":
            if page.kind != "private":
                return False
            if page.own:
                page.value = None  # zero once it was taken, which may be at any time
        elif advice == "pageout":
            page.mlocked_unknown = True
            if page.present:
                self.maybe.add(number)
        elif advice in {"dontneed", "dontneed_locked"}:
            page.present = page.own = page.mlocked_unknown = False
            page.value = 0
        return True

    def _advise_populate(self, numbers: range, write: bool) -> str:
        hole = False
        for number in numbers:
            page = self.pages.get(number)
            if page is None:
                if not self.differs("populate-passes-holes"):
                    return "ENOMEM"
                hole = True
                continue
            if not (page.writable if write else page.readable):
                return "EINVAL"
            if not self._fault(number, write):
                return "EFAULT"
        return "ENOMEM" if hole else "ok"

    def _msync(self, call: Call) -> str:
        first, last = self._span(call)
        found = [self.pages.get(n) for n in range(first, last)]
        if "invalidate" in str(call.args[2]) and any(p is not None and p.lock for p in found):
            return "EBUSY"
        return "ENOMEM" if None in found else "ok"

    def _mincore(self, call: Call) -> str:
        return self._up_to_hole(*self._span(call))[1]

    def residents(self, call: Call) -> list[bool | None]:
        """What mincore(2) must say of each page; None where it may say either."""
        found: list[bool | None] = []
        for number in range(*self._span(call)):
            page = self.pages[number]
            # What was there once, and is not mapped, may be in memory or in swap.
            used = page.own or (page.file is not None and page.offset in page.file.cache)
            found.append(True if page.present else None if used else False)
        return found

    def _touch(self, call: Call, write: bool) -> str:
        touched = [self.pages.get(n) for n in range(*self._span(call))]
        if not write and any(p is not None and p.prot == "w" for p in touched):
            raise NotApplicable(f"{call}: whether write-only memory can be read is the processor's")
        for number in range(*self._span(call)):
            page = self.pages.get(number)
            if page is None or page.prot == "none" or (write and not page.writable):
                return "EFAULT"
            if not self._fault(number, write):
                return "EFAULT"
            if write:
                self._set(page, value_of(number))
        return "ok"

    @staticmethod
    def _set(page: Page, value: int) -> None:
        if page.private:
            page.value = value
        elif page.file is not None:
            page.file.cache[page.offset] = value

    def _read(self, call: Call) -> str:
        return self._touch(call, False)

    def _write(self, call: Call) -> str:
        return self._touch(call, True)

    def content(self, page: Page) -> int | None:
        """The first byte of a present page; None: not known."""
        if page.own:
            return page.value
        return 0 if page.file is None else page.file.cache.get(page.offset)

    def _truncate(self, call: Call) -> str:
        size = int(call.args[0])
        self.memfd.size = size
        for offset in [o for o in self.memfd.cache if o >= size]:
            del self.memfd.cache[offset]
        self.cut()
        return "ok"

    def cut(self) -> None:
        """Pages behind the end of the memfd are gone, private copies of them too."""
        for page in self.pages.values():
            if page.file is self.memfd and page.offset >= page.file.size:
                page.present = page.own = page.mlocked_unknown = False
                page.value = 0

    def _brk(self, call: Call) -> str:
        top = HEAP + int(call.args[0])
        now = HEAP + self.top
        if top > now and self.future and not self._room(top - now):
            return "refused"
        self._forget(range(top, HEAP + HEAP_PAGES))
        for number in range(now, top):
            self.pages[number] = Page("private", "rw", self.future, number)
        self.loose.add(now)
        if self.future:
            self._populate_each(range(now, top))
        self.top = top - HEAP
        return "ok"

    def _limit(self, call: Call) -> str:
        wanted = call.args[0]
        if wanted == "unlimited":
            self.limit = UNLIMITED_PAGES
        elif isinstance(wanted, str):
            self.limit = self.limit_of(wanted)
        else:
            self.limit = int(wanted)
        self.permitted = self.limit > 0 or wanted == 0.5
        return "ok"

    def limit_of(self, text: str) -> int:
        """``size`` or ``locked`` with what is added or taken: in pages, 0 or more."""
        word = "size" if text.startswith("size") else "locked"
        now = self.size if word == "size" else self.vmlck
        return max(0, now + int(text.removeprefix(word) or 0))

    def _capability(self, call: Call) -> str:
        self.capable = call.args[0] == "on"
        return "ok"

    def _fork(self, call: Call) -> str:
        raise ScriptError("fork makes a second space: Space.forked")

    _exit = _fork

    def blur(self) -> None:
        """A child has locked pages that it shared with us: PG_mlocked of ours is not exact."""
        for page in self.pages.values():
            page.mlocked_unknown = page.own

    def forked(self) -> AddressSpace:
        """The child's space: nothing locked, no MCL_FUTURE; files are the same."""
        child = copy.copy(self)
        child.pages = {}
        child.future = child.fixed_lock = ""
        child.leaked = 0
        child.maybe, child.written = set(), set()
        # VMAs that only their locks kept apart stay as they are: fork(2) merges nothing.
        child.loose, child.seams = set(self.pages), set(self.seams)
        families: dict[int, int] = {}
        for number, page in self.pages.items():
            if "dc" in page.flags:
                continue
            copied = copy.copy(page)
            copied.mlocked_unknown = page.own
            copied.lock = ""
            if "wf" in page.flags:
                copied.present = copied.own = copied.mlocked_unknown = False
                copied.value = copied.family = 0
            elif copied.present and not copied.own:
                copied.present = False
                child.maybe.add(number)  # page tables that can be rebuilt need not be copied
            if copied.family:
                # Each VMA gets an anon_vma of its own.
                key = self.vma(number)[0]
                copied.family = families.setdefault(key, next(_families))
            child.pages[number] = copied
        return child


def value_of(number: int) -> int:
    """The byte that ``write`` leaves in a page: another for each."""
    return 0x41 + number % 59
