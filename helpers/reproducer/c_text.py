# SPDX-License-Identifier: MIT
"""The text of a C program: literals, like lines as a loop, what of the prelude it uses."""

from __future__ import annotations

import itertools
import json
import re
import textwrap
from collections.abc import Sequence
from typing import Any


def leaves(origin: Any) -> set[str]:
    if isinstance(origin, str):
        return {origin} if re.fullmatch(r"\d+\.\d+", origin) else set()
    parts = origin if isinstance(origin, list) else []
    return {leaf for part in parts for leaf in leaves(part)}


def mentions(event: dict[str, Any], part: Any) -> bool:
    def inside(origin: Any) -> bool:
        return origin == part or (isinstance(origin, list) and any(map(inside, origin)))

    return inside(event["of"]) or inside(event["other"])


def times(pages: int) -> str:
    return "page" if pages == 1 else f"\x01{pages}\x02 * page"


def piece(row: Sequence[Any]) -> str:
    first, last, *middle, lock = row
    shown = f"{first}-{last}"
    if middle:
        shown += f" {middle[0]} @{middle[1]}"
    return f"{shown} {lock or '-'}"


def as_bits(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "".join("1" if flag else "0" for flag in value)


def runs(letters: str) -> str:
    if len(letters) <= 32:
        return letters
    return " ".join(f"{len(m[0])}x{m[1]}" for m in re.finditer(r"(.)\1*", letters))


def quoted(text: str) -> str:
    return json.dumps(" ".join(text.split()), ensure_ascii=False)


def indented(text: str, depth: int) -> str:
    found = []
    for line in text.split("\n"):
        inner = len(line) - len(line.lstrip("\t"))
        match = re.match(r'(\t*check_\w+\("(?:\\.|[^"\\])*",) (.*)$', line)
        if match and len(line) + 8 * (depth + inner) > 100:
            found += ["\t" * depth + match[1], "\t" * (depth + inner) + "\t   " + match[2]]
        else:
            found.append("\t" * depth + line)
    return "\n".join(found)


MARK = re.compile(r"\x01(-?\w+)\x02|\x03(-?\d+)\x04")


def rendered(line: str) -> str:
    def show(match: re.Match[str]) -> str:
        if match[1] is not None:
            return match[1]
        pages = int(match[2])
        if pages == 0:
            return ""
        sign, count = ("+", pages) if pages > 0 else ("-", -pages)
        return f" {sign} page" if count == 1 else f" {sign} {count} * page"

    return MARK.sub(show, line)


def loops(lines: list[str]) -> list[str]:
    """Four lines or more that differ in one number become a loop over it."""
    found: list[str] = []
    at = 0
    while at < len(lines):
        shape = MARK.sub("\x07", lines[at])
        end = at
        while end < len(lines) and MARK.sub("\x07", lines[end]) == shape:
            end += 1
        rows = [[m[1] or m[2] for m in MARK.finditer(line)] for line in lines[at:end]]
        varies = [n for n in range(len(rows[0])) if len({row[n] for row in rows}) > 1]
        columns = [[int(row[n], 0) for row in rows] for n in varies]
        fits = len(rows) >= 4 and columns and not re.match(r"[^(]*\w = |\x05", lines[at])
        steps = {tuple(b - a for a, b in itertools.pairwise(c)) for c in columns}
        if not fits or len(steps) > 1:
            found += [rendered(line) for line in lines[at:end]]
            at = end
            continue
        values, (differences,) = columns[0], steps
        step, even = differences[0], len(set(differences)) == 1
        if even and step > 0:
            plus = "n++" if step == 1 else f"n += {step}"
            head = f"for (long n = {values[0]}; n <= {values[-1]}; {plus})"
            index = "n"
        elif len(columns) == 1:
            index = f"values{len(found)}[i]"
            shown = ", ".join(row[varies[0]] for row in rows)
            text = f"static const long values{len(found)}[] = {{ {shown} }};"
            head = f"for (size_t i = 0; i < sizeof(values{len(found)}) / sizeof(long); i++)"
            found.append("\n\t".join(textwrap.wrap(text, 92)))
        else:
            found += [rendered(line) for line in lines[at:end]]
            at = end
            continue
        body, last = "", 0
        for n, mark in enumerate(MARK.finditer(lines[at])):
            body += lines[at][last : mark.start()]
            last = mark.end()
            if n not in varies:
                body += mark[0]
                continue
            ahead = columns[varies.index(n)][0] - values[0]
            term = f"{index} {'+' if ahead > 0 else '-'} {abs(ahead)}" if ahead else index
            if mark[1] is None:
                term = f" + ({term}) * page" if ahead else f" + {term} * page"
            elif ahead and lines[at][last : last + 2] == " *":
                term = f"({term})"
            body += term
        found.append(f"{head}\n\t{rendered(body + lines[at][last:])}")
        at = end
    return found


def without_strings(text: str) -> str:
    """C without its strings."""
    return re.sub(r'"(\\.|[^"\\\n])*"', '""', text)


def names_used(code: str) -> set[str]:
    """Names of functions, and of what else has a section of its own, that the code mentions."""
    code = re.sub(r"/\*.*?\*/", "", code, flags=re.DOTALL)
    words = set(re.findall(r"\b(\w+)\(", code)) | set(re.findall(r"struct (\w+)", code))
    return words | (set(re.findall(r"\w+", code)) & {"page", "failures", "thread_main"})


def sections(text: str) -> dict[str, str]:
    parts = re.split(r"^/\*\*\* (\w+) \*/\n", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2]))
