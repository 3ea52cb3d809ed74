"""Questions, answers, labels and errors that try to be markup: in every page they show as text, run nothing and load nothing; in Markdown
and LaTeX they are text too."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
from support.browser import chromium, opened
from support.made_up import CURVE, figure, put, table
from support.viewing import config, wide_photo

from blink_exp import markdown
from blink_exp.figures.base import write_drawing
from blink_exp.figures.shared import shortened, styled
from blink_exp.reports import html, search, text
from blink_exp.reports.inline import inlined
from blink_exp.studies.summary import write_summary
from blink_exp.tracking.lightning import cell
from blink_exp.viewer import run as viewer

HOSTILE = (
    "<script>window.ran=1</script>",
    "</script></style></title><script>window.ran=1</script>",
    '"><img src=x onerror="window.ran=1">',
    "' onmouseover='window.ran=1' x='",
    "<svg onload=window.ran=1><animate onbegin=window.ran=1></svg>",
    "<iframe src='javascript:parent.ran=1'></iframe>",
    "<a href='javascript:window.ran=1'>here</a>",
    "[here](javascript:window.ran=1) ![x](http://127.0.0.1:9/spy.png) <http://127.0.0.1:9/>",
    "<link rel=stylesheet href=http://127.0.0.1:9/x.css><style>@import 'http://127.0.0.1:9/y.css'</style>",
    "{{ 7*7 }}{% for x in [1] %}{{ x.__class__ }}{% endfor %}${7*7}#{7*7}",
    "a | b \u2028 c \u2029 d \x85 | e\n| f |\n|---|",
    "`code` ``two`` *bold* _under_ \\| \\` &lt;b&gt; <!-- --> ]]> -->",
    "\\input{/etc/passwd} \\write18{id} $\\frac{1 \\verb|x| %~^# \\end{tabular} ^^5cinput",
    "=HYPERLINK(1) $5 and $6 costs $x_$",
)
ALL = " ".join(HOSTILE)
# what ran, and elements and attributes that run or load something
QUIET = """() => [window.ran, document.scripts.length, document.querySelectorAll('iframe, object, embed, base').length,
  [...document.querySelectorAll('*')].filter(
    e => [...e.attributes].some(a => a.name.startsWith('on') || /^\\s*javascript:/i.test(a.value))).length]"""


@pytest.fixture(scope="module")
def browser():
    with chromium() as chrome:
        yield chrome


def spiked(value: Any, by: str) -> Any:
    """A document with hostile text behind every text that is shown."""
    if isinstance(value, dict):
        fixed = (
            "kind",
            "name",
            "paper",
            "source",
            "model",
            "status",
            "value",
            "benchmark",
            "baseline",
            "published",
            "figures",
            "files",
            "runs",
        )
        return {k: v if k in fixed and not isinstance(v, dict) else spiked(v, by) for k, v in value.items()}
    if isinstance(value, list):
        return [spiked(v, by) for v in value]
    return f"{value} {by}" if isinstance(value, str) else value


def quiet(browser: Any, page: Path) -> str:
    """The text of a page in a real browser, in which nothing ran, was loaded or asked."""
    with opened(browser, page) as (tab, complaints):
        asked: list[str] = []
        tab.on("dialog", lambda dialog: (asked.append(dialog.message), dialog.dismiss()))
        tab.evaluate("() => document.querySelectorAll('*').forEach(e => e.dispatchEvent(new MouseEvent('mouseover', {bubbles: true})))")
        assert tab.evaluate(QUIET) == [None, 0, 0, 0]
        assert complaints == [] and asked == []
        return str(tab.evaluate("document.documentElement.textContent"))


@pytest.mark.slow
def test_a_report_shows_hostile_text_and_runs_nothing(browser, tmp_path):
    hostile = spiked(table(figures=["blink_fig7"]), ALL)
    hostile["rows"][1]["baseline"] = hostile["rows"][0]["point"]
    folder = tmp_path / "blink_table2" / "scale-llava-1.5"
    folder.mkdir(parents=True)
    (folder / "table.json").write_text(json.dumps(hostile), encoding="utf-8")
    drawn = put(folder, spiked(figure(), ALL))
    text.write(hostile, folder)
    for page in (html.gather(tmp_path), html.page(hostile, folder, [(spiked(figure(), ALL), drawn)])):
        shown = quiet(browser, page)
        for part in HOSTILE:
            assert " ".join(part.split()) in " ".join(shown.split()), part


@pytest.mark.slow
def test_a_page_of_a_question_shows_hostile_text_and_runs_nothing(browser, tmp_path, monkeypatch):
    trace = viewer.trace

    def traced(*args: Any) -> Any:
        result = trace(*args)
        return replace(result, record=result.record | {"prediction": ALL})

    monkeypatch.setattr(viewer, "trace", traced)
    settings = config("method=blink_interp", image=str(wide_photo(tmp_path)), question=ALL, compare=[])
    subject = viewer.load_subject(settings)
    sample = replace(subject.sample, id=ALL, category=ALL, answer=ALL)
    monkeypatch.setattr(viewer, "load_subject", lambda settings: replace(subject, sample=sample))
    shown = quiet(browser, viewer.view(settings, tmp_path))
    assert shown.count(" ".join(HOSTILE[0].split())) >= 4  # question, answer, prediction, category or id


@pytest.mark.slow
@pytest.mark.parametrize(
    "inside",
    [
        *("<script>window.ran=1</script>", "<ScRipt>window.ran=1</ScRipt>", '<a href="javascript:window.ran=1"><text>x</text></a>'),
        '<g><animate attributeName="href" to="javascript:window.ran=1" onbegin="window.ran=1"/></g>',
        '<image href="http://127.0.0.1:9/x.png"/><use href="data:text/html,x"/>',
        '<rect style="fill: url(http://127.0.0.1:9/x.svg#a)"/><rect fill="URL(//127.0.0.1:9/y)"/>',
        "<style>*{background: url(http://127.0.0.1:9/x.png)} @import 'http://127.0.0.1:9/x.css';</style>",
        '<foreignObject><body xmlns="http://www.w3.org/1999/xhtml"><img src="x" onerror="window.ran=1"/></body></foreignObject>',
        '<img src="x" onerror="window.ran=1"/><meta http-equiv="refresh" content="0;url=http://127.0.0.1:9/"/><base href="http://127.0.0.1:9/"/>',
        '<g onload="window.ran=1" OnClick="window.ran=1"/><object data="http://127.0.0.1:9/"/><iframe src="javascript:parent.ran=1"/>',
    ],
)
def test_an_svg_from_elsewhere_draws_and_does_nothing_else(browser, inside, tmp_path):
    markup, _ = inlined(CURVE.replace("</svg>", f"{inside}</svg>").encode(), "p-", "alt")
    assert "M1 9L230 20" in markup
    page = tmp_path / "page.html"
    page.write_text(f'<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,"><body>{markup}', encoding="utf-8")
    quiet(browser, page)


# ---- Markdown


def rendered(source: str) -> str:
    """Markdown as HTML by CommonMark with tables, HTML in it taken as it is: the worst that a reader could do."""
    markdown_it = pytest.importorskip("markdown_it")
    return str(markdown_it.MarkdownIt("commonmark", {"html": True}).enable("table").render(source))


def documents(tmp_path: Path) -> dict[str, str]:
    """{name: Markdown} of everything that writes some, with hostile text in it."""
    write_summary([{"point": ALL, "status": "done", "scores": {ALL: 1.0}, "samples": 1, "seconds": 1.0, "folder": "f"}], tmp_path)
    part = {"score": 1.0, "stderr": None, "worth": 1.0, "samples": 1, "skipped": 0, "tokens": None}
    setting = {"point": ALL, "command": ALL, "validation": part, "test": part}
    tuning = {"benchmark": ALL, "backbone": ALL, "objective": ALL, "token_price": 0, "points": 1, "failed": 0, "difference": None}
    hostile = spiked(table(figures=[]), ALL)
    hostile["rows"][1]["baseline"] = hostile["rows"][0]["point"]
    return {
        "table.md": text.markdown(hostile),
        "summary.md": (tmp_path / "summary.md").read_text(encoding="utf-8"),
        "tuning.md": search.text(tuning | {"settings": {"default": setting, "best": copy.deepcopy(setting)}}),
        "tensorboard": "\n".join(map(markdown.line, [[cell("a"), cell(ALL)], ["---", "---"], [cell(ALL), cell(1.0)]])),
    }


@pytest.mark.slow
def test_markdown_shows_hostile_text_and_runs_nothing(browser, tmp_path):
    for name, source in documents(tmp_path).items():
        page = tmp_path / f"{name}.html"
        page.write_text(f'<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,"><body>{rendered(source)}', encoding="utf-8")
        shown = quiet(browser, page)
        assert "<script>window.ran=1</script>" in shown and "[here](javascript:window.ran=1)" in shown, name
        rows = [line for line in source.splitlines() if line.startswith("|")]
        cells = {len(re.findall(r"(?<!\\)(?:\\\\)*\|", row)) for row in rows}
        assert len(cells) == 1, (name, cells)  # no text ends a cell or a row


def test_code_is_fenced_by_more_backticks_than_it_holds():
    assert [markdown.code(code) for code in ("a", "a`b", "``")] == ["`a`", "`` a`b ``", "``` `` ```"]


# ---- LaTeX


def test_latex_holds_no_command_of_a_text():
    hostile = spiked(table(figures=[]), ALL)
    hostile["rows"][1]["baseline"] = hostile["rows"][0]["point"]
    known = set(re.findall(r"\\([A-Za-z]+|.)", text.latex(table(figures=[])))) | {"textbackslash", "textbar", "textasciitilde"}
    known |= set(["textasciicircum", "textless", "textgreater", "dots", "rightarrow"]) | set("&%$#_{}")
    lines = text.latex(hostile).splitlines()
    assert lines[0].startswith("% ") and "\\begin{table" in "".join(lines[1:4])  # the command stays in its comment
    body = "\n".join(lines[1:])
    assert set(re.findall(r"\\([A-Za-z]+|.)", body)) <= known | {"\\"}
    assert "\\textbackslash{}input\\{/etc/passwd\\}" in body and "^^" not in body
    assert body.count("\\begin{") == body.count("\\end{")


# ---- Figures


@styled()
def test_a_figure_of_hostile_text_is_drawn(tmp_path):
    from blink_exp.figures.base import Drawing

    drawn, axis = plt.subplots(layout="constrained")
    axis.set_title(shortened(ALL, 60))
    axis.set_xlabel("$\\frac{1 costs $5")
    axis.plot([0, 1], [0, 1], label="$x^{", gid=f"tip:{HOSTILE[0]}")
    axis.legend()
    files = write_drawing(Drawing({"a": drawn}, {}, [], ALL, "m"), tmp_path)
    assert len(files["a"]) == 3 and "<script" not in (tmp_path / "a.svg").read_text(encoding="utf-8")
