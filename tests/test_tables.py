"""The tables of conf/table: their points, their two groups of columns, stored points, and who wins where two set the same."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hydra import initialize_config_dir
from hydra_tables import CONF, HERO, POINTS, TABLES, composed, point_of
from omegaconf import OmegaConf

from blink_exp import reference
from blink_exp.backbone.views import EXTRA, Views
from blink_exp.errors import UserError
from blink_exp.experiments import evaluate, matching, pictures, report, results, sweep, tables
from blink_exp.methods.fastv import FastVPolicy


@pytest.fixture(autouse=True)
def hydra():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


# points


def test_the_batch_size_makes_another_point_in_half_precision_only():
    def point_at(dtype, size):
        return results.point_hash({"model": {"dtype": dtype}, "batch_size": size}, {})

    assert point_at("float32", 1) == point_at("float32", 32)
    assert point_at("float16", 1) != point_at("float16", 32)


def test_other_weights_in_a_folder_are_another_point(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"one")
    settings = {"model": {"path": str(tmp_path)}, "tokensr": {"path": None}}
    before = sweep.digests(settings)
    assert sweep.digests(settings) == before
    (tmp_path / "model.safetensors").write_bytes(b"another")
    assert sweep.digests(settings) != before


def test_the_hero_tables_are_there_with_all_their_points():
    wanted = {"hero_table4": 14, "hero_table4_matched": 11, "hero_table5": 5, "hero_table6": 4, "hero_table7": 5, "hero_table8": 4}
    assert {name: len(table["points"]) for name, table in HERO.items()} == wanted
    assert all(table["name"] == name for name, table in HERO.items())


@pytest.mark.parametrize(("name", "label"), POINTS)
def test_a_point_composes_and_has_the_settings_of_its_published_row(name, label):
    """Against the reference data's own parameters, not against a second copy of the overrides."""
    cfg, source = composed(name, label), dict(point_of(name, label).get("published") or {})
    assert (cfg.model.path, cfg.benchmark._target_.rpartition(".")[2]) == ("scale_next", "MosaicHR")
    OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    if name == "hero_table4_matched":
        assert not source and cfg.retention_ratio == 0.2
        return
    params = reference.entry("hero", source.pop("table"), source.pop("row"), **source)["params"]
    method = cfg.method._target_.split(".")[2]
    assert params["model"] == "llava-next-7b"
    assert method == {"full": "none"}.get(params["method"], params["method"])
    if method not in ("none", "prumerge_plus"):
        assert cfg.method.retention_ratio == params["keep_ratio"]
    if method == "hero":
        assert cfg.method.options.allocation == {"scored": "scores"}.get(params["allocation"], params["allocation"])
        assert params["alpha"] in (None, cfg.method.alpha)
        assert (list(cfg.method.low), list(cfg.method.high)) == (params["layers_local"], params["layers_global"])
    values = tables.published(HERO[name], point_of(name, label))
    assert set(values) == {*tables.columns(HERO[name])["published_columns"], "derived"}
    assert any(v is not None for k, v in values.items() if k != "derived")


def test_published_columns_exist_in_the_paper_and_carry_its_numbers():
    for name, table in HERO.items():
        for point in table["points"]:
            if point.get("published"):
                row = reference.row("hero", *[point["published"][k] for k in ("table", "row")], model="llava-next-7b")
                assert set(table["published"].values()) <= set(row), name
    hero = tables.published(HERO["hero_table4"], point_of("hero_table4", "HERO (20%)"))
    assert (hero["OCRBench"], hero["MME"]) == (48.6, 1500.9)  # of the 7B model, not the 13B row of the same name
    assert tables.published(HERO["hero_table4"], point_of("hero_table4", "FastV (50%)"))["OCRBench"] is None


def test_a_label_that_names_two_rows_is_refused_and_so_is_one_that_names_none():
    with pytest.raises(KeyError, match="2 rows"):
        reference.row("hero", "hero-table-4", "HERO (20%)")
    with pytest.raises(KeyError, match="no row"):
        reference.row("hero", "hero-table-4", "HERO (30%)")


