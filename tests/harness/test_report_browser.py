# SPDX-License-Identifier: MIT
"""The page of results as its readers use it: in a browser, by search, link and keyboard."""

import json
import re
import shutil

import pytest

from helpers.machine import timeouts
from tests.harness.test_report_input import SERIES, kept, row, tool, whole

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
KERNELS = ("5.10.1", "6.1.2", "7.2.3")
REASON = ("wrapping-length: mlock returns 0; expected: EINVAL: it overflows (2.6 on, mm/mlock.c "
          "do_mlock; your kernel may lack commit 2658f94d6792)")  # fmt: skip
ROWS = [
    row("test_flags", source="mlock2(2) MLOCK_ONFAULT; commit b0f205c2a308",
        statement="mlock2 refuses flags that it does not know.", subject="Flags, bit by bit."),
    row("test_length[raw]", statement="A length that overflows is refused."),
    row("test_length[libc]", statement="A length that overflows is refused."),
    *(row(f"test_many[v{n}]", statement="Every variant counts.") for n in range(12)),
    *(
        {
            **row("x", statement=f"Fork number {n} keeps no lock."), "chapter": "fork",
            "id": f"tests/fork/test_b.py::test_fork_{n}", "series": SERIES,
        }
        for n in range(40)
    ),
]  # fmt: skip


@pytest.fixture
def browser(tmp_path):
    """A headless browser without a way to any network."""
    binary, driver = next(filter(shutil.which, BROWSERS), None), shutil.which("chromedriver")
    if not binary or not driver:
        pytest.skip("needs a browser and its driver: apt install chromium chromium-driver")
    webdriver = pytest.importorskip(
        "selenium.webdriver", reason="needs selenium: pip install selenium (group browser)"
    )
    pytest.importorskip("jinja2", reason="needs jinja2: pip install jinja2")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which(binary)
    for option in (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1200,1000",
        "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={tmp_path / 'profile'}",
    ):  # fmt: skip
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(driver)
    opened = webdriver.Chrome(options=options, service=service)
    opened.set_page_load_timeout(timeouts.scaled(30))
    yield opened
    try:
        assert [e["message"] for e in opened.get_log("browser")] == [], "nothing on the console"
        asked = {
            event["params"]["request"]["url"]
            for entry in opened.get_log("performance")
            if (event := json.loads(entry["message"])["message"])["method"]
            == "Network.requestWillBeSent"
            and event["params"]["documentURL"].startswith("file:")  # not the browser's own pages
        }
        assert {url.partition(":")[0] for url in asked} <= {"file", "data"}, asked
    finally:
        opened.quit()


def results(folder, rows=ROWS):
    """Results of three kernels that differ: one deviates, one fails, one lacks something."""
    files = []
    for n, release in enumerate(KERNELS):
        made = [dict(each) for each in rows]
        if n == 1:
            made[1] |= {"verdict": "deviates", "reason": REASON}
            made[0] |= {"verdict": "not verified", "reason": "needs a unicorn"}
        if n == 2:
            made[5] |= {"verdict": "failed", "reason": "VmLck in pages", "series": SERIES,
                        "evidence": [{"title": "Memory under test", "text": "lo"}]}  # fmt: skip
        value = whole(f"r{n}", made)
        value["run"]["kernel"]["release"] = release
        files.append(kept(folder / f"{n}.json", value))
    return files


@pytest.fixture
def page(browser, tmp_path):
    """Opens the page of three kernels, at an anchor if one is named."""
    code, _, lines = tool("report", "html", *results(tmp_path), "-o", tmp_path / "page.html")
    assert (code, lines) == (0, [])

    def opened(anchor=""):
        browser.get("about:blank")
        browser.get(f"file://{tmp_path / 'page.html'}{anchor}")
        return browser

    return opened


def script(browser, text, *arguments):
    return browser.execute_script(text, *arguments)


def visible(browser):
    """Ids of the behaviours that are shown, without the chapter."""
    text = "return [...document.querySelectorAll('tbody.b:not([hidden])')].map(b => b.id)"
    return [name.partition(".")[2] for name in script(browser, text)]


