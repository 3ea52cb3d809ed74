"""sweep.py table=... and figure=...: one, several, all, the list; where they are kept; what fails and goes on."""

from __future__ import annotations

import json

import pytest
import torch

from blink_exp.errors import UserError
from blink_exp.evaluation.shared_runs import point_folder
from blink_exp.figures.base import Claim, Drawing
from blink_exp.files import write_json
from blink_exp.reports import html, terminal
from blink_exp.settings.compose import composed
from blink_exp.studies import catalog, figure_runs, listing, plan
from blink_exp.studies.experiments import KINDS, experiments

TOY = {"name": "toy", "title": "Toy", "overrides": ["model=scale_llava"], "benchmarks": {"scale": ["mosaic_mme"]}}
TOY["points"] = [{"label": label, "overrides": [f"layers={label}"]} for label in ("11-17", "12-18", "13-19")]


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """Stands in for measuring an experiment; keeps which, and where to."""
    calls = []

    def measure(cfg, kind, experiment, user_overrides, out):
        calls.append((kind, experiment["name"], out.name))
        if experiment["name"] == "blink_table3":
            raise UserError("no such weights")
        return {
            "kind": kind,
            "rows": [{"runs": {"mme": {"point": "p", "status": "failed", "error": "broken"}}}]
            if experiment["name"] == "hero_table2"
            else [],
        }

    monkeypatch.setattr(catalog, "measure", measure)
    monkeypatch.setattr(plan, "command_line_overrides", lambda: [])
    monkeypatch.setattr(plan, "settings_of", lambda cfg, kind, experiment, user_overrides: [(kind, experiment["name"])])
    monkeypatch.setattr(catalog, "run_together", lambda configs: calls.append(("together", list(configs), len(calls))))
    return calls


def sweep_of(*words: str):
    return composed("sweep", list(words))


def test_one_table_goes_to_the_command_s_own_folder(asked, tmp_path):
    catalog.run_experiments(sweep_of("table=blink_table7"), tmp_path / "run")
    assert asked == [("together", [("table", "blink_table7")], 0), ("table", "blink_table7", "run")]
    with pytest.raises(UserError, match="^no such weights$"):
        catalog.run_experiments(sweep_of("table=blink_table3"), tmp_path)


@pytest.mark.slow
def test_all_runs_every_table_and_figure_and_goes_on_behind_a_failure(asked, tmp_path):
    with pytest.raises(UserError, match="2 points failed, first blink_table3: no such weights"):
        catalog.run_experiments(sweep_of("tables=all", "figures=all"), tmp_path)
    (_, points, first), *asked = asked
    assert first == 0 and points == [(kind, name) for kind, name, _ in asked]  # all points answer before the first is measured
    assert [name for kind, name, _ in asked if kind == "table"] == [e["name"] for e in experiments("table")]
    assert [name for kind, name, _ in asked if kind == "figure"] == [e["name"] for e in experiments("figure")]
    assert all(folder == name for _, name, folder in asked)  # none writes over another


def test_share_false_leaves_every_point_to_itself(asked, tmp_path):
    catalog.run_experiments(sweep_of("table=blink_table7", "share=false"), tmp_path / "run")
    assert asked == [("table", "blink_table7", "run")]


