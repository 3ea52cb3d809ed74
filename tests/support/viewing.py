"""What the tests of the viewer share: configurations, a picture, and how a page is read back."""

from __future__ import annotations

import base64
import functools
import io
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
from PIL import Image

from blink_exp.settings.compose import composed
from blink_exp.settings.roots import ViewSettings
from support.scripts import ROOT

CONF = ROOT / "conf"


@functools.cache
def _settings(*overrides) -> ViewSettings:
    return composed("view", overrides)


def config(*overrides, **keys) -> ViewSettings:
    """Settings of the viewer; ``keys``: of the page, which compares no methods unless it says so."""
    return replace(_settings(*overrides), **({"compare": None} | keys))


class Tables(HTMLParser):
    """The cells of every table with an id, and all text of the page."""

    def __init__(self, html):
        super().__init__()
        self.rows, self.text, self.tags, self._table = {}, "", set(), None
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag == "table":
            self._table = self.rows.setdefault(dict(attrs).get("id"), [])
        if tag == "tr":
            self._table.append([])
        if tag in ("td", "th"):
            self._table[-1].append("")

    def handle_endtag(self, tag):
        self._table = None if tag == "table" else self._table

    def handle_data(self, data):
        self.text += data
        if self._table and self._table[-1]:
            self._table[-1][-1] = (self._table[-1][-1] + data).strip()


def pixels(uri):
    head, _, data = uri.partition(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def wide_photo(folder):
    """Twice as wide as high: grey, a red square in the middle, blue at the sides. Its name is one that HTML and shells would read."""
    image = Image.new("RGB", (192, 96), (0, 0, 255))
    image.paste((128, 128, 128), (48, 0, 144, 96))
    image.paste((255, 0, 0), (72, 24, 120, 72))
    path = folder / "a <b>, 'photo'.png"
    image.save(path)
    return path
