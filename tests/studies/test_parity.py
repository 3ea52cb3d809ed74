"""Parity: which numbers are set beside which, and what the verdict says."""

from __future__ import annotations

import json

import pytest
import yaml
from support import hub
from support.scripts import ROOT, run

from blink_exp import reference
from blink_exp.studies.parity import judged

TABLE = yaml.safe_load((ROOT / "conf" / "parity.yaml").read_text(encoding="utf-8"))
POINT = {"id": "gqa", "score": "accuracy", "rows": 100}
BLINK = {"llava-1.5-7b": "blink-table-1", "llava-next-7b": "blink-table-5"}
SAID = {"zoo": 62.0, "blink": 61.93, "band": 0.3}


def row(value: float | None, samples: int = 100) -> dict:
    return {"status": "done", "scores": {"accuracy": value}, "stderr": {"accuracy": 1.0}, "samples": samples, "folder": "f", "files": []}


@pytest.mark.parametrize(
    ("value", "printed", "verdict"),
    [
        (62.3, SAID, "within 62 ± 0.3"),
        (62.31, SAID, "OUTSIDE 62 ± 0.3"),
        (61.69, SAID, "OUTSIDE"),
        (69.0, {"zoo": 66.8, "band": 1.0, "center": 69.5}, "within 69.5 ± 1"),
        (355.0, {"blink": 357.86, "band": 15}, "within 357.86 ± 15"),
        (50.0, {"hero": 54.8}, "no band"),
        (50.0, {}, "nobody prints it"),
        (None, SAID, "no score: none of 100 samples counts for accuracy; see f"),
    ],
)
def test_the_verdict_is_about_the_first_source_or_the_center(value, printed, verdict):
    assert judged(row(value), POINT, printed)["verdict"].startswith(verdict)


def test_only_a_run_that_wrote_files_is_to_be_handed_in():
    assert judged(row(None) | {"files": ["vqav2.json"]}, POINT, SAID)["verdict"] == "scored elsewhere: hand in f"
    assert judged(row(62.0) | {"files": ["vqav2.json"]}, POINT, SAID)["verdict"] == "within 62 ± 0.3"


def test_a_part_of_the_rows_gets_no_verdict_and_a_failure_its_reason():
    assert judged(row(62.0, 99), POINT, SAID)["verdict"] == "only 99 of 100 rows: no verdict"
    assert judged({"status": "failed", "error": "no data"}, POINT, SAID)["verdict"] == "not measured: no data"


def test_every_printed_number_has_its_row_and_every_row_its_benchmark():
    ids = [point["id"] for point in TABLE["points"]]
    known = reference.vanilla()
    assert {name for cells in known["models"].values() for name in cells} <= set(ids)
    assert all(set(cell) <= {*known["sources"], "band", "center"} for cells in known["models"].values() for cell in cells.values())
    assert len(set(ids)) == len(ids) == 15


def test_blink_s_and_hero_s_rows_are_those_of_their_reference_files():
    """Against the files that the tables use, so that the two copies cannot drift apart."""
    blink = {m: reference.entry("blink", t, "Vanilla", model=m)["values"] for m, t in BLINK.items()}
    names = {"mme_perception": "mme_perception", "mme_cognition": "mme_cognition", "gqa": "gqa", "pope": "pope"}
    models = reference.vanilla()["models"]
    for model, rows in blink.items():
        ours = models[model.replace("-", "_").replace(".", "_")]
        assert {k: ours[k]["blink"] for k in names} == {k: rows[v] for k, v in names.items()}
    for size in ("7b", "13b"):
        label, model = f"LLaVA-NeXT-{size.upper()} (100%)", f"llava-next-{size}"
        theirs = reference.entry("hero", "hero-table-4", label, model=model)["values"]
        ours = models[model.replace("-", "_")]
        keys = {name: name for name in ("gqa", "pope", "textvqa", "chartqa", "ocrbench")} | {"mmbench": "mmb", "scienceqa": "sqa"}
        assert {k: ours[k]["hero"] for k in keys} == {k: theirs[v] for k, v in keys.items()}


@pytest.mark.slow
def test_parity_runs_what_is_there_and_says_why_the_rest_is_not(tmp_path):
    """MME and GQA lie in data_root, the others nowhere; the scale model stands in for the 7B one. One MME run serves both of its rows."""
    for name, folder in (("mme", "MME"), ("gqa", "GQA")):
        hub.MAKERS[name](tmp_path / "data" / folder)
    words = ["model=llava_1_5_7b", "model.path=scale", "model.dtype=float32", "model.device=cpu"]
    words += ["model.pad=false", "model.system_prompt=none"]
    words += [f"data_root={tmp_path / 'data'}", f"store={tmp_path / 'points'}", f"hydra.run.dir={tmp_path / 'out'}"]
    done = run(["-m", "blink_exp", "parity", *words])
    assert done.returncode == 0, done.stderr
    rows = {r["id"]: r for r in json.loads((tmp_path / "out" / "parity.json").read_text(encoding="utf-8"))["rows"]}
    assert {k for k, r in rows.items() if r["status"] == "done"} == {"mme_perception", "mme_cognition", "gqa"}
    assert rows["mme_perception"]["folder"] == rows["mme_cognition"]["folder"]
    assert rows["gqa"]["verdict"].startswith("only ") and rows["gqa"]["published"] == {"zoo": 62.0, "blink": 61.93}
    assert rows["pope"]["verdict"].startswith("not measured") and "lmms-lab-encoder/POPE" in rows["pope"]["error"]
    lines = [
        [cell.strip() for cell in line.split("|")] for line in (tmp_path / "out" / "parity.md").read_text(encoding="utf-8").splitlines()
    ]
    head, pope = (next(line for line in lines if name in line) for name in ("measured here", "POPE F1"))
    filled = {heading: cell for heading, cell in zip(head, pope, strict=False) if heading and cell}
    verdict = filled.pop("verdict")
    assert filled == {"LLaVA Model Zoo (published)": "85.9", "Blink's vanilla row (published)": "85.17"}
    assert verdict.startswith("not measured")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-m", "blink_exp", "parity"], "model=scale_llava"),
        (["evaluate.py", "table=blink_table2"], "python sweep.py table=blink_table2"),
        (["evaluate.py", "table=parity", "limit=3"], "python -m blink_exp parity limit=3"),
        (["sweep.py", "table=parity"], "python -m blink_exp parity"),
    ],
)
def test_a_table_in_the_wrong_place_is_one_line(words, message, tmp_path):
    done = run([*words, f"hydra.run.dir={tmp_path}"])
    assert done.returncode == 2 and message in done.stderr and len(done.stderr.strip().splitlines()) == 1
