"""Every setting of every root config with seven odd values each: one line that says what the setting must be, or a meaning listed here."""

from __future__ import annotations

import copy
import functools
import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from support.scripts import ROOT

from blink_exp.errors import UserError
from blink_exp.settings.check import check
from blink_exp.settings.messages import HYDRA_ERRORS, translated
from blink_exp.settings.roots import ROOTS
from blink_exp.settings.targets import BY_TARGET
from blink_exp.settings.words import prepared

CONF = ROOT / "conf"
VALUES = {"word": "blah", "float": "0.37", "null": "null", "negative": "-3", "nan": "nan", "empty": "", "list": "[1,2]"}

# What is taken, by setting. Text arrives letter by letter, so that a number or a bracket in it is text too.
TEXT = {"word", "float", "negative", "nan", "list"}
OR_NULL = {"null"}
NOTHING: set[str] = set()
MEANT: dict[str, set[str]] = {
    "layer": OR_NULL,
    "retention_ratio": {"float"},
    "data_root": OR_NULL,  # a folder that is there
    "predictions": {"word", "float", "negative", "nan"},  # a list is one of files
    "against": TEXT,
    "sample": TEXT | OR_NULL,
    "image": TEXT | OR_NULL,
    "question": TEXT | OR_NULL,
    "compare": {"list", "null"},
    "shard": OR_NULL,
    "store": TEXT,
    "report": TEXT,
    "force": NOTHING,
    "part": NOTHING,
    "limit": OR_NULL,
    "skip_limit": {"float"},
    "batch_size": NOTHING,
    "workers": OR_NULL,
    "shared_gb": {"float", "null"},
    "cost": NOTHING,
    "seed": NOTHING,
    "share": NOTHING,
    "tables": OR_NULL,
    "figures": OR_NULL,
    "title": TEXT,
    "overrides": {"list"},
    "points": {"list"},
    "objective": TEXT | OR_NULL,
    "token_price": {"float"},
    "dashboard": OR_NULL,
    "train": TEXT | {"empty"},  # words of train.py, none by default
    "output": TEXT | OR_NULL,
    "resume": TEXT | OR_NULL,
    "image_loading.exif": NOTHING,
    "image_loading.alpha": OR_NULL,
    "image_loading.max_pixels": NOTHING,
    "image_loading.outside": NOTHING,
    "saliency.scorer": TEXT,  # packages may bring scorers; an unknown one is refused when the method is made
    "grid.p": NOTHING,
    "grid.scale_thresholds": NOTHING,
    "thresholds.tau_exp": {"float"},
    "thresholds.tau_drop": {"float"},
    "layers.indices": {"list", "null"},  # null: refused where no layer= is given
    "layers.base": NOTHING,
    "layers.relative": NOTHING,
    "resolution.policy": NOTHING,
    "resolution.on_reexpand": NOTHING,
    "resolution.scan": NOTHING,
    "resolution.interpolate": NOTHING,
    "resolution.positions": NOTHING,
    "tokensr.architecture": TEXT,  # as scorers
    "tokensr.path": TEXT | OR_NULL,
    "fill.policy": NOTHING,
    "hero.tokens_per_view": OR_NULL,
    "hero.relative": NOTHING,
    "hero.options.allocation": NOTHING,
    "hero.options.temperature_cls": {"float"},
    "hero.options.temperature_clip": {"float"},
    "hero.options.density_weight": {"float"},
    "hero.options.cls_source": NOTHING,
    "hero.options.text": NOTHING,
    "hero.options.remainder": NOTHING,
    "hero.options.overflow": NOTHING,
    "hero.options.score": NOTHING,
    "hero.options.tile_budget": NOTHING,
    "hero_alpha.alpha": {"float"},
    "hero_low.layers": {"list"},
    "hero_high.layers": {"list"},
    "newline_policy.policy": NOTHING,
    "loss.weights.answer": {"float"},
    "loss.weights.kl": {"float"},
    "loss.weights.kl_spatial": {"float"},
    "loss.weights.kl_standardised": {"float"},
    "loss.weights.mse": {"float"},
    "loss.weights.cosine": {"float"},
    "loss.temperature": {"float"},
    "loss.standardise": NOTHING,
    "loss.statistics_pairs": NOTHING,
    "trainer.accelerator": NOTHING,
    "trainer.strategy": TEXT,  # an unknown one is refused when the trainer is made
    "trainer.devices": {"list"},
    "trainer.num_nodes": NOTHING,
    "trainer.precision": NOTHING,
    "trainer.max_epochs": NOTHING,
    "trainer.log_every_n_steps": NOTHING,
    "trainer.callbacks.checkpoint.every_n_train_steps": NOTHING,
    "trainer.callbacks.checkpoint.save_last": NOTHING,
    "trainer.callbacks.checkpoint.save_top_k": NOTHING,
    "trainer.callbacks.checkpoint.enable_version_counter": NOTHING,
    "optim.lr": {"float"},
    "optim.weight_decay": {"float"},
    "optim.betas": OR_NULL,
    "optim.eps": {"float", "null"},
    "optim.warmup": {"float"},
    "checkpoint_activations": NOTHING,
    "channels_last": NOTHING,
    "measure": NOTHING,
    "model.path": TEXT,
    "model.name": TEXT | OR_NULL,
    "model.revision": TEXT | OR_NULL,
    "model.dtype": NOTHING,
    "model.device": TEXT,
    "model.device_map": OR_NULL,
    "model.attn_implementation": NOTHING,
    "model.quantization": OR_NULL,
    "model.pad": NOTHING,
    "model.system_prompt": OR_NULL,
    "model.clip": TEXT | OR_NULL,
    "benchmark.path": TEXT,
    "benchmark.config": TEXT | OR_NULL,
    "benchmark.image_config": TEXT,
    "benchmark.revision": TEXT | OR_NULL,
    "benchmark.split": TEXT,
    "benchmark.protocol": TEXT,
    "benchmark.request": TEXT,
    "benchmark.exif": OR_NULL,  # null: that of image_loading
    "benchmark.language": NOTHING,
    "benchmark.choice": NOTHING,
    "benchmark.normalization": NOTHING,
    "benchmark.ocr": OR_NULL,
    "benchmark.max_new_tokens": NOTHING,
    "benchmark.images": NOTHING,
    "benchmark.layers": {"list"},
    "benchmark.top": NOTHING,
    "benchmark.of": NOTHING,
    "benchmark.batch": NOTHING,
    "benchmark.seed": NOTHING,
    "benchmark.rule": NOTHING,
    "benchmark.questions": NOTHING,
    "benchmark.blank": NOTHING,
    "judge.model": TEXT,
    "judge.base_url": TEXT | OR_NULL,
    "judge.key_variable": TEXT,
    "judge.cache": TEXT,
    "judge.temperature": {"float", "null"},
    "judge.max_tokens": OR_NULL,
    "judge.max_retries": NOTHING,
    "judge.timeout": {"float"},
    "judge.threads": NOTHING,
    "judge.give_up": NOTHING,
    "data.global_batch": NOTHING,
    "data.path": TEXT,
    "data.json": TEXT,
    "data.images": TEXT,
    "data.held_out_share": {"float"},
    "data.train_size": NOTHING,
    "data.held_out_size": NOTHING,
    "data.batch_size": OR_NULL,
    "data.workers": NOTHING,
    "data.pad": NOTHING,
    "data.quadrants": NOTHING,
    "data.questions": NOTHING,
    "data.sizes": {"list"},
    "data.small": NOTHING,
    "data.cache_features": NOTHING,
    "data.cache_path": TEXT,
    "data.cache_dtype": NOTHING,
    "logger.project": TEXT,
    "logger.entity": TEXT | OR_NULL,
    "logger.uri": TEXT | OR_NULL,
    "logger.mode": NOTHING,
    "logger.rows": NOTHING,
    "logger.images": NOTHING,
}
# where a preset takes more or less than its neighbours
BUT = {
    ("benchmark=duts", "benchmark.path"): TEXT | OR_NULL,
    ("benchmark=easyvqa", "benchmark.path"): TEXT | OR_NULL,
    ("benchmark=duts", "benchmark.split"): NOTHING,
    ("data=llava_665k", "data.train_size"): OR_NULL,
    ("data=llava_665k", "data.held_out_size"): OR_NULL,
    **{(f"method={name}", "method.layer"): NOTHING for name in ("two_views", "crop", "vicrop")},
}
# of methods, under method., method.pruner. and method.policy.
OF_METHODS: dict[str, set[str]] = {
    "amplify": NOTHING,
    "saliency": TEXT,
    "p": NOTHING,
    "scale_thresholds": NOTHING,
    "tau_exp": {"float"},
    "tau_drop": {"float"},
    "layer": OR_NULL,
    "seed": NOTHING,
    "retention_ratio": {"float"},
    "ratio": {"float"},
    "tokens_per_view": OR_NULL,
    "alpha": {"float"},
    "low": {"list"},
    "high": {"list"},
    "relative": NOTHING,
    "newline_policy": NOTHING,
    "mode": NOTHING,
    "temperature": {"float"},
    "allocation_layer": OR_NULL,
    "selection_layer": OR_NULL,
    "neighbours": NOTHING,
    "iqr_factor": {"float", "negative"},
    "densify": NOTHING,
    "full_layers": NOTHING,
    "schedule": {"null", "list"},
    "layers": {"list"},
    "metric": NOTHING,
    "rank": NOTHING,
    "fewer": NOTHING,
    "cls_source": NOTHING,
    "fill": NOTHING,
    "region": NOTHING,
    "alone": NOTHING,
    "name": TEXT | OR_NULL,
}
NULLABLE_NEWLINES = ("fastervlm", "globalcom2", "hired")  # null: that of the mode
GIVEN = {
    "model=folder": ["model.path=x"],
    "data=folder": ["data.path=x"],
    "data=llava_665k": ["data.json=x", "data.images=y"],
}
MIXED = {"evaluate": ["model", "benchmark", "method", "logger", "judge"], "train": ["data"]}  # groups whose presets differ


