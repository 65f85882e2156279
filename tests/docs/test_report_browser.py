"""The page of `launch report` in a real Chromium: nothing goes wrong, nothing is fetched, and everything that can be
used works, with the pointer, with the keyboard, in light and dark, on a phone."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from browser import Page, browser
from needs import need
from PIL import Image
from report_runs import START, resumed_run, training_rows, write_run

from launch.report.facts.run_facts import read_facts
from launch.report.page import page

pytestmark = pytest.mark.slow

PHONE = {"width": 375, "height": 800}
HOSTILE = "<script>document.title = 'taken over'</script>"

# For every element with text of its own: the WCAG contrast of the text with what is painted behind it.
CONTRASTS = """
(() => {
  const paper = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const paint = (colours) => {
    for (const colour of colours) { paper.fillStyle = colour; paper.fillRect(0, 0, 1, 1); }
    return [...paper.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const part = (value) => (value /= 255) <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!own || !element.checkVisibility() || ["SCRIPT", "STYLE"].includes(element.tagName)) continue;
    const behind = [];
    for (let each = element; each; each = each.parentElement) behind.unshift(getComputedStyle(each).backgroundColor);
    const back = light(paint(["white", ...behind])), front = light(paint([getComputedStyle(element).color]));
    const contrast = (Math.max(back, front) + 0.05) / (Math.min(back, front) + 0.05);
    found.push([contrast, `${element.tagName} ${element.className} ${element.textContent.slice(0, 30)}`]);
  }
  return found.sort((a, b) => a[0] - b[0]);
})()
"""


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """One browser for all tests of this file: each opens its own page in it."""
    need("chromium")
    with browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run that was resumed twice, with a class of a hostile name."""
    folder = tmp_path_factory.mktemp("one")
    run = resumed_run(folder / "first", classes=["cat", HOSTILE, "ship", "a class with a long name"])
    return written(folder / "report.html", run)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of three runs, one of them hostile, one without any result."""
    folder = tmp_path_factory.mktemp("three")
    good = resumed_run(folder / "good", optimizer={"lr": 0.1})
    hostile = resumed_run(folder / HOSTILE.replace("/", ":"), level=2.0, optimizer={"lr": 0.2})
    return written(folder / "report.html", good, hostile, write_run(folder / "unfinished", rows=training_rows(30)[:-1]))


def written(path: Path, *runs: Path) -> Path:
    path.write_text(page([read_facts(run) for run in runs], START + timedelta(hours=1)))
    return path


def text_of(tab: Page, selector: str) -> Any:
    return tab.evaluate(f"document.querySelector({selector!r}).innerText")


def texts_of(tab: Page, selector: str) -> Any:
    return tab.evaluate(f"[...document.querySelectorAll({selector!r})].map((each) => each.innerText)")


def click(tab: Page, selector: str) -> None:
    tab.evaluate(f"document.querySelector({selector!r}).click()")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("screen", [{"width": 1240, "height": 900}, PHONE], ids=["desk", "phone"])
@pytest.mark.parametrize("name", ["one", "three"])
def test_the_page_is_sound(
    name: str, screen: dict[str, int], dark: bool, tab: Page, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """No error, no request but for the page itself, nothing wider than the screen, text that can be read, and pixels
    that are light or dark as asked for."""
    path: Path = request.getfixturevalue(name)
    tab.errors.clear()
    tab.requests.clear()
    tab.open(path, **screen, dark=dark)
    assert tab.errors == []
    assert {url for url in tab.requests if not url.startswith("data:")} == {path.as_uri()}
    assert "taken over" not in tab.evaluate("document.title").replace(HOSTILE, "").replace(
        HOSTILE.replace("/", ":"), ""
    )
    assert tab.evaluate("document.documentElement.scrollWidth") == screen["width"]
    assert tab.evaluate("[...document.images].every((image) => image.naturalWidth > 0)")
    contrasts = tab.evaluate(CONTRASTS)
    assert len(contrasts) > 50
    assert contrasts[0][0] >= 4.5, contrasts[:5]
    tab.screenshot(tmp_path / "page.png")
    corner = Image.open(tmp_path / "page.png").convert("L").getpixel((2, 2))
    assert isinstance(corner, int)
    assert (corner < 60) if dark else (corner > 200)


def test_the_policy_stops_what_would_be_fetched_or_run(tab: Page, one: Path) -> None:
    """Where something did get into the page, it could neither run nor ask for anything: the test of these tests."""
    tab.open(one)
    tab.errors.clear()
    for made in ("<img src='http://127.0.0.1:9/x.png'>", "<img src='x' onerror='document.title = 1'>"):
        tab.evaluate(f"document.body.insertAdjacentHTML('beforeend', {made!r})")
    tab.call("Page.captureScreenshot")
    assert len(tab.errors) >= 2
    assert all("Content Security Policy" in error for error in tab.errors)
    assert "first" in tab.evaluate("document.title")


def test_the_reader_chooses_light_or_dark(tab: Page, one: Path) -> None:
    tab.open(one)
    ground = "getComputedStyle(document.body).backgroundColor"
    light = tab.evaluate(ground)
    click(tab, "#theme")
    dark = tab.evaluate(ground)
    assert light != dark
    assert tab.evaluate("document.querySelector('#theme').ariaPressed") == "true"
    click(tab, "#theme")
    assert tab.evaluate(ground) == light


def test_the_read_out_tells_the_values_of_a_step(tab: Page, one: Path) -> None:
    """Under the pointer at 60 % of 100 steps, and a step further with the keyboard; the rows are the oracle."""
    rows = {row["step"]: row for row in training_rows(100) if row.get("scope") == "step"}
    val = {row["step"]: row for row in training_rows(100) if row["split"] == "val"}
    tab.open(one)
    tab.point_at(".plot", 0.6)
    shown = text_of(tab, ".readout").replace("\n", " ")
    assert shown.startswith("step 60 · epoch 3")
    assert f"train, steps {rows[60]['loss']:.5g}" in shown
    assert f"validation {val[60]['loss']:.5g}" in shown
    tab.evaluate("document.querySelector('.plot').focus()")
    tab.press("ArrowRight")
    shown = text_of(tab, ".readout").replace("\n", " ")
    assert shown.startswith("step 61 · epoch 4")
    assert f"train, steps {rows[61]['loss']:.5g}" in shown
    tab.press("Escape")
    assert tab.evaluate("document.querySelector('.readout').hidden")
    tab.point_at(".plot", 0.4)
    assert "attempt 2 goes on from step 40; attempt 1 was interrupted" in text_of(tab, ".readout")


def test_the_axis_can_be_logarithmic(tab: Page, one: Path) -> None:
    tab.open(one)
    shown = "[...document.querySelectorAll('.plot')[0].querySelectorAll('.y')].filter(e => e.checkVisibility())"
    linear = tab.evaluate(f"{shown}.map(e => e.innerText)")
    click(tab, ".scale")
    log = tab.evaluate(f"{shown}.map(e => e.innerText)")
    assert linear == ["0", "0.5", "1", "1.5", "2", "2.5"]
    assert log == ["0.2", "0.5", "1", "2", "5"]
    visible = "[...document.querySelectorAll('.plot')[0].querySelectorAll('g')].map(e => getComputedStyle(e).display)"
    assert tab.evaluate(visible) == ["none", "inline"]


def test_the_legend_switches_lines_in_all_charts(tab: Page, three: Path) -> None:
    tab.open(three)
    drawn = "[...document.querySelectorAll('g.linear path[data-keys~=KEY]')].filter(e => e.checkVisibility()).length"
    of_run, of_val = drawn.replace("KEY", "run0"), drawn.replace("KEY", "val")
    all_of_run, all_of_val = tab.evaluate(of_run), tab.evaluate(of_val)
    assert all_of_run >= 8
    click(tab, "[data-key=run0]")
    assert tab.evaluate(of_run) == 0
    assert 0 < tab.evaluate(of_val) < all_of_val
    assert set(tab.evaluate("[...document.querySelectorAll('[data-key=run0]')].map(e => e.ariaPressed)")) == {"false"}
    click(tab, "[data-key=val]")
    click(tab, "[data-key=run0]")
    assert tab.evaluate(of_val) == 0
    assert 0 < tab.evaluate(of_run) < all_of_run


def test_tables_are_sorted_by_their_headings(tab: Page, one: Path) -> None:
    """Numbers from the highest, then from the lowest; words from A to Z."""
    tab.open(one)
    column = ".sortable tbody tr > :nth-child(5)"
    before = texts_of(tab, column)
    click(tab, ".sortable th:nth-child(5) button")
    assert texts_of(tab, column) == sorted(before, reverse=True) != before
    click(tab, ".sortable th:nth-child(5) button")
    assert texts_of(tab, column) == sorted(before)
    assert tab.evaluate("document.querySelector('.sortable th:nth-child(5)').ariaSort") == "ascending"
    click(tab, ".sortable th:nth-child(1) button")
    assert texts_of(tab, ".sortable tbody th") == [HOSTILE, "a class with a long name", "cat", "ship"]


def test_on_a_narrow_screen_rows_stand_below_one_another(tab: Page, three: Path) -> None:
    """No cell is cut off, none is empty, and each says what it is; on a wide screen they are columns."""
    cells = "[...document.querySelectorAll('table.stack tbody :is(th, td)')].filter((each) => each.checkVisibility())"
    tab.open(three, width=390)
    assert tab.evaluate(f"{cells}.every((each) => each.getBoundingClientRect().right <= 390)")
    assert tab.evaluate(f"{cells}.every((each) => each.innerText.trim() && each.dataset.label)")
    before = "getComputedStyle(document.querySelector('table.stack td'), '::before').content"
    assert tab.evaluate(before) == '"status"'
    assert tab.evaluate("document.querySelector('table.stack thead').checkVisibility()") is False
    tab.open(three, width=1280)
    assert tab.evaluate("document.querySelector('table.stack thead').checkVisibility()")
    assert tab.evaluate(before) == "none"


def test_mistakes_of_one_pair_of_classes(tab: Page, one: Path) -> None:
    tab.open(one)
    shown = "[...document.querySelectorAll('.mistakes li')].filter((each) => each.checkVisibility()).length"
    assert tab.evaluate(shown) == 3
    tab.evaluate(
        "{ const s = document.querySelector('.pairs select'); s.value = '2-0'; s.dispatchEvent(new Event('change')); }"
    )
    assert tab.evaluate(shown) == 1
    assert texts_of(tab, ".mistakes li:not([hidden]) .path code") == ["photos/test/ship/2.jpg"]


def test_the_path_of_a_mistake_is_copied_or_selected(tab: Page, one: Path) -> None:
    """A browser that refuses the clipboard selects the path instead."""
    tab.open(one)
    clipboard = (
        "Object.defineProperty(navigator, 'clipboard', {configurable: true, value: "
        "{writeText: (text) => { window.written = text; return ANSWER; }}})"
    )
    for answer, word in (("Promise.resolve()", "copied"), ("Promise.reject(new Error())", "selected")):
        tab.evaluate(clipboard.replace("ANSWER", answer))
        click(tab, ".mistakes li:nth-child(2) .copy")
        tab.call("Runtime.evaluate", expression="Promise.resolve()", awaitPromise=True)
        assert text_of(tab, ".mistakes li:nth-child(2) .copy") == word
        assert tab.evaluate("window.written") == "photos/test/ship/2.jpg"
    assert tab.evaluate("getSelection().toString()") == "photos/test/ship/2.jpg"
    click(tab, ".copy-all")
    assert tab.evaluate("window.written").count("\n") == 2


def test_the_matrix_tells_what_a_cell_counts(tab: Page, one: Path) -> None:
    tab.open(one)
    tab.point_at(".confusion tbody tr:nth-child(1) td:nth-child(4)")
    assert text_of(tab, ".matrix-readout") == "cat, predicted as ship: 22 of 56 (39.3 %)"
