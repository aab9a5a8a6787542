# SPDX-License-Identifier: MIT
"""``python -m helpers.model``: run a script, or random sequences, against this kernel."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from helpers.model import generator, lockstep, script
from helpers.model.lockstep import Divergence
from helpers.model.script import ScriptError

OK, DIVERGES, NOT_APPLICABLE = 0, 1, 2


def main(argv: list[str] | None = None) -> int:
    """0: kernel and model agree; 1: they differ, and the script that shows it is printed;
    2: one line says why it could not be run."""
    parser = argparse.ArgumentParser(
        prog="python -m helpers.model", description=__doc__,
        epilog=f"calls, one a line:\n{script.listing()}\n\n{script.ARGUMENTS}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    commands = parser.add_subparsers(dest="command", required=True)
    scripted = commands.add_parser("run", help="run scripts, one call a line (- for stdin)")
    scripted.add_argument("scripts", nargs="+", metavar="SCRIPT")
    randomly = commands.add_parser("random", help="random sequences")
    randomly.add_argument("--steps", type=int, default=10000)
    randomly.add_argument("--seed", type=int, default=1)
    randomly.add_argument("--each", type=int, default=100, help="steps a sequence")
    options = parser.parse_args(argv)
    try:
        if options.command == "random":
            return _random(options.seed, options.steps, options.each)
        for path in options.scripts:
            _run(path)
    except Divergence as found:
        print(found.report())
        return DIVERGES
    except (ScriptError, OSError, UnicodeDecodeError) as error:
        print(f"helpers.model: {error}", file=sys.stderr)
        return NOT_APPLICABLE
    return OK


def _run(path: str) -> None:
    text = sys.stdin.read() if path == "-" else Path(path).read_text()
    try:
        steps = lockstep.run_script(script.parse(text))
    except ScriptError as error:
        raise ScriptError(f"{path}: {error}") from None
    print(f"{path}: {steps} steps, kernel and model agree")


def _random(seed: int, steps: int, each: int) -> int:
    started = time.monotonic()
    result = generator.run(seed, steps, each)
    took = time.monotonic() - started
    rate = result.steps / took * 60
    print(
        f"{result.steps} steps in {result.sequences} sequences, seed {seed}, {took:.1f} s "
        f"({rate:.0f} steps a minute), {result.unfit} calls left out as unfit"
    )
    if result.divergence is None:
        return OK
    print(result.divergence.report(f"seed {seed}, sequence {result.sequences}"))
    return DIVERGES


if __name__ == "__main__":
    sys.exit(main())
