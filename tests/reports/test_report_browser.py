"""The pages of tables and figures as a real browser shows them: at two widths, light and dark, without a network. See ``browser.py``."""

from __future__ import annotations

import pytest
from support.browser import CONTRAST, OVERFLOW, WIDTHS, chromium, opened
from support.made_up import everything, figure, put, table

from blink_exp.reports import html


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = everything(tmp_path_factory.mktemp("report"))
    html.gather(root)
    return root


@pytest.fixture(scope="module")
def browser():
    with chromium() as chrome:
        yield chrome


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_a_browser_shows_the_report_whole_quiet_and_readable(browser, root, width, scheme):
    with opened(browser, root / "report.html", width, scheme) as (page, complaints):
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
        assert dark == (scheme == "dark")
        assert page.evaluate(OVERFLOW) <= 0
        assert page.evaluate(CONTRAST, 4.5) == []  # opens all lists too
        assert page.evaluate(OVERFLOW) <= 0
        assert page.locator("nav").is_visible() == (width >= 1180)
        assert "layer 14: 1,143.75" in page.locator("svg title").all_text_contents()
        assert complaints == []


def test_a_wide_table_scrolls_in_its_own_box_and_its_labels_stay(browser, root):
    with opened(browser, root / "report.html", 390) as (page, _):
        box = page.locator("section#blink_table10--llava_1_5_7b .scroll").first
        assert box.evaluate("e => e.scrollWidth - e.clientWidth") > 500
        label = box.locator("tbody th").first
        before = label.bounding_box()["x"]
        box.evaluate("e => e.scrollLeft = 400")
        assert abs(label.bounding_box()["x"] - before) <= 1.5
        assert label.bounding_box()["width"] < 200  # of 390: the numbers must have room


def test_a_page_of_one_table_opens_in_a_browser_with_script_off(browser, tmp_path):
    folder = put(tmp_path, figure())
    out = html.page(table(), tmp_path / "run", [(figure(), folder)])
    context = browser.new_context(viewport={"width": 390, "height": 800}, java_script_enabled=False)
    page = context.new_page()
    page.goto(out.as_uri())
    assert page.locator("table.results tbody tr").count() == 3 and page.locator(".card svg").count() == 2
    assert page.locator(".card svg").first.bounding_box()["width"] > 200
    context.close()