# columns


def document(name: str, rows: list[dict]) -> dict:
    table = TABLES[name]
    return {k: table[k] for k in tables.KEPT if k in table} | tables.columns(table) | {"rows": rows, "command": "c"}


@pytest.mark.parametrize("name", TABLES)
def test_published_numbers_stand_in_published_columns_only_and_measured_ones_in_measured(name):
    table = TABLES[name]
    said, here = (len(tables.columns(table)[k]) for k in ("published_columns", "measured_columns"))
    scores = {f: 77.77 for f in ("accuracy", "total", "perception", "cognition")}
    cost = {k: 77.77e9 for k in ("prompt_tokens", "kv_bytes", "prefill_flops_formula")}
    full = {"status": "done", "scores": scores, "stderr": {}, "tokens": {"layer": 77.0}, "cost": cost, "backbone": "b", "samples": 1}
    rows = []
    for point in table["points"]:
        values = tables.published(table, point)
        rows.append({"point": point["label"], "status": "failed", "published": values})
        rows.append({"point": point["label"], **full, "published": {}})
    for label, *numbers in tables.cells(document(name, rows))[::2]:
        assert len(numbers) == said + here, label
        assert any(numbers[:said]) or not said
        assert not any(numbers[said:]), f"{label}: a published number among the measured ones"
    for _, *numbers in tables.cells(document(name, rows))[1::2]:
        assert not any(numbers[:said])
        assert any(numbers[said:])
    head = next(line for line in tables.markdown(document(name, rows)).splitlines() if line.startswith("|  |"))
    assert (head.count("(published)"), head.count("(measured)")) == (said, here)
    for column in tables.columns(table)["measured_columns"].values():
        assert column["value"].split(".")[0] in ("scores", "tokens", "cost")


def test_numbers_are_printed_in_their_units_and_an_absent_one_is_empty():
    rows = [
        {
            "point": "p",
            "status": "done",
            "scores": {"accuracy": 51.26},
            "stderr": {"accuracy": 2.34},
            "cost": {"kv_bytes": 3 * 2**20, "prefill_flops_counted": 1.5e9, "encode_seconds": 0.25},
            "published": tables.published(HERO["hero_table8"], point_of("hero_table8", "HERO (40%)")),
            "backbone": "b",
            "samples": 3,
        }
    ]
    headings = ("", *HERO["hero_table8"]["published"], *HERO["hero_table8"]["measured"])
    (row,) = tables.cells(document("hero_table8", rows))
    assert len(row) == len(headings) == 1 + 6 + 10  # two groups share a heading ("tokens"), so look up from the right
    cells = dict(zip(headings, row, strict=True))
    assert cells["KV cache MB"] == "552.5" and cells["KV cache MiB"] == "3.00"
    assert cells["GFLOPs counted"] == "1.500" and cells["encode ms"] == "250"
    assert cells["accuracy"] == "51.3 ± 2.3" and cells["peak memory MiB"] == "" and cells["GFLOPs by formula"] == ""


def test_table_2_of_blink_is_printed_as_it_was():
    """One list of columns still says both groups."""
    point = point_of("blink_table2", "Blink / full")
    row = {"point": "Blink / full", "status": "done", "published": tables.published(TABLES["blink_table2"], point), "samples": 4}
    row |= {"scores": {"total": 1500.123, "cognition": 3}, "stderr": {"total": 20.4}, "backbone": "b"}
    text = tables.markdown(document("blink_table2", [row])).splitlines()
    published = [f"{v:.2f}" for v in tables.published(TABLES["blink_table2"], point).values() if isinstance(v, float)]
    assert text[-3] == "| Blink / full | " + " | ".join([*published, "", "3.00", "1500.12 ± 20"]) + " |"
    names = ("perception", "cognition", "total")
    assert text[6] == "|  | " + " | ".join([f"{n} (published)" for n in names] + [f"{n} (measured)" for n in names]) + " |"


# the split


