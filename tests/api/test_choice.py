"""Methods as Python objects: the settings and defaults of conf/method, checked where they are given."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest
from support.refusals import refusal
from support.scripts import ROOT

import blink_exp
from blink_exp.api import stubs
from blink_exp.api.choice import PRESETS, MethodChoice, settings_of
from blink_exp.settings.compose import composed_plain
from blink_exp.settings.reference import method_settings


def test_every_method_has_a_constructor_that_the_package_exports():
    assert sorted(PRESETS.values()) == sorted(path.stem for path in (ROOT / "conf" / "method").glob("*.yaml"))
    assert set(PRESETS) < set(blink_exp.__all__)
    for name in blink_exp.__all__:
        assert getattr(blink_exp, name).__name__ == name


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
def test_a_constructor_documents_the_settings_of_its_preset(name):
    made = getattr(blink_exp, name)()
    parameters = inspect.signature(getattr(blink_exp, name)).parameters
    settings = {key: value for key, value in made.node.items() if not key.startswith("_")}
    assert {key: parameter.default for key, parameter in parameters.items()} == settings
    assert {key: type(parameter.annotation) for key, parameter in parameters.items()} == dict.fromkeys(settings, str)
    assert PRESETS[name] in getattr(blink_exp, name).__doc__


@pytest.mark.slow
@pytest.mark.parametrize(
    ("made", "words"),
    [
        ("ThumbnailPlusTile()", ["method=thumbnail_plus_tile"]),
        ("Crop()", ["method=crop"]),
        (
            "HERO(tokens=128, alpha=0.25, low=range(4, 9))",
            ["method=hero", "tokens=128", "hero_alpha.alpha=0.25", "hero_low.layers=[4,5,6,7,8]"],
        ),
        ("HERO(options={'allocation': 'uniform'})", ["method=hero", "hero=uniform"]),
        ("HERO(tokens='1/3')", ["method=hero", "tokens=1/3"]),
        ("Blink(layers=range(12, 19))", ["method=blink", "layers.indices=[12,13,14,15,16,17,18]"]),
        ("Blink(layers='11-17', tau_exp=1)", ["method=blink", "layers=11-17", "thresholds.tau_exp=1"]),
        ("Blink(layers={'indices': [3], 'relative': False})", ["method=blink", "layer=3"]),
        ("Blink(resolution='cycle', p=3, seed=2)", ["method=blink", "resolution=cycle", "grid.p=3", "seed=2"]),
        ("Blink(resolution={'interpolate': False})", ["method=blink", "resolution.interpolate=false"]),
        ("Blink(tokensr='closeup')", ["method=blink", "tokensr=closeup"]),
        ("Blink(tokensr=Path('outputs/x/tokensr'))", ["method=blink", "tokensr.path=outputs/x/tokensr"]),
        ("FastV(full_layers=3, retention_ratio=0.5)", ["method=fastv", "method.full_layers=3", "retention_ratio=0.5"]),
        ("SparseVLM(layers=(2, 6), schedule=[300, 200])", ["method=sparsevlm", "method.layers=[2,6]", "method.schedule=[300,200]"]),
        (
            "Pair(pruner=FasterVLM(), policy=DART(), tokens=48)",
            ["method=pair", "method/pruner=fastervlm", "method/policy=dart", "method.tokens=48"],
        ),
        ("BlinkHERO(policy=BlinkInterp())", ["method=blink_hero", "method/policy=blink_interp"]),
        ("BlinkHERO(policy='blink_interp')", ["method=blink_hero", "method/policy=blink_interp"]),
    ],
)
def test_settings_mean_what_they_mean_on_the_command_line(made, words):
    node = eval(made, {"Path": Path} | {name: getattr(blink_exp, name) for name in PRESETS}).node
    wanted = composed_plain("evaluate", words)
    assert node == wanted["method"]


@pytest.mark.parametrize(
    ("made", "line"),
    [
        ("HERO(token=128)", "HERO.token is not a setting; did you mean tokens"),
        ("Blink(tau_exp=2)", "Blink.tau_exp must be a number in [0, 1], got 2"),
        ("Blink(tau_exp='high')", "Blink.tau_exp must be a number in [0, 1], got high"),
        ("Blink(amplify=3)", "Blink.amplify must be true or false, got 3"),
        ("Blink(layers=[-1])", "Blink.layers.indices must be a range of layers"),
        ("Blink(layers={'index': [3]})", "Blink.layers.index is not a setting; did you mean indices"),
        ("Blink(layers=object())", "Blink.layers.indices must be a range of layers"),
        ("Blink(resolution='cycel')", "resolution=cycel is not a preset; did you mean cycle"),
        ("Blink(resolution=3)", "Blink.resolution must be a mapping of its settings"),
        ("HERO(tokens=128, retention_ratio=0.5)", "both set the budget; give one of them"),
        ("HERO(tokens=0)", "HERO.tokens must be a whole number of tokens from 1"),
        ("HERO(low=[])", "HERO.low must be a list of which each entry is"),
        ("HERO(options={'remainder': 'all'})", "HERO.options.remainder must be one of paper, largest_remainder, got all"),
        ("VisionZip(mode='refrence')", "VisionZip.mode must be one of paper, reference, got refrence; did you mean reference"),
        ("FastV(full_layers=object())", "FastV.full_layers must be a whole number"),
        ("Pair(pruner='heroo')", "Pair.pruner=heroo is not a preset; did you mean hero"),
        ("Pair(pruner=3)", "Pair.pruner must be a method such as HERO() or FastV(), or the name of a preset, got 3"),
        ("Blink(layers={12, 'x'})", "Blink.layers.indices must be a range of layers"),
        ("Blink(layers=set())", "Blink.layers.indices must be a range of layers"),
        ("HERO(retention_ratio=10**400)", "HERO.retention_ratio must be a number in (0, 1], got 1000"),
        ("Untouched(tokens=3)", "Untouched.tokens is not a setting"),
    ],
)
def test_a_wrong_setting_is_one_line_where_it_is_given(made, line):
    assert line in refusal(lambda: eval(made, {name: getattr(blink_exp, name) for name in PRESETS}))


def test_methods_are_compared_by_what_they_are_and_shown_as_they_were_made():
    assert blink_exp.HERO(alpha=0.5) == blink_exp.HERO() != blink_exp.HERO(alpha=0.4)
    assert repr(blink_exp.Blink(layers="11-17", p=3)) == "Blink(layers='11-17', p=3)"
    assert isinstance(blink_exp.FastV(), MethodChoice) and "Untouched" in repr(blink_exp.Untouched())


def test_one_method_s_settings_do_not_leak_into_the_next():
    blink_exp.Blink(layers=[3], resolution={"interpolate": False})
    assert blink_exp.Blink().node["layers"]["indices"] == "12-18" and blink_exp.Blink().node["resolution"]["interpolate"] is True


def test_help_says_what_each_setting_does_and_how_the_command_line_calls_it():
    assert (
        "    low: CLIP layers (1-based) whose CLS attention" in (text := blink_exp.HERO.__doc__)
        and "(command line: hero_low.layers)" in text
    )
    assert "    tokens: " in text and "see `" not in text
    for name, preset in PRESETS.items():
        meanings = {setting: meaning for setting, (meaning, _) in method_settings(preset).items()}
        assert set(meanings) == set(settings_of(preset)), name
        assert not [text for text in meanings.values() if not text or text.startswith(("or ", "see `"))], name
    assert "method/pruner=" not in blink_exp.Pair.__doc__ and "preset's name" in blink_exp.Pair.__doc__ and blink_exp.HERO().__doc__
    assert "Args:" not in blink_exp.Untouched.__doc__


def test_what_type_checkers_read_is_current():
    assert (ROOT / "blink_exp" / "api" / "methods.pyi").read_text(encoding="utf-8") == stubs.stub()


def test_importing_the_package_imports_nothing_else():
    code = "import sys, blink_exp; before = set(sys.modules); print(sorted(m for m in before if m.partition('.')[0] in "
    code += "{'torch', 'transformers', 'hydra', 'omegaconf', 'PIL', 'numpy'} or m.startswith('blink_exp.')), dir(blink_exp).count('HERO'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout == "[] 1\n", done.stderr
    with pytest.raises(AttributeError, match="has no attribute 'Hero'"):
        _ = blink_exp.Hero
