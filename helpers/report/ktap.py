# SPDX-License-Identifier: MIT
"""The same verdicts for other readers: KTAP (Documentation/dev-tools/ktap.rst) and tmt.

One source, the behaviours of a run; ids are words, so that LAVA's kselftest parser and
kunit.py agree on them; skip reasons are constant and what varies stands on diagnostic lines.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from helpers.report.verdicts import CaseResult, Verdict, missing

_OK = {Verdict.VERIFIED, Verdict.DEVIATES, Verdict.NOT_VERIFIED, Verdict.INCONCLUSIVE}


def ktap_id(text: str) -> str:
    """An id of letters, digits, ``_``, ``.`` and ``-`` only; distinct texts stay distinct enough.

    Signs that stand for something are spelled, so that parameters remain readable.
    """
    text = text.replace("::", ".").replace("/", ".").replace(".py", "").replace("|", "-or-")
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", text).strip("_")


def unique_ktap_ids(behaviours: Iterable[CaseResult]) -> dict[str, str]:
    """Behaviour id → word id, unique within the run, also where dots become underscores.

    LAVA's kselftest parser makes an underscore of whatever is no letter, digit or dash.
    """
    found: dict[str, str] = {}
    taken: set[str] = set()
    for b in behaviours:
        name = base = ktap_id(b.id.removeprefix("tests/"))
        number = 2
        while (key := re.sub(r"[._]+", "_", name)) in taken:
            name, number = f"{base}-{number}", number + 1
        taken.add(key)
        found[b.id] = name
    return found


def printable(text: str, keep: str = "") -> str:
    """The text with ``?`` for what acts on a terminal or on a reader instead of being seen.

    Those are control characters (ANSI escapes among them), what turns the direction of writing,
    what has no width, line breaks, and what is no character. ``keep``: of those, what is left.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else "?" for c in text)


def one_line(text: str) -> str:
    """One line of printable text; nothing in it can be taken for KTAP of its own."""
    return printable(" ".join(text.split())).replace("#", "＃")


def _suffix(b: CaseResult) -> str:
    if b.verdict is Verdict.NOT_VERIFIED:
        return f" # SKIP {one_line(b.reason)}"
    if b.verdict is Verdict.INCONCLUSIVE:
        return " # SKIP inconclusive"
    if b.verdict is Verdict.DEVIATES:
        return " # XFAIL"
    if b.verdict is Verdict.NOT_RUN:
        return " # ERROR not run"
    return ""


def ktap(behaviours: Iterable[CaseResult]) -> str:
    """KTAP version 1: a subtest a chapter. What was not run is not ok."""
    behaviours = list(behaviours)
    names = unique_ktap_ids(behaviours)
    chapters: dict[str, list[CaseResult]] = {}
    for b in behaviours:
        chapters.setdefault(b.chapter or "other", []).append(b)
    lines = ["KTAP version 1"]
    if lacking := missing(behaviours):
        lines.append(f"# incomplete: {lacking}")
    lines.append(f"1..{len(chapters)}")
    for number, (chapter, rows) in enumerate(chapters.items(), 1):
        lines += ["    KTAP version 1", f"    # Subtest: {ktap_id(chapter)}", f"    1..{len(rows)}"]
        for index, b in enumerate(rows, 1):
            detail = b.detail if b.verdict in _OK and b.detail else b.reason
            if b.verdict is not Verdict.VERIFIED and detail:
                lines.append(f"    # {names[b.id]}: {b.verdict.value}: {one_line(detail)[:2000]}")
            ok = "ok" if b.verdict in _OK else "not ok"
            lines.append(f"    {ok} {index} {names[b.id]}{_suffix(b)}")
        good = all(b.verdict in _OK for b in rows)
        skipped = all(b.verdict in {Verdict.NOT_VERIFIED, Verdict.INCONCLUSIVE} for b in rows)
        reason = " # SKIP nothing could be verified" if skipped else ""
        lines.append(f"{'ok' if good else 'not ok'} {number} {ktap_id(chapter)}{reason}")
    return "\n".join(lines) + "\n"
