"""What a wrong setting is answered with: the rule, the value and the cure."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf
from support.composing import composed, line_of

from blink_exp.errors import UserError
from blink_exp.settings.check import check
from blink_exp.settings.words import prepared


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
        ("evaluate", "grid=3", "grid=3 is not a preset; did you mean 3x3?"),
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
        ("evaluate", "retention_ratio=1e-9", "retention_ratio must be a number in (0, 1], got 1e-09; use at least 1e-05"),
        ("evaluate", "layer=1000000", "layer must be a whole number of at least 0, or null, got 1000000; use at most 999"),
        ("evaluate", "hero_low.layers=[6,1000000]", "and not empty, got [6,1000000]; use at most 1000"),
        ("evaluate", "+_foo=1", "_foo is not a setting"),
        ("evaluate", "+hydra.foo=1", "hydra.foo is not a setting; use one of"),
        ("train", "++hydra.run.dirr=1", "hydra.run.dirr is not a setting; did you mean dir"),
        ("sweep", "+hydra.launcher.jobs=1", "hydra.launcher.jobs is not a setting; write hydra.launcher.jobs=... without +"),
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
        with pytest.raises(UserError) as caught:
            check(cfg)
        assert line in str(caught.value)
        return
    assert written
    assert line in (line_of(root, "", key, value) or "")


def test_a_method_s_setting_that_is_too_large_names_the_limit():
    line = line_of("evaluate", "method=prumerge_plus", "method.densify", "100000")
    assert line == "method.densify must be a whole number of at least 1, got 100000; use at most 10000"


@pytest.mark.parametrize(
    ("root", "words", "line"),
    [
        ("evaluate", "hydra/launcher=joblib", "hydra/launcher=joblib is for a multirun; add -m, or leave it away"),
        ("sweep", "hydra.sweeper.n_trials=3 table=x", "hydra.sweeper.n_trials=3 is for a multirun; add -m"),
        ("view", "devices=2", "devices=2 is for python evaluate.py and python sweep.py; view uses one device"),
        ("rescore", "devices=auto", "rescore uses one device"),
    ],
)
def test_a_setting_that_the_command_would_not_read_is_one_line(root, words, line):
    with pytest.raises(UserError) as error:
        prepared(words.split(), root)
    assert line in str(error.value)


@pytest.mark.parametrize(
    ("root", "words"),
    [
        ("evaluate", "--cfg hydra hydra/launcher=joblib"),
        ("sweep", "-m hydra/launcher=joblib hydra.sweep.dir=a seed=1,2"),
        ("view", "devices=1"),
        ("sweep", "--info hydra/launcher=joblib"),
        ("sweep", "--hydra-help hydra/launcher=joblib"),
        ("sweep", "hydra.mode=MULTIRUN hydra/launcher=joblib seed=1,2"),
        ("train", "-m layer=3,4 hydra.run.dir=a"),
        ("evaluate", "devices=2 hydra.run.dir=a"),
    ],
)
def test_what_the_command_reads_is_taken(root, words):
    assert prepared(words.split(), root)


def test_all_settings_that_must_be_given_are_named_together():
    line = line_of("compare", "", "seed", "1")
    assert line.startswith("predictions and against must be given: predictions=... (a file") and line.endswith(" against=... (a path)")


@pytest.mark.parametrize("word", ["+hydra.job.env_set.X=1", "+hydra.job_logging.x=1", "hydra.verbose=true"])
def test_what_hydra_reads_may_be_added(word):
    assert prepared([word], "evaluate") == [word]
