"""The same verdicts for other readers: KTAP (Documentation/dev-tools/ktap.rst) and tmt.

One source, the behaviours of a run; ids are words, so that LAVA's kselftest parser and
kunit.py agree on them; skip reasons are constant and what varies stands on diagnostic lines.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

from helpers.report.verdicts import Behaviour, Verdict, missing

_OK = {Verdict.VERIFIED, Verdict.DEVIATES, Verdict.NOT_VERIFIED, Verdict.INCONCLUSIVE}


def word(text: str) -> str:
    """An id of letters, digits, ``_``, ``.`` and ``-`` only; distinct texts stay distinct enough.

    Signs that stand for something are spelled, so that parameters remain readable.
    """
    text = text.replace("::", ".").replace("/", ".").replace(".py", "").replace("|", "-or-")
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", text).strip("_")


def words(behaviours: Iterable[Behaviour]) -> dict[str, str]:
    """Behaviour id → word id, unique within the run, also where dots become underscores.

    LAVA's kselftest parser makes an underscore of whatever is no letter, digit or dash.
    """
    found: dict[str, str] = {}
    taken: set[str] = set()
    for b in behaviours:
        name = base = word(b.id.removeprefix("tests/"))
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


def plain(text: str) -> str:
    """One line of printable text; nothing in it can be taken for KTAP of its own."""
    return printable(" ".join(text.split())).replace("#", "＃")


def _suffix(b: Behaviour) -> str:
    if b.verdict is Verdict.NOT_VERIFIED:
        return f" # SKIP {plain(b.reason)}"
    if b.verdict is Verdict.INCONCLUSIVE:
        return " # SKIP inconclusive"
    if b.verdict is Verdict.DEVIATES:
        return " # XFAIL"
    if b.verdict is Verdict.NOT_RUN:
        return " # ERROR not run"
    return ""


def ktap(behaviours: Iterable[Behaviour]) -> str:
    """KTAP version 1: a subtest a chapter. What was not run is not ok."""
    behaviours = list(behaviours)
    names = words(behaviours)
    chapters: dict[str, list[Behaviour]] = {}
    for b in behaviours:
        chapters.setdefault(b.chapter or "other", []).append(b)
    lines = ["KTAP version 1"]
    if lacking := missing(behaviours):
        lines.append(f"# incomplete: {lacking}")
    lines.append(f"1..{len(chapters)}")
    for number, (chapter, rows) in enumerate(chapters.items(), 1):
        lines += ["    KTAP version 1", f"    # Subtest: {word(chapter)}", f"    1..{len(rows)}"]
        for index, b in enumerate(rows, 1):
            detail = b.detail if b.verdict in _OK and b.detail else b.reason
            if b.verdict is not Verdict.VERIFIED and detail:
                lines.append(f"    # {names[b.id]}: {b.verdict.value}: {plain(detail)[:2000]}")
            ok = "ok" if b.verdict in _OK else "not ok"
            lines.append(f"    {ok} {index} {names[b.id]}{_suffix(b)}")
        good = all(b.verdict in _OK for b in rows)
        skipped = all(b.verdict in {Verdict.NOT_VERIFIED, Verdict.INCONCLUSIVE} for b in rows)
        reason = " # SKIP nothing could be verified" if skipped else ""
        lines.append(f"{'ok' if good else 'not ok'} {number} {word(chapter)}{reason}")
    return "\n".join(lines) + "\n"


# tmt's exit code tells a warn from a pass, ours a known deviation from neither: so info.
_TMT = {
    Verdict.VERIFIED: "pass", Verdict.DEVIATES: "info", Verdict.FAILED: "fail",
    Verdict.BROKEN: "error", Verdict.NOT_VERIFIED: "skip", Verdict.INCONCLUSIVE: "info",
    Verdict.NOT_RUN: "error",
}  # fmt: skip


def tmt(behaviours: Iterable[Behaviour]) -> str:
    """tmt's results.yaml for ``result: custom`` (JSON is YAML): a row a behaviour."""
    behaviours = list(behaviours)
    names = words(behaviours)
    rows = [
        {
            "name": "/" + names[b.id].replace(".", "/"),
            "result": _TMT[b.verdict],
            "note": ["not run"] * (b.verdict is Verdict.NOT_RUN) + [b.reason] * bool(b.reason),
            "duration": f"{int(b.duration) // 3600:02}:{int(b.duration) // 60 % 60:02}"
            f":{int(b.duration) % 60:02}",
        }
        for b in behaviours
    ]
    return json.dumps(rows, indent=1) + "\n"
