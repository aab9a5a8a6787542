# SPDX-License-Identifier: MIT
"""Run the suite in one environment after the other, and hold each against the first."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from helpers.machine import journal
from helpers.report import files, result
from helpers.report.ktap import one_line
from helpers.report.verdicts import CaseResult, Verdict

_KNOWN = {Verdict.VERIFIED, Verdict.DEVIATES}
_WRONG = {Verdict.FAILED, Verdict.BROKEN}
_SHOWN = 12
"""Cases listed for an environment, of each sort."""


class Unsuitable(Exception):
    """The environment cannot be had here; the text says why."""


@dataclass(frozen=True)
class Environment:
    """Circumstances of a run.

    ``enter`` makes them for the run's own process and what it starts; ``around`` those of the
    whole machine, and puts them back. Either may raise OSError or :class:`Unsuitable`. ``names``
    is what the reason of a case must name that is not verified here and was elsewhere.
    """

    name: str
    names: re.Pattern[str]
    enter: Callable[[], object] = lambda: None
    around: Callable[[journal.ChangeJournal], AbstractContextManager[object]] = lambda run: (
        nullcontext()
    )
    options: tuple[str, ...] = ()
    machine: bool = False
    """It changes the machine for everybody else too."""


@dataclass
class Outcome:
    """What came of one environment."""

    name: str
    verdicts: Counter[Verdict] = field(default_factory=Counter)
    wrong: list[CaseResult] = field(default_factory=list)
    unnamed: list[CaseResult] = field(default_factory=list)
    problem: str = ""
    """Why there is no (whole) result, or what the run complained of besides its cases."""
    passed_over: str = ""

    @property
    def good(self) -> bool:
        """Nothing failed, and nothing is unverified without a reason that belongs here."""
        return not (self.wrong or self.unnamed or self.problem)


def run(
    environment: Environment,
    options: Sequence[str],
    out: Path,
    records: journal.ChangeJournal | None,
) -> tuple[result.Result | None, Outcome]:
    """Run pytest there, its report and its output left in ``out``: the result and what it is."""
    outcome = Outcome(environment.name)
    out.mkdir(parents=True, exist_ok=True)
    # Where every user can write, whatever the rights of the run.
    with tempfile.TemporaryDirectory(prefix="memlock-environment-") as folder:
        os.chmod(folder, 0o755)
        report = Path(folder, "report")
        report.mkdir()
        report.chmod(0o777)
        command = [
            sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider",
            f"--report={report}", *environment.options, *options,
        ]  # fmt: skip
        try:
            with (out / "output.txt").open("w") as output:
                around = environment.around(records) if records else nullcontext()
                with around:
                    code = _finished(command, environment.enter, output.fileno())
        except (OSError, Unsuitable) as error:
            outcome.passed_over = str(error)
            return None, outcome
        for file in report.iterdir():
            shutil.copyfile(file, out / file.name)
    try:
        found = result.load(out)
    except files.InvalidResult:
        outcome.problem = f"exit code {code}: {_last_line(out / 'output.txt')}"
        return None, outcome
    outcome.verdicts.update(b.verdict for b in found.behaviours.values())
    outcome.wrong = [b for b in found.behaviours.values() if b.verdict in _WRONG]
    if not found.complete:
        outcome.problem = f"the run is incomplete (exit code {code}): {out / 'output.txt'}"
    elif code and not outcome.wrong:
        outcome.problem = f"exit code {code}: {_last_line(out / 'output.txt')}"
    return found, outcome


def _last_line(path: Path) -> str:
    lines = path.read_text(errors="replace").strip().splitlines()
    return one_line(lines[-1]) if lines else "no output"


def _finished(command: list[str], enter: Callable[[], object], output: int) -> int:
    """Exit code of the command, executed by a child that entered the environment first.

    Raises Unsuitable with what the child could not do.
    """
    told, tell = os.pipe()

    def prepare() -> None:
        try:
            enter()
        except BaseException as error:
            os.write(tell, (str(error) or type(error).__name__).encode())
            raise

    # The summary of a job of GitHub's is about the kernel, not about its environments.
    variables = {k: v for k, v in os.environ.items() if k != "GITHUB_STEP_SUMMARY"}
    try:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            preexec_fn=prepare, env=variables,
        )  # fmt: skip
    except (subprocess.SubprocessError, OSError) as error:
        os.close(tell)
        with open(told, "rb") as reader:
            raise Unsuitable(reader.read().decode(errors="replace") or str(error)) from None
    os.close(tell)
    os.close(told)
    try:
        return child.wait()
    finally:
        if child.poll() is None:
            child.terminate()
            child.wait()


def hold_against(outcome: Outcome, here: result.Result, names: re.Pattern[str],
                 baseline: result.Result) -> None:  # fmt: skip
    """Note what the baseline knows and ``here`` does not, without a reason that says why."""
    for name, before in baseline.behaviours.items():
        after = here.behaviours.get(name)
        if before.verdict not in _KNOWN:
            continue
        if after is None:
            outcome.unnamed.append(CaseResult(name, reason="not run"))
        elif after.verdict not in _KNOWN | _WRONG and not names.search(said(after)):
            outcome.unnamed.append(after)


def said(behaviour: CaseResult) -> str:
    """All that a case says of why it is not verified."""
    return behaviour.detail or behaviour.reason


@contextmanager
def recording() -> Iterator[journal.ChangeJournal]:
    """A run of the cleanup process's, that puts the machine back if this process dies.

    Raises NoJournalFolder.
    """
    made = journal.ChangeJournal.begin()
    try:
        yield made
    finally:
        for problem in made.end():
            print(problem, file=sys.stderr)


_COLUMNS = (
    Verdict.VERIFIED, Verdict.DEVIATES, Verdict.FAILED, Verdict.BROKEN, Verdict.INCONCLUSIVE,
    Verdict.NOT_VERIFIED,
)  # fmt: skip


def heading(width: int) -> str:
    """First line of the table."""
    return "".join([f"{'':{width}}", *(f"{v.value:>15}" for v in _COLUMNS), f"{'unexplained':>15}"])


def row(outcome: Outcome, width: int) -> str:
    """An environment's line of the table, and below it what is wrong there."""
    lines = []
    if outcome.passed_over:
        return f"{outcome.name:{width}} not run: {one_line(outcome.passed_over)}"
    counts = [f"{outcome.verdicts[v]:>15}" for v in _COLUMNS]
    lines.append("".join([f"{outcome.name:{width}}", *counts, f"{len(outcome.unnamed):>15}"]))
    if outcome.problem:
        lines.append(f"    {outcome.problem}")
    for title, rows in (("", outcome.wrong), ("unexplained: ", outcome.unnamed)):
        for behaviour in rows[:_SHOWN]:
            reason = textwrap.shorten(one_line(said(behaviour)), 200)
            lines.append(f"    {title}{one_line(behaviour.id)}: {reason}")
        if len(rows) > _SHOWN:
            lines.append(f"    … {len(rows) - _SHOWN} more")
    return "\n".join(lines)
