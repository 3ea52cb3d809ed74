"""What makes a point, a table's document, and stored points."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from blink_exp.evaluation import answering, identity
from blink_exp.files import write_json
from blink_exp.settings import compose
from blink_exp.studies import catalog, comparisons, deltas, plan, point, tables
from blink_exp.studies.experiments import load_experiment
from blink_exp.studies.point import measured_point


def composed(*words: str):
    return compose.composed("sweep", list(words))


# points


@pytest.mark.slow
def test_the_batch_size_makes_another_point_in_half_precision_only():
    def point_at(dtype, size):
        return identity.config_hash(composed(f"model.dtype={dtype}", f"batch_size={size}"), {})

    assert point_at("float32", 1) == point_at("float32", 32)
    assert point_at("float16", 1) != point_at("float16", 32)


def test_other_weights_in_a_folder_are_another_point(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"one")
    settings = composed("method=none", f"model.path={tmp_path}")
    before = identity.digests(settings)
    assert identity.digests(settings) == before
    (tmp_path / "model.safetensors").write_bytes(b"another")
    assert identity.digests(settings) != before


def identity_of_layers(layers: str) -> str:
    return point_named("method=blink_interp", f"layers.indices={layers}")


def point_named(*words: str) -> str:
    settings = composed(*words)
    return identity.config_hash(settings, identity.digests(settings))


@pytest.mark.slow
def test_settings_that_a_method_does_not_read_make_no_other_point():
    """So that the untouched model is measured once for a table that sets thresholds for each benchmark."""
    none = point_named("method=none")
    assert point_named("method=none", "thresholds=gqa", "layer=18", "hero_alpha=no_text", "retention_ratio=0.5") == none
    assert point_named("method=none", "store=elsewhere", "cost=2", "logger=wandb", "batch_size=4", "tokensr.path=/elsewhere") == none
    assert (
        len(
            {
                none,
                *(point_named("method=none", w) for w in ("benchmark=easyvqa", "limit=3", "seed=1", "shard=1/2", "model.dtype=bfloat16")),
            }
        )
        == 6
    )
    assert point_named("method=blink", "thresholds=gqa") != point_named("method=blink")
    assert point_named("method=hero", "retention_ratio=0.5") != point_named("method=hero")


@pytest.mark.slow
def test_trained_modules_make_another_point_of_methods_that_use_them(tmp_path):
    (tmp_path / "layer_12.safetensors").write_bytes(b"one")
    for method in ("blink", "blink_hero", "pair"):
        words = (f"method={method}", f"tokensr.path={tmp_path}", *(["method/policy=blink"] if method == "pair" else []))
        before = point_named(*words)
        (tmp_path / "layer_12.safetensors").write_bytes(f"retrained for {method}".encode())
        assert point_named(*words) != before, method
    assert identity_of_layers("12") == identity_of_layers("12-12") == identity_of_layers("[12]") != identity_of_layers("12-13")
    one = identity.digests(composed("method=blink_interp", f"tokensr.path={tmp_path}"))
    assert one["tokensr"] == ""


# the split


def written(folder: Path, correct: dict[str, bool]) -> str:
    folder.mkdir()
    (folder / "records.jsonl").write_text("".join(json.dumps({"id": k, "correct": v}) + "\n" for k, v in correct.items()), encoding="utf-8")
    return str(folder)


def test_accuracy_is_split_by_what_another_point_gets_right(tmp_path):
    base = {"b": False, "a": True, "c": True, "d": True, "x": False}
    other = {"a": True, "b": True, "c": False, "d": False, "only here": True}  # another order, one sample more and one less
    rows = [
        {"point": n, "status": "done", "scores": {}, "stderr": {}, "folder": written(tmp_path / n, c)}
        for n, c in (("other", other), ("downsample", base))
    ]
    rows.append({"point": "broken", "status": "failed"})
    comparisons.split(rows, "downsample")
    assert rows[0]["scores"] == {"right_too": pytest.approx(100 / 3), "wrong_there": 100.0}
    assert set(rows[0]["stderr"]) == {"right_too", "wrong_there"}
    assert rows[1]["scores"] == {} and "scores" not in rows[2]
    without = [rows[0] | {"scores": {}}]
    comparisons.split(without, "downsample")
    assert without[0]["scores"] == {}


# stored points and whose word counts


@pytest.mark.slow
def test_a_stored_point_without_cost_is_measured_again_when_the_cost_is_wanted(tmp_path, monkeypatch):
    asked, stored = [], []

    def measure(cfg, folder, parts, devices, before):
        asked.append(cfg.cost)
        stored.append(before is not None)
        cost = {"prompts": cfg.cost, "kv_bytes": 1} if cfg.cost else None
        finished = {"method": "hero", "scores": {"accuracy": {"value": 5.0, "stderr": 1.0}}, "cost": cost, "samples": 3, "skipped": []}
        finished |= {k: None for k in ("seconds", "backbone", "commit", "blink", "headline", "benchmark", "protocol")}
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "records.jsonl").write_text(json.dumps({"visual_tokens": 7, "newline_tokens": 1, "layers": []}) + "\n", encoding="utf-8")
        write_json(folder / "metrics.json", finished)
        return finished

    monkeypatch.setattr(point, "measure", measure)
    rows = [measured_point(composed("method=hero", f"store={tmp_path}", f"cost={cost}")) for cost in (0, 0, 2, 2, 1, 0, 3)]
    assert asked == [0, 2, 3] and stored == [False, True, True]
    assert [row["reused"] for row in rows] == [False, True, False, True, True, True, False]
    assert rows[0]["cost"] is None and rows[5]["cost"]["prompts"] == 2  # what is known is handed on, wanted or not
    assert rows[1]["tokens"] == {"entering": 7, "newlines": 1, "layer": 7} and rows[1]["method"] == "hero"


@pytest.mark.slow
def test_a_cost_that_is_wanted_later_is_measured_without_asking_anything_again(tmp_path, monkeypatch):
    words = ("method=fastv", "benchmark=mosaic_open", "limit=3", f"store={tmp_path}")
    first = measured_point(composed(*words, "cost=0"))
    before = {name: (Path(first["folder"]) / name).read_bytes() for name in ("records.jsonl", "config.yaml")}
    monkeypatch.setattr(answering, "answer", lambda *a, **k: pytest.fail("a question was asked again"))
    second = measured_point(composed(*words, "cost=1"))
    assert first["cost"] is None and second["cost"]["prompts"] == 1 and not second["reused"]
    assert second["scores"] == first["scores"] and second["commit"] == first["commit"] and second["seconds"] > first["seconds"]
    assert (Path(second["folder"]) / "records.jsonl").read_bytes() == before["records.jsonl"]
    assert sorted(path.name for path in Path(second["folder"]).iterdir()) == ["config.yaml", "metrics.json", "records.jsonl"]
    with pytest.raises(pytest.fail.Exception):  # unless it is forced
        measured_point(composed(*words, "cost=1", "force=true"))


# a table's document

TABLE = {
    "name": "toy",
    "title": "Toy",
    "paper": "blink",
    "source": "blink-table-3",
    "published_on": "LLaVA-1.5-7B, MME",
    "published": {"perception": "mme_perception", "total": "mme_total"},
    "benchmarks": {"scale": ["mosaic_mme"], "published": ["mme", "pope"]},
    "measured": {"mosaic_mme": {"total": "scores.total", "GFLOPs": {"value": "cost.flops", "per": 1e9, "published": "perception"}}},
    "points": [
        {"label": "11-17", "baseline": "12-18", "published": {"table": "blink-table-3", "row": "11-17"}, "overrides": ["layers=11-17"]},
        {"label": "12-18", "published": {"table": "blink-table-3", "row": "12-18"}, "overrides": []},
        {"label": "Vanilla", "baseline": "12-18", "published": {"table": "blink-table-1", "row": "Vanilla"}, "overrides": ["method=none"]},
    ],
}


def done(folder: Path, label: str, correct: dict[str, bool], **more) -> dict:
    """A measured run, its records on disk."""
    share = 100 * sum(correct.values()) / len(correct)
    run = {"point": label, "status": "done", "scores": {"accuracy": share}, "stderr": {"accuracy": 1.0}, "headline": "accuracy"}
    run |= {"folder": written(folder / label, correct), "backbone": "b@1", "scale": True, "samples": len(correct), "protocol": "own"}
    return run | more


@pytest.fixture
def base(tmp_path):
    return composed(f"store={tmp_path}")


@pytest.fixture
def runs(monkeypatch, tmp_path):
    """Stands in for measuring; keeps what was asked for."""
    asked = []

    def measured_run(cfg, first, user_overrides, label, match=None, experiment=None):
        asked.append((label, first, match))
        return {
            "point": label,
            "status": "failed",
            "error": "stand-in" if "model=llava_1_5_7b" in user_overrides and "benchmark=mme" in user_overrides else label,
        }

    monkeypatch.setattr(plan, "measured_run", measured_run)
    return asked


def test_every_point_runs_on_every_benchmark_of_its_model(base, runs):
    document = tables.measure_table(base, TABLE, ["model=llava_1_5_7b"])
    assert [(label, next(w for w in first if w.startswith("benchmark="))) for label, first, _ in runs] == [
        (p["label"], f"benchmark={b}") for b in ("mme", "pope") for p in TABLE["points"]
    ]
    assert (document["scale"], [g["benchmark"] for g in document["groups"]]) == (False, ["mme", "pope"])
    assert document["command"] == "python sweep.py table=toy model=llava_1_5_7b"
    assert all(set(row["runs"]) == {"mme", "pope"} for row in document["rows"])
    assert document["groups"][0]["label"] == "mme: nothing measured"
    assert catalog.failures(document)[0] == "11-17: 11-17"


def test_a_model_that_cannot_be_loaded_is_not_tried_for_every_point(base, runs):
    document = tables.measure_table(base, TABLE, ["model=llava_1_5_7b", "benchmark=mme"])
    assert [label for label, *_ in runs] == ["11-17", "12-18"]  # the third would say the same
    assert [row["runs"]["mme"]["point"] for row in document["rows"]] == ["11-17", "12-18", "Vanilla"]
    assert all(row["runs"]["mme"]["error"] == "stand-in" for row in document["rows"])


def test_published_numbers_missing_and_derived_ones_stand_beside_each_row(base, runs):
    document = tables.measure_table(base, TABLE, [])
    first, _, vanilla = document["rows"]
    assert first["published"] == {"perception": 1518.2, "total": 1882.49} and first["derived"] == []
    assert vanilla["published"]["total"] == 1863.58 and vanilla["derived"] == ["total"]  # Table 1 does not print the sum
    assert first["published_deltas"] == {"perception": -1.54, "total": 0.96}  # as the paper prints them
    assert document["rows"][1]["published_deltas"] == {}
    lost = tables.published(TABLE, {"published": {"table": "blink-table-2", "row": "Blink / High tau_exp"}})
    assert lost["published"]["perception"] is None and "extraction" in lost["missing"]["perception"]
    assert lost["conjecture"]["perception"] == 1509.83 and lost["derived"] == ["total"]
    assert {note["kind"] for note in document["footnotes"]} >= {"info"}


def test_columns_of_a_benchmark_that_no_table_names_are_its_headline(tmp_path):
    rows = [{"runs": {"pope": done(tmp_path, "a", {"1": True}, headline="f1")}}]
    group = tables.group(TABLE, "pope", rows)
    assert {h: c["value"] for h, c in group["columns"].items()} == {"f1": "scores.f1"}
    load_experiment = tables.group(TABLE, "mosaic_mme", [])["columns"]
    assert load_experiment["GFLOPs"] == {"per": 1e9, "digits": 2, "error_digits": 0, "published": "perception", "value": "cost.flops"}
    assert load_experiment["total"]["published"] == "total" and group["columns"]["f1"]["published"] is None


def test_a_group_says_model_benchmark_protocol_and_questions(tmp_path):
    run = done(tmp_path, "a", {"1": True, "2": False})
    assert tables.label("pope", [run]) == "b@1 (scale model) on pope, 2 questions"
    assert tables.label("pope", [run | {"scale": False, "protocol": "llava"}]) == "b@1 on pope, protocol llava, 2 questions"


def test_a_recipe_has_our_settings_beside_the_published_ones(base):
    table = load_experiment("table", "blink_table4")
    document = tables.measure_table(base, table, [])
    rows = {row["point"]: row for row in document["rows"]}
    assert rows["Learning rate"]["published"] == {"value": 1e-4} and rows["Learning rate"]["settings"] == {"optim.lr": 1e-4}
    assert len(rows) == 10 and document["groups"] == [] and all(row["runs"] == {} for row in rows.values())


# deltas


def test_deltas_are_paired_within_a_benchmark_and_against_the_row_s_own_baseline(tmp_path, monkeypatch):
    seen = []

    def compare(benchmark, records, baseline, names):
        seen.append((len(records), len(baseline), names))
        return {"accuracy": {"delta": 1.0}}

    monkeypatch.setattr(deltas, "compare", compare)
    monkeypatch.setattr(deltas, "benchmark_of", lambda run: None)
    runs = {n: done(tmp_path, n, {str(k): True for k in range(size)}) for n, size in (("a", 2), ("b", 3))}
    rows = [
        {"point": "a", "baseline": "b", "published": {"x": 2.5, "y": None}, "runs": {"pope": runs["a"]}, "deltas": {}},
        {"point": "b", "baseline": "b", "published": {"x": 1.0, "y": 1.0}, "runs": {"pope": runs["b"]}, "deltas": {}},
        {"point": "c", "baseline": "b", "published": {}, "runs": {"pope": {"status": "failed"}}, "deltas": {}},
        {"point": "d", "baseline": None, "published": {"x": 9.0}, "runs": {"pope": runs["b"]}, "deltas": {}},
    ]
    columns = {"Accuracy": {"value": "scores.accuracy"}, "tokens": {"value": "tokens.layer"}, "F1": {"value": "scores.f1"}}
    deltas.add_deltas({"rows": rows, "groups": [{"benchmark": "pope", "columns": columns}]})
    assert seen == [(2, 3, ["accuracy"])]
    assert rows[0]["deltas"] == {"pope": {"Accuracy": {"delta": 1.0}}}
    assert [row["deltas"] for row in rows[1:]] == [{}, {}, {}]
    assert [row["published_deltas"] for row in rows] == [{"x": 1.5}, {}, {}, {}]
