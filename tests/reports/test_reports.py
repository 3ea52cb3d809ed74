"""Tables as cells: a made-up document whose every cell is known."""

from __future__ import annotations

import copy
import io

import pandas
import pytest
from support import made_up_table
from support.made_up_table import LABEL, row

from blink_exp.reports import cells, legend, statistics, terminal, text
from blink_exp.reports.cells import Cell, Column


@pytest.fixture
def document() -> dict:
    return made_up_table.document()


def cell(document, label, heading, group="mosaic_mme"):
    return dict(cells.rows(document))[label][cells.columns(document).index(Column(heading, group))]


# cells


def test_published_columns_stand_before_measured_ones_and_no_column_holds_both(document):
    heads = [("perception", "published"), ("total", "published"), *((h, "mosaic_mme") for h in ("total", "part", "KV MiB"))]
    assert [(c.heading, c.group) for c in cells.columns(document)] == heads
    for r in document["rows"]:
        r["runs"] = {}
    for _, row_cells in cells.rows(document):
        assert not any(c.text or c.delta or c.mark for c in row_cells[2:])
    assert cell(document, "none", "total").note == "not measured"


def test_a_published_cell_is_as_the_paper_prints_it(document):
    assert cell(document, "none", "perception", "published") == Cell("1505.70", note="published")
    derived = cell(document, "none", "total", "published")
    assert (derived.text, derived.mark, derived.delta, derived.best) == ("1863.58", "*", "", False)
    assert cell(document, "w/o SGS", "perception", "published").delta == "+3.30"
    assert cell(document, "w/o SGS", "total", "published").delta == "+2.5"  # without digits: as many as it takes
    assert cell(document, "L={6-10}", "total", "published").delta == "-13.84"
    assert not any(c.best for _, row_cells in cells.rows(document) for c in row_cells[:2])


def test_a_number_that_is_not_printed_is_empty_and_its_conjecture_no_number(document):
    lost = cell(document, "L={6-10}", "perception", "published")
    assert (lost.text, lost.delta, lost.mark) == ("", "", "")
    assert lost.note == "lost in text extraction; conjecture, not a number of the paper: 1234.5"
    assert cell(document, "[broken]", "total", "published") == Cell(note="not printed")
    for made in (text.markdown(document), text.latex(document), text.csv(document)):
        assert "lost in text extraction" in made and "1234" not in made


def test_a_measured_cell_by_hand(document):
    better = cell(document, "w/o SGS", "total")
    assert (better.text, better.delta, better.mark, better.best) == ("102.50", "+2.50", "†", True)
    assert better.command == "python evaluate.py saliency=random"
    tested = "+2.50 against none; 95 % interval +0.12 to +4.90, p = 0.030 (bootstrap, 638 shared samples)"
    assert better.note == f"640 samples; standard error not known; {tested}"
    assert cell(document, "none", "total") == Cell(
        "100.00 ± 20", note="640 samples; standard error 20.4", command="python evaluate.py method=none"
    )
    worse = cell(document, "L={6-10}", "total")
    assert (worse.text, worse.delta, worse.mark) == ("100.00", "+0.00", "")  # no -0.00, and NaN is no error
    assert cell(document, "w/o SGS", "KV MiB").text == "3.00"
    assert cell(document, "none", "KV MiB").text == "" and cell(document, "none", "KV MiB").note


def test_a_failed_point_is_empty_and_says_why(document):
    assert cell(document, "[broken]", "total") == Cell(note="failed: no memory", command="c")
    assert legend.gaps(document) == [
        "Published, lost in text extraction: L={6-10} (perception).",
        "Failed: [broken], mosaic_mme: no memory",
    ]


def test_the_mark_of_significance_begins_below_five_per_cent(document):
    test = document["rows"][1]["deltas"]["mosaic_mme"]["total"]
    for p, mark in ((0.0499, "†"), (0.05, ""), (None, "")):
        test["p"] = p
        assert cell(document, "w/o SGS", "total").mark == mark
        assert any("†" in line for line in legend.lines(document)) == bool(mark)
    test["p"] = 0.0002
    assert "p < 0.001 (bootstrap" in cell(document, "w/o SGS", "total").note


def best(document, heading):
    return [row_cells[cells.columns(document).index(Column(heading, "mosaic_mme"))].best for _, row_cells in cells.rows(document)]


def test_the_best_is_of_two_at_least_as_printed_and_of_scores_only(document):
    assert best(document, "total") == [False, True, False, False]
    assert best(document, "part") == [False] * 4  # all equal: none is best
    document["rows"][2]["runs"]["mosaic_mme"]["scores"]["a.b"] = 50.0
    assert best(document, "part") == [False] * 4  # nor where they are printed alike
    document["rows"][2]["runs"]["mosaic_mme"]["scores"]["a.b"] = 49.0
    assert best(document, "part") == [True, True, False, False]  # ties
    assert best(document, "KV MiB") == [False] * 4  # dropping more always costs less
    document["groups"][0]["columns"]["KV MiB"]["better"] = "low"
    document["rows"][1]["runs"]["mosaic_mme"]["cost"] = {"kv_bytes": 2**20}
    assert best(document, "KV MiB") == [False, True, False, False]
    document["rows"][1]["runs"]["mosaic_mme"]["scores"]["total"] = 100.001
    assert best(document, "total") == [False] * 4  # 100.00 each, as printed
    for r in document["rows"][:2]:
        r["runs"] = {}
    assert best(document, "total") == [False] * 4  # the only one


