"""docs/config.md is what the schemas and conf/ say today, whole, and with a meaning for every setting."""

from __future__ import annotations

import re
import shutil

import pytest
from support.scripts import ROOT

from blink_exp.settings import reference
from blink_exp.settings.check import fields
from blink_exp.settings.commented import Preset, Value
from blink_exp.settings.names import groups, settings
from blink_exp.settings.roots import ROOTS

PAGE = (ROOT / "docs" / "config.md").read_text(encoding="utf-8")
ROWS = [line.strip("| ").split(" | ") for line in re.findall(r"^\| `[\w.]+` \|.*$", PAGE, flags=re.M)]
ROWS = [[cell.strip() for cell in row] for row in ROWS if len(row) > 3]


@pytest.mark.slow
def test_the_page_is_current():
    assert reference.page() == PAGE, "run: python -m blink_exp.settings.reference > docs/config.md"


@pytest.mark.parametrize("root", ROOTS)
def test_every_setting_of_a_command_is_on_it(root):
    named = {row[0].strip("`") for row in ROWS}
    wanted = {key for key in settings(ROOTS[root]) if key not in groups(ROOTS[root])}
    wanted = {key for key in wanted if not key.startswith(("method.pruner.", "method.policy."))}  # those of method.
    assert sorted(wanted - named - {"trainer._target_", "trainer.callbacks"}) == []
    assert len(wanted) > 50


def test_every_setting_has_a_type_and_a_meaning():
    assert [row[0] for row in ROWS if len(row) != 5 or not row[1] or not row[4]] == []
    assert len(ROWS) > 250


def test_types_ranges_and_defaults_are_those_of_schema_and_preset():
    rows = {row[0].strip("`"): row[1:4] for row in ROWS}
    assert rows["thresholds.tau_exp"] == ["number", "[0, 1]", "`0.5`"]
    assert rows["limit"] == ["whole number or null", "at least 1", "`null`"]
    assert rows["batch_size"][:2] == ["whole number", "at least 1"]
    assert rows["resolution.policy"] == ["text", "threshold, cycle, expand_once, copy", "`threshold`"]
    assert rows["loss.temperature"][1] == "(0, 1000000]"
    assert rows["share"] == ["true or false", "", "`true`"]
    assert rows["predictions"][2] == "must be given"


@pytest.mark.slow
def test_the_page_follows_the_files(tmp_path):
    folder = tmp_path / "conf"
    shutil.copytree(ROOT / "conf", folder)
    path = folder / "thresholds" / "default.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace("tau_exp: 0.5 # ", "tau_exp: 0.51 # so to speak "), encoding="utf-8")
    (folder / "thresholds" / "extra.yaml").write_text("# One more.\ndefaults: [default, _self_]\ntau_drop: 0.2\n", encoding="utf-8")
    text = reference.page(folder)
    assert re.search(r"\| `thresholds.tau_exp` \| number \| \[0, 1\] \| `0.51` \| so to speak ", text)
    assert "| `extra` | One more. | `tau_drop: 0.2` |" in text


def test_a_preset_inherits_comments_and_its_own_win():
    presets = {
        "a": Preset("a", "", {"x": Value("1", "of a"), "y": Value("1", "of a")}),
        "b": Preset("b", "", {"x": Value("2", ""), "y": Value("2", "of b")}, parents=("a",)),
    }
    assert presets["b"].merged(presets).values == {"x": Value("2", "of a"), "y": Value("2", "of b")}


def test_fields_of_roots_are_settings_or_groups():
    for root in ROOTS.values():
        assert all(name in settings(root) or reference._is_group(root, name) for name in fields(root))
