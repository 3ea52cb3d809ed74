"""Settings as values: Hydra's configs end at the commands, and what travels below is plain."""

from __future__ import annotations

import ast
import dataclasses

import pytest
import yaml
from support.scripts import ROOT

from blink_exp.errors import UserError
from blink_exp.settings.build import build
from blink_exp.settings.compose import composed, method_preset
from blink_exp.settings.roots import PointSettings, SweepSettings
from blink_exp.settings.values import as_type, from_plain, read_settings, to_yaml

DOORS = ("settings", "commands", "cli.py", "api", "studies/job_groups.py", "studies/sweep_folder.py")


def callbacks() -> set[str]:
    """Files of the classes that conf/ gives to Hydra as callbacks."""
    roots = (yaml.safe_load(path.read_text(encoding="utf-8")) for path in (ROOT / "conf").glob("*.yaml"))
    targets = {c["_target_"] for root in roots for c in (root.get("hydra") or {}).get("callbacks", {}).values()}
    return {"/".join(target.split(".")[1:-1]) + ".py" for target in targets}


def test_hydra_s_configs_are_known_at_the_doors_alone():
    assert callbacks()
    users = set()
    for path in sorted((ROOT / "blink_exp").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "omegaconf":
                users.add(path.relative_to(ROOT / "blink_exp").as_posix())
            if isinstance(node, ast.Import):
                assert not any(a.name.startswith("omegaconf") for a in node.names), path
    assert {user for user in users if not user.startswith(DOORS)} <= callbacks()
    assert users & callbacks() and any(user.startswith("settings/") for user in users)  # the test sees what it looks for


def kinds(value) -> set[type]:
    if isinstance(value, dict):
        return {dict} | {kind for inner in value.values() for kind in kinds(inner)}
    if isinstance(value, list):
        return {list} | {kind for inner in value for kind in kinds(inner)}
    return {type(value)}


@pytest.mark.parametrize("words", [["method=blink_hero"], ["benchmark=mme", "judge=openai"], ["table=blink_table3", "search=blink"]])
def test_values_are_plain_and_come_back_from_their_file(words, tmp_path):
    settings = composed("sweep", words)
    assert isinstance(settings, SweepSettings)
    assert kinds(dataclasses.asdict(settings)) <= {dict, list, str, int, float, bool, type(None)}
    point = as_type(PointSettings, settings)
    (tmp_path / "config.yaml").write_text(to_yaml(point), encoding="utf-8")
    assert from_plain(PointSettings, read_settings(tmp_path / "config.yaml", "")) == point
    assert not hasattr(point, "share") and "${" not in to_yaml(point)


def test_a_preset_takes_its_values_from_the_settings_that_are_there():
    settings = composed("evaluate", ["thresholds=high_exp", "layer=7", "retention_ratio=0.3"])
    assert method_preset("blink", settings) == settings.method
    pair = method_preset("blink_hero", settings)
    assert (pair["pruner"]["retention_ratio"], pair["policy"]["tau_exp"], pair["policy"]["layers"]["indices"]) == (0.3, 0.7, [7])


def test_what_a_constructor_refuses_is_its_own_line():
    with pytest.raises(UserError, match="^benchmark.protocol=llava does not exist for chartqa"):
        build(composed("evaluate", ["benchmark=chartqa", "benchmark.protocol=llava"]).benchmark)
    assert build({"_target_": "builtins.dict", "a": 1}) == {"a": 1}
    assert build({"_target_": "builtins.dict", "a": 1}, [("b", 2)]) == {"b": 2, "a": 1}