def test_another_unit_holds_for_value_error_delta_and_interval(document):
    document["groups"][0]["columns"]["total"] |= {"per": 0.1, "error_digits": 1}
    assert cell(document, "none", "total").text == "1000.00 ± 204.0"
    total = cell(document, "w/o SGS", "total")
    assert (total.text, total.delta) == ("1025.00", "+25.00")
    assert "+1.25 to +49.00" in total.note


@pytest.mark.parametrize(
    ("stderr", "text", "note"),
    [
        (0.0, "100.00", "standard error not known from so few questions"),
        (1e-14, "100.00", "standard error not known from so few questions"),  # rounding of equal marks
        (None, "100.00", "standard error not known"),
        (float("nan"), "100.00", "standard error not known"),
        (0.04, "100.00 ± 0.04", "standard error 0.04"),  # known, and not 0
        (0.4, "100.00 ± 0.4", "standard error 0.4"),
        (0.6, "100.00 ± 1", "standard error 0.6"),
    ],
)
def test_an_error_that_is_not_known_is_left_away_and_a_small_one_is_not_nought(document, stderr, text, note):
    document["rows"][0]["runs"]["mosaic_mme"]["stderr"]["total"] = stderr
    total = cell(document, "none", "total")
    assert (total.text, total.note) == (text, f"640 samples; {note}")
    assert any(line.startswith("±") for line in legend.lines(document)) == ("±" in text)


def test_an_error_that_is_not_known_is_empty_in_the_csv_and_no_cost_speaks_of_one(document):
    document["rows"][0]["runs"]["mosaic_mme"]["stderr"]["total"] = 0.0
    frame = pandas.read_csv(io.StringIO(text.csv(document)))
    assert frame.stderr.isna().all()
    assert cell(document, "w/o SGS", "KV MiB").note == "640 samples"


def test_the_basis_of_a_conjecture_stands_behind_it_and_nowhere_else(document):
    document["rows"][2]["conjecture"]["basis"] = "adds to the total"
    assert cell(document, "L={6-10}", "perception", "published").note.endswith("not a number of the paper: 1234.5 (adds to the total)")
    assert cell(document, "L={6-10}", "total", "published").note == "published; -13.84 against none"  # it has no conjecture
    assert cell(document, "none", "total", "published").note == "published; not printed, follows from printed numbers"
    for made in (text.markdown(document), text.latex(document), text.csv(document), *legend.lines(document), *legend.gaps(document)):
        assert "basis" not in made and "adds to the total" not in made


def test_rows_measured_on_fewer_questions_than_the_others_are_named(document):
    assert legend.fewer(document) == []
    document["rows"][0]["runs"]["mosaic_mme"]["samples"] = 612
    document["rows"][2]["runs"]["mosaic_mme"]["samples"] = 8
    document["rows"][3]["runs"]["mosaic_mme"]["samples"] = 1  # failed: no number of its stands there
    sentence = "Measured on fewer questions: none (612 of 640), L={6-10} (8 of 640)."
    assert legend.gaps(document)[1] == sentence and f"- {sentence}" in text.markdown(document).splitlines()
    document["groups"].append({"benchmark": "gqa", "label": "b on gqa, 9 questions", "columns": {}})
    for k, samples in enumerate((9, 9, 7)):
        document["rows"][k]["runs"]["gqa"] = {"status": "done", "samples": samples}
    assert legend.fewer(document) == [
        "Measured on fewer questions of mosaic_mme: none (612 of 640), L={6-10} (8 of 640).",
        "Measured on fewer questions of gqa: L={6-10} (7 of 9).",
    ]


def test_a_control_is_said_not_to_be_in_the_paper(document):
    assert "Control, not in the paper" not in text.markdown(document)
    document["rows"][2] |= {"control": True, "published": {}, "missing": {}, "conjecture": {}}
    assert "\n- Control, not in the paper: L={6-10}.\n" in text.markdown(document) and "Control, not in the paper" in text.latex(document)
    assert cell(document, "L={6-10}", "total", "published") == Cell(note="control, not in the paper")


