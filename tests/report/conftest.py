"""A real browser that opens the pages."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

VIEWS: dict[str, dict[str, Any]] = {
    "desktop": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"},
    "phone": {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark"},
    "print": {"viewport": {"width": 794, "height": 1123}, "color_scheme": "light"},
}
"""An A4 page is 794 CSS pixels wide."""
LARGEST = 3_000_000
"""Bytes that a page may have."""
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
"""Without the last two, a screenshot may fail on a busy machine."""
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A headless Chromium. Skips the test where there is none."""
    playwright = pytest.importorskip("playwright.sync_api")
    program = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if not program:
        pytest.skip("there is no Chromium: apt-get install chromium, or set CHROMIUM to its path")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=program, args=FLAGS)
        yield started
        started.close()


CUT = """
[...document.querySelectorAll("svg text")].filter(text => {
  const chart = text.ownerSVGElement.getBoundingClientRect(), box = text.getBoundingClientRect()
  return box.top < chart.top - 2 || box.bottom > chart.bottom + 2 || box.left < chart.left - 2 || box.right > chart.right + 2
}).map(text => text.textContent)
"""


@pytest.fixture
def check_page(browser: Any, tmp_path: Path) -> Callable[[Path], str]:
    """A function that opens a page in every view, and returns its text.

    It fails on messages of the console, content wider than the window, pictures that do not load, and what axe-core finds:
    contrast, names of pictures, order of headings and more. Screenshots stay in the test's folder.
    """

    def check(file: Path) -> str:
        assert file.stat().st_size < LARGEST
        text = ""
        for name, view in VIEWS.items():
            text = _check(browser.new_page(**view), file, tmp_path / f"{file.stem}-{name}.png", printed=name == "print")
        return text

    return check


def _check(page: Any, file: Path, screenshot: Path, *, printed: bool) -> str:
    from axe_playwright_python.sync_playwright import Axe

    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: said.append(request.url) if request.url.startswith("http") else None)
    if printed:
        page.emulate_media(media="print")
    page.goto(file.as_uri())
    page.screenshot(path=screenshot, full_page=True)
    assert not said
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "the page is wider than the window"
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth)"), "a picture is missing"
    assert page.evaluate(CUT) == [], "texts of charts are cut off"
    found = Axe().run(page)
    assert not found.response["violations"], found.generate_report()
    text: str = page.inner_text("body")
    page.close()
    return text
