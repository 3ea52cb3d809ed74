"""The tables of conf/table against the papers' data: settings, rows, columns, baselines."""

from __future__ import annotations

import functools

import pytest
import yaml
from hydra.utils import get_class
from omegaconf import OmegaConf
from omegaconf.errors import ConfigAttributeError
from support.composing import CONF, config

from blink_exp import reference
from blink_exp.benchmarks import mme, pope
from blink_exp.methods.blink import scaled_threshold, selected_layers
from blink_exp.settings import compose
from blink_exp.settings.check import expand_layer
from blink_exp.studies import plan

FILES = {p.stem: yaml.safe_load(p.read_text(encoding="utf-8")) for p in sorted((CONF / "table").glob("*_table*.yaml"))}
POINTS = [(name, p["label"]) for name, table in FILES.items() for p in table["points"]]
PUBLISHED = [(n, label) for n, label in POINTS if "published" in next(p for p in FILES[n]["points"] if p["label"] == label)]
LLM_DEPTH = 32


def benchmarks(table: dict) -> list[str]:
    return [*table["benchmarks"]["scale"], *table["benchmarks"]["published"]]


def point_of(name: str, label: str) -> dict:
    return next(p for p in FILES[name]["points"] if p["label"] == label)


def row_of(name: str, label: str) -> dict:
    source = dict(point_of(name, label)["published"])
    return reference.entry(FILES[name]["paper"], source.pop("table"), source.pop("row"), **source)


def params_on(row: dict, benchmark: str) -> dict:
    """The params of a row on one of our presets, with those that the paper has for that benchmark."""
    names = reference.vocabulary()["benchmarks"]
    by_benchmark = {names.get(name, name): params for name, params in row.get("per_benchmark", {}).items()}
    return row["params"] | (by_benchmark[benchmark] if by_benchmark else {})


@functools.lru_cache
def composed(words: tuple[str, ...]):
    """A configuration with everything resolved, but for what the user gives (``???`` of a judge or a path would fail here)."""
    cfg = config("sweep", *words)
    expand_layer(cfg)
    return OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)


@functools.lru_cache
def settled(words: tuple[str, ...]) -> dict:
    """What a point does, however it was said: its model and its method, layers as numbers and thresholds as they are applied."""
    cfg = composed(words)
    method = dict(cfg["method"])
    if ".blink." in method["_target_"]:
        method["layers"] = selected_layers(LLM_DEPTH, **method["layers"])
        scaled = method.pop("scale_thresholds")
        for tau in ("tau_exp", "tau_drop"):
            value = method[tau]
            method[tau] = round(scaled_threshold(value, method["p"]) if scaled else value, 6)
    return {"model": cfg["model"], "method": method}


def without_benchmark(words: list[str]) -> tuple[str, ...]:
    """Of two words with one key the later, so that points that mean the same are composed once; the benchmark says nothing here."""
    last = {plan.key(word): word for word in words if not plan.key(word).startswith("benchmark")}
    return tuple(last.values())


# settings


@pytest.mark.slow
@pytest.mark.parametrize(("name", "label"), PUBLISHED)
def test_a_point_does_what_its_published_row_did(name, label):
    """On every benchmark of the table: the paper may have settings for each."""
    row, table = row_of(name, label), FILES[name]
    for benchmark in table["benchmarks"]["published"]:
        ours = without_benchmark(plan.words(table, point_of(name, label), benchmark))
        theirs = tuple(reference.overrides(params_on(row, benchmark), scale=True))
        assert settled(ours) == settled(theirs), benchmark
    if "per_benchmark" not in row:  # what replaces the paper's benchmarks on a scale model must not change the settings
        for benchmark in table["benchmarks"]["scale"]:
            ours = without_benchmark(plan.words(table, point_of(name, label), benchmark))
            assert settled(ours) == settled(tuple(reference.overrides(row["params"], scale=True))), benchmark


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_every_benchmark_of_a_table_composes_with_what_the_table_says_of_it(name):
    """With the test above, which composes every point: every word of every point on every benchmark. Their product takes minutes."""
    table = FILES[name]
    assert {*table.get("at", {})} <= {*benchmarks(table)}
    for benchmark in benchmarks(table):
        words = [f"benchmark={benchmark}", *table.get("at", {}).get(benchmark, [])]
        target = composed(tuple(words))["benchmark"]["_target_"]
        assert get_class(target).name.startswith(benchmark.removesuffix("_cn"))


