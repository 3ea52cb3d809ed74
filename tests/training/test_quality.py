"""Held-out measures of TokenSR beside interpolation: by hand, in every place that shows them, and of the modules that ship."""

from __future__ import annotations

import csv
import json
import math

import pytest
import torch
from safetensors.torch import load_file
from support.scripts import ROOT
from support.training_runs import train

from blink_exp.backbone.shipped import SHIPPED
from blink_exp.errors import UserError
from blink_exp.scale_model import card
from blink_exp.tracking.names import held_out_metrics
from blink_exp.training import quality
from blink_exp.training.quality import INTERPOLATION, TOKENSR, HeldOut


def test_cosine_is_taken_behind_the_norm_and_the_error_is_relative_to_the_teacher():
    """A norm that weighs the first dimension 0: only the second counts, where one student agrees and one points the other way."""
    norm = lambda x: x * torch.tensor([0.0, 1.0])  # noqa: E731
    teacher = torch.tensor([[[3.0, 1.0], [0.0, 2.0]]])
    held_out = HeldOut()
    held_out.add_teacher(teacher)  # squares: 9 + 1 + 0 + 4 = 14
    for way, student in ((INTERPOLATION, torch.tensor([[[-3.0, 1.0], [0.0, 2.0]]])), (TOKENSR, torch.tensor([[[3.0, -1.0], [0.0, 4.0]]]))):
        held_out.add(way, 2.0 if way == INTERPOLATION else 0.5, *quality.measures(student, teacher, norm), len(teacher))
    row = held_out.row(held_out.sums)
    assert row["gain"] == pytest.approx(0.75)
    assert (row["cosine_interpolation"], row["cosine_tokensr"]) == (pytest.approx(1.0), pytest.approx(0.0))  # mean of -1 and 1
    assert row["relative_error_interpolation"] == pytest.approx(36 / 14) and row["relative_error_tokensr"] == pytest.approx(8 / 14)
    assert row["samples"] == 1


def test_a_teacher_of_zeros_gives_no_nan():
    held_out = HeldOut()
    held_out.add_teacher(torch.zeros(1, 2, 3))
    for way, student in ((INTERPOLATION, torch.zeros(1, 2, 3)), (TOKENSR, torch.ones(1, 2, 3))):
        held_out.add(way, float(student.sum() > 0), *quality.measures(student, torch.zeros(1, 2, 3), lambda x: x), 1)
    row = held_out.row(held_out.sums)
    assert (row["relative_error_interpolation"], row["relative_error_tokensr"], row["gain"]) == (0, math.inf, -math.inf)


def row_of(plain: float, refined: float) -> dict[str, float]:
    return {"cosine_interpolation": plain, "cosine_tokensr": refined}


def test_the_warning_names_layers_that_are_worse_in_cosine_and_no_others():
    assert quality.warning({12: row_of(0.8, 0.9), 13: row_of(0.8, 0.8), 14: row_of(0.8, 0.79999)}) is None
    line = quality.warning({12: row_of(0.8, 0.9), 13: row_of(0.8, 0.7), 14: row_of(0.8, 0.3)})
    assert line is not None and "layers 13, 14 " in line and "0.300 against 0.800 at layer 14" in line and "12" not in line


def test_a_training_reports_all_measures_everywhere_and_measuring_its_modules_gives_them_again(tmp_path, capsys):
    train(tmp_path / "run", "loss=kl")
    out = capsys.readouterr().out
    row = json.loads((tmp_path / "run" / "metrics.json").read_text(encoding="utf-8"))["layers"]["1"]
    for way in quality.WAYS:
        assert {way, f"cosine_{way}", f"relative_error_{way}"} <= row.keys()
    assert -1 <= row["cosine_tokensr"] < row["cosine_interpolation"] <= 1  # three steps of a module that starts anew
    assert out.strip().splitlines()[-1].startswith("WORSE THAN INTERPOLATION: the tokens of layer 1 are ")
    assert json.loads((tmp_path / "run" / "tokensr" / "layer_01.json").read_text(encoding="utf-8"))["training"]["held_out"] == row
    with open(tmp_path / "run" / "log" / "metrics.csv", encoding="utf-8") as file:
        logged = [{k: float(v) for k, v in line.items() if v and k in held_out_metrics(1, row)} for line in csv.DictReader(file)]
    assert next(filter(None, logged)) == pytest.approx(held_out_metrics(1, row))

    train(tmp_path / "again", "measure=true", f"tokensr.path={tmp_path / 'run' / 'tokensr'}")
    assert "nothing is trained" in capsys.readouterr().out
    assert json.loads((tmp_path / "again" / "metrics.json").read_text(encoding="utf-8"))["layers"]["1"] == pytest.approx(row)
    assert not (tmp_path / "again" / "tokensr").exists() and not (tmp_path / "again" / "last.ckpt").exists()
    with pytest.raises(UserError, match="measure=true trains nothing"):
        train(tmp_path / "no", "measure=true", f"output={tmp_path / 'no'}")


def test_a_training_begins_with_the_modules_of_tokensr_path(tmp_path):
    """At a learning rate that moves nothing the modules come out as they went in; new ones would start elsewhere."""
    train(tmp_path / "features", "loss=mse", "seed=3")
    first = tmp_path / "features" / "tokensr"
    train(tmp_path / "more", f"tokensr.path={first}", "optim.lr=1e-30", "optim.weight_decay=0")
    before, after = (load_file(folder / "layer_01.safetensors") for folder in (first, tmp_path / "more" / "tokensr"))
    assert all(torch.equal(before[name], after[name]) for name in before)
    recorded = json.loads((tmp_path / "more" / "tokensr" / "layer_01.json").read_text(encoding="utf-8"))["training"]
    assert recorded["begun_with"]["loss"]["weights"]["mse"] == 1 and recorded["begun_with"]["seed"] == 3
    with pytest.raises(UserError, match="modules that are no tokensr=mlp"):
        train(tmp_path / "other", f"tokensr.path={first}", "tokensr=mlp")


def test_results_and_card_say_what_was_measured_of_the_modules_that_ship():
    rows = card.module_rows(SHIPPED / "tokensr")
    assert card.claim({layer: rows[layer] for layer in range(12, 19)}) in (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    text = (SHIPPED / "README.md").read_text(encoding="utf-8")
    assert card.claim(rows) in text
    for layer, row in rows.items():
        assert f"| {layer} | {row['interpolation']:.4f} | {row['tokensr']:.4f} | {row['cosine_interpolation']:.3f} |" in text
