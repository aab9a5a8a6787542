# SPDX-License-Identifier: MIT
"""The behaviours of a page by chapter and subject, kernels side by side.

A behaviour is a test function; its variants are rows of their own only where they differ. Each has
an anchor of letters, digits, ``_``, ``.`` and ``-``, which is its name in KTAP too.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import markupsafe

from helpers.report.compare import CODES, Matrix
from helpers.report.ktap import ktap_id, printable
from helpers.report.links import linked
from helpers.report.pictures import shown
from helpers.report.verdicts import Verdict

CLASSES = {
    Verdict.VERIFIED: "ok", Verdict.DEVIATES: "dev", Verdict.FAILED: "bad", Verdict.BROKEN: "bad",
    Verdict.INCONCLUSIVE: "dim", Verdict.NOT_VERIFIED: "dim",
    Verdict.NOT_RUN: "dim",
}  # fmt: skip
MARKS = {
    Verdict.VERIFIED: "✓", Verdict.DEVIATES: "≠", Verdict.FAILED: "✗", Verdict.BROKEN: "!",
    Verdict.INCONCLUSIVE: "?", Verdict.NOT_VERIFIED: "○", Verdict.NOT_RUN: "-",
}  # fmt: skip
LETTERS = {
    Verdict.VERIFIED: "V", Verdict.DEVIATES: "D", Verdict.FAILED: "F", Verdict.BROKEN: "B",
    Verdict.INCONCLUSIVE: "I", Verdict.NOT_VERIFIED: "N", Verdict.NOT_RUN: "R",
}  # fmt: skip
"""What the script knows a verdict by."""
CALLS = (
    "brk", "clone", "execve", "fork", "io_uring", "ksm", "madvise", "mbind", "memfd_secret",
    "mincore", "mlock", "mlock2", "mlockall", "mmap", "move_pages", "mprotect", "mremap", "mseal",
    "msync", "munlock", "munlockall", "munmap", "process_madvise", "process_vm_readv",
    "remap_file_pages", "setrlimit", "shmctl", "userfaultfd", "vfork",
)  # fmt: skip
"""Calls by which the page can be filtered."""
_VERIFIED = CODES.index(Verdict.VERIFIED)
_WORD = re.compile(r"[A-Za-z0-9-]+")
"""Parameters that are part of an anchor as they are."""
_TOLD = {Verdict.DEVIATES, Verdict.FAILED, Verdict.BROKEN}
"""Verdicts of which a behaviour says why."""
_MOST = 20
"""Different reasons that one behaviour tells."""


@functools.lru_cache(maxsize=4096)
def cited(text: str) -> markupsafe.Markup:
    """The text with links to what it cites."""
    return markupsafe.Markup(
        "".join(
            f'<a href="{address}">{shown(piece)}</a>' if address else shown(piece)
            for piece, address in linked(text)
        )
    )


@functools.lru_cache(maxsize=4096)
def _cell(verdict: Verdict | None, why: str, lead: str, count: str) -> str:
    """The cell of one kernel."""
    if verdict is None:
        return "<td>"
    title = shown(f"{verdict.value}: {why}" if why else verdict.value)
    inner = f"{MARKS[verdict]}{count}"
    if lead:
        inner = f'<a href="#{lead}">{inner}</a>'
    return f'<td class="{CLASSES[verdict]}" title="{title}" aria-label="{title}">{inner}'


class Behaviours:
    """What a page says of each behaviour, gathered result by result."""

    def __init__(self, matrix: Matrix) -> None:
        self._matrix = matrix
        self._statements: list[str] = []
        self._sources: list[str] = []
        self._subjects: dict[str, str] = {}
        self._claims: dict[int, str] = {}
        self._said: dict[tuple[int, int], str] = {}
        self._leads: dict[tuple[int, int], str] = {}
        self._pictures: dict[int, dict[str, list[int]]] = {}
        self._same: dict[str, str] = {}
        self._last = ""

    def add(self, row: Any, column: int) -> None:
        """What a row says of itself; its verdict is in the matrix."""
        place = self._matrix.places.get(row.id)
        if place is None:
            return  # renamed since
        lacking = len(self._matrix.places) - len(self._statements)
        if lacking > 0:
            self._statements.extend([""] * lacking)
            self._sources.extend([""] * lacking)
        function = row.id.partition("[")[0]
        if function != self._last:  # its variants say the same, and stand together
            self._last = function
            self._statements[place] = row.statement
            self._sources[place] = self._same.setdefault(row.source, row.source)
        if row.verdict in _TOLD:
            why = printable(" ".join((row.detail or row.reason).split()))[:600]
            self._said[place, column] = self._same.setdefault(why, why)
        if row.claims:
            self._claims[place] = self._same.setdefault(row.claims, row.claims)
        if row.subject:
            file = row.id.partition("::")[0]
            self._subjects[file] = row.subject

    def lead(self, name: str, column: int, anchor: str) -> None:
        """Where a failure is told of in full."""
        if (place := self._matrix.places.get(name)) is not None:
            self._leads[place, column] = anchor

    def draw(self, name: str, column: int, drawn: Sequence[str]) -> None:
        """Pictures; kernels that saw the same share one."""
        if (place := self._matrix.places.get(name)) is not None:
            found = self._pictures.setdefault(place, {})
            for each in drawn:
                found.setdefault(each, []).append(column)

    def anchor(self, name: str) -> str:
        """The id of a behaviour in the page."""
        return ktap_id(name.removeprefix("tests/")) or "behaviour"

    def html(self, breaks: Sequence[Mapping[str, int]]) -> Iterator[markupsafe.Markup]:
        """Chapter by chapter. ``breaks``: how many faults break each case, result by result."""
        columns = self._matrix.verdicts()
        names = sorted(self._matrix.places)
        chapter = ""
        for file, first, last in _runs(names, 0, len(names), "::"):
            path = PurePosixPath(file)
            if chapter != (chapter := path.parent.name or "other"):
                heading = f'<h3 class="chapter" id="{ktap_id(chapter)}">{shown(chapter)}</h3>\n'
                yield markupsafe.Markup(heading)
            yield markupsafe.Markup(
                self._subject(file, [*_runs(names, first, last, "[")], names, columns, chapter)
            )
            for function, start, end in _runs(names, first, last, "["):
                for part in self._function(function, names, start, end, columns, breaks):
                    yield markupsafe.Markup(part)
            yield markupsafe.Markup("</table></section>\n")

    def _subject(
        self, file: str, functions: Sequence[Any], names: Any, columns: Any, chapter: str
    ) -> str:
        stem = PurePosixPath(file).stem.removeprefix("test_").replace("_", " ")
        anchor = self.anchor(file)
        heads = "".join(f"<th scope=col>{shown(label)}" for label in self._matrix.labels)
        return (
            f'<section class="subject" data-chapter="{ktap_id(chapter)}" '
            f'style="contain-intrinsic-size:auto {4 * len(functions) + 3}rem">'
            f'<h4 id="{anchor}"><a href="#{anchor}">{shown(self._subjects.get(file) or stem)}</a> '
            f"<code>{shown(file)}</code></h4><table><colgroup><col>"
            f"<col class=k span={len(columns)}></colgroup>"
            f'<thead class="seen-by-readers"><tr><th scope=col>behaviour{heads}</thead>\n'
        )

    def _function(
        self, function: str, names: Sequence[str], start: int, end: int,
        columns: Sequence[bytes], breaks: Sequence[Mapping[str, int]],
    ) -> Iterator[str]:  # fmt: skip
        """A behaviour: its statement, what it cites, its verdicts, the variants that differ."""
        places = self._matrix.places
        where = [places[names[n]] for n in range(start, end)]
        counts = [Counter(map(column.__getitem__, where)) for column in columns]
        letters = "".join(LETTERS[v] for v in Verdict if any(c[CODES.index(v)] for c in counts))
        alike = all(len(c) == 1 for c in counts)
        place, anchor = where[0], self.anchor(function)
        differ = any(
            len({column[each] for column in columns} - {0}) > 1
            for each in (where[:1] if alike else where)
        )
        statement = shown(self._first(self._statements, where) or function)
        if alike:
            cells = self._cells(place, [column[place] for column in columns])
        else:
            cells = "".join(_mixed(each) for each in counts)
        told: list[str] = []
        if source := self._first(self._sources, where):
            told.append(cited(source))
        if claims := self._claims.get(place):
            told.append(f"claim {shown(claims)}")
        for each in breaks:
            if most := max((each.get(names[n], 0) for n in range(start, end)), default=0):
                told.append(f"breaks under {most} faults")
        told.append(f"<code>{shown(function.rpartition('::')[2])}</code>")
        flag = " data-d" if differ else ""
        yield (
            f'<tbody class="b" id="{anchor}" data-v="{letters}"{flag}><tr><th scope=row>'
            f'<a class="s" href="#{anchor}">{statement}</a>'
            f'<div class="meta">{" · ".join(told)}</div>{cells}\n'
        )
        yield from self._variants(names, start, end, where, columns, alike, anchor)
        yield from self._notes(where, columns)
        yield from self._drawn(names, start, end, where, len(columns))
        yield "</tbody>\n"

    @staticmethod
    def _first(texts: Sequence[str], where: Sequence[int]) -> str:
        return next((texts[place] for place in where if texts[place]), "")

    def _why(self, column: int, place: int) -> str:
        return self._matrix.columns[column].reasons.get(place, "")

    def _variants(
        self, names: Sequence[str], start: int, end: int, where: Sequence[int],
        columns: Sequence[bytes], alike: bool, anchor: str,
    ) -> Iterator[str]:  # fmt: skip
        if end - start == 1 and "[" not in names[start]:
            return
        anchors: Iterable[tuple[str, str]] = self._anchors(names, start, end, anchor)
        folded = end - start
        if not alike:
            plain = [all(c[place] in {0, _VERIFIED} for c in columns) for place in where]
            every = list(anchors)
            folded = sum(plain)
            for (own, parameters), place, fold in zip(every, where, plain):
                if not fold:
                    head = f"<th scope=row><code>{shown(parameters)}</code>"
                    cells = self._cells(place, [c[place] for c in columns])
                    yield f'<tr class="v" id="{own}">{head}{cells}\n'
            anchors = [each for each, fold in zip(every, plain) if fold]
        if not folded:
            return
        word = "variant" if folded == 1 else "variants"
        more = "" if alike else " verified wherever they were run"
        yield (
            f"<tr><th colspan={len(columns) + 1}><details><summary>{folded} {word}{more}"
            '</summary><ul class="variants">'
        )
        items = (f'<li id="{own}"><code>{shown(text)}</code>\n' for own, text in anchors)
        while part := "".join(itertools.islice(items, 1000)):
            yield part
        yield "</ul></details>\n"

    def _anchors(
        self, names: Sequence[str], start: int, end: int, anchor: str
    ) -> Iterator[tuple[str, str]]:
        """Each variant's own anchor, and its parameters."""
        taken = {_folded(anchor)}
        for number in range(start, end):
            name = names[number]
            function, _, parameters = name.partition("[")
            parameters = parameters.removesuffix("]")
            if _WORD.fullmatch(parameters):
                yield f"{anchor}_{parameters}", parameters
                continue
            own = base = self.anchor(name)
            count = 2
            while _folded(own) in taken or self._is_plain(function, own, anchor):
                own, count = f"{base}-{count}", count + 1
            taken.add(_folded(own))
            yield own, parameters or "without parameters"

    def _is_plain(self, function: str, own: str, anchor: str) -> bool:
        """It is the anchor of a variant whose parameters are a word."""
        word = own.removeprefix(f"{anchor}_")
        return bool(_WORD.fullmatch(word)) and f"{function}[{word}]" in self._matrix.places

    def _cells(self, place: int, numbers: Sequence[int]) -> str:
        return "".join(
            _cell(CODES[number], self._why(n, place), self._leads.get((place, n), ""), "")
            for n, number in enumerate(numbers)
        )

    def _notes(self, where: Sequence[int], columns: Sequence[bytes]) -> Iterator[str]:
        """In words: what deviates or fails, and on which kernels."""
        said: dict[tuple[int, str], list[int]] = {}
        for place in where if self._said else ():
            for n, column in enumerate(columns):
                if (why := self._said.get((place, n))) is not None:
                    kernels = said.setdefault((column[place], why), [])
                    if n not in kernels:
                        kernels.append(n)
            if len(said) >= _MOST:
                break
        for (number, why), kernels in said.items():
            verdict = CODES[number]
            assert verdict is not None
            if verdict is not Verdict.DEVIATES:
                why = why[:200]
            names = ", ".join(shown(self._matrix.labels[n]) for n in kernels)
            yield (
                f'<tr><td class="note {CLASSES[verdict]}" colspan={len(columns) + 1}>'
                f"{MARKS[verdict]} {verdict.value} on {names}: {cited(why)}\n"
            )

    def _drawn(
        self, names: Sequence[str], start: int, end: int, where: Sequence[int], width: int
    ) -> Iterator[str]:
        if not self._pictures:
            return
        drawn = [
            (names[number], picture, kernels)
            for number, place in zip(range(start, end), where)
            if place in self._pictures
            for picture, kernels in self._pictures[place].items()
        ]
        if not drawn:
            return
        yield f'<tr><td class="pictures" colspan={width + 1}><div>'
        for name, picture, kernels in drawn:
            told = [shown(name.partition("[")[2].removesuffix("]"))] if "[" in name else []
            if width > 1:
                told.append(", ".join(shown(self._matrix.labels[n]) for n in kernels))
            size = picture[picture.index('viewBox="0 0 ') + 13 : picture.index('" role')].split()
            yield (
                f"<figure><figcaption>{' · '.join(told)}</figcaption>"
                f'<div class="pic" style="aspect-ratio:{size[0]}/{size[1]}">'
                f"<noscript>{picture}</noscript></div></figure>"
            )
        yield "</div>\n"


def _folded(anchor: str) -> str:
    """An anchor as KTAP's readers tell it from others."""
    return re.sub(r"[._]+", "_", anchor)


def _mixed(counts: Counter[int]) -> str:
    """The cell of a behaviour whose variants differ on this kernel."""
    found = [(v, counts[CODES.index(v)]) for v in Verdict if counts[CODES.index(v)]]
    if len(found) == 1:
        return _cell(found[0][0], "", "", "")
    title = ", ".join(f"{n} {v.value}" for v, n in found)
    marks = " ".join(f'<span class="{CLASSES[v]}">{MARKS[v]}{n}</span>' for v, n in found)
    return f'<td title="{title}" aria-label="{title}">{marks}'


def _runs(
    names: Sequence[str], start: int, end: int, separator: str
) -> Iterator[tuple[str, int, int]]:
    """Runs of sorted names that are alike up to a separator."""
    while start < end:
        head, _, _ = names[start].partition(separator)
        stop = start + 1
        while stop < end and names[stop].partition(separator)[0] == head:
            stop += 1
        yield head, start, stop
        start = stop