def test_the_commits_that_measured_are_named_once_each_and_short(document, capsys):
    assert not any("commit" in line for line in legend.lines(document))
    runs = [r["runs"]["mosaic_mme"] for r in document["rows"]]
    for run, commit in zip(runs, ("a" * 40, "b" * 40 + "+changes", "a" * 40, "c" * 40), strict=True):  # the last failed
        run["commit"] = commit
    sentence = "Measured with commits aaaaaaaaaa, bbbbbbbbbb+changes."
    assert (
        sentence in legend.lines(document) and f"- {sentence}" in text.markdown(document).splitlines() and sentence in text.latex(document)
    )
    terminal.show(document)
    assert sentence in capsys.readouterr().out
    runs[1]["commit"] = runs[0]["commit"]
    assert "Measured with commit aaaaaaaaaa." in legend.lines(document)
    runs[1]["commit"] += "+changes"  # another one
    assert "Measured with commits aaaaaaaaaa, aaaaaaaaaa+changes." in legend.lines(document)


def test_each_test_is_told_in_words_of_its_own(document):
    known = (statistics.mcnemar([True], [False])["test"], statistics.BOTH, "bootstrap")
    for r, name in zip(document["rows"], known, strict=False):
        r["deltas"] = {"mosaic_mme": {"total": {"delta": 1, "p": 0.01, "test": name, "n": 9}}}
    assert set(known) == set(legend.TESTS)
    words = "McNemar's exact test; the larger p of McNemar's exact test and a bootstrap over images; bootstrap over images"
    assert any(f"p < 0.05 in a paired test ({words}), not" in line for line in legend.lines(document))


def test_the_smallest_detectable_difference_is_printed_for_each_column_as_a_range_over_the_rows(document, capsys):
    assert not any("could be detected" in line for line in legend.lines(document))
    deltas = [r["deltas"]["mosaic_mme"]["total"] for r in document["rows"][1:3]]
    deltas[0]["detectable"], deltas[1]["detectable"] = 2.314, None
    words = "Smallest difference that could be detected (p < 0.05, two-sided, with a power of 80 %, by the answers that differ)"
    assert f"{words}: total 2.31." in legend.lines(document)
    deltas[1]["detectable"] = 0.7
    assert f"{words}: total 0.70 to 2.31." in legend.lines(document)
    assert cell(document, "w/o SGS", "total").note.endswith("638 shared samples), detectable from 2.31")
    frame = pandas.read_csv(io.StringIO(text.csv(document)))
    assert frame.detectable.dropna().tolist() == [2.314, 0.7]
    terminal.show(document)
    assert "total 0.70 to 2.31." in " ".join(capsys.readouterr().out.split())
    document["groups"][0]["columns"]["total"]["per"] = 10
    document["groups"].append({"benchmark": "gqa", "label": "b on gqa, 9 questions", "columns": {}})
    assert f"{words}: total (mosaic_mme) 0.07 to 0.23." in legend.lines(document)


def test_the_legend_says_what_occurs_and_nothing_else(document):
    shown = " ".join(legend.lines(document))
    for wanted in (
        "Published: LLaVA-1.5-7B, MME.",
        f"Measured here: {LABEL}.",
        "two different models and benchmarks: compare differences within a group, never levels across",
        "±: standard error over images.",
        "difference from none",
        "†: p < 0.05 in a paired test (bootstrap over images)",
        "*: not printed, follows from printed numbers.",
        "Bold",
        "Empty: not printed or not measured.",
    ):
        assert wanted in shown, wanted
    plain = copy.deepcopy(document)
    plain["rows"] = [row("none", published={"perception": 1.0, "total": 2.0})]
    plain["groups"] = []
    assert legend.lines(plain) == ["Published: LLaVA-1.5-7B, MME."]
    plain["groups"] = document["groups"]
    assert "mosaic_mme: nothing measured." in legend.lines(plain)
    other = document | {"scale": False}
    assert not any("two different" in line for line in legend.lines(other))
    assert any("may differ" in line for line in legend.lines(other))


def test_two_benchmarks_are_told_apart(document):
    document["groups"].append({"benchmark": "gqa", "label": "b on gqa, 9 questions", "columns": {"total": {"value": "scores.total"}}})
    tags = [cells.tag(document, c) for c in cells.columns(document)]
    assert tags == ["published", "published", *["measured, mosaic_mme"] * 3, "measured, gqa"]
    assert cells.group_label(document, "gqa") == "measured: b on gqa, 9 questions"
    assert not any(row_cells[-1].text for _, row_cells in cells.rows(document))


def test_a_recipe_has_one_column_of_our_settings():
    recipe = {"published_on": None, "published_columns": {"value": {"column": "value", "digits": None}}, "groups": []}
    rows = [
        row("Learning rate", published={"value": 1.0e-4}, settings={"optim.lr": 0.0001}),
        row("Optimizer", published={"value": "adamw"}, settings={"optim.optimizer._target_": "torch.optim.AdamW"}),
    ]
    recipe |= {"rows": rows}
    assert [c.group for c in cells.columns(recipe)] == ["published", "settings"]
    assert [[c.text for c in row_cells] for _, row_cells in cells.rows(recipe)] == [["0.0001", "0.0001"], ["adamw", "torch.optim.AdamW"]]
    assert dict(cells.rows(recipe))["Learning rate"][1].note == "optim.lr=0.0001"