def count(browser):
    return script(browser, "return document.getElementById('count').textContent")


def keys(browser, *pressed):
    from selenium.webdriver import ActionChains

    for key in pressed:
        ActionChains(browser).send_keys(key).perform()


def focused(browser):
    """Text and behaviour of what has the focus."""
    return script(
        browser,
        "const a = document.activeElement; return [a.textContent.trim() || a.id, "
        "a.closest('tbody.b')?.id ?? '']",
    )


def inside(browser, name):
    """It can be seen: in the window, and below the bar that stays."""
    return script(
        browser,
        "const r = document.getElementById(arguments[0]).getBoundingClientRect(),"
        "bar = document.querySelector('.top').getBoundingClientRect();"
        "return r.height > 0 && r.top >= bar.bottom - 1 && r.top < innerHeight",
        name,
    )


def test_behaviours_stand_by_chapter_and_subject(page):
    """Each behaviour has statement, sources as links, and a named verdict a kernel."""
    browser = page()
    chapters = script(browser, "return [...document.querySelectorAll('h3.chapter')]"
                               ".map(h => h.textContent)")  # fmt: skip
    assert chapters == ["calls", "fork"]
    subject = script(browser, "return document.querySelector('.subject h4').textContent")
    assert subject.startswith("Flags, bit by bit")
    links = script(browser, "return [...document.getElementById('calls.test_a.test_flags')"
                            ".querySelectorAll('a')].map(a => a.href)")  # fmt: skip
    assert links[1:] == [
        "https://man7.org/linux/man-pages/man2/mlock2.2.html",
        "https://git.kernel.org/linus/b0f205c2a308",
    ]
    cells = script(
        browser,
        "return [...document.getElementById('calls.test_a.test_length')"
        ".querySelectorAll('tr:first-child td')].map(c => c.ariaLabel)",
    )
    assert cells == ["verified", "1 verified, 1 deviates", "verified"]
    note = script(browser, "return document.getElementById('calls.test_a.test_length')"
                           ".querySelector('.note').innerHTML")  # fmt: skip
    assert "6.1.2 x86_64" in note
    assert "2.6 on" in note
    assert "https://git.kernel.org/linus/2658f94d6792" in note


def test_search_and_filters(page):
    """Text, verdict, chapter, call and difference each leave what they name, and add up."""
    browser = page()
    every = visible(browser)
    assert len(every) == 43
    assert count(browser) == "43 of 43 behaviours"
    keys(browser, "/", "overflows", " refused")
    assert visible(browser) == ["test_a.test_length"]
    assert browser.current_url.endswith("#?q=overflows+refused")
    keys(browser, "\ue00c")  # Escape
    assert visible(browser) == every

    def choose(field, value):
        script(browser, "const f = document.getElementById(arguments[0]); f.value = arguments[1];"
                        "f.dispatchEvent(new Event('input'))", field, value)  # fmt: skip

    def press(letter):
        script(browser, f"document.querySelector('#bar [data-v={letter}]').click()")

    choose("chapter", "calls")
    assert visible(browser) == ["test_a.test_flags", "test_a.test_length", "test_a.test_many"]
    press("D")
    assert visible(browser) == ["test_a.test_length"]
    press("F")
    assert visible(browser) == ["test_a.test_length", "test_a.test_many"]
    press("D")
    assert visible(browser) == ["test_a.test_many"]
    script(browser, "document.getElementById('clear').click()")
    assert visible(browser) == every
    choose("call", "mlock2")
    assert visible(browser) == ["test_a.test_flags"]
    script(browser, "document.getElementById('clear').click();"
                    "document.getElementById('differ').click()")  # fmt: skip
    assert visible(browser) == ["test_a.test_flags", "test_a.test_length", "test_a.test_many"]
    sent = browser.current_url.partition("#")[2]
    browser = page(f"#{sent}")
    assert visible(browser) == ["test_a.test_flags", "test_a.test_length", "test_a.test_many"]