def made_of(file: Path) -> str | None:
    """What a preset says that it is; None for one that takes it from another."""
    match = re.search(r"^_target_: (\S+)", file.read_text(encoding="utf-8"), re.MULTILINE)
    return match[1] if match else None


def one_of_each_schema(group: str) -> list[str]:
    """Presets of a group, one a schema."""
    first: dict[type, Path] = {}
    for file in sorted((CONF / group).glob("*.yaml")):
        if kind := made_of(file):
            first.setdefault(BY_TARGET[kind], file)
    return [f"{group}={file.stem}" for file in first.values()]


GROUPS = {root: [word for group in groups for word in one_of_each_schema(group)] for root, groups in MIXED.items()}
ROUNDS = [(root, "") for root in ("evaluate", "sweep", "train")] + [(root, word) for root, words in GROUPS.items() for word in words]


@functools.cache
def composed(root: str, word: str):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(root, overrides=[w for w in (word, *GIVEN.get(word, [])) if w])


def leaves(node, prefix: str = "") -> list[str]:
    """Dotted keys of the settings that hold values themselves, less what Hydra reads."""
    out = []
    for key in node:
        if str(key).startswith("_"):
            continue
        child = None if OmegaConf.is_interpolation(node, key) or OmegaConf.is_missing(node, key) else node[key]
        if OmegaConf.is_dict(child):
            out += leaves(child, f"{prefix}{key}.")
        else:
            out.append(f"{prefix}{key}")
    return out


