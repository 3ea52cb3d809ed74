"""The page of any picture and question, and the answers of other methods beside it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image
from support.viewing import CONF, Tables, config, wide_photo

from blink_exp.methods.none import none
from blink_exp.settings.compose import method_preset
from blink_exp.viewer import run as viewer
from blink_exp.viewer import subject
from blink_exp.viewer.trace import trace


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    return wide_photo(tmp_path_factory.mktemp("photo"))


def test_own_picture_and_question_are_escaped_and_the_page_is_the_same_twice(photo, tmp_path):
    question = "is <script>alert('1')</script> & \"x\" here?"
    cfg = config("method=none", image=str(photo), question=question, compare=[])
    first, second = (viewer.view(cfg, tmp_path / name) for name in "ab")
    assert first.read_bytes() == second.read_bytes()
    parsed = Tables(first.read_text(encoding="utf-8"))
    assert f"“{question}”" in parsed.text and "script" not in parsed.tags and photo.name in parsed.text
    document = json.loads((tmp_path / "a" / "view.json").read_text(encoding="utf-8"))
    assert (document["known"], document["verdict"], document["answers"][0]["verdict"], document["kept"]) == (None, None, None, None)
    assert all(v["decision"] is None and v["expanded"] == 0 for v in document["layers"])
    assert "right" not in {cell for row in parsed.rows["answers-table"] for cell in row}


def test_pictures_with_one_name_and_size_are_not_taken_for_each_other(scale, tmp_path):
    """Backbones keep features by an id of the image."""
    traces = []
    for colour in ("red", "blue"):
        (tmp_path / "photo.png").unlink(missing_ok=True)
        Image.new("RGB", (96, 96), colour).save(tmp_path / "photo.png")
        about = subject.load_subject(config(image=str(tmp_path / "photo.png"), question="q"))
        traces.append(trace(scale, none(), about.benchmark, about.sample, about.image))
    assert not torch.equal(traces[0].visual.features, traces[1].visual.features)


def test_a_compared_method_that_cannot_run_says_why_and_a_changed_one_stands_beside_its_preset(photo, tmp_path):
    overrides = ["method=fastv", "method.full_layers=3", "retention_ratio=0.3"]
    cfg = config(*overrides, image=str(photo), question="q", compare=["fastv", "hero"])
    cfg = replace(cfg, hero=replace(cfg.hero, options=replace(cfg.hero.options, score="nonsense")))
    viewer.view(cfg, tmp_path)
    lines = json.loads((tmp_path / "view.json").read_text(encoding="utf-8"))["answers"]
    assert [(a["label"], a["shown"]) for a in lines] == [("fastv", True), ("fastv", False), ("hero", False)]
    assert lines[0]["tokens"] > lines[1]["tokens"]  # three whole layers against two: the user's retention ratio in both
    assert lines[1]["tokens"] < 0.5 * 144
    assert "hero.score=nonsense" in lines[2]["why"] and lines[2]["said"] is None
    assert "hero.score=nonsense" in Tables((tmp_path / "view.html").read_text(encoding="utf-8")).text


def test_presets_keep_the_user_s_values_with_and_without_hydra_running():
    """Under hydra.main Hydra is there already and allows no second."""
    cfg = config("method=none", "retention_ratio=0.3", "thresholds=high_exp")
    outside = method_preset("blink_hero", cfg)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        inside = method_preset("blink_hero", cfg)
        assert compose("evaluate").retention_ratio == 0.2  # and it is still there
    assert outside == inside
    assert (inside["pruner"]["retention_ratio"], inside["policy"]["tau_exp"]) == (0.3, 0.7)
