# SPDX-License-Identifier: MIT
"""What a call that fails, or does a part only, answers and leaves: by the manual and the source.

Sources: mlock(2), mmap(2), munmap, mremap(2), mprotect(2), madvise(2), msync(2), mincore(2),
mseal(2), Documentation/userspace-api/mseal.rst, mm/*.c of 5.10, 6.1, 6.12, 7.2, 7.3. Where those
leave more than one thing open, or kernels differ without a word in the manual, an expectation has
every one of them; whichever it is, VmLck is the sum of what is marked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from helpers import syscalls
from helpers.model.page_state import KINDS, Pages, PageState, changed, mark, runs
from helpers.syscalls import PAGE

WORD = syscalls.ULONG_MAX + 1
OK = "ok"


@dataclass(frozen=True)
class Request:
    """A call on a range. Addresses and lengths in bytes, as the kernel is given them."""

    start: int
    length: int
    flags: int = 0
    prot: str = "rw"
    advice: str = ""
    target: int = 0
    new: int = 0
    lock: str = ""


@dataclass
class Expectation:
    """The answers that are right, and the states; ``untouched``: not even a VMA is split."""

    answers: frozenset[str]
    states: list[Pages]
    untouched: bool = False


@dataclass
class FailingCalls:
    """An address space before a call. ``room``: pages that may be locked beyond what is locked
    (None: any number), ``permitted``: the limit is not 0."""

    pages: Pages
    base: int
    unit: int
    differs: Callable[[str], bool]
    room: int | None = None
    permitted: bool = True
    others: list[Pages] = field(default_factory=list)
    """Further states that are right too."""
    split: bool = False
    """VMAs may have been split, of which nothing else has changed."""

    def expect(self, rule: str, request: Request) -> Expectation:
        """What the call must answer and leave."""
        before = dict(self.pages)
        answer: str | set[str] = getattr(self, "_" + rule)(request)
        answers = frozenset({answer} if isinstance(answer, str) else answer)
        unchanged = self.pages == before and not self.others
        untouched = OK not in answers and unchanged and not self.split
        return Expectation(answers, [self.pages, *self.others], untouched)

    # Ranges

    def _number(self, addr: int) -> int:
        return (addr - self.base) // self.unit

    def _span(self, start: int, length: int) -> tuple[int, int]:
        end = min(start + length, self.base + (1 << 40))
        return self._number(start), -(-(end - self.base) // self.unit)

    def _up_to_hole(self, first: int, end: int) -> tuple[range, bool]:
        for number in range(first, end):
            if number not in self.pages:
                return range(first, number), True
        return range(first, end), False

    def _misaligned(self, done: range, start: int, length: int) -> bool:
        """A VMA of huge pages would be cut inside of one: its first or last in the range."""
        if self.unit == PAGE or not done:
            return False
        self.split = True  # at its beginning, where its end is refused
        return bool(start % self.unit or (start + length) % self.unit)

    # Locks

    def _mlock(self, r: Request) -> str | set[str]:
        if not self.permitted and r.lock:
            return "EPERM"
        start = r.start & -PAGE
        length = -(-(r.length + r.start % PAGE) // PAGE) * PAGE % WORD
        first, end = self._span(start, length)
        asked = length // PAGE
        already = sum(1 for n in range(first, end) if n in self.pages and self.pages[n].lock)
        if r.lock and self.room is not None and asked - already > self.room:
            return "ENOMEM"
        if start + length >= WORD:
            return "EINVAL"
        if not length:
            return OK
        done, hole = self._up_to_hole(first, end)
        for number in done:
            if self.pages[number].kind.lock == "yes":
                changed(self.pages, [number], lock=r.lock)
        if hole:
            return "ENOMEM"
        if r.lock and not self._populate(done, r.lock):
            return "ENOMEM"
        return OK

    def _populate(self, numbers: Iterable[int], lock: str) -> bool:
        for number in numbers:
            page = self.pages[number]
            late = lock == "lo lf" and page.kind.lock == "yes"
            if late:
                if page.prot == "none" and self.differs("onfault-populates-prot-none"):
                    return False
                continue
            if not self._fault(number):
                return False
        return True

    def _fault(self, number: int) -> bool:
        """The kernel itself looks at a page, which then is there."""
        page = self.pages[number]
        refused = page.prot == "none" or page.guarded or page.ended or page.kind.id == "secret"
        if refused or (page.kind.id == "registered" and not page.present):
            return False
        if not page.present:
            self.pages[number] = replace(page, present=True)
        if not page.kind.exact:
            # A read fault maps its neighbours too.
            for other, near in self.pages.items():
                if near.kind is page.kind and not near.present:
                    self.pages[other] = replace(near, present=None)
        return True

    # Protection

    def _mprotect(self, r: Request) -> str | set[str]:
        if r.start % PAGE:
            return "EINVAL"
        if not r.length:
            return OK
        length = -(-r.length // PAGE) * PAGE % WORD
        if not length or r.start + length >= WORD:
            return "ENOMEM"
        done, hole = self._up_to_hole(*self._span(r.start, length))
        if self._misaligned(done, r.start, length):
            return "EINVAL"
        untouched = dict(self.pages)
        for part in runs(self.pages, done.start, done.stop):
            head = self.pages[part.start]
            if "w" in r.prot and not head.kind.writable:
                return "EACCES"
            if head.sealed:
                # 6.10 and 6.11 look at the whole range first, later kernels at each VMA.
                self.others.append(untouched)
                return "EPERM"
            for number in part:
                page = self.pages[number]
                gains = "w" in r.prot and "w" not in page.prot and not page.kind.shared
                self.pages[number] = replace(page, prot=r.prot)
                if gains and page.lock and not page.present:
                    changed(self.pages, [number], present=None)
        return "ENOMEM" if hole else OK

    # Advice

    def _madvise(self, r: Request) -> str | set[str]:
        length = -(-r.length // PAGE) * PAGE % WORD
        if r.start % PAGE or (r.length and not length) or r.start + length >= WORD:
            return "EINVAL"
        if not length:
            return OK
        first, end = self._span(r.start, length)
        if r.advice.startswith("populate"):
            return self._populate_now(first, end, r.advice.endswith("write"))
        hole = any(n not in self.pages for n in range(first, end))
        if self._misaligned(range(first, end), r.start, length):
            return "EINVAL"
        untouched = dict(self.pages)
        for part in runs(self.pages, first, end):
            why = self._advise(part, r.advice)
            self.split |= why == OK and r.advice not in _DROPS
            if why == "EPERM":
                self.others.append(untouched)  # 6.10 and 6.11 look at the whole range first
            if why != OK:
                return why
        return "ENOMEM" if hole else OK

    def _populate_now(self, first: int, end: int, write: bool) -> str | set[str]:
        hole = False
        for number in range(first, end):
            page = self.pages.get(number)
            if page is None:
                if not self.differs("populate-passes-holes"):
                    return "ENOMEM"
                hole = True
                continue
            if page.kind.id in {"secret", "ring"}:
                return {"EINVAL", "EFAULT"} if page.kind.id == "secret" else {"EINVAL", OK}
            if page.prot == "none" or (write and "w" not in page.prot):
                return "EINVAL"
            if not self._fault(number):
                return "EFAULT"
        return "ENOMEM" if hole else OK

    def _advise(self, part: range, advice: str) -> str | set[str]:
        """One VMA of an madvise."""
        head = self.pages[part.start]
        kind = head.kind
        discards = advice in _DISCARDS
        if head.sealed and discards and kind.anonymous and "w" not in head.prot:
            return "EPERM"
        if advice == "wipeonfork":
            return OK if kind.anonymous else "EINVAL"
        if advice.startswith("guard"):
            return self._set_markers(part, head, advice == "guard_install")
        if advice not in _DROPS:
            return OK
        if self._locked(head) and advice != "dontneed_locked":
            return "EINVAL"
        if advice == "remove":
            return self._remove(part, head)
        if advice == "free":
            if not kind.anonymous:
                return "EINVAL"
            changed(self.pages, part, present=None, value=None)
            return OK
        if advice in {"cold", "pageout"}:
            changed(self.pages, part, present=None)
            return OK
        lost = not kind.shared
        for number in part:
            page = self.pages[number]
            value = page.value if not lost else (0 if kind.anonymous else None)
            if not page.guarded:
                gone = False if kind.exact else None
                self.pages[number] = replace(page, present=gone, value=value)
        return OK

    def _set_markers(self, part: range, head: PageState, on: bool) -> str | set[str]:
        """MADV_GUARD_INSTALL and MADV_GUARD_REMOVE."""
        if head.kind.special or (on and self._locked(head)):
            return "EINVAL"
        if on:
            changed(self.pages, part, guarded=True, present=False, value=0)
        return OK

    def _remove(self, part: range, head: PageState) -> str | set[str]:
        kind = head.kind
        if kind.anonymous:
            return "EINVAL"
        if not (kind.shared and kind.writable):
            return "EACCES"
        if not kind.file and kind.id not in {"shared", "sysv"}:
            return {"EOPNOTSUPP", "ENOTSUP", "ENODEV", "EINVAL", "EBADF", "EACCES", "ESPIPE"}
        changed(self.pages, part, present=None, value=None)
        return OK

    # Unmapping and moving

    def _munmap(self, r: Request) -> str | set[str]:
        length = -(-r.length // PAGE) * PAGE % WORD
        if r.start % PAGE or not length or r.start + length >= WORD:
            return "EINVAL"
        first, end = self._span(r.start, length)
        return self._unmap(first, end, r.start, length)

    def _unmap(self, first: int, end: int, start: int, length: int) -> str:
        if any(n in self.pages and self.pages[n].sealed for n in range(first, end)):
            self.split = True  # its first VMA, before 6.12's successors look at the next
            return "EPERM"
        if self._misaligned(range(first, end), start, length):
            return "EINVAL"
        for number in range(first, end):
            self.pages.pop(number, None)
        return OK

    def _map_over(self, r: Request) -> str | set[str]:
        """MAP_FIXED of private memory, with MAP_LOCKED where ``lock`` says so."""
        if r.start % PAGE or not r.length:
            return "EINVAL"
        if r.start + r.length >= WORD:
            return {"ENOMEM", "EINVAL"}
        asked = r.length // PAGE
        if r.lock and not self.permitted:
            return "EPERM"
        if r.lock and self.room is not None and asked > self.room:
            return "EAGAIN"
        first, end = self._span(r.start, r.length)
        answer = self._unmap(first, end, r.start, r.length)
        if answer == OK:
            fresh = PageState(KINDS["private"], r.prot, r.lock, bool(r.lock))
            self.pages.update(dict.fromkeys(range(first, end), fresh))
        return answer

    def _noreplace(self, r: Request) -> str | set[str]:
        first, end = self._span(r.start, r.length)
        wrong = r.start % PAGE or not 0 < r.length < WORD - r.start
        if not wrong and any(n in self.pages for n in range(first, end)):
            return "EEXIST"
        return self._map_over(r)

    def _mseal(self, r: Request) -> str | set[str]:
        length = -(-r.length // PAGE) * PAGE % WORD
        if r.start % PAGE or (r.length and not length) or r.start + length >= WORD:
            return "EINVAL"
        first, end = self._span(r.start, length)
        done, hole = self._up_to_hole(first, end)
        if hole:
            return "ENOMEM"  # and nothing is sealed: it looks first
        if self._misaligned(done, r.start, length):
            return "EINVAL"
        changed(self.pages, done, sealed=True)
        return OK

    def _mremap(self, r: Request) -> str | set[str]:
        old, new = (-(-n // PAGE) * PAGE % WORD for n in (r.length, r.new))
        fixed = bool(r.flags & syscalls.MREMAP_FIXED)
        stays = bool(r.flags & syscalls.MREMAP_DONTUNMAP)
        if r.start % PAGE or not new or (fixed and r.target % PAGE):
            return "EINVAL"
        if stays and old != new:
            return "EINVAL"
        if r.start + r.new >= WORD:
            return {"EINVAL", "ENOMEM", "EAGAIN", "EFAULT"}
        if fixed and r.target < r.start + old and r.start < r.target + new:
            return "EINVAL"
        first = self._number(r.start)
        head = self.pages.get(first)
        if head is None and self.differs("mremap-looks-late"):
            return self._mremap_nothing(r, old, new, fixed)
        if head is None:
            return "EFAULT"
        if head.sealed:
            return "EPERM"
        if self.unit != PAGE and (r.start % self.unit or new > old):
            return "EINVAL"
        if fixed or stays:
            return self._move(r, first, old, new, stays)
        if old >= new:
            start = r.start + new
            return self._unmap(*self._span(start, old - new), start, old - new)
        return self._cannot_grow(first, old, new)

    def _mremap_nothing(self, r: Request, old: int, new: int, fixed: bool) -> str | set[str]:
        """Up to 5.15: what is asked for besides a move is done before the source is looked at."""
        places = range(self._number(r.target), self._number(r.target) + new // self.unit)
        if old >= new:
            self._unmap(*self._span(r.start + new, old - new), r.start + new, old - new)
        if fixed:
            return self._refused_move("EFAULT", places, early=True)
        return OK if old >= new else "EFAULT"

    def _end(self, first: int) -> int:
        """Where the VMA of a page ends."""
        end = first + 1
        while end in self.pages and self.pages[end].vma == self.pages[first].vma:
            end += 1
        return end

    def _cannot_grow(self, first: int, old: int, new: int) -> str | set[str]:
        head = self.pages[first]
        if not old and not head.kind.shared:
            return "EINVAL"
        end = first + old // self.unit
        if end > self._end(first):
            return "EFAULT"
        if head.kind.special:
            return "EFAULT"
        if head.lock and self.room is not None and (new - old) // PAGE > self.room:
            return "EAGAIN"
        return "ENOMEM" if end < self._end(first) or end in self.pages else OK

    def _move(self, r: Request, first: int, old: int, new: int, stays: bool) -> str | set[str]:
        """To a fixed place."""
        head = self.pages[first]
        last = first + old // self.unit
        target = self._number(r.target)
        places = range(target, target + new // self.unit)
        early = self.differs("mremap-unmaps-first")
        if any(n in self.pages and self.pages[n].sealed for n in places):
            return "EPERM"
        if stays and head.kind.special:
            return self._refused_move("EINVAL", places, early)
        if stays and not head.kind.anonymous and self.differs("dontunmap-anonymous-only"):
            return self._refused_move("EINVAL", places, early)
        if not old and not head.kind.shared:
            return self._refused_move("EINVAL", places, early)
        several = old == new and not stays and self.differs("mremap-moves-several")
        if last > self._end(first) and not several:
            # 6.10 and 6.11 look for seals in the whole range first, and unmap nothing then.
            if any(n in self.pages and self.pages[n].sealed for n in range(first, last)):
                self.others.append(dict(self.pages))
                return self._refused_move("EFAULT", places, early) and {"EFAULT", "EPERM"}
            return self._refused_move("EFAULT", places, early)
        if new > old and head.kind.special:
            return self._refused_move("EFAULT", places, early)
        if head.lock and new > old and self.room is not None:
            freed = sum(1 for n in places if n in self.pages and self.pages[n].lock)
            if (new - old) // PAGE > self.room + (freed if early else 0):
                return self._refused_move("EAGAIN", places, early)
        if not several:
            raise NotImplementedError(f"{r}: it would succeed")
        return self._move_several(first, last, target)

    def _refused_move(self, answer: str, places: range, early: bool) -> str:
        if early:
            for number in places:
                self.pages.pop(number, None)
        return answer

    def _move_several(self, first: int, last: int, target: int) -> str | set[str]:
        """From 6.17 on: VMA by VMA, up to the first that may not be moved."""
        parts = runs(self.pages, first, last)
        for part in parts:
            head = self.pages[part.start]
            if head.kind.id in {"registered", "sysv"} and (part.start > first or part.stop < last):
                return "EFAULT"  # not beside another: that may have been moved
            if head.sealed:
                return "EPERM"
            shift = target - first
            if any(self.pages[n].sealed for n in (m + shift for m in part) if n in self.pages):
                return "EPERM"
            for number in part:
                self.pages.pop(number + shift, None)
            for number in part:
                self.pages[number + shift] = self.pages.pop(number)
        return OK

    # Calls that change nothing

    def _msync(self, r: Request) -> str | set[str]:
        length = -(-r.length // PAGE) * PAGE % WORD
        if r.start % PAGE:
            return "EINVAL"
        if r.start + length >= WORD or (r.length and not length):
            return "ENOMEM"
        if not length:
            return OK
        found = [self.pages.get(n) for n in range(*self._span(r.start, length))]
        if r.flags & syscalls.MS_INVALIDATE and any(self._locked(p) for p in found):
            return "EBUSY"  # a hole does not end the walk
        return "ENOMEM" if None in found else OK

    def _locked(self, page: PageState | None) -> bool:
        if page is None:
            return False
        return bool(mark(page, "lo" if self.differs("secret-is-locked") else ""))

    def _mincore(self, r: Request) -> str | set[str]:
        if r.start % PAGE:
            return "EINVAL"
        length = -(-r.length // PAGE) * PAGE
        if r.start + length >= WORD:
            return "ENOMEM"
        if not length:
            return OK
        return "ENOMEM" if self._up_to_hole(*self._span(r.start, length))[1] else OK

    def _remap_file_pages(self, r: Request) -> str | set[str]:
        first, end = self._span(r.start, r.length)
        found = [self.pages.get(n) for n in range(first, end)]
        if not r.length or not all(p is not None and p.kind.shared for p in found):
            return "EINVAL"
        raise NotImplementedError(f"{r}: it would succeed")


_DROPS = frozenset({"dontneed", "dontneed_locked", "free", "cold", "pageout", "remove"})
_DISCARDS = frozenset(
    {"dontneed", "dontneed_locked", "free", "remove", "dontfork", "wipeonfork", "guard_install"}
)
