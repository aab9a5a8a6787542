# SPDX-License-Identifier: MIT
"""What fleets read: tmt's metadata, LAVA's test definition, the workflow of GitHub Actions."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.report.ktap import unique_ktap_ids
from helpers.report.verdicts import CaseResult, Verdict

ROOT = Path(__file__).resolve().parents[2]
FLEET = ROOT / ".fleet"
LAVA = FLEET / "lava.yaml"
WORKFLOW = ROOT / ".github" / "workflows" / "kernels.yml"
DISTRIBUTION = ["python3-psutil", "python3-pytest", "python3-pytest-forked", "python3-pytest-xdist"]


def parsed(path: Path):
    yaml = pytest.importorskip("yaml", reason="needs PyYAML: pip install pyyaml")
    return yaml.safe_load(path.read_text())


@pytest.mark.parametrize(
    "path", [*FLEET.iterdir(), ROOT / ".fmf" / "config", WORKFLOW], ids=lambda p: p.name
)
def test_file_is_plain_yaml(path):
    """No tabs and no trailing blanks, which every parser of YAML reads alike."""
    text = path.read_text()
    assert "\t" not in text
    assert not re.search(r"[ \t]$", text, re.MULTILINE)
    assert text.endswith("\n")


def test_plans_for_each_way_to_get_a_guest():
    """A plan each for local, virtual, container and connect; guests are given the packages."""
    plans = parsed(FLEET / "plans.fmf")
    ways = {name[1:]: plan for name, plan in plans.items() if name.startswith("/")}
    assert {name: plan["provision"]["how"] for name, plan in ways.items()} == {
        name: name for name in ("local", "virtual", "container", "connect")
    }
    for name, plan in ways.items():
        packages = plan.get("prepare", {}).get("package", [])
        assert packages == ([] if name == "local" else DISTRIBUTION), name


def test_test_hands_its_results_to_tmt():
    """Custom results are written where tmt looks for them."""
    test = parsed(FLEET / "suite.fmf")
    assert test["result"] == "custom"
    assert '--report="$TMT_TEST_DATA"' in test["test"]


def test_tmt_accepts_its_metadata(tmp_path):
    """tmt lint has no failure and no warning."""
    tmt = shutil.which("tmt", path=os.environ.get("TMT_PATH"))
    if not tmt:
        pytest.skip("needs tmt: pip install tmt, or TMT_PATH where it is")
    done = subprocess.run(
        [tmt, "lint"], cwd=ROOT, capture_output=True, text=True, check=False,
        env=os.environ | {"HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert not re.search(r"^ *(fail|warn)", done.stdout + done.stderr, re.MULTILINE), done.stdout
    assert done.stdout.count("pass C000") == 5, "a test and four plans"


def test_lava_definition_has_the_schemas_shape():
    """What lava_common/schemas/test/testdef.py wants: format, name, lists of text."""
    found = parsed(LAVA)
    assert found["metadata"]["format"] == "Lava-Test Test Definition 1.0"
    assert found["metadata"]["name"] == "memlock-tests"
    for key in ("os", "scope", "environment"):
        assert all(isinstance(text, str) for text in found["metadata"][key]), key
    assert found["install"]["deps"] == DISTRIBUTION
    assert set(found) == {"metadata", "params", "install", "run"}
    assert all(isinstance(step, str) for step in found["run"]["steps"])


def test_lava_gets_a_case_for_each_behaviour(suite, tmp_path):
    """The steps, run as LAVA runs them, report every behaviour of a run once, under its word."""
    steps = parsed(LAVA)["run"]["steps"]
    suite.case(suite.EVERY)
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, text in {
        "lava-test-case": f'echo "$@" >> {tmp_path}/seen',
        "python3": f'exec {sys.executable} "$@"',
    }.items():
        (tools / name).write_text(f"#!/bin/sh\n{text}\n")
        (tools / name).chmod(0o755)
    script = "OPTIONS=tests\n" + "\n".join(steps)
    done = subprocess.run(
        ["sh", "-e", "-c", script], cwd=suite.path, capture_output=True, text=True, check=False,
        env=os.environ | {"PATH": f"{tools}:{os.environ['PATH']}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    seen = dict(line.split(" --result ") for line in (tmp_path / "seen").read_text().splitlines())
    result = json.loads((suite.path / "results" / "result.json").read_text())
    verdicts = {row["id"]: Verdict(row["verdict"]) for row in result["behaviours"]}
    names = unique_ktap_ids(CaseResult(id=i, chapter="", verdict=v) for i, v in verdicts.items())
    kinds = {
        Verdict.VERIFIED: "pass", Verdict.DEVIATES: "pass", Verdict.FAILED: "fail",
        Verdict.BROKEN: "fail", Verdict.NOT_VERIFIED: "skip", Verdict.INCONCLUSIVE: "skip",
    }  # fmt: skip
    assert seen == {names[i]: kinds[v] for i, v in verdicts.items()}
    assert len(seen) == 6


def test_workflow_keeps_each_result_and_compares_them():
    """A container or kernel a row, each result kept, and what differs at the end."""
    assert set(re.findall(r"tox run -e (\w+)", WORKFLOW.read_text())) == {"kernel", "vm"}
    jobs = parsed(WORKFLOW)["jobs"]
    assert set(jobs) == {"container", "kernel", "compare"}
    assert jobs["compare"]["needs"] == ["container", "kernel"]
    for job in jobs.values():
        assert any(s.get("uses", "").startswith("actions/upload-artifact@") for s in job["steps"])
    kernels = [row["kernel"] for row in jobs["kernel"]["strategy"]["matrix"]["include"]]
    assert len(kernels) == len(set(kernels)) == 8
