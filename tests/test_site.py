"""The site of docs/ builds strictly, holds every page, and asks no other host for anything."""

from __future__ import annotations

import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from support.scripts import ROOT

pytest.importorskip("mkdocs", reason='the docs are built with the extra "docs": pip install -e ".[docs]"')
PAGES = sorted(path.stem for path in (ROOT / "docs").glob("*.md"))


class Requests(HTMLParser):
    """Addresses that a browser asks for when it opens a page: not those of links to follow."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag in ("img", "script", "iframe", "source", "video"):
            self.addresses.append(values.get("src") or "")
        if tag == "link" and values.get("rel") not in ("canonical", "next", "prev"):
            self.addresses.append(values.get("href") or "")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.mark.slow
def test_every_page_is_in_the_site(site):
    assert [name for name in PAGES if not (site / f"{name}.html").is_file()] == []
    assert len(PAGES) >= 30


@pytest.mark.slow
def test_no_page_asks_another_host_for_anything(site):
    addresses = set()
    for page in site.rglob("*.html"):
        requests = Requests()
        requests.feed(page.read_text(encoding="utf-8"))
        addresses |= set(requests.addresses)
    assert len(addresses) > 5
    assert sorted(address for address in addresses if re.match(r"(https?:)?//", address)) == []
    styles = [path.read_text(encoding="utf-8") for path in site.rglob("*.css")]
    assert styles and not any(re.search(r"(url\(|@import )[\"']?(https?:)?//", text) for text in styles)


@pytest.mark.slow
def test_the_python_reference_has_signatures_and_docstrings(site):
    text = (site / "api.html").read_text(encoding="utf-8")
    assert 'id="blink_exp.decoder.attach.attach"' in text and 'id="blink_exp.methods.hero.Hero"' in text
    assert 'id="blink_exp.core.saliency.scorer"' in text and "Decorator that makes a function a" in text


def test_a_dead_link_or_anchor_is_an_error(tmp_path):
    """With the project's own settings, on two pages."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text("# A\n\n[b](b.md#there) [c](c.md) [d](b.md#gone)\n", encoding="utf-8")
    (tmp_path / "docs" / "b.md").write_text("# B\n\n## There\n", encoding="utf-8")
    settings = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    settings = re.sub(r"(?s)plugins:.*?\nmarkdown_extensions:", "plugins: []\nmarkdown_extensions:", settings)
    settings = re.sub(r"(?s)\nnav:\n.*", "\nnav: [index.md, b.md]\n", settings)
    (tmp_path / "mkdocs.yml").write_text(settings, encoding="utf-8")
    words = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(tmp_path / "out")]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert "'c.md'" in done.stderr and "'b.md#gone'" in done.stderr and "b.md#there" not in done.stderr
