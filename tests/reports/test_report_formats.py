"""The made-up table as Markdown, CSV and on the terminal."""

from __future__ import annotations

import io
import re

import pandas
import pytest
from support import made_up_table
from support.made_up_table import LABEL

from blink_exp.reports import cells, terminal, text


@pytest.fixture
def document() -> dict:
    return made_up_table.document()


# Markdown and CSV


def test_markdown_line_by_line(document):
    lines = text.markdown(document).splitlines()
    start = next(k for k, line in enumerate(lines) if line.startswith("|  |"))
    assert lines[start] == "|  | perception (published) | total (published) | total (measured) | part (measured) | KV MiB (measured) |"
    assert lines[start + 2 : start + 6] == [
        r"| none | 1505.70 | 1863.58\* | 100.00 ± 20 | 50.0 |  |",
        "| w/o SGS | 1509.00 (+3.30) | 1866.08 (+2.5) | **102.50** (+2.50†) | 50.0 | 3.00 |",
        "| L={6-10} |  | 1849.74 (-13.84) | 100.00 (+0.00) | 50.0 | 3.00 |",
        "| [broken] |  |  |  |  |  |",
    ]
    assert "- discrepancy: tau_exp \\| 5 %" in lines and "- Failed: [broken], mosaic_mme: no memory" in lines
    assert lines[-1] == "`python sweep.py table=blink_table2`"


def test_a_bar_or_a_star_in_a_label_makes_no_column_and_no_emphasis(document):
    document["rows"][0]["point"] = "a | b * c * <i>"
    line = next(line for line in text.markdown(document).splitlines() if line.startswith("| a"))
    assert line.startswith(r"| a \| b \* c \* \<i> |") and len(re.findall(r"(?<!\\)\|", line)) == 7


def test_csv_has_raw_values_and_keeps_published_and_measured_in_columns_of_their_own(document):
    frame = pandas.read_csv(io.StringIO(text.csv(document)))
    assert len(frame) == 4 * (2 + 3)
    published = frame[frame.group == "published"]
    assert published.measured.isna().all() and published.command.isna().all() and published.stderr.isna().all()
    line = frame[(frame.point == "w/o SGS") & (frame.group == "mosaic_mme") & (frame.column == "total")].iloc[0]
    wanted = {"measured": 102.5, "delta": 2.5, "p": 0.03, "n": 638, "low": 0.125, "high": 4.9, "samples": 640, "published": 1866.08}
    wanted |= {"published_delta": 2.5, "test": "bootstrap", "baseline": "none", "status": "done", "measured_on": LABEL}
    assert {k: line[k] for k in wanted} == wanted and line.command == "python evaluate.py saliency=random"
    base = frame[(frame.point == "none") & (frame.column == "total")]
    assert base.derived.tolist() == [True, True] and base.stderr.tolist()[1] == 20.4 and base.delta.isna().all()
    cost = frame[(frame.column == "KV MiB") & (frame.point == "w/o SGS")].iloc[0]
    assert cost.measured == 3 and pandas.isna(cost.published)  # no published counterpart
    broken = frame[(frame.point == "[broken]") & (frame.group == "mosaic_mme")]
    assert set(broken.status) == {"failed"} and set(broken.error) == {"no memory"} and broken.measured.isna().all()


def test_three_files_are_written(document, tmp_path):
    assert [p.name for p in text.write(document, tmp_path)] == ["table.md", "table.csv", "table.tex"]
    assert (tmp_path / "table.tex").read_text(encoding="utf-8") == text.latex(document)


# terminal


def test_the_terminal_shows_every_cell_and_takes_no_label_for_markup(document, capsys):
    terminal.show(document)
    shown = capsys.readouterr().out
    for wanted in ("[broken]", "1863.58*", "102.50 (+2.50†)", "1849.74 (-13.84)", "100.00 ± 20", "Failed: [broken]"):
        assert wanted in shown, wanted


def test_a_wide_table_is_shown_as_several_none_of_which_mixes(document, capsys):
    columns = document["groups"][0]["columns"]
    columns |= {f"c{k}": columns["part"] for k in range(21)}
    heads = cells.columns(document)
    shown = terminal.parts(heads)
    assert [k for part in shown for k in part] == list(range(2 + 24))
    assert [len(part) for part in shown] == [2, 8, 8, 8]
    assert all(len({heads[k].group for k in part}) == 1 for part in shown)
    assert terminal.parts(heads[:10]) == [list(range(10))]
    terminal.show(document)
    output = capsys.readouterr().out
    assert output.count("published: LLaVA-1.5-7B, MME") == 1 and output.count(f"measured: {LABEL}") == 3