def refusal(root: str, word: str, key: str, value: str) -> str | None:
    """The line that a setting of a root config ends in; None where the value is taken."""
    cfg = composed(root, word)
    branch = key.partition(".")[0]
    before = copy.deepcopy(cfg._get_node(branch))
    try:
        for written in prepared([f"{key}={value}"], root):
            override = OverridesParser.create().parse_override(written)
            OmegaConf.update(cfg, str(override.key_or_group), override.value(), merge=True)  # as Hydra does
        check(cfg)
    except UserError as error:
        return str(error)
    except HYDRA_ERRORS as error:
        return translated(error)
    finally:
        cfg[branch] = before
    return None


def meant(word: str, key: str) -> set[str] | None:
    """Kinds of values that a setting takes; None for what is no value of its own: a group, or what a method takes from another group."""
    if (word, key) in BUT:
        return BUT[word, key]
    if key in MEANT:
        return MEANT[key]
    name = key.rpartition(".")[2]
    if key.startswith("method.") and name in OF_METHODS:
        if name == "newline_policy" and any(method in word for method in NULLABLE_NEWLINES):
            return OR_NULL
        if name == "retention_ratio" and "sparsevlm" in word:
            return {"float", "null"}
        if name == "layers" and "sparsevlm" not in word:
            return None
        return OF_METHODS[name]
    return None


# groups, by the last part of their names
NO_VALUES = ("table", "figure", "search", "resolution", "tokensr", "options", "judge", "layers", "image_loading")


@pytest.mark.parametrize(("root", "word"), ROUNDS, ids=[f"{root} {word}".strip() for root, word in ROUNDS])
def test_every_setting_takes_what_is_meant_and_refuses_the_rest_in_one_line(root, word):
    group = word.partition("=")[0]
    keys = [key for key in leaves(composed(root, word)) if not group or key.startswith(f"{group}.")]
    if root == "sweep":  # the rest is evaluate.py's
        keys = [key for key in keys if key not in leaves(composed("evaluate", ""))]
    if not group:  # tried with their presets
        keys = [key for key in keys if key.partition(".")[0] not in MIXED.get(root, [])]
    known = {key: meant(word, key) for key in keys}
    unknown = [key for key, kinds in known.items() if kinds is None and key.rpartition(".")[2] not in NO_VALUES]
    assert not unknown, "settings that this test has no row for"
    for key, kinds in known.items():
        for kind, value in VALUES.items() if kinds is not None else ():
            line = refusal(root, word, key, value)
            if kind in kinds:
                assert line is None, f"{key}={value}: {line}"
            else:
                assert line is not None, f"{key}={value} is taken"
                assert "\n" not in line and key in line, line
                assert "full_key" not in line and "object_type" not in line, line
                if value:
                    assert value in line or kind in ("empty", "list"), line