def test_a_figure_that_cannot_be_drawn_is_said_on_the_page_of_its_table(monkeypatch, tmp_path):
    def refuse(*_):
        raise UserError("no CLS token")

    monkeypatch.setattr(catalog, "measure_figure", refuse)
    figure, folder = catalog.embedded_figure(None, {"name": "hero_fig6", "title": "Kept"}, [], tmp_path / "hero_fig6", {}, {})
    assert json.loads((folder / "figure.json").read_text(encoding="utf-8")) == figure
    document = {"kind": "table", "name": "toy", "title": "Toy", "published_columns": {}, "groups": [], "rows": [], "command": "c"}
    assert "no CLS token" in html.page(document, tmp_path, [(figure, folder)]).read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_figure_is_drawn_from_its_points_with_its_claim_beside_the_paper_s(monkeypatch, tmp_path):
    import matplotlib.pyplot as plt

    seen = []

    def draw(study):
        seen.append(study)
        return Drawing({"curve": plt.figure()}, {"y": [1.0]}, [Claim("rises", "by eye", {"slope": 1.0}, True)], "A line.", "b, 2 questions")

    monkeypatch.setattr("blink_exp.figures.base.toy", draw, raising=False)
    monkeypatch.setattr(
        plan, "measured_run", lambda cfg, first, user_overrides, label, **_: {"point": label, "status": "done", "words": first}
    )
    sweeps = [{"series": "s", "x": [4, 5], "overrides": ["layer={x}"]}]
    figure = {
        "name": "blink_fig7",
        "title": "T",
        "paper": "blink",
        "source": "blink-fig-7",
        "overrides": ["method=blink_interp"],
        "sweeps": sweeps,
    }
    figure |= {"benchmarks": {"scale": "mosaic_mme"}, "draw": {"_target_": "blink_exp.figures.base.toy", "_partial_": True}}
    document = figure_runs.measure_figure(sweep_of(f"store={tmp_path}"), figure, ["limit=3"], tmp_path)
    assert [(row["series"], row["x"], row["words"][-1]) for row in document["rows"]] == [("s", 4, "layer=4"), ("s", 5, "layer=5")]
    assert seen[0].settings.limit == 3 and seen[0].settings.benchmark["_target_"].endswith("MosaicMME") and len(seen[0].done) == 2
    assert document["claims"] == [{"said": "rises", "how": "by eye", "numbers": {"slope": 1.0}, "holds": True}]
    assert "Single layers" in document["claim"] and document["pictures"] == {"curve": ["curve.png", "curve.svg", "curve.pdf"]}
    assert all((tmp_path / name).is_file() for name in document["pictures"]["curve"])
    with pytest.raises(UserError, match="blink_fig7 names no benchmark for a published backbone; choose one: benchmark="):
        figure_runs.measure_figure(sweep_of(f"store={tmp_path}"), figure, ["model=llava_1_5_7b"], tmp_path)


def test_a_run_with_settings_of_its_own_has_a_folder_of_its_own_in_the_report():
    assert (
        catalog.variant("scale-llava-1.5", ["model=scale_llava", "batch_size=4", "logger=wandb", "logger.mode=offline"])
        == "scale-llava-1.5"
    )
    assert catalog.variant("m", ["limit=8"]) == "m,limit=8"
    assert catalog.variant("m", ["limit=8", "a=1"]) == "m,a=1,limit=8"
    paths = {
        catalog.variant("m", [f"model.path={path}"]) for path in ("/data/x y", "/data/x_y", "/data/" + "x" * 200, "/data/" + "x" * 201)
    }
    assert len(paths) == 4 and not any("/" in path or len(path) > 140 for path in paths)


def test_every_table_and_figure_of_the_papers_is_there():
    by_kind = {kind: [e["name"] for e in experiments(kind)] for kind in KINDS}
    numbers = {"blink": range(1, 8), "hero": range(1, 9)}
    assert {f"{paper}_table{n}" for paper, ns in numbers.items() for n in ns} <= set(by_kind["table"])
    assert {f"blink_fig{n}" for n in (2, 3, 4, 6, 7, 8)} | {f"hero_fig{n}" for n in (1, 2, 4, 5, 6, 8, 9)} <= set(by_kind["figure"])
    assert not {"all", "list", "parity"} & {*by_kind["table"], *by_kind["figure"]}
    assert by_kind["table"].index("blink_table7") < by_kind["table"].index("hero_table1")


@pytest.mark.slow
def test_a_list_counts_what_is_done_and_guesses_what_is_left(tmp_path, capsys):
    cfg = sweep_of(f"store={tmp_path}", "skip_limit=0.5")
    first = point_folder(listing.Store(cfg).settings(["benchmark=mosaic_mme", "layers.indices=11-17"], ["limit=30"]))
    metrics = {"backbone": "scale-llava-1.5@0", "benchmark": "mosaic_mme", "seconds": 90.0, "samples": 20}
    metrics |= {"skipped": [{}] * 10, "method": "m", "scores": {}, "blink": {}, "protocol": "own", "headline": "total"}
    write_json(first / "metrics.json", metrics)
    (first / "config.yaml").write_text("benchmark:\n  limit: 7\nlimit: 30\nseed: 0\n", encoding="utf-8")
    listing.show_list(cfg, [TOY | {"source": "blink-table-3", "paper": "blink"}], ["limit=30"])
    rows = [[cell.strip() for cell in line.strip("│ ").split("│")] for line in capsys.readouterr().out.splitlines() if "toy" in line]
    assert rows == [["toy", "Toy", "layers"], ["toy", "3", "1", "4 min"]]  # 2 points of 30 at 4.5 s
    assert listing.Store(cfg).typical("scale-llava-1.5", "mosaic_mme", None) == 90.0
    assert listing.Store(sweep_of(f"store={tmp_path / 'empty'}")).typical("scale-llava-1.5", "mosaic_mme", 3) is None


