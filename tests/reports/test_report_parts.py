"""Parts of the pages: pictures that go in as they are, and words for durations, places in papers and numbers."""

from __future__ import annotations

import base64
import re
import xml.etree.ElementTree as ElementTree

import pytest
from support.made_up import CURVE, png

from blink_exp.reports import entries, inline

# pictures


def test_an_svg_goes_in_with_its_own_ids_and_without_what_loads_or_runs():
    markup, width = inline.inlined(CURVE.encode(), "p1-", 'a "b" <c>')
    drawn = ElementTree.fromstring(markup)
    assert width == 240 and drawn.get("width") is None and drawn.get("viewBox") == "0 0 240 120"
    assert drawn.get("aria-label") == 'a "b" <c>' and drawn.get("style") == "stroke-linejoin: round; stroke-linecap: butt"
    assert {e.get("id") for e in drawn.iter()} - {None} == {"p1-clip", "p1-dot", "p1-line", "p1-tip7"}
    assert 'clip-path="url(#p1-clip)"' in markup and "fill: url(#p1-clip)" in markup and 'href="#p1-dot"' in markup
    assert not re.search("script|onclick|metadata|example.org|DOCTYPE|<style", markup)
    assert "<title>layer 14: 1,143.75</title>" in markup


@pytest.mark.parametrize(
    ("head", "width", "box"), [('width="2in" height="1in"', 144, "0 0 2 1"), ('viewBox="0 0 300 9"', 300, "0 0 300 9")]
)
def test_the_width_of_an_svg_is_its_own_or_its_view_boxs(head, width, box):
    markup, pixels = inline.inlined(f'<svg xmlns="http://www.w3.org/2000/svg" {head}/>'.encode(), "p", "x")
    assert pixels == width and f'viewBox="{box}"' in markup


@pytest.mark.parametrize("svg", [CURVE[:400], "<html/>", CURVE + " " * 2_000_000, None])
def test_a_broken_or_huge_svg_gives_way_to_the_png(tmp_path, svg):
    (tmp_path / "a.png").write_bytes(png(400))
    if svg is not None:
        (tmp_path / "a.svg").write_text(svg, encoding="utf-8")
    picture = inline.picture("a", ["a.svg", "a.png"], tmp_path, "p", 'say "<hi>"')
    assert picture.width == 144  # 400 pixels at 200 dots an inch
    assert picture.markup.startswith('<img alt="say &quot;&lt;hi&gt;&quot;" src="data:image/png;base64,')
    assert base64.b64decode(picture.markup.split("base64,")[1].rstrip('">')) == png(400)


def test_a_huge_svg_without_a_png_goes_in_all_the_same_and_nothing_gives_nothing(tmp_path):
    (tmp_path / "a.svg").write_text(CURVE + " " * 2_000_000, encoding="utf-8")
    assert inline.picture("a", ["a.svg", "a.png"], tmp_path, "p", "").markup.startswith("<svg")
    assert inline.picture("b", ["b.svg"], tmp_path, "p", "") is None


# words


@pytest.mark.parametrize(
    ("seconds", "words"), [(None, ""), (4.24, "4.2 s"), (59.97, "1 min 00 s"), (200.4, "3 min 20 s"), (7500, "2 h 05 min")]
)
def test_durations(seconds, words):
    assert entries.duration(seconds) == words


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("blink-table-2", "Blink, Table 2"),
        ("hero-table-4", "HERO, Table IV"),
        ("hero-fig-4", "HERO, Figure 4"),
        ("", ""),
        ("vqa", "vqa"),
    ],
)
def test_places_in_papers(source, words):
    """As the papers number them: HERO's tables in Roman."""
    assert entries.citation(source) == words


@pytest.mark.parametrize(
    ("value", "words"), [(None, ""), (12, "12"), (0.123456, "0.1235"), (1867.29, "1867"), (-3.0, "-3"), (1e-5, "1e-05")]
)
def test_numbers_of_claims(value, words):
    assert entries.number(value) == words
