# SPDX-License-Identifier: MIT
"""The page of results, opened in a real browser and looked at."""

import json
import shutil
import subprocess
import sys
from collections import Counter

import pytest

from helpers.machine import timeouts

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
QUIETLY = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--hide-scrollbars", "--window-size=1000,1400",
)  # fmt: skip
# Colours of page.html: paper, the first counter, the three states of a page.
LIGHT = {"paper": (255, 255, 255), "line": (47, 126, 216), "present": (47, 168, 106),
         "swapped": (216, 117, 47)}  # fmt: skip
DARK = {"paper": (20, 23, 26), "line": (92, 162, 245), "present": (76, 195, 138),
        "swapped": (240, 148, 77)}  # fmt: skip

SEEN = """
from helpers.observe import timeline

def test_seen():
    '''The pictures are drawn.'''
    for label, value in (("start", 0), ("mlock 8", 32), ("munlock 8", 0)):
        timeline.sample(label, VmLck=value)
    timeline.page_states("private, lo", "p" * 64)
    timeline.page_states("private, control", "s" * 48 + "a" * 16)
    assert False
"""


@pytest.fixture
def browser(tmp_path):
    """A command line that opens one page in a headless browser with a profile of its own."""
    name = next(filter(shutil.which, BROWSERS), None)
    if name is None:
        pytest.skip("needs a browser: apt install chromium")
    pytest.importorskip("jinja2", reason="needs jinja2: pip install jinja2")

    def opened(page, *options):
        subprocess.run(
            [name, *QUIETLY, f"--user-data-dir={tmp_path / 'profile'}", *options, f"file://{page}"],
            check=True, capture_output=True, timeout=timeouts.scaled(50),
        )  # fmt: skip

    return opened


def page(suite):
    """A page of one failed case with both kinds of picture."""
    suite.case(SEEN)
    suite.run("--report", "out")
    subprocess.run(
        [sys.executable, "-m", "helpers.report", "html", "out", "-o", "page.html"],
        cwd=suite.path, check=True, timeout=timeouts.scaled(50),
    )  # fmt: skip
    return suite.path / "page.html"


@pytest.mark.parametrize(
    ("scheme", "colours"), [(1, LIGHT), (0, DARK)], ids=["light", "dark"]
)  # preferredColorScheme of Blink
def test_pictures_are_seen(browser, suite, scheme, colours):
    """On white and on dark paper the counter is drawn as steps, and page states as strips as long
    as they are many."""
    image = pytest.importorskip("PIL.Image", reason="needs Pillow: pip install pillow")
    browser(
        page(suite), f"--screenshot={suite.path / 'shot.png'}",
        f"--blink-settings=preferredColorScheme={scheme}",
    )  # fmt: skip
    with image.open(suite.path / "shot.png") as shot:
        width, height = shot.size
        seen = Counter({c: n for n, c in shot.convert("RGB").getcolors(width * height)})
    assert seen[colours["paper"]] > width * height // 2, "mostly paper"
    assert seen[colours["line"]] > 500, "the counter's line"
    # How many of each depends on the browser's fonts: labels and legend have these colours too.
    assert seen[colours["present"]] > seen[colours["swapped"]] > 100, "64 pages, 48 swapped"


def test_page_prints(browser, suite):
    """The page can be printed: a PDF that holds the failing statement."""
    browser(page(suite), f"--print-to-pdf={suite.path / 'page.pdf'}", "--no-pdf-header-footer")
    assert (suite.path / "page.pdf").read_bytes().startswith(b"%PDF-"), "a PDF"
    assert (suite.path / "page.pdf").stat().st_size > 10_000, "with the page's fonts and pictures"


REAL = """
from helpers import syscalls
from helpers.memory import mapping
from helpers.observe import lock_accounting
from helpers.processes import Child
from helpers.reclaim import drivers, range_state
from helpers.reclaim.control_pairs import SIZE, make_pairs
import pytest

@pytest.mark.needs("lock:8", "smaps-flags")
def test_counted():
    '''VmLck counts eight pages.'''
    with mapping("private", 8) as region:
        lock_accounting.read(region)
        syscalls.mlock(region.addr, region.size)
        lock_accounting.read(region)
        syscalls.munlock(region.addr, region.size)
        lock_accounting.read(region)

@pytest.mark.needs("cgroup", "swap", "lock:256", "budget:256")
def test_stays(reclaim):
    '''What is locked stays.'''
    with reclaim.cgroup() as group, Child() as child:
        group.add(child.pid)
        pair = child.call(make_pairs, ["private"], "mlock", SIZE)["private"]
        drivers.reclaim_until_evicted(group.reclaim, child.pid, pair.control)
        range_state.range_state(child.pid, pair.locked)
"""


def test_real_cases_record_what_they_saw(suite):
    """A run with --report keeps each step of the account, and the cgroup's counters and pages."""
    suite.case(REAL)
    suite.run("--report", "out")
    rows = json.loads((suite.path / "out" / "result.json").read_text())["behaviours"]
    found = {r["statement"]: r for r in rows}
    counted = found["VmLck counts eight pages."]
    if counted["verdict"] == "not verified":
        pytest.skip(counted["reason"])
    (line,) = counted["series"]
    assert line["steps"] == ["start", "mlock 8", "munlock 8"]
    low, high, again = line["values"]["VmLck"]
    assert (low, again) == (0, 0)
    assert high > 0
    stays = found["What is locked stays."]
    if stays["verdict"] == "not verified":
        pytest.skip(stays["reason"])
    line, strip = stays["series"]
    assert line["steps"][:2] == ["before reclaim", "pass 1"]
    assert {"charged", "unevictable", "locked", "swapped"} <= line["values"].keys()
    assert line["values"]["locked"][-1] == line["values"]["locked"][0] > 0, "locked all the time"
    assert line["values"]["swapped"][-1] > line["values"]["swapped"][0], "the control goes to swap"
    locked, control = strip["regions"]["private, lo"], strip["regions"]["private, control"]
    assert set(locked) == {"p"}, "each locked page is present"
    assert control.count("s") > len(control) // 2, "most of the control is swapped"


def test_no_report_no_recording(suite):
    """Without --report nothing is recorded."""
    suite.case(
        "from helpers.observe import timeline\n\ndef test_quiet():\n"
        "    timeline.sample('x', VmLck=1)\n    timeline.sample('y', VmLck=2)\n"
        "    assert timeline.drawn() == []\n"
    )
    assert suite.run().returncode == 0
