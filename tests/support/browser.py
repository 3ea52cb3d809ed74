"""A real headless Chromium for tests of pages, where one is installed. It opens files only; whatever it asks of a network fails."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)
WIDTHS = (1280, 390)  # CSS pixels: a laptop, a telephone


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """A running browser; the test is skipped, with the reason, where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    with sync_api.sync_playwright() as play:
        executable = next(filter(None, map(shutil.which, (*NAMES, play.chromium.executable_path))), None)
        if executable is None:
            pytest.skip(f"no browser here: none of {', '.join(NAMES)} is on the path; or: playwright install chromium")
        browser = play.chromium.launch(executable_path=executable, args=list(ARGS))
        try:
            yield browser
        finally:
            browser.close()


@contextlib.contextmanager
def opened(browser: Any, path: Path, width: int = 1280, scheme: str = "light") -> Iterator[tuple[Any, list[str]]]:
    """(page, complaints) of a file: what the console, the network and scripts complain about; requests for anything else count too."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    complaints: list[str] = []
    page = context.new_page()
    page.on("console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("requestfailed", lambda request: complaints.append(f"failed: {request.url[:200]}"))
    page.on("request", lambda r: None if r.url.startswith((path.as_uri(), "data:")) else complaints.append(f"asked for {r.url}"))
    try:
        page.goto(path.as_uri(), wait_until="load")
        yield page, complaints
    finally:
        context.close()


# Elements whose own text has less contrast with what lies behind it than ``least`` (WCAG 2, relative luminance). Backgrounds that let
# something shine through are laid over one another. Text of pictures is not looked at: pictures keep a white card.
CONTRAST = """least => {
  const rgba = text => { const context = Object.assign(document.createElement('canvas'), {width: 1, height: 1}).getContext('2d');
    context.clearRect(0, 0, 1, 1); context.fillStyle = text; context.fillRect(0, 0, 1, 1);
    const d = context.getImageData(0, 0, 1, 1).data; return [d[0], d[1], d[2], d[3] / 255]; };
  const known = {}; const color = text => known[text] ??= rgba(text);
  const over = (top, below) => [0, 1, 2].map(k => top[k] * top[3] + below[k] * (1 - top[3])).concat(1);
  const light = c => [0, 1, 2].map(k => c[k] / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, k) => sum + v * [.2126, .7152, .0722][k], 0);
  const behind = element => { const layers = [];
    for (let e = element; e; e = e.parentElement) layers.push(color(getComputedStyle(e).backgroundColor));
    return layers.reverse().reduce((below, layer) => over(layer, below), [255, 255, 255, 1]); };
  const found = [];
  document.querySelectorAll('details').forEach(e => e.open = true);
  for (const element of document.querySelectorAll('body, body *')) {
    if (element.closest('svg') || ![...element.childNodes].some(n => n.nodeType === 3 && n.data.trim())) continue;
    const below = behind(element), ink = over(color(getComputedStyle(element).color), below);
    const [a, b] = [light(ink), light(below)].sort((x, y) => y - x), ratio = (a + .05) / (b + .05);
    if (ratio < least) found.push(`${element.tagName} ${element.className} ${element.textContent.slice(0, 40)}: ${ratio.toFixed(2)}`);
  }
  return found;
}"""

# What sticks out of the page to the right. Boxes that scroll on their own may hold wider things.
OVERFLOW = "() => Math.max(document.scrollingElement.scrollWidth, document.body.scrollWidth) - window.innerWidth"