def test_everything_that_ships_has_a_schema():
    files = [file for group in ("model", "benchmark", "method", "judge", "data", "logger") for file in (CONF / group).glob("*.yaml")]
    callbacks = composed("train", "").trainer.callbacks.values()
    assert {kind for file in files if (kind := made_of(file))} | {callback["_target_"] for callback in callbacks} == set(BY_TARGET)


def test_the_rows_name_settings_that_are_there():
    doors = [(root, "") for root in ROOTS]
    keys = {key for root, word in (*ROUNDS, *doors) for key in leaves(composed(root, word))}
    assert set(MEANT) <= keys | {"benchmark.request", "benchmark.of"}
    assert {f"method.{name}" for name in OF_METHODS} <= keys


@pytest.mark.parametrize(
    ("root", "word", "line"),
    [
        ("evaluate", "batch_size=0", "batch_size must be a whole number of at least 1, got 0"),
        ("evaluate", "limit=ten", "limit must be a whole number of at least 1, or null, got ten"),
        ("evaluate", "limit=true", "limit must be a whole number of at least 1, or null, got true"),
        ("evaluate", "thresholds.tau_exp=1.5", "thresholds.tau_exp must be a number in [0, 1], got 1.5"),
        ("evaluate", "retention_ratio=0", "retention_ratio must be a number in (0, 1], got 0"),
        ("evaluate", "force=1", "force must be true or false, got 1"),
        ("evaluate", "part=valid", "part must be one of all, validation, test, got valid; did you mean validation or all?"),
        ("evaluate", "store=", "store must be a path, got nothing"),
        ("evaluate", "layers.indices=18-12", "layers.indices must be a range of layers such as 12-18"),
        ("evaluate", "layers.indices=[]", "layers.indices must be a range of layers such as 12-18"),
        ("train", "layers.indices=[]", "layers.indices must be a range of layers such as 12-18"),
        ("evaluate", "data_root=/etc/passwd", "data_root must be a folder, or null, got /etc/passwd; it is not a folder"),
        ("evaluate", "layer=range(5,1)", "layer=range(5,1) names no value, so nothing would run"),
        ("evaluate", "layers=12", "layers=12 is not a preset; write layer=12 for one layer"),
        ("evaluate", "thresholds=[high_exp,low_drop]", "thresholds must be one preset, got [high_exp,low_drop]; add -m and write"),
        ("evaluate", "thresholds=null", "thresholds must be one preset, got null"),
        ("evaluate", "+thresholds=default", "write thresholds=default"),
        ("evaluate", "~limit", "~limit would take a setting away"),
        ("evaluate", "layers.indices=[1", "layers.indices=[1 is not understood; quote a value"),
        ("evaluate", "+foo=1", "foo is not a setting"),
        ("train", "+limit=3", "limit is not a setting"),
        ("train", "optim.lr=1e999", "optim.lr must be a number above 0, got inf"),
        ("train", "optim.warmup=2", "optim.warmup must be a number in [0, 1), got 2"),
        ("train", "optim.betas=[0.9,1]", "optim.betas must be two numbers in [0, 1), or null, got [0.9,1]"),
        ("train", "optim.optimizer=adam", "optim.optimizer must be a group of settings with a _target_, got adam"),
        ("train", "trainer.lr=1e-4", "trainer.lr is now optim.lr; write optim.lr=..."),
        ("train", "trainer.epochs=2", "trainer.epochs is now trainer.max_epochs; write trainer.max_epochs=..."),
        ("train", "trainer.callbacks.checkpoint.every_n_train_steps=0", "every_n_train_steps must be a whole number of at least 1, got 0"),
        ("evaluate", "layers.indices=0-99999999999", "layers.indices must be a range of layers such as 12-18"),
        ("evaluate", "method.layers=5", "method.layers must be a group of settings, or null, got 5"),
        ("evaluate", "method.resolution=abc", "method.resolution must be a group of settings, or null, got abc"),
        ("evaluate", "=3", "=3 is not understood"),
        ("evaluate", "benchmark.images=99999999999", "benchmark.images must be a whole number in [1, 100000]"),
        ("sweep", "share=abc", "share must be true or false, got abc"),
        ("evaluate", "store=${nope}", "Interpolation key 'nope' not found"),
    ],
)
def test_the_line_says_the_rule_the_value_and_the_cure(root, word, line):
    key, _, value = word.partition("=")
    try:
        written = prepared([word], root)
    except UserError as error:
        assert line in str(error)
        return
    if word.startswith("+"):  # what Hydra appends
        cfg = composed(root, "").copy()
        OmegaConf.update(cfg, key.lstrip("+"), value, force_add=True)
        with pytest.raises(UserError) as found:
            check(cfg)
        assert line in str(found.value)
        return
    assert written
    assert line in (refusal(root, "", key, value) or "")
