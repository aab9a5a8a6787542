# SPDX-License-Identifier: MIT
"""docs/behaviours.md: what Linux does when memory is locked, statement by statement.

The statements are read from the tests' source, nothing of which is run; what each kernel does is
kept in docs/kernels.json, which is made of results.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from helpers.report.files import InvalidResult, read_bytes
from helpers.report.ktap import ktap_id, one_line, printable
from helpers.report.links import linked
from helpers.report.result import Result
from helpers.report.verdicts import Verdict
from helpers.requirements.deviations import KNOWN

DOCUMENT, TABLE = "behaviours.md", "kernels.json"
"""In docs/: the reference, and what kernels were seen to do."""
_APART = {"harness", "bench"}
_WORDS = {"D": "deviates", "F": "**fails**", "N": "not verified"}
_LETTERS = {Verdict.DEVIATES: "D", Verdict.FAILED: "F", Verdict.BROKEN: "F"}


@dataclass
class Behaviour:
    """A test function: what it says, and where that is documented."""

    id: str
    statement: str
    sources: list[str] = field(default_factory=list)
    deviations: list[str] = field(default_factory=list)


@dataclass
class Subject:
    """A module of tests."""

    file: str
    title: str
    behaviours: list[Behaviour]


def _first_paragraph(node: ast.Module | ast.FunctionDef) -> str:
    return " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())


def _marks(nodes: Iterable[ast.AST], name: str) -> list[str]:
    """Arguments of the marks of that name, as far as they are literal."""
    return [
        argument.value
        for node in nodes
        for call in ast.walk(node)
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.func.attr == name
        for argument in call.args
        if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
    ]


def subjects(root: Path) -> dict[str, list[Subject]]:
    """Chapter → its subjects, of the tests below ``root``."""
    found: dict[str, list[Subject]] = {}
    for path in sorted((root / "tests").glob("*/test_*.py")):
        if (chapter := path.parent.name) in _APART:
            continue
        file = path.relative_to(root).as_posix()
        tree = ast.parse(path.read_text(encoding="utf-8"))
        everywhere = [
            node.value
            for node in tree.body
            if isinstance(node, ast.Assign)
            and any(isinstance(t, ast.Name) and t.id == "pytestmark" for t in node.targets)
        ]
        behaviours = [
            Behaviour(
                f"{file}::{node.name}",
                _first_paragraph(node),
                [*dict.fromkeys(_marks([*node.decorator_list, *everywhere], "source"))],
                _marks([*node.decorator_list, *everywhere], "deviation"),
            )
            for node in tree.body
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
        ]
        if behaviours:
            subject = Subject(file, _first_paragraph(tree).rstrip("."), behaviours)
            found.setdefault(chapter, []).append(subject)
    return found


@dataclass
class Table:
    """What kernels were seen to do: a word a verdict that is not *verified*, by function."""

    kernels: list[str] = field(default_factory=list)
    cells: dict[str, list[str | None]] = field(default_factory=dict)
    """Function → for each kernel what was seen; empty: verified, None: not run."""

    def add(self, result: Result) -> None:
        """Add a kernel, or put what is known of it anew. Raises InvalidResult."""
        if not result.complete:
            raise InvalidResult(f"{result.path}: incomplete: it cannot stand for a kernel")
        if result.label not in self.kernels:
            self.kernels.append(result.label)
            for row in self.cells.values():
                row.append(None)
        column = self.kernels.index(result.label)
        for row in self.cells.values():
            row[column] = None
        for function, rows in _by_function(result).items():
            row = self.cells.setdefault(function, [None] * len(self.kernels))
            row[column] = ", ".join(_seen(rows))

    def text(self) -> str:
        """The file: a line a function."""
        pairs = sorted(self.cells.items())
        rows = ",\n  ".join(f"{json.dumps(name)}: {json.dumps(row)}" for name, row in pairs)
        kernels = json.dumps(self.kernels)
        return f'{{\n "kernels": {kernels},\n "behaviours": {{\n  {rows}\n }}\n}}\n'


def _by_function(result: Result) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for row in result.rows():
        found.setdefault(row.id.partition("[")[0], []).append(row)
    return found


def _seen(rows: Sequence[Any]) -> Iterator[str]:
    """``D name``: they deviate so; small letters: some variants do."""
    kinds: dict[str, int] = {}
    for row in rows:
        if row.verdict != Verdict.VERIFIED:
            letter = _LETTERS.get(Verdict(row.verdict), "N")
            why = one_line((row.reason or row.verdict).partition(":")[0]) if letter != "F" else ""
            kind = f"{letter} {why.removeprefix('needs ')}".strip()[:60]
            kinds[kind] = kinds.get(kind, 0) + 1
    for kind, number in sorted(kinds.items()):
        yield kind if number == len(rows) else kind[0].lower() + kind[1:]


def load(path: Path) -> Table:
    """The table as it is kept. Raises InvalidResult."""
    try:
        value = json.loads(read_bytes(path))
        kernels, cells = value["kernels"], value["behaviours"]
        shapes = [isinstance(k, str) for k in kernels] + [
            len(row) == len(kernels) and all(x is None or isinstance(x, str) for x in row)
            for row in cells.values()
        ]
        if not all(shapes):
            raise TypeError
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise InvalidResult(f"{path}: no table of kernels of this suite") from None
    return Table(kernels, cells)


def _markdown(text: str) -> str:
    """Text as Markdown shows it; what stands in backquotes is code there too."""
    parts = re.split(r"(`+[^`]+`+)", printable(text))
    return "".join(
        part if n % 2 else re.sub(r"[\\*\[\]<>]|\b_|_\b", lambda m: f"\\{m[0]}", part)
        for n, part in enumerate(parts)
    )


def _cited(text: str) -> str:
    """Text with links, whose addresses stand at the end of the document."""
    return "".join(
        f"[{_markdown(piece)}]" if address else _markdown(piece) for piece, address in linked(text)
    )


def document(root: Path, table: Table) -> str:
    """The reference, of the tests below ``root`` and what is known of kernels."""
    chapters = subjects(root)
    cited = [text for known in KNOWN.values() for text in (known.source, known.fixed_by)]
    for each in chapters.values():
        cited += [text for s in each for b in s.behaviours for text in b.sources]
    addresses = {piece: a for text in cited for piece, a in linked(text) if a}
    links = [f"[{_markdown(piece)}]: {addresses[piece]}" for piece in sorted(addresses)]
    return "\n".join([*_lines(chapters, table), "", *links]) + "\n"


def _lines(chapters: Mapping[str, Sequence[Subject]], table: Table) -> Iterator[str]:
    number = sum(len(s.behaviours) for each in chapters.values() for s in each)
    yield "# What Linux does when memory is locked\n"
    yield (
        f"{number:,} behaviours, each a case that asks the kernel, with where it is documented.\n"
        "Where nothing else is said, every kernel measured does what the sentence says. Made\n"
        "by `python -m helpers.report behaviours` from the tests and from `docs/kernels.json`;\n"
        "`python -m helpers.report behaviours RESULT…` puts the verdicts of results into both.\n"
    )
    yield "## Kernels\n"
    yield "| kernel | behaviours | verified | deviate | failed | not verified, or in part |"
    yield "|---|---:|---:|---:|---:|---:|"
    for n, label in enumerate(table.kernels):
        cells = [row[n] for row in table.cells.values() if row[n] is not None]
        counts = [sum(bool(re.search(rf"(^|, )[{x}{x.lower()}]\b", c or "")) for c in cells)
                  for x in "DFN"]  # fmt: skip
        row = [len(cells), cells.count(""), *counts]
        yield f"| {_markdown(label)} | " + " | ".join(map(str, row)) + " |"
    yield "\n## Known deviations\n"
    for known in KNOWN.values():
        fix = f" Fixed by {_cited(known.fixed_by)}." if known.fixed_by else " Not fixed yet."
        yield (
            f'* <a id="{known.id}"></a>**{known.id}**: {_markdown(known.actual)}. Right would be: '
            f"{_markdown(known.expected)}. Linux {known.range}; {_cited(known.source)}.{fix}"
        )
    yield ""
    for chapter, each in chapters.items():
        yield f"* [{chapter}](#{chapter}): {', '.join(_link(subject) for subject in each)}"
    for chapter, each in chapters.items():
        yield f"\n## {chapter}"
        for subject in each:
            yield f'\n<a id="{_anchor(subject.file)}"></a>'
            yield f"### {_markdown(subject.title)}\n"
            yield f"[`{subject.file}`](../{subject.file})\n"
            for behaviour in subject.behaviours:
                yield from _behaviour(behaviour, table)


def _anchor(name: str) -> str:
    return ktap_id(name.removeprefix("tests/"))


def _link(subject: Subject) -> str:
    stem = Path(subject.file).stem.removeprefix("test_").replace("_", " ")
    return f"[{stem}](#{_anchor(subject.file)})"


def _behaviour(behaviour: Behaviour, table: Table) -> Iterator[str]:
    name = behaviour.id.rpartition("::")[2]
    cited = "; ".join(map(_cited, behaviour.sources))
    yield (
        f'* <a id="{_anchor(behaviour.id)}"></a>**{_markdown(behaviour.statement)}**  \n'
        f"  {cited}{' · ' if cited else ''}`{name}`"
    )
    seen = table.cells.get(behaviour.id)
    if seen is None or all(cell is None for cell in seen):
        yield "  · *not measured yet*"
        return
    said: dict[str, list[str]] = {}
    for label, cell in zip(table.kernels, seen):
        for kind in cell.split(", ") if cell else ():
            said.setdefault(kind, []).append(label)
    for kind, labels in said.items():
        letter, _, why = kind.partition(" ")
        some = "some variants " if letter.islower() else ""
        word = _WORDS.get(letter.upper(), "not verified")
        if why in KNOWN:
            why = f": [{why}](#{why})"
        elif why:
            why = f" (needs {_markdown(why)})" if word == "not verified" else f" ({_markdown(why)})"
        where = "every kernel measured" if labels == table.kernels else ", ".join(labels)
        yield f"  · *{some}{word} on {_markdown(where)}*{why}"
