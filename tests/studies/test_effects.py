"""Region effects: where a method looks, told apart from that it looks at all."""

from __future__ import annotations

import pytest

from blink_exp.benchmarks.mosaic_open import MosaicOpen
from blink_exp.reports import effects as report
from blink_exp.reports import text
from blink_exp.settings.compose import composed_plain
from blink_exp.studies import plan
from blink_exp.studies.effects import effects_of, share_recovered
from blink_exp.studies.experiments import load_experiment

PAIRS = [
    {"label": label, "point": f"{label}, by attention", "control": f"{label}, random region"} for label in ("interp", "TokenSR", "close-up")
]


def run(right: set[int], n: int = 400) -> dict[str, dict]:
    """Records of n questions, two on each image, of which some are right."""
    return {
        f"q{i}": {
            "id": f"q{i}",
            "image_id": f"image {i // 2}",
            "category": "shape",
            "question": f"question {i}",
            "answer": "circle",
            "prediction": "circle" if i in right else "triangle",
            "correct": i in right,
            "fields": {},
            "regions": [],
            "layers": [],
        }
        for i in range(n)
    }


def runs(closer: int = 60, tokens: int = 30) -> dict[str, dict]:
    """A model that is right on half of the questions; every method gains 40, wherever it looks, the close-up ``closer`` more by where."""
    base, segment = set(range(200)), set(range(200, 240))
    return {
        "interp, by attention": run(base | segment),
        "interp, random region": run(base | segment),
        "TokenSR, by attention": run(base | segment | set(range(240, 240 + tokens))),
        "TokenSR, random region": run(base | segment),
        "close-up, by attention": run(base | segment | set(range(240, 240 + closer))),
        "close-up, random region": run(base | segment),
    }


def test_a_gain_that_a_random_region_has_as_well_is_no_region_effect():
    rows = {row["label"]: row for row in effects_of(MosaicOpen(), "mosaic_open", runs(), PAIRS, "close-up")}
    assert [rows[label]["effect"] for label in ("interp", "TokenSR", "close-up")] == pytest.approx([0, 7.5, 15])
    assert rows["interp"]["p"] == 1 and rows["close-up"]["p"] < 0.01 and rows["close-up"]["low"] > 0
    assert rows["interp"]["share"] == 0 and rows["TokenSR"]["share"] == pytest.approx(0.5)
    assert 0.3 < rows["TokenSR"]["share_low"] < 0.5 < rows["TokenSR"]["share_high"] < 0.7
    assert rows["close-up"]["share"] is None  # of itself


def test_no_share_is_stated_of_an_effect_that_may_be_none():
    rows = effects_of(MosaicOpen(), "mosaic_open", runs(closer=2), PAIRS, "close-up")
    assert [row["share"] for row in rows] == [None, None, None]


def test_shares_by_hand_and_the_same_in_any_order():
    every = lambda record: True  # noqa: E731
    pair, reference = (run({0, 1, 2}, 8), run({0}, 8)), (run({0, 1, 2, 3, 4}, 8), run({0}, 8))
    share, low, high = share_recovered(pair, reference, every)
    assert share == pytest.approx(0.5)
    assert low is None and high is None  # a draw of four images may miss all that the close-up gains
    backwards = tuple(dict(reversed(part.items())) for part in pair)
    assert share_recovered(backwards, reference, every) == (share, low, high)
    assert share_recovered(pair, (run({0}, 8), run({0}, 8)), every) == (None, None, None)


def document(**effects) -> dict:
    rows = effects_of(MosaicOpen(), "mosaic_open", runs(**effects), PAIRS, "close-up")
    return {"groups": [{"benchmark": "mosaic_open"}], "effects": rows}


@pytest.mark.parametrize(
    ("effects", "conclusion"),
    [
        ({"tokens": 0}, "worth +15.0 points to the close-up"),
        ({"tokens": 0}, "TokenSR +0.0 (0 % of it); none of these can be told from a random region"),
        ({}, "TokenSR +7.5 (50 % of it); TokenSR can be told from a random region"),
        (
            {"closer": 0, "tokens": 0},
            "not even the close-up, which reads the image's own pixels, can be told from itself",
        ),
    ],
)
def test_the_conclusion_says_what_the_numbers_allow(effects, conclusion):
    (sentence,) = report.conclusion(document(**effects), "close-up", ["interp", "TokenSR"])
    assert sentence.startswith("On mosaic_open ") and conclusion in sentence


def test_the_files_of_a_table_hold_the_effects():
    made = document()
    made |= {"conclusion": report.conclusion(made, "close-up", ["interp", "TokenSR"]), "rows": []}
    written = "\n".join(text._effects(made))  # type: ignore[arg-type]
    assert "| TokenSR | +7.50† |" in written and "50 % |" in written and made["conclusion"][0] in written
    assert text._effects({"groups": [], "rows": []}) == []  # type: ignore[typeddict-item]


def test_every_effect_of_a_table_is_between_points_of_it_that_differ_in_the_region_only():
    table = load_experiment("table", "headroom")
    points = {point["label"]: set(point["overrides"]) for point in plan.points(table)}
    labels = [pair["label"] for pair in table["effects"]["pairs"]]
    assert {table["effects"]["reference"], *table["effects"]["tokens"]} <= set(labels)
    for pair in table["effects"]["pairs"]:
        extra = points[pair["control"]] - points[pair["point"]]
        assert points[pair["point"]] < points[pair["control"]]
        assert extra in ({"saliency=random_region"}, {"method.region=random"})


def test_points_that_need_annotated_regions_are_left_out_where_there_are_none():
    point = {"label": "annotated", "needs": "regions", "overrides": ["method=two_views", "method.region=annotated"]}
    assert plan.runs_on(point, ["benchmark=mosaic_open", *point["overrides"]], [])
    assert not plan.runs_on(point, ["benchmark=easyvqa", *point["overrides"]], [])
    assert plan.runs_on({"label": "any", "overrides": []}, ["benchmark=easyvqa"], [])
    assert composed_plain("evaluate", point["overrides"])["method"]["region"] == "annotated"
