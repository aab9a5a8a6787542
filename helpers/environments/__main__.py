# SPDX-License-Identifier: MIT
"""``python -m helpers.environments``: the suite under other rights, settings or swap areas.

rights      each capability taken away alone, all of them, and as nobody
settings    limits, personalities and, with --allow-sysctl, settings of the whole machine
swap        each kind of swap area

The first run has what we have, and each other is held against it. What is given behind these
options is pytest's. Exit code: 0; 1 if anything failed, or is unverified for a reason that does
not name what the environment lacks; 2 interrupted; 4 on nonsense.
"""

from __future__ import annotations

import argparse
import re
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import FrameType

from helpers import processes
from helpers.environments import rights, running, settings, swap
from helpers.environments.running import Environment, Outcome
from helpers.machine import journal
from helpers.report import files, result

_SETS = {
    "rights": rights.environments, "settings": settings.environments, "swap": swap.environments,
}  # fmt: skip
WORKERS = "2"
BASELINE = "baseline"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m helpers.environments",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("set", choices=_SETS)
    parser.add_argument("--list", action="store_true", help="the environments' names")
    parser.add_argument("--only", metavar="NAME,…", help="these alone (a part of a name will do)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="results (default: the set's name)")
    parser.add_argument(
        "--baseline", type=Path, metavar="RESULT", help="hold against this instead of a run first"
    )
    parser.add_argument(
        "--allow-sysctl",
        action="store_true",
        help="change settings of the whole machine, and put them back",
    )
    return parser


def _complain(text: object) -> int:
    print(f"memlock-tests: {text}", file=sys.stderr)
    return 4


def _ended(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def main(arguments: Sequence[str]) -> int:
    """The command line: its exit code."""
    given, options = _parser().parse_known_args(arguments)
    processes.default_signals(keep_job_control=True)
    chosen = list(_SETS[given.set]())
    if given.only is not None:
        wanted = [part.strip() for part in given.only.split(",")]
        for part in wanted:
            if not part or not any(part in e.name for e in chosen):
                return _complain(f"--only {part!r} is in no name of {given.set}; --list shows them")
        exact = {e.name for e in chosen}
        chosen = [
            e for e in chosen
            if any(part == e.name or (part not in exact and part in e.name) for part in wanted)
        ]  # fmt: skip
    if given.list:
        print("\n".join(e.name for e in chosen))
        return 0
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _ended)
    if not any(o.startswith(("-n", "--numprocesses")) for o in options):
        options = ["-n", WORKERS, *options]
    if given.allow_sysctl:
        options.append("--allow-sysctl")
    out = given.out or Path(given.set)
    try:
        with ExitStack() as stack:
            records = None
            if given.set != "rights":
                records = stack.enter_context(running.recording())
            return _all(chosen, options, out, given, records)
    except files.InvalidResult as error:
        return _complain(error)
    except OSError as error:
        return _complain(error)
    except KeyboardInterrupt:
        print("memlock-tests: interrupted", file=sys.stderr)
        return 2


def _all(
    chosen: Sequence[Environment],
    options: Sequence[str],
    out: Path,
    given: argparse.Namespace,
    records: journal.ChangeJournal | None,
) -> int:
    width = max(len(e.name) for e in chosen) + 2
    print(running.heading(width), flush=True)
    good = True
    if given.baseline:
        baseline = result.load(given.baseline)
        first = Outcome(BASELINE)
        first.verdicts.update(b.verdict for b in baseline.behaviours.values())
    else:
        made, first = running.run(
            Environment(BASELINE, re.compile("")), options, out / BASELINE, records
        )
        if made is None:
            return _complain(first.problem or first.passed_over)
        baseline, good = made, first.good
    print(running.row(first, width), flush=True)
    for environment in chosen:
        if environment.machine and not given.allow_sysctl:
            outcome = Outcome(environment.name)
            outcome.passed_over = "it is the whole machine's; pass --allow-sysctl"
        else:
            folder = out / re.sub(r"[^\w.-]+", "-", environment.name)
            here, outcome = running.run(environment, options, folder, records)
            if here is not None:
                running.hold_against(outcome, here, environment.names, baseline)
        print(running.row(outcome, width), flush=True)
        good &= outcome.good
    print(f"results: {out}")
    return int(not good)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