def written(folder: Path, correct: dict[str, bool]) -> str:
    folder.mkdir()
    (folder / "records.jsonl").write_text("".join(json.dumps({"id": k, "correct": v}) + "\n" for k, v in correct.items()))
    return str(folder)


def test_accuracy_is_split_by_what_another_point_gets_right(tmp_path):
    base = {"b": False, "a": True, "c": True, "d": True, "x": False}
    other = {"a": True, "b": True, "c": False, "d": False, "only here": True}  # another order, one sample more and one less
    rows = [
        {"point": n, "status": "done", "scores": {}, "stderr": {}, "folder": written(tmp_path / n, c)}
        for n, c in (("other", other), ("downsample", base))
    ]
    rows.append({"point": "broken", "status": "failed"})
    tables.split(rows, "downsample")
    assert rows[0]["scores"] == {"right_too": pytest.approx(100 / 3), "wrong_there": 100.0}
    assert set(rows[0]["stderr"]) == {"right_too", "wrong_there"}
    assert rows[1]["scores"] == {} and "scores" not in rows[2]
    without = [rows[0] | {"scores": {}}]
    tables.split(without, "downsample")
    assert without[0]["scores"] == {}


# stored points and whose word counts


def test_a_stored_point_without_cost_is_measured_again_when_the_cost_is_wanted(tmp_path, monkeypatch):
    asked = []

    def measure(cfg, folder):
        asked.append(cfg.cost)
        cost = {"prompts": cfg.cost, "kv_bytes": 1} if cfg.cost else None
        finished = {"method": "hero", "scores": {"accuracy": {"value": 5.0, "stderr": 1.0}}, "cost": cost, "samples": 1, "skipped": []}
        finished |= {k: None for k in ("seconds", "backbone", "commit", "blink")}
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "records.jsonl").write_text(json.dumps({"visual_tokens": 7, "newline_tokens": 1, "layers": []}) + "\n")
        results.write_json(folder / "metrics.json", finished)
        return finished

    monkeypatch.setattr(evaluate, "measure", measure)
    rows = [sweep.point(composed("hero_table7", "H = 22", (f"store={tmp_path}", f"cost={cost}"))) for cost in (0, 0, 2, 2, 1, 0, 3)]
    assert asked == [0, 2, 3]
    assert [row["reused"] for row in rows] == [False, True, False, True, True, True, False]
    assert rows[0]["cost"] is None and rows[5]["cost"]["prompts"] == 2  # what is known is handed on, wanted or not
    assert rows[1]["tokens"] == {"entering": 7, "newlines": 1, "layer": 7} and rows[1]["method"] == "hero"
    sweep.point(composed("hero_table8", "HERO (20%)", (f"store={tmp_path}",)))  # the same point: its cost is there
    assert asked == [0, 2, 3]