def test_link_to_a_behaviour_is_followed(page):
    """A link to a behaviour far down, and to a folded variant, shows it; a foreign one is told."""
    for name in ("fork.test_b.test_fork_39", "calls.test_a.test_many_v7", "fork"):
        browser = page(f"#{name}")
        assert inside(browser, name), name
    assert script(browser, "return document.getElementById('calls.test_a.test_many')"
                           ".querySelector('details').open") is False  # fmt: skip
    script(browser, "location.hash = 'calls.test_a.test_many_v7'")
    assert inside(browser, "calls.test_a.test_many_v7")
    keys(browser, "/", "unicorn")
    script(browser, "location.hash = 'fork.test_b.test_fork_20'")
    assert inside(browser, "fork.test_b.test_fork_20"), "a filter does not hide what is linked"
    browser = page("#calls.test_gone")
    assert count(browser) == "no behaviour calls.test_gone in this page"
    script(browser, "document.querySelector('#fork\\\\.test_b\\\\.test_fork_3 a.s').click()")
    assert browser.current_url.endswith("page.html#fork.test_b.test_fork_3"), "to be sent"


def test_page_is_used_by_keyboard_alone(page):
    """Skip links, search, next and previous, variants, theme and help need no mouse."""
    tab, enter, shift_tab = "\ue004", "\ue007", "\ue008\ue004"
    browser = page()
    keys(browser, tab)
    assert focused(browser)[0] == "Skip to the behaviours"
    keys(browser, tab)
    assert focused(browser)[0] == "Skip to the search"
    keys(browser, enter)
    keys(browser, shift_tab, tab)
    keys(browser, "/", "variant counts", enter)
    assert focused(browser) == ["Every variant counts.", "calls.test_a.test_many"]
    keys(browser, "o")
    assert inside(browser, "calls.test_a.test_many_v0")
    keys(browser, "x")
    assert count(browser) == "43 of 43 behaviours"
    keys(browser, "j")
    assert focused(browser)[1] == "fork.test_b.test_fork_0"
    keys(browser, "j", "\ue015", "k")  # ArrowDown
    assert focused(browser)[1] == "fork.test_b.test_fork_1"
    for _ in range(9):
        keys(browser, "j")
        assert inside(browser, focused(browser)[1])
    keys(browser, enter)
    assert browser.current_url.endswith("#" + focused(browser)[1])
    outline = script(browser, "return getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid", "the focus is seen"
    keys(browser, "?")
    assert script(browser, "return document.getElementById('keys').open")
    keys(browser, "/", "j k t x")
    assert script(browser, "return document.getElementById('q').value") == "j k t x"


CONTRAST = """
const paper = getComputedStyle(document.body).backgroundColor;
const light = (text) => {
  const c = text.match(/[\\d.]+/g).slice(0, 3).map((v) => v / 255)
    .map((v) => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
  return .2126 * c[0] + .7152 * c[1] + .0722 * c[2];
};
return [...document.querySelectorAll(".ok, .dev, .bad, .dim, a, th, td, p, button, .meta")]
  .filter((e) => e.getClientRects().length)
  .map((e) => [light(getComputedStyle(e).color), light(paper)].sort((a, b) => b - a))
  .reduce((least, [a, b]) => Math.min(least, (a + .05) / (b + .05)), 99);
"""


def test_both_colour_schemes(page):
    """The page takes the system's scheme and the switch's, keeps the latter, and can be read."""
    browser = page()

    def paper():
        return script(browser, "return getComputedStyle(document.body).backgroundColor")

    def system(scheme):
        feature = {"name": "prefers-color-scheme", "value": scheme}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})

    white, black = "rgb(255, 255, 255)", "rgb(20, 23, 26)"
    for scheme, colour in (("light", white), ("dark", black)):
        system(scheme)
        assert paper() == colour
        assert script(browser, CONTRAST) >= 4.5, "WCAG AA"
    keys(browser, "t")
    assert paper() == black
    keys(browser, "t")
    assert paper() == white, "the switch is stronger than the system"
    browser.refresh()
    assert paper() == white, "and is kept"
    script(browser, "document.getElementById('theme').click()")
    assert paper() == black, "the system's again"