@pytest.mark.parametrize(
    ("backbone", "benchmark", "limit"),
    [("scale-llava-1.5", "mosaic_open", 30), ("scale-llava-next", "mosaic_mme", 30), ("scale-llava-1.5", "mosaic_mme", "null")],
)
def test_a_list_composes_no_point_where_the_store_has_none_of_its_model_benchmark_and_limit(
    backbone, benchmark, limit, tmp_path, monkeypatch
):
    monkeypatch.setattr(listing.Store, "settings", lambda *_: pytest.fail("composed a point"))
    metrics = {"backbone": f"{backbone}@0", "benchmark": benchmark, "seconds": 90.0, "samples": 20}
    metrics |= {"skipped": [], "method": "m", "scores": {}, "blink": {}, "protocol": "own", "headline": "total"}
    write_json(tmp_path / "0" / "metrics.json", metrics)
    (tmp_path / "0" / "config.yaml").write_text(f"limit: {limit}\n", encoding="utf-8")
    listed = listing.Store(sweep_of(f"store={tmp_path}")).listed(TOY, ["limit=30"])
    assert listed == [listing.Listed("scale-llava-1.5", "mosaic_mme", 30)] * 3


def test_a_run_that_failed_does_not_take_the_place_of_one_that_did_not(tmp_path):
    ok, bad = {"status": "done"}, {"status": "failed"}

    def table(*runs):
        return {"kind": "table", "rows": [{"runs": dict(enumerate(runs))}]}

    def figure(*runs):
        return {"kind": "figure", "rows": list(runs)}

    assert catalog.worth_keeping(table(bad, ok)) and catalog.worth_keeping(figure(ok, bad))
    assert not catalog.worth_keeping(table(bad)) and not catalog.worth_keeping(figure(bad))
    assert catalog.worth_keeping(table()) and catalog.worth_keeping(figure())  # a recipe, a map of attention
    for text in ("old", "new"):
        (tmp_path / text).mkdir()
        (tmp_path / text / "table.json").write_text(text, encoding="utf-8")
        (tmp_path / text / "wandb").mkdir()
        catalog.copy_to_report(tmp_path / text, tmp_path / "report" / "t" / "m")
    assert [p.name for p in (tmp_path / "report" / "t").iterdir()] == ["m"]
    folder = tmp_path / "report" / "t" / "m"
    assert (folder / "table.json").read_text(encoding="utf-8") == "new" and not (folder / "wandb").exists()


@pytest.mark.slow
def test_what_all_points_lack_is_said_once_and_before_any_runs(tmp_path, monkeypatch):
    """Fifteen rows that each say that there is no GPU, behind a minute of composing, hide the one line that cures them."""
    monkeypatch.setattr(catalog, "answer_together", lambda *_: pytest.fail("ran"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for words, line in (
        (["table=blink_table3", "model.device=cuda"], "model.device=cuda is not there"),
        (["table=blink_table3", f"tokensr.path={tmp_path / 'none'}"], "tokensr.path=.*none is not there"),
        (["table=hero_table4", f"model.path={tmp_path}"], "holds no config.json"),
        (["tables=all", "figures=all", "model.device=cuda"], "model.device=cuda is not there"),
    ):
        monkeypatch.setattr(plan, "command_line_overrides", lambda given=words: given[1:] if "all" not in given[0] else given[2:])
        with pytest.raises(UserError, match=line):
            catalog.run_experiments(sweep_of(*words), tmp_path / "run")


def test_a_figure_prints_its_claims(capsys):
    claims = [{"said": "later is sharper", "how": "", "numbers": {"rise": 0.25, "of none": None}, "holds": True}]
    terminal.show_claims({"claims": [*claims, claims[0] | {"holds": None, "numbers": {}}]})
    assert capsys.readouterr().out.splitlines() == ["✓ holds here: later is sharper (rise 0.25)", "? cannot be told here: later is sharper"]