def test_the_user_s_own_word_wins_over_the_table_s_and_the_point_s(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(tables, "guarded", lambda cfg, label: seen.append(cfg) or {"point": label})
    monkeypatch.setattr(matching, "matched", lambda cfg, key: [f"{key}=0.123"])
    base = OmegaConf.create({"store": str(tmp_path), "force": False})
    own = ["benchmark=mosaic_mme", "limit=7", "retention_ratio=0.3", "cost=5"]
    tables.measured_row(base, TABLES["hero_table8"], point_of("hero_table8", "HERO (10%)"), own)
    tables.measured_row(base, TABLES["hero_table8"], point_of("hero_table8", "HERO (10%)"), [])
    tables.measured_row(base, TABLES["hero_table4_matched"], point_of("hero_table4_matched", "FastV"), [])
    tables.measured_row(base, TABLES["hero_table4_matched"], point_of("hero_table4_matched", "FastV"), ["method.retention_ratio=0.5"])
    mine, theirs, matched, unmatched = seen
    assert (mine.benchmark._target_.rpartition(".")[2], mine.limit, mine.method.retention_ratio, mine.cost) == ("MosaicMME", 7, 0.3, 5)
    assert mine.model.path == "scale_next" and mine.store == str(tmp_path)  # what was not said stays the table's
    assert (theirs.benchmark._target_.rpartition(".")[2], theirs.limit, theirs.method.retention_ratio, theirs.cost) == (
        "MosaicHR",
        None,
        0.1,
        2,
    )
    assert (matched.method.retention_ratio, unmatched.method.retention_ratio) == (0.123, 0.5)


def test_a_point_that_cannot_be_matched_is_a_failed_row(tmp_path, monkeypatch):
    def matched(cfg, key):
        raise UserError("cannot be met")

    monkeypatch.setattr(matching, "matched", matched)
    base = OmegaConf.create({"store": str(tmp_path), "force": False})
    row = tables.measured_row(base, TABLES["hero_table4_matched"], point_of("hero_table4_matched", "HERO"), [])
    assert (row["status"], row["error"]) == ("failed", "cannot be met")


# pictures


def test_a_table_says_which_pictures_its_page_has_and_blink_s_table_keeps_its_own(tmp_path, monkeypatch):
    called = []
    monkeypatch.setattr(pictures, "MAKERS", {n: lambda d, o, n=n: called.append(n) or [] for n in pictures.MAKERS})
    report.make_figures(document("blink_table2", []), tmp_path)
    report.make_figures(document("hero_table4", []), tmp_path)
    report.make_figures(document("hero_table7", []), tmp_path)
    assert called == ["decisions", "kept_tokens", "cls_attention"]
    with pytest.raises(UserError, match="kept_token, which is no picture.*kept_tokens"):
        report.make_figures({"figures": ["kept_token"]}, tmp_path)


def test_a_picture_that_cannot_be_made_is_said_on_the_page(tmp_path, monkeypatch):
    def refuse(document, out):
        raise UserError("no CLS token")

    monkeypatch.setitem(pictures.MAKERS, "cls_attention", refuse)
    doc = document("hero_table7", []) | {"figures": ["cls_attention"]}
    page = report.write_page(doc, tmp_path).read_text()
    assert "Left out: no CLS token" in page and "<img" not in page
    assert "HERO drops visual tokens" in page and "Blink" not in page


def test_what_stays_is_mapped_onto_the_image():
    """A 1 x 2 grid of tiles of 2 x 2 tokens, all shown: the right tile's lower left token stays, and the thumbnail's first."""
    views = Views(side=2, rows=1, columns=2, size=(10, 20))
    share = torch.zeros(3, 4)
    share[2, 2], share[0, 0] = 1, 0.5
    tiles, thumbnail = pictures.as_maps(share, views)
    assert tiles.tolist() == [[0, 0, 0, 0], [0, 0, 1, 0]]
    assert thumbnail.tolist() == [[0.5, 0], [0, 0]]
    assert pictures.as_maps(torch.zeros(1, 4), Views(side=2))[0] is None


def test_how_long_tokens_are_there_under_a_policy_by_hand():
    """Four tokens and a newline in a model of four layers: behind layer 0 two stay and one merged token joins, behind layer 2 the
    merged one goes."""
    from blink_exp.sequence import Retain

    source = torch.tensor([0, 1, 2, 3, -1])
    visual = SimpleNamespace(source=source, views=Views(side=2), features=None)
    steps = [(0, Retain((1, 3), ((0, 2),))), (2, Retain((1,)))]
    taken = [SimpleNamespace(decision=d, scan=SimpleNamespace(layer=layer)) for layer, d in steps]
    backbone = SimpleNamespace(depth=4, model=None, visual=lambda *_: [visual], generate=lambda *_: None)

    class Attached:
        def __enter__(self):
            return SimpleNamespace(records=taken)

        def __exit__(self, *_):
            pass

    method = SimpleNamespace(pruner=None, policy=FastVPolicy(), attach=lambda model: Attached())
    share, _ = pictures.presence(backbone, method, None, "q")
    assert share.tolist() == [[0.25, 0.75, 0.25, 1.0]]
    assert EXTRA < 0  # merged tokens have no place