def test_pictures_are_shown_when_they_come_into_view(page):
    """Pictures are drawn where one looks, and are mere text elsewhere; in print all are there."""
    browser = page("#fork.test_b.test_fork_30")

    def drawn():
        return script(browser, "return [...document.querySelectorAll('tbody.b')]"
                               ".filter(b => b.querySelector('svg')).map(b => b.id)")  # fmt: skip

    wait = timeouts.until(10)
    while "fork.test_b.test_fork_30" not in drawn():
        assert wait.left() > 0
    assert "fork.test_b.test_fork_2" not in drawn()
    sizes = script(
        browser,
        "const s = document.getElementById('fork.test_b.test_fork_30').querySelectorAll('svg');"
        "return [...s].map(e => e.clientWidth)",
    )
    assert len(sizes) == 2
    assert min(sizes) > 300
    script(browser, "dispatchEvent(new Event('beforeprint'))")
    assert len(drawn()) == 40


def test_page_serves_without_its_script(page, browser):
    """With scripts forbidden every behaviour, link and picture is there, and no dead control."""
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    page("#fork.test_b.test_fork_30")
    assert len(visible(browser)) == 43
    assert inside(browser, "fork.test_b.test_fork_30")
    assert script(browser, "return document.querySelectorAll('.pic svg').length") == 80
    assert not script(browser, "return document.getElementById('bar').getClientRects().length")


def test_controls_have_names(page):
    """Each control, landmark and picture has a name that a screen reader says."""
    browser = page("#fork.test_b.test_fork_5")
    nodes = browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    roles = {}
    for node in nodes:
        if not node.get("ignored"):
            role = node.get("role", {}).get("value", "")
            roles.setdefault(role, []).append(node.get("name", {}).get("value", ""))
    for role in ("button", "link", "searchbox", "combobox", "checkbox", "search", "navigation"):
        assert roles.get(role), role
        assert all(roles[role]), role
    assert {"main", "banner"} <= roles.keys() | {"banner"}
    assert "search" in roles["searchbox"][0]


def test_large_page_opens_in_a_second(browser, tmp_path):
    """2,500 behaviours of ten kernels, with pictures, are there and searched within a second."""
    rows = [
        {
            **row("x", statement=f"Statement {n} of mlock({n % 7}) is true, whatever is said."),
            "id": f"tests/chapter{n % 10}/test_{n % 100}.py::test_case_{n}[words-{n}]",
            "chapter": f"chapter{n % 10}", "source": "mlock(2) NOTES; mm/mlock.c mlock_fixup",
        }
        | ({"series": SERIES} if n % 5 == 0 else {})
        | ({"verdict": "not verified", "reason": "needs x: y"} if n % 30 == 0 else {})
        for n in range(2500)
    ]  # fmt: skip
    files = []
    for n in range(10):
        value = whole(f"r{n}", rows)
        value["run"]["kernel"]["release"] = f"6.{n}.0+deb13-amd64"
        files.append(kept(tmp_path / f"{n}.json", value))
    assert tool("report", "html", *files, "-o", tmp_path / "page.html")[0] == 0
    taken = []
    for _ in range(3):  # the machine may do something else meanwhile
        browser.get(f"file://{tmp_path / 'page.html'}")
        taken.append(
            script(browser, "const [n] = performance.getEntriesByType('navigation');"
                            "return Math.max(n.domContentLoadedEventEnd, "
                            "...performance.getEntriesByType('paint').map(p => p.startTime))")
        )  # fmt: skip
    assert len(visible(browser)) == 2500
    assert min(taken) < timeouts.scaled(1) * 1000, taken
    took = script(
        browser,
        "const q = document.getElementById('q'), begun = performance.now();"
        "q.value = 'test_case_1234 '; q.dispatchEvent(new Event('input'));"
        "document.body.offsetHeight; return performance.now() - begun",
    )
    assert re.match(r"1 of 2500", count(browser))
    assert took < timeouts.scaled(1) * 1000