def test_on_a_published_backbone_a_point_runs_the_backbone_of_its_row():
    for name, label in PUBLISHED:
        stands_in = [w for w in FILES[name]["overrides"] if w.startswith("model=")] if "overrides" in FILES[name] else []
        assert reference.overrides({"model": row_of(name, label)["params"]["model"]}, scale=True) == (stands_in or ["model=scale_llava"])
    assert reference.overrides({"model": "llava-next-13b"}) == ["model=llava_next_13b"]
    published = {words[0].removeprefix("model=") for words in reference.vocabulary()["params"]["model"]["words"].values()}
    assert published <= {p.stem for p in (CONF / "model").glob("*.yaml")}


def test_values_behind_presets_are_those_that_hydra_composes():
    """On the longest words of a point, and on a key that is not there."""
    commands = [
        without_benchmark(plan.words(FILES[name], point_of(name, label), FILES[name]["benchmarks"]["published"][0]))
        for name, label in PUBLISHED
    ]
    for words in (max(commands, key=len), max((w for w in commands if "method=hero" in w), key=len)):
        assert composed(words) == OmegaConf.to_container(compose.config("sweep", words), resolve=True)
    with pytest.raises(ConfigAttributeError, match="tau_ex"):
        composed(("method=blink", "thresholds.tau_ex=0.5"))


@pytest.mark.slow
def test_the_matched_table_has_no_published_row_and_searches_a_setting_that_is_there():
    for point in FILES["hero_table4_matched"]["points"]:
        assert "published" not in point
        cfg = composed(without_benchmark(plan.words(FILES["hero_table4_matched"], point, "mosaic_hr")))
        assert cfg["retention_ratio"] == 0.2
        assert ("match" in point) == (point["label"] != "none")
        if "match" in point:
            assert point["match"].removeprefix("method.") in cfg["method"]


# rows, columns, baselines


@pytest.mark.parametrize("name", [n for n, t in FILES.items() if "source" in t])
def test_a_table_has_every_row_and_column_that_the_paper_prints(name):
    table = FILES[name]
    source = reference.table(table["paper"], table["source"])
    size = {"hero_table4": "llava-next-7b", "hero_table4_13b": "llava-next-13b"}.get(name)
    rows = [r["label"] for r in source["rows"] if size is None or r["params"]["model"] == size]
    controls = [p for p in table["points"] if p.get("control")]
    assert controls == table["points"][len(table["points"]) - len(controls) :] and not any("published" in p for p in controls)
    labels = [p["published"]["row"] for p in table["points"] if p not in controls and p["published"]["table"] == table["source"]]
    assert (labels or [*table["recipe"]["values"]]) == rows  # the paper's order
    columns = [*table["published"].values()]
    totals = [c for c in columns if c == "mme_total" and c not in source["columns"]]  # Tables 1 and 5 leave the sum to the reader
    assert [c for c in columns if c not in totals] == [c for c in source["columns"] if not c.startswith("delta_")]
    assert table["name"] == name
    assert {*table.get("figures", [])} <= {p.stem for p in (CONF / "figure").glob("*.yaml")}


def test_published_numbers_lose_nothing_to_the_digits_that_they_are_shown_with():
    for name, label in PUBLISHED:
        table, values = FILES[name], row_of(name, label)["values"]
        digits = table.get("published_digits", 2)
        for column in table["published"].values():
            number = values.get(column)
            assert number is None or digits is None or round(number, digits) == number, (name, label, column)


@pytest.mark.parametrize("name", FILES)
def test_differences_are_taken_from_the_row_that_the_paper_takes_them_from(name):
    """Where it prints differences, they must come out of the numbers that it prints."""
    labels = [p["label"] for p in FILES[name]["points"]]
    assert len({*labels}) == len(labels)
    for point in FILES[name]["points"]:
        base = point.get("baseline")
        assert base is None or (base in labels and base != point["label"])
        if "published" not in point:
            continue
        values = row_of(name, point["label"])["values"]
        against = row_of(name, base)["values"] if base else values
        for column in values:
            if column.startswith("delta_"):
                whole = column.replace("delta_", "mme_")
                if values[whole] is not None:
                    assert values[whole] - against[whole] == pytest.approx(values[column], abs=0.0051), (point["label"], column)
                assert base or values[column] == 0
    extra = reference.table(FILES[name]["paper"], FILES[name]["source"]).get("published_deltas", {}) if "source" in FILES[name] else {}
    for method, deltas in extra.items():
        (point,) = [p for p in FILES[name]["points"] if p["overrides"] == [f"method={method}"]]
        ours, base = (row_of(name, label)["values"] for label in (point["label"], point["baseline"]))
        for column, delta in deltas.items():
            assert ours[column] - base[column] == pytest.approx(delta, abs=0.0051)


