"""The look-ups of the reference data: its vocabulary, parameters of a row in our words, footnotes, figures, cells that are not there."""

from __future__ import annotations

import pytest

from blink_exp import reference
from blink_exp.cli import CONF

ROWS = [(paper, t["id"], r) for paper in ("blink", "hero") for t in reference.published(paper)["tables"] for r in t["rows"]]


def test_the_vocabulary_knows_every_word_of_both_schemas():
    known = reference.vocabulary()["params"]
    for paper in ("blink", "hero"):
        schema = reference.published(paper)["param_schema"]
        assert {*schema} <= {*known}
        for name, alternatives in schema.items():
            for word in alternatives.split("|") if "|" in alternatives else []:
                assert word.strip() in known[name]["words"], (name, word)


@pytest.mark.parametrize("paper", ["blink", "hero"])
def test_every_published_row_can_be_said_in_our_words(paper):
    for _, table, row in (r for r in ROWS if r[0] == paper and r[1] != "blink-table-4"):
        for params in (row["params"], *(row["params"] | more for more in row.get("per_benchmark", {}).values())):
            assert reference.overrides(params)[-1].startswith("model="), (table, row["label"])


def test_overrides_by_hand():
    params = {"drop": False, "method": "blink", "layers": [12, 13], "tau_exp": 0.5, "tau_drop": None, "grid": 3}
    assert reference.overrides(params) == [
        *("method=blink", "layers.indices=[12,13]", "grid.p=3", "grid.scale_thresholds=false", "thresholds.tau_exp=0.5"),
        "thresholds.tau_drop=0.0",
    ]
    for scale, model in ((False, "model=llava_next_7b"), (True, "model=scale_llava_next")):
        wanted = ["method=hero", "hero_high.layers=[4]", model]
        assert reference.overrides({"model": "llava-next-7b", "layers_global": [4], "method": "hero"}, scale) == wanted
    with pytest.raises(KeyError, match="no param colour"):
        reference.overrides({"colour": "red"})
    with pytest.raises(KeyError, match="no word for scan=sideways"):
        reference.overrides({"scan": "sideways"})


def test_benchmarks_of_the_papers_are_presets():
    mapped = {*reference.vocabulary()["benchmarks"].values()}
    assert mapped <= {p.stem for p in (CONF / "benchmark").glob("*.yaml")}


def test_lost_and_unreported_cells_say_why_and_guesses_are_no_values():
    lost = reference.entry("blink", "blink-table-2", "Blink / High tau_exp")
    assert lost["values"]["mme_perception"] is None and "lost" in lost["missing"]["mme_perception"]
    assert lost["derived"] == ["mme_total"] and lost["conjecture"]["mme_perception"] == 1509.83
    dash = reference.entry("hero", "hero-table-4", "FastV (50%)", model="llava-next-7b")
    assert set(dash["missing"]) == {"chartqa", "ocrbench"} and "not reported" in dash["missing"]["chartqa"]
    full = reference.entry("blink", "blink-table-3", "12-18")
    assert (full["derived"], full["missing"], full["conjecture"]) == ([], {}, {})
    for _, table, row in ROWS:
        guessed = {*row.get("conjecture", {})} - {"basis"}
        assert all(row["values"][column] is None for column in guessed), (table, row["label"])


def test_footnotes_and_figures_are_found_by_id():
    notes = reference.footnotes("blink", "blink-table-2")
    assert [n["kind"] for n in notes] == ["extraction", "discrepancy", "discrepancy", "ambiguity"]
    assert all(set(n) == {"kind", "text"} for n in notes)
    assert reference.footnotes("hero", "hero-fig-4")[0]["kind"] == "missing"
    assert reference.footnotes("hero", "hero-fig-3") == []
    assert reference.figure("hero", "hero-fig-4")["claim"].startswith("Layers 6-10")
    with pytest.raises(KeyError, match="hero has no hero-fig-10"):
        reference.figure("hero", "hero-fig-10")
    with pytest.raises(KeyError, match="no blink-table-8 among its tables"):
        reference.footnotes("blink", "blink-table-8")


def test_rivals_stay_apart_by_source_and_the_anchor_comes_first():
    cells = reference.rival("llava-1.5-7b", 192, "fastv", "gqa")
    assert list(cells.items()) == [("restore", 57.1), ("sieve", 52.7), ("twigvlm", 56.5)]
    assert reference.rival("llava-1.5-7b", 128, "pyramiddrop", "gqa") == {"restore": 51.6, "index_57157425955": 57.1}
    assert reference.rival("llava-next-7b", 320, "divprune", "mme_total") == {"occamtoken": 1721}
    assert reference.rival("llava-next-7b", 640, "divprune", "gqa") == {}  # nobody at hand prints it
    assert reference.rival("llava-1.5-7b", None, "untouched", "pope") == {"sieve": 85.9}


def test_every_rival_s_cell_has_a_source_and_a_plausible_value():
    file = reference.rivals()
    columns = {"gqa", "mmbench", "mmbench_cn", "mme_total", "mme_perception", "pope", "scienceqa", "vqav2", "textvqa", "vizwiz", "mmvet"}
    cells = [
        (source, column, value)
        for budgets in file["cells"].values()
        for methods in budgets.values()
        for sources in methods.values()
        for source, values in sources.items()
        for column, value in values.items()
    ]
    assert {source for source, _, _ in cells} <= {*file["sources"]} and file["anchor"] in file["sources"]
    assert {column for _, column, _ in cells} <= columns
    assert all((1200 <= value <= 2800) if column.startswith("mme") else (25 < value < 90) for _, column, value in cells)
    assert {source["origin"] for source in file["sources"].values()} == {"copied", "re-run", None}
