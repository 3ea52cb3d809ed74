"""What the tests of the viewer share: configurations, a picture, and how a page is read back."""

from __future__ import annotations

import base64
import functools
import io
from html.parser import HTMLParser

import numpy as np
from hydra import compose, initialize_config_dir
from omegaconf import open_dict
from PIL import Image

from support.scripts import ROOT

CONF = ROOT / "conf"


@functools.cache
def composed(*overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("evaluate", overrides=list(overrides))


def config(*overrides, **keys):
    cfg = composed(*overrides).copy()
    with open_dict(cfg):
        for key in ("view", "image", "question", "compare"):
            cfg[key] = keys.get(key)
    return cfg


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
