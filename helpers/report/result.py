# SPDX-License-Identifier: MIT
"""result.json: one run on one machine, in a documented, versioned form (schema.json beside).

The file is valid JSON after every case: the tail that closes it is overwritten by the next
behaviour in one write, so a run that is killed leaves what it found out by then, with
``"complete": false``. The end of the run replaces it atomically. A full disk leaves the last of
these states.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from helpers.report import detection_matrix, machine
from helpers.report.files import InvalidResult, inside
from helpers.report.ktap import printable
from helpers.report.verdicts import CaseResult, Verdict
from helpers.requirements.facility import Facility

SCHEMA = 1
FILE = "result.json"
_TAIL = "\n]}\n"
LONGEST = 20_000
"""Characters of one piece of evidence that are kept."""


extra_key = pytest.StashKey[dict[str, Any]]()
"""What others add to the result before the run ends, by its name in the schema."""


def truncate(text: str) -> str:
    """The text, cut where it is longer than anybody reads."""
    if len(text) <= LONGEST:
        return text
    return f"{text[:LONGEST]}\n… {len(text) - LONGEST} more characters"


def as_dict(behaviour: CaseResult) -> dict[str, Any]:
    """A behaviour as the schema has it."""
    found: dict[str, Any] = {
        "id": behaviour.id,
        "chapter": behaviour.chapter,
        "statement": behaviour.statement,
        "source": behaviour.source,
        "claims": behaviour.claims,
        "verdict": behaviour.verdict.value,
        "reason": truncate(behaviour.reason),
        "duration": round(behaviour.duration, 6),
    }
    if behaviour.subject:
        found["subject"] = behaviour.subject
    if behaviour.line:
        found["line"] = behaviour.line
    if behaviour.detail:
        found["detail"] = truncate(behaviour.detail)
    if behaviour.evidence:
        found["evidence"] = [{"title": t, "text": truncate(x)} for t, x in behaviour.evidence]
    if behaviour.series:
        found["series"] = behaviour.series
    return found


class ResultWriter:
    """Writes ``result.json`` in a folder as the run goes. Raises OSError where it cannot.

    ``collected``: how many cases the run is to have.
    """

    def __init__(
        self, folder: Path, facilities: Iterable[Facility], collected: int | None = None
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / FILE
        self.run: dict[str, Any] = {
            "id": uuid.uuid4().hex,
            "started": time.time(),
            "ended": None,
            "exit_code": None,
            **machine.describe(),
            "facilities": [vars(f) for f in facilities],
        }
        self._told = {} if collected is None else {"collected": collected}
        head = {"schema": SCHEMA, "run": self.run, "complete": False, **self._told}
        text = json.dumps(head)[:-1] + ', "behaviours": [' + _TAIL
        replace(self.path, text)
        self._fd = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC)
        self._end = len(text.encode()) - len(_TAIL)
        self._first = True

    def add(self, behaviour: CaseResult) -> None:
        """Append one behaviour that has its verdict.

        Where there is no room for it the file stays what it was: :meth:`finish` tells.
        """
        text = ("" if self._first else ",") + "\n" + json.dumps(as_dict(behaviour))
        data = text.encode() + _TAIL.encode()
        try:
            if os.pwrite(self._fd, data, self._end) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            # The old tail lies in a block that the file has: no room is wanted for it.
            os.pwrite(self._fd, _TAIL.encode(), self._end)
            os.ftruncate(self._fd, self._end + len(_TAIL))
            return
        self._end += len(data) - len(_TAIL)
        self._first = False

    def finish(
        self,
        behaviours: Iterable[CaseResult],
        exit_code: int,
        *,
        complete: bool = True,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        """Replace the file by its final form; ``complete`` if every case has run.

        ``extra``: further members, as :data:`extra_key` has them.
        """
        os.close(self._fd)
        self.run |= {"ended": time.time(), "exit_code": exit_code}
        head = {"schema": SCHEMA, "run": self.run, "complete": complete, **self._told}
        _write(self.path, head | dict(extra or {}), [as_dict(b) for b in behaviours])


def _write(path: Path, head: Mapping[str, Any], rows: Iterable[Mapping[str, Any]]) -> None:
    text = ",\n".join(map(json.dumps, rows))
    replace(path, f'{json.dumps(head)[:-1]}, "behaviours": [\n{text}{_TAIL}')


def replace(path: Path, text: str) -> None:
    """Replace a file as a whole, or leave it as it is and raise OSError."""
    temporary = path.with_name(f"{path.name}.new")
    try:
        with temporary.open("w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def attach_matrix(path: Path, folder: Path) -> None:
    """Put a fault matrix that was made apart into a result of the same kernel.

    Raises :class:`Unreadable` for either, and where they are of different kernels; OSError.
    """

    from helpers.report import reader  # msgspec

    made, data = load(path), detection_matrix.load(folder)
    ours = (made.kernel, made.run["architecture"], made.run["page_size"])
    theirs = detection_matrix.origin(data)
    if ours != theirs:
        raise InvalidResult(f"{folder} is of {theirs}, {made.path} of {ours}: not the same kernel")
    value = reader.whole(made.path) | {"sensitivity": detection_matrix.packed(data)}
    rows = value.pop("behaviours")
    try:
        _write(made.path, value, rows)
    except (ValueError, RecursionError) as error:  # members that nobody checks
        raise InvalidResult(f"{made.path}: cannot be written again: {error}") from None
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(made.path)) from None


@dataclass(frozen=True)
class Result:
    """One result file, read and checked."""

    path: Path
    run: Mapping[str, Any]
    complete: bool
    """Every case has run, as far as the file can tell."""
    encoded: Sequence[Any] = field(repr=False)
    """Its behaviours as they stand in the file; :meth:`rows` has them one by one."""
    sensitivity: Mapping[str, Any] | None = field(default=None, repr=False)
    """Who noticed which fault (:mod:`helpers.report.detection_matrix`), if that was tried."""

    def rows(self) -> Iterator[Any]:
        """Each behaviour, with the members that the schema states as attributes."""

        from helpers.report import reader  # msgspec

        return map(reader.row(), self.encoded)

    @cached_property
    def behaviours(self) -> Mapping[str, CaseResult]:
        """Everything that is known of each behaviour, by its id."""
        return {
            row.id: CaseResult(
                row.id, row.chapter, row.statement, row.source, row.claims,
                Verdict(row.verdict), row.reason, row.duration, detail=row.detail,
                evidence=[(e["title"], e["text"]) for e in row.evidence],
                series=list(row.series), subject=row.subject, line=row.line,
            )
            for row in self.rows()
        }  # fmt: skip

    @property
    def id(self) -> str:
        """The run's random id."""
        return str(self.run["id"])

    @property
    def kernel(self) -> str:
        """uname -r of the kernel that was verified."""
        return str(self.run["kernel"]["release"])

    @property
    def label(self) -> str:
        """Short name: kernel, architecture, page size where it is not the usual one.

        A result that is not complete says so in here: wherever it is shown, that is.
        """
        size = self.run["page_size"] // 1024
        pages = "" if size == 4 else f" {size}K"
        whole = "" if self.complete else " (incomplete)"
        return printable(f"{self.kernel} {self.run['architecture']}{pages}{whole}")


def load(path: Path) -> Result:
    """Read and check a result. Raises :class:`Unreadable` with one line on anything amiss.

    ModuleNotFoundError without msgspec (dependency group ``report``).
    """

    from helpers.report import reader  # msgspec

    file = inside(path, FILE, f"pytest --report={path}")
    value = reader.result(file, SCHEMA)
    rows, tried = value["behaviours"], value.get("sensitivity")
    lacking = reader.unrun(rows, file) or not rows or value.get("collected", 0) > len(rows)
    return Result(
        file, value["run"], value["complete"] and not lacking, rows,
        None if tried is None else detection_matrix.unpacked(tried, file),
    )  # fmt: skip
