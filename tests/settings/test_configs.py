"""Every file below conf/ composes; typos fail before any work; presets hold the paper's values."""

from __future__ import annotations

import dataclasses

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from support.composing import CONF, GIVEN

from blink_exp.settings.compose import composed
from blink_exp.settings.groups import Layers
from blink_exp.settings.schemas.training import PairData

GROUPS = {p.name: sorted(f.stem for f in p.glob("*.yaml")) for p in CONF.iterdir() if p.is_dir() and p.name != "hydra"}
ROOTS = {
    "evaluate": {
        *("model", "method", "benchmark", "saliency", "grid", "thresholds", "layers", "resolution", "tokensr", "logger"),
        *("hero", "hero_alpha", "hero_low", "hero_high", "newline_policy", "fill", "judge", "image_loading", "positions"),
    },
    "train": {"model", "layers", "tokensr", "loss", "optim", "trainer", "data", "logger", "image_loading"},
}
NESTED = [("evaluate", f"method/{p.parent.name}={p.stem}") for p in sorted((CONF / "method").glob("*/*.yaml"))]


@pytest.fixture(autouse=True)
def hydra():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def rounds() -> list[tuple[str, list[str]]]:
    """Presets of different groups at once, each preset at least once: composing is what costs time."""
    out = []
    for root, groups in ROOTS.items():
        for k in range(max(len(GROUPS[group]) for group in groups)):
            out.append((root, [f"{group}={GROUPS[group][k % len(GROUPS[group])]}" for group in sorted(groups)]))
    budgets = [("evaluate", [f"budget='{name}'"]) for name in GROUPS["budget"]]  # sets tokens or retention_ratio, and is no node
    return out + budgets + [(root, ["method=pair", word]) for root, word in NESTED]


@pytest.mark.slow
@pytest.mark.parametrize(("root", "overrides"), rounds())
def test_every_preset_composes_and_resolves(root, overrides):
    cfg = compose(root, overrides=[*overrides, *(word for override in overrides for word in GIVEN.get(override, []))])
    resolved = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert ROOTS[root] <= resolved.keys()


def test_no_file_is_left_out():
    files = [p for p in CONF.rglob("*.yaml") if p.parent != CONF and "hydra" not in p.relative_to(CONF).parts]  # launchers: test_together
    elsewhere = {f"{kind}={name}" for kind in ("table", "figure", "search") for name in GROUPS[kind]}  # their points: test_vocabulary etc.
    covered = {word for _, words in rounds() for word in words} | elsewhere
    assert len(files) == len(covered)
    assert all(GROUPS.values())


def test_presets_of_data_share_the_values_of_their_common_settings():
    presets = {name: compose("train", [f"data={name}", *GIVEN.get(f"data={name}", [])]).data for name in GROUPS["data"]}
    exceptions = {"folder": set(), "llava_665k": {"train_size", "held_out_size", "workers"}}
    for name, differs in exceptions.items():
        shared = presets["scenes"].keys() & presets[name].keys() - {"_target_"}
        assert shared >= {field.name for field in dataclasses.fields(PairData)}
        assert {key for key in shared if presets[name][key] != presets["scenes"][key]} == differs


@pytest.mark.slow
def test_threshold_presets_are_the_paper_s():
    wanted = {
        "default": (0.5, 0.4),
        "gqa": (0.6, 0.4),
        "always_expand": (0.25, 0.4),
        "high_exp": (0.7, 0.4),
        "low_drop": (0.5, 0.3),
        "high_exp_low_drop": (0.7, 0.3),
        "no_drop": (0.5, 0.0),
        "quantiles": (0.67, 0.6),
        "next": (0.5, 0.4),
        "next_mme": (0.4, 0.3),
    }
    assert {n: tuple(compose("evaluate", [f"thresholds={n}"]).thresholds.values()) for n in GROUPS["thresholds"]} == wanted


def test_the_documented_keys_reach_the_method():
    words = ["thresholds.tau_exp=0.61", "thresholds.tau_drop=0.11", "grid.p=3", "layers.indices=[12,13]", "seed=5"]
    method = composed("evaluate", words).method
    assert (method["tau_exp"], method["tau_drop"], method["p"], method["seed"]) == (0.61, 0.11, 3, 5)
    assert method["layers"] == {"indices": [12, 13], "base": 0, "relative": True}


def test_layer_stands_for_one_of_the_layers():
    """Whatever the group says; below the command there is nothing but the group."""
    one = {"indices": [7], "base": 0, "relative": False}
    for words in (["layer=7"], ["layer=7", "layers=11-17"], ["layers.indices=[1,2]", "layer=7"]):
        settings = composed("evaluate", words)
        assert settings.layer is None and vars(settings.layers) == settings.method["layers"] == one
    assert composed("train", ["layer=7", "layers.base=1"]).layers == Layers([7], base=1, relative=False)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["method=hero", "method=blink_hero", "method=pair method/pruner=hero method/policy=blink"])
@pytest.mark.parametrize(
    ("words", "policy"), [("", "valid_rows"), ("hero=reference", "all_rows"), ("newline_policy=none hero=reference", "none")]
)
def test_hero_as_released_ends_every_row_with_a_newline_unless_told_otherwise(method, words, policy):
    chosen = composed("evaluate", [*method.split(), *words.split()]).method
    assert chosen.get("pruner", chosen)["newline_policy"] == policy
