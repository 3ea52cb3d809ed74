"""The page of a sample: it must say what an evaluation says of the same question, and nothing else."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import pytest
from support.browser import CONTRAST, OVERFLOW, WIDTHS, chromium, opened
from support.viewing import Tables, config

from blink_exp.evaluation.evaluator import evaluate, prepare
from blink_exp.settings.compose import method_preset
from blink_exp.viewer import page as pages
from blink_exp.viewer import run as viewer


@pytest.fixture(scope="module")
def measured():
    """Blink's records of some samples, as an evaluation batches them, and one that expands, keeps or drops, in this order of need."""
    cfg = config("benchmark.images=1")
    backbone, method, benchmark = prepare(cfg)
    records, _ = evaluate(backbone, method, benchmark, batch_size=16)
    kinds = {r["id"]: {s["decision"] for s in r["layers"] if s["effective"]} for r in records}
    record = max(records, key=lambda r: (len(kinds[r["id"]]), "drop" in kinds[r["id"]]))
    assert {"expand", "drop"} <= kinds[record["id"]], "no sample shows what the tests below need"
    return cfg, record


@pytest.fixture(scope="module")
def page(measured, tmp_path_factory):
    """(what the page says, its HTML, the sample's record)."""
    cfg, record = measured
    cfg = replace(cfg, sample=record["id"], compare=["none", "blink", "hero"])
    path = viewer.view(cfg, tmp_path_factory.mktemp("view"))
    return json.loads((path.parent / "view.json").read_text(encoding="utf-8")), path, record


@pytest.mark.slow
def test_the_page_says_what_the_evaluation_recorded(page):
    document, _, record = page
    steps = {s["layer"]: s for s in record["layers"]}
    assert (document["question"], document["known"], document["said"]) == (record["question"], record["answer"], record["prediction"])
    assert document["verdict"] == ("right" if record["correct"] else "wrong")
    assert [v["layer"] for v in document["layers"]] == list(range(32))
    for line in document["layers"]:
        step = steps.get(line["layer"])
        assert (line["visual"], line["system"] + line["text"] > 5) == (144, True)
        assert sum(line["shares"].values()) == pytest.approx(1, abs=1e-5)
        assert line["expanded"] == sum(o["tokens"] for o in line["places"])
        if step is None:
            assert (line["scanned"], line["region"], line["decision"]) == (None, None, None)
            continue
        assert line["decision"].split()[0] == step["decision"]
        assert line["decision"].endswith("(nothing was there)") == (not step["effective"])
        assert (line["scanned"], line["region"]) == (pytest.approx(step["rho"], abs=2e-5), step["region"])
        assert line["visual"] + line["expanded"] == step["visual_tokens"]
        if step["decision"] == "expand":
            assert line["places"] == [{"layer": line["layer"], "region": step["region"], "tokens": 144}]
    assert any(line["expanded"] and line["shares"]["expanded"] > 0 for line in document["layers"])
    assert all(line["shares"]["expanded"] == 0 for line in document["layers"] if not line["expanded"])


def test_where_nothing_is_expanded_the_scan_s_rho_is_that_of_the_attention_the_layer_pays(page):
    """Two ways to the same number: the scan in front of a layer, and the row recorded behind it."""
    document, _, _ = page
    lines = document["layers"]
    bare = [v for before, v in itertools.pairwise(lines) if v["decision"] and not v["expanded"] and not before["expanded"]]
    assert bare, "no layer scanned an untouched sequence and left it untouched"
    for line in bare:
        assert (line["rho"], line["patch"]) == (pytest.approx(line["scanned"], abs=2e-5), line["region"])


def test_html_tables_hold_the_same(page):
    document, path, _ = page
    tables = Tables(path.read_text(encoding="utf-8")).rows
    rows = tables["layers-table"][2:]
    assert len(rows) == 32
    for line, row in zip(document["layers"], rows, strict=True):
        assert row[0] == str(line["layer"]) and row[5] == (line["decision"] or "")
        assert row[1:3] == [f"{line['rho']:.3f}", str(line["patch"])]
        assert row[6:10] == [str(line[part]) for part in ("system", "visual", "expanded", "text")]
        assert row[11:] == [f"{100 * line['shares'][part]:.1f}" for part in ("system", "visual", "expanded", "text")]
    answers = [row[:3] for row in tables["answers-table"][1:]]
    names = {"none": "none", "blink": "blink (this page)", "hero": "hero"}
    assert answers == [[names[a["label"]], a["said"], a["verdict"]] for a in document["answers"]]


def test_answers_of_other_methods_are_those_of_their_evaluations(page, measured):
    document, _, record = page
    cfg, _ = measured
    for line in document["answers"]:
        backbone, method, benchmark = prepare(replace(cfg, method=method_preset(line["label"], cfg)))
        (wanted,), _ = evaluate(backbone, method, benchmark, samples=[s for s in benchmark.samples() if s.id == record["id"]])
        assert (line["said"], line["verdict"]) == (wanted["prediction"], "right" if wanted["correct"] else "wrong")
        assert line["entering"] == wanted["visual_tokens"] == (28 if line["label"] == "hero" else 144)
        tokens = {s["layer"]: s["visual_tokens"] for s in wanted["layers"]}
        last = wanted["visual_tokens"]  # by hand from the record: a layer without a decision works on what the one before it left
        by_layer = [last := tokens.get(layer, last) for layer in range(32)]
        assert line["tokens"] == pytest.approx(sum(by_layer) / 32)
    assert [line["shown"] for line in document["answers"]] == [False, True, False]


def test_the_page_needs_no_network_and_no_script(page):
    _, path, _ = page
    html = path.read_text(encoding="utf-8")
    assert "script" not in Tables(html).tags and "http://" not in html and "https://" not in html
    assert html.count("data:image/png;base64,") > 32
    assert "@media (prefers-color-scheme: dark)" in html


@pytest.mark.slow
def test_a_browser_shows_it_without_overflow_or_complaint(page):
    _, path, _ = page
    with chromium() as browser:
        for width in WIDTHS:
            for scheme in ("light", "dark"):
                with opened(browser, path, width, scheme) as (tab, complaints):
                    assert tab.evaluate(OVERFLOW) <= 0
                    assert complaints == [] and tab.evaluate(CONTRAST, 4.5) == []


def test_methods_that_drop_nothing_have_no_kept_tokens(page):
    assert page[0]["kept"] is None


def test_verdicts():
    assert [pages.verdict(v) for v in (True, False, 1.0, 0.0, 0.3, None)] == ["right", "wrong", "right", "wrong", "30 % right", None]
