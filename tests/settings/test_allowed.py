"""What settings may call: names outside of the list are refused in one line, wherever they come from, and nothing is run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hydra._internal.utils import create_config_search_path
from hydra.types import RunMode
from omegaconf import OmegaConf
from support import scripts
from support.composing import CONF
from support.refusals import one_line_of, refusal

from blink_exp.evaluation.results import settings_of
from blink_exp.settings import allowed, compose
from blink_exp.settings.allowed import VARIABLE, check_targets, is_allowed, without_allowed
from blink_exp.settings.build import build
from blink_exp.settings.compose import composed
from blink_exp.settings.job_loader import CheckedLoader
from blink_exp.settings.words import prepared

FOREIGN = (
    *(
        "os.system",
        "subprocess.call",
        "builtins.eval",
        "builtins.exec",
        "pickle.loads",
        "torch.load",
        "runpy.run_path",
        "importlib.import_module",
    ),
    *("hydra.utils.call", "hydra.utils.instantiate", "hydra.utils.get_method", "hydra.utils.get_object", "hydra.utils.get_class"),
    *("hydra._internal.utils._locate", "hydra.experimental.callbacks.PickleJobInfoCallback", "hydra.main"),
    # names that a module of a trusted package imports, or that lead out of what it defines
    *("blink_exp.cli.os.system", "blink_exp.evaluation.results.subprocess.run", "blink_exp.backbone.load.torch.hub.load"),
    *("blink_exp.methods.blink.configure.__globals__", "blink_exp.evaluation.results._git", "blink_exp.files.write_text"),
    *("torch.optim.adamw.torch.load", "torch.hub.load", "pytorch_lightning.callbacks.os.system", "transformers.pipeline"),
    *("hydra_plugins.blink_exp_shared.launcher.Sequence", "logging.StreamHandler", "blink_exp", "blink_exp.", ".", "", "a b", "os;system"),
)
KNOWN = (
    *("torch.optim.SGD", "torch.optim.lr_scheduler.CosineAnnealingLR", "transformers.get_linear_schedule_with_warmup"),
    *("pytorch_lightning.Trainer", "pytorch_lightning.callbacks.EarlyStopping", "optuna.samplers.TPESampler"),
    *("hydra._internal.core_plugins.basic_launcher.BasicLauncher", "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher"),
    *("blink_exp.methods.mine.configure", "blink_exp.studies.jobs.Jobs", "blink_exp.judge.Judge"),
)


@pytest.fixture(autouse=True)
def nothing_by_hand(monkeypatch):
    monkeypatch.setenv(VARIABLE, "")


@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_name_is_none_that_settings_may_call(name):
    assert not is_allowed(name)
    line = refusal(lambda: check_targets({"x": [{"y": {"_target_": name}}]}))
    assert line.startswith("x[0].y._target_=")


@pytest.mark.parametrize("name", KNOWN)
def test_what_the_groups_need_is_allowed(name):
    assert is_allowed(name)


def targets(node) -> set[str]:
    return {str(entry.raw) for entry in allowed.entries(node) if entry.key == "_target_"}


def test_everything_that_ships_is_allowed():
    files = [file for file in CONF.rglob("*.yaml") if "_target_" in file.read_text(encoding="utf-8")]
    names = {name for file in files for name in targets({"group": OmegaConf.load(file)})}
    assert len(names) > 60 and all(map(is_allowed, names))


@pytest.mark.parametrize(
    ("node", "name"),
    [
        ({"_args_": [{"_target_": "os.system"}]}, "_args_[0]._target_"),
        ({"a": "${oc.create:{_target_:os.system}}"}, "a._target_"),
        ({"a": "${oc.decode:'{b: {_target_: os.system}}'}"}, "a.b._target_"),
        ({"n": "os.system", "_target_": "${n}"}, "_target_"),
        ({"_target_": ["os", "system"]}, "_target_"),
        ({"a": "${oc.create:{_target_:${nowhere}}}"}, "a"),
        (
            {"hydra": {"job_logging": {"handlers": {"x": {"class": "subprocess.Popen", "args": ["true"]}}}}},
            "hydra.job_logging.handlers.x.class",
        ),
        ({"hydra": {"hydra_logging": {"formatters": {"x": {"()": "os.system"}}}}}, "hydra.hydra_logging.formatters.x.()"),
        ({"hydra": {"job_logging": {"handlers": {"x": {"stream": "ext://os.environ"}}}}}, "hydra.job_logging.handlers.x.stream"),
        ({"hydra": {"sweeper": {"custom_search_space": "os.system"}}}, "hydra.sweeper.custom_search_space"),
    ],
)
def test_names_are_found_wherever_they_hide(node, name):
    for config in (node, OmegaConf.create(node)):
        assert refusal(lambda config=config: check_targets(config)).startswith(f"{name}=") or name == "_target_"


@pytest.fixture
def conf(tmp_path) -> Path:
    """A config folder with presets that nobody should choose."""
    for name, text in {
        "method/evil.yaml": f"_target_: os.system\ncommand: touch {tmp_path / 'marker'}\n",
        "opening/itself.yaml": "# @package _global_\nallow_targets: [os.system]\nmethod: {_target_: os.system}\n",
    }.items():
        (tmp_path / "conf" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "conf" / name).write_text(text, encoding="utf-8")
    return tmp_path / "conf"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("root", "words", "setting"),
    [
        ("evaluate", ["+x={_target_:hydra.utils.get_method,path:os.system}"], "x._target_=hydra.utils.get_method"),
        ("evaluate", ["+x._args_=[{_target_:os.system}]"], "x._args_[0]._target_=os.system"),
        ("sweep", ["hydra.mode=MULTIRUN", "hydra.launcher._target_=os.system"], "hydra.launcher._target_=os.system"),
        ("train", ["optim.optimizer._target_=os.system"], "optim.optimizer._target_=os.system"),
        ("train", ["+trainer.callbacks.x._target_=os.system"], "trainer.callbacks.x._target_=os.system"),
        ("rescore", ["predictions=x", "benchmark._target_=os.system"], "benchmark._target_=os.system"),
        ("view", ["sample=x", "method._target_=os.system"], "method._target_=os.system"),
        ("evaluate", ["hydra.searchpath=[file://CONF]", "method=evil"], "method._target_=os.system"),
    ],
)
def test_what_hydra_composes_is_checked_before_anything_is_made_of_it(root, words, setting, conf):
    loader = CheckedLoader(create_config_search_path(str(CONF)))
    words = prepared([word.replace("CONF", str(conf)) for word in words], root)
    assert refusal(lambda: loader.load_configuration(root, words, RunMode.RUN)).startswith(setting)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "setting"),
    [
        (["evaluate.py", "method._target_=subprocess.call"], "method._target_=subprocess.call"),
        (["evaluate.py", "+hydra.callbacks.x={_target_:os.system,command:'touch MARKER'}"], "hydra.callbacks.x._target_=os.system"),
        (
            ["evaluate.py", "+hydra.job_logging.handlers.x={class:subprocess.Popen,args:[touch,MARKER]}"],
            "hydra.job_logging.handlers.x.class=subprocess.Popen",
        ),
        (["sweep.py", "-m", "--config-dir", "CONF", "limit=1,2", "method=evil"], "method._target_=os.system"),
        (["evaluate.py", "--config-dir", "CONF", "+opening=itself"], "allow_targets"),
        (["evaluate.py", "--experimental-rerun", "x/config.pickle"], "--experimental-rerun"),
    ],
)
def test_a_command_refuses_it_in_one_line_and_runs_nothing(words, setting, conf, tmp_path):
    out = [f"hydra.run.dir={tmp_path / 'run'}", f"hydra.sweep.dir={tmp_path / 'sweep'}"]
    line = one_line_of([word.replace("MARKER", str(tmp_path / "marker")).replace("CONF", str(conf)) for word in words] + out)
    assert line.startswith(f"error: {setting}"), line
    assert [path.name for path in tmp_path.iterdir()] == ["conf"]


@pytest.mark.slow
def test_a_job_of_a_multirun_fails_alone_and_runs_nothing(tmp_path):
    words = ["sweep.py", "-m", "method=none", "benchmark._target_=blink_exp.benchmarks.mosaic_mme.MosaicMME,os.system", "limit=2"]
    done = scripts.run([*words, f"hydra.sweep.dir={tmp_path / 'sweep'}", f"store={tmp_path / 'store'}"])
    assert done.returncode == 2 and "error: 1 of 2 points failed" in done.stderr, done.stderr
    assert "benchmark._target_=os.system is nothing that settings may call" in done.stderr


def test_a_stored_config_calls_no_more_than_another(tmp_path):
    settings = composed("evaluate", ["method=none"])
    text = compose.plain(compose.config("evaluate", ["method=none"])) | {"benchmark": {"_target_": "os.system", "command": "true"}}
    (tmp_path / "config.yaml").write_text(json.dumps(text), encoding="utf-8")
    assert settings_of(tmp_path).model == settings.model
    line = refusal(lambda: build(settings_of(tmp_path).benchmark))
    assert line.startswith("_target_=os.system is nothing that settings may call")


def test_the_command_line_opens_what_it_names_and_nothing_else():
    assert without_allowed(["limit=2", "allow_targets=[collections.Counter,a.b]"]) == ["limit=2"]
    assert is_allowed("collections.Counter") and is_allowed("a.b") and not is_allowed("collections.Counter.fromkeys")
    assert build({"_target_": "collections.Counter", "a": 1}) == {"a": 1}
    assert "got os system" in refusal(lambda: without_allowed(["allow_targets=[os system]"]))
    assert composed("evaluate", ["allow_targets=x.y", "method=none"]).method["_target_"].endswith("none") and is_allowed("x.y")


def test_a_package_is_found_behind_a_namespace_of_its_name(tmp_path, monkeypatch):
    """``pip install -e mine`` in the folder that holds mine/: there ``import mine`` finds the folder, a namespace, first."""
    (tmp_path / "outer" / "mine_apart").mkdir(parents=True)
    (tmp_path / "outer" / "mine_apart" / "methods.py").write_text("import os\n\ndef mine():\n    pass\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path / "outer"))
    monkeypatch.setattr(allowed, "added_packages", lambda: frozenset(["mine_apart"]))
    assert is_allowed("mine_apart.methods.mine")
    assert not is_allowed("mine_apart.methods.os.system") and not is_allowed("mine_apart.methods")