def pairs(categories: tuple[str, ...]) -> list[dict]:
    return [{"id": f"{c}{k}", "image_id": c, "category": c, "answer": "yes", "correct": True} for c in categories for k in (0, 1)]


@functools.lru_cache
def scores_of(preset: str) -> set[str]:
    """The scores that a benchmark makes of a few right answers, or, where these would need its data, those that its rule names."""
    from blink_exp.benchmarks import mmstar, mosaic_detail, mosaic_hr, mosaic_mme, mosaic_open

    scenes = {"mosaic_detail": mosaic_detail.MosaicDetail, "mosaic_hr": mosaic_hr.MosaicHR, "mosaic_open": mosaic_open.MosaicOpen}
    if preset in scenes:
        made = scenes[preset](images=8)
        return {*made.score([{"image_id": s.image_id, "category": s.category, "correct": True} for s in made.samples()])}
    if preset in ("mosaic_mme", "mme"):
        kind = {"mosaic_mme": mosaic_mme, "mme": mme}[preset]
        return {*mme.score_pairs(pairs((*kind.PERCEPTION, *kind.COGNITION)), tuple(kind.PERCEPTION), tuple(kind.COGNITION))}
    if preset == "mmstar":  # the data's own names; its cards and lmms-eval spell them so
        names = ("coarse perception", "fine-grained perception", "instance reasoning", "logical reasoning", "math", "science & technology")
        records = [{"category": name, "correct": True, "fields": {"l2": "any"}} for name in names]
        return {*mmstar.MMStar.__new__(mmstar.MMStar).score(records)}
    return {"pope": {*pope.STATISTICS}, "mmvet": {"total"}}.get(preset, {"accuracy"})


@pytest.mark.parametrize("preset", sorted({b for table in FILES.values() for b in benchmarks(table)}))
def test_measured_columns_name_scores_that_the_benchmark_makes(preset):
    for name, table in FILES.items():
        if preset not in benchmarks(table):
            continue
        assert preset in table["measured"], name
        for heading, column in table["measured"][preset].items():
            path = column["value"] if isinstance(column, dict) else column
            kind, _, score = path.partition(".")
            assert kind in ("scores", "tokens", "cost"), (name, heading)
            if kind == "scores" and score not in ("right_too", "wrong_there"):
                assert score in scores_of(preset), (name, heading)


def test_published_headings_stand_beside_a_measured_column_on_the_paper_s_benchmarks():
    """Else a published column would have no counterpart at 7B. Those that have none on purpose are named."""
    alone = {"hero_table3": {*FILES["hero_table3"]["published"]}}  # graded in a second step
    alone |= {name: {"VQAv2", "VizWiz"} for name in ("hero_table4", "hero_table4_13b")}  # printed on test splits, which have no answers
    for name, table in FILES.items():
        measured = {heading for b in table["benchmarks"]["published"] for heading in table["measured"][b]}
        if not table.get("recipe"):
            assert {*table.get("published", {})} - measured == alone.get(name, set()), name


# the training recipe


def test_the_recipe_composes_to_what_the_paper_prints():
    recipe = FILES["blink_table4"]["recipe"]
    cfg = compose.config(recipe["config"], recipe["overrides"])
    named = {"bfloat16": "bf16-mixed", "zero-2": "deepspeed_zero2", "adamw": "torch.optim.AdamW"}
    named |= {"cosine": "blink_exp.training.optimization.cosine"}
    for label, path in recipe["values"].items():
        printed = reference.entry("blink", "blink-table-4", label)["values"]["value"]
        assert (path is None) == (label == "Sequence length")
        assert path is None or OmegaConf.select(cfg, path) == named.get(printed, printed), label
