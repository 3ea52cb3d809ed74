"""The words of a command line: flags anywhere, text letter by letter, and Hydra's errors in this project's words."""

from __future__ import annotations

import string

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from support.refusals import one_line_of

from blink_exp.errors import UserError
from blink_exp.settings.check import check_values
from blink_exp.settings.compose import composed
from blink_exp.settings.names import text_settings
from blink_exp.settings.roots import EvaluateSettings, SweepSettings
from blink_exp.settings.words import arranged, prepared, quoted, word


def test_flags_may_stand_between_settings():
    words = ["thresholds=high_exp", "-m", "--config-dir", "a=b", "limit=4"]
    assert arranged(words) == ["-m", "--config-dir", "a=b", "thresholds=high_exp", "limit=4"]


@pytest.mark.parametrize("flags", [("-m", "--cfg", "job"), ("--help", "--multirun"), ("-c", "job", "--info")])
def test_flags_that_hydra_takes_one_of_are_one_line_together(flags):
    with pytest.raises(UserError, match="cannot be combined"):
        prepared([*flags, "limit=2"], "sweep")
    assert prepared(["-m", "--multirun", "limit=2"], "sweep")


TEXTS = st.text(string.ascii_letters + string.digits + " =,[]{}()#~:;'\"\\/.+-*?@%&|<>!^é", min_size=1).filter(lambda text: text.strip())


@pytest.mark.slow
@settings(max_examples=60)
@given(TEXTS)
@example("7e31021")
@example("1.10")
@example("a=b,c")
@example("[x]")
@example("#1")
@example("x~y")
@example("it's")
@example("back\\")
@example("true")
@example("{a: 1}")
def test_text_settings_arrive_letter_by_letter(text):
    """Through Hydra's grammar and into a typed config, which is all that composing does with a value."""
    if text in ("null", "???") or (len(text) > 1 and text[0] == text[-1] and text[0] in "'\""):
        return  # what is quoted already is Hydra's to read
    cfg = OmegaConf.structured(SweepSettings)
    for written in (*prepared([f"store={text}", f"report={text}"], "sweep"), word("train", text)):
        override = OverridesParser.create().parse_override(written)
        OmegaConf.update(cfg, str(override.key_or_group), override.value())
    assert cfg.store == cfg.report == cfg.train == text


@pytest.mark.slow
def test_text_arrives_letter_by_letter_through_all_of_hydra():
    for text in ("7e31021", "a=b,c", "[x] {a: 1} #~", "it's", "back\\"):
        assert composed("sweep", [f"store={text}"]).store == text


def test_every_path_and_every_name_is_text():
    wanted = {
        *("store", "report", "output", "resume", "against", "data_root", "sample", "image", "question", "predictions", "train"),
        *("model.path", "model.revision", "model.name", "model.clip", "benchmark.path", "benchmark.revision", "benchmark.split"),
        *("tokensr.path", "data.path", "data.json", "data.images", "data.cache_path", "judge.cache", "judge.base_url"),
        *("logger.project", "logger.uri", "hydra.run.dir", "hydra.sweep.dir"),
    }
    assert wanted <= text_settings()
    assert not {"batch_size", "thresholds.tau_exp", "layers.indices", "part", "force", "compare"} & text_settings()


def test_a_comma_separates_values_in_a_multirun_unless_it_is_a_path_that_is_there(tmp_path):
    (tmp_path / "a,b").mkdir()
    assert quoted(["-m", "model.revision=main,7e31021"]) == ["-m", "model.revision='main','7e31021'"]
    assert quoted(["-m", f"benchmark.path={tmp_path}/a,b"]) == ["-m", f"benchmark.path='{tmp_path}/a,b'"]
    assert quoted(["-m", "model.path=choice(a,b)"]) == ["-m", "model.path=choice(a,b)"]
    assert quoted(["model.path=a,b"]) == ["model.path='a,b'"]


@pytest.mark.parametrize("setting", ["hydra.sweep.dir", "hydra.sweep.subdir", "hydra.run.dir"])
@pytest.mark.parametrize("path", ["a,b", "a,b[c]", "choice(a,b)", "a=b,c#~"])
def test_a_comma_in_hydra_s_own_folders_is_no_sweep(setting, path):
    assert prepared(["-m", f"{setting}={path}"], "sweep") == ["-m", f"{setting}='{path}'"]


@pytest.mark.slow
def test_references_work_in_paths_and_a_tilde_is_the_home(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    assert composed("evaluate", ["store=${data_root}/x", "data_root=/"]).store == "//x"
    assert composed("evaluate", ["store=~/points"]).store == "/home/somebody/points"
    assert composed("view", ["question=~/points ${x}"]).question == "~/points ${x}"


def test_nothing_chosen_is_what_optional_groups_are_anyway():
    assert prepared(["table=null", "figure=null", "search=null", "limit=2"], "sweep") == ["limit=2"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["evaluate.py", "--config-dir", "CONF", "thresholds=mine", "grid.p=5"], "grid.p=5 does not divide"),  # the preset is found
        (["evaluate.py", "--config-dir", "CONF", "thresholds=mime"], "thresholds=mime is not a preset; did you mean mine"),
        (["evaluate.py", "--config-dir", "CONF", "thresholds=odd"], "thresholds.tau_dorp is not a setting; did you mean tau_drop"),
        (["evaluate.py", "--config-dir", "CONF", "thresholds=wrong"], "thresholds.tau_exp must be a number in [0, 1], got high"),
        (["evaluate.py", "hydra.searchpath=[file://CONF]", "thresholds=mine", "grid.p=5"], "grid.p=5 does not divide"),
        (["evaluate.py", "limit=4,8"], "limit=4,8 has several values; add -m to run one after the other"),
        (["sweep.py", "limit=2", "-m", "thresholds=high_exp,low_drop", "batch_size=abc"], "batch_size must be a whole number"),
        (["sweep.py", "-m", "layer=range(5,1)"], "layer=range(5,1) names no value"),
        (["evaluate.py", "blah"], "blah is not understood; write key=value"),
        (["evaluate.py", "-m", "seed=1,2", "hydra/launcher=nope"], "hydra/launcher=nope is not a preset"),
        (["evaluate.py", "model=folder"], "model.path must be given: model.path=..."),
        (["evaluate.py", "model.path=12"], "model.path=12 is neither a folder nor a hub id"),
        (["train.py", "limit=3"], "limit is not a setting"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_presets_of_ones_own_count_and_hydra_speaks_plainly(words, line, tmp_path):
    folder = tmp_path / "conf" / "thresholds"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("tau_exp: 0.55\ntau_drop: 0.3\n", encoding="utf-8")
    (folder / "odd.yaml").write_text("tau_exp: 0.55\ntau_dorp: 0.3\n", encoding="utf-8")
    (folder / "wrong.yaml").write_text("tau_exp: high\ntau_drop: 0.3\n", encoding="utf-8")
    words = [w.replace("CONF", str(folder.parent)) for w in words]
    assert line in one_line_of([*words, f"hydra.run.dir={tmp_path / 'run'}", f"hydra.sweep.dir={tmp_path / 'run'}"])


def test_schemas_list_the_words_that_the_code_takes():
    """A word that only one of the two knows would be refused, or end in a traceback."""
    from blink_exp.backbone.prompts import SYSTEM_PROMPTS
    from blink_exp.methods.blink import POLICIES
    from blink_exp.methods.pair import FILLS
    from blink_exp.settings import groups
    from blink_exp.settings.check import fields
    from blink_exp.settings.schemas import methods, models

    def words(schema, name):
        return set(fields(schema)[name].metadata["limit"].words)

    assert words(models.Model, "system_prompt") == set(SYSTEM_PROMPTS)
    assert words(groups.Resolution, "policy") == set(POLICIES)
    assert words(groups.Fill, "policy") == words(methods.Pair, "fill") == set(FILLS)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--cfg"], "--cfg needs a value behind it, e.g. --cfg job"),
        (["--cfg", "--resolve"], "--cfg needs a value behind it"),
        (["-c", "jobs"], "-c jobs is not known; use job, hydra or all"),
        (["--cfg=jobs"], "--cfg jobs is not known"),
        (["limit=2", "--mulitrun"], "--mulitrun is no flag; did you mean --multirun"),
        (["-x"], "-x is no flag"),
        (["--config-dir", "/nowhere"], "--config-dir /nowhere is not a folder"),
        (["-cd=/dev/null"], "-cd /dev/null is not a folder"),
        (["hydra.searchpath=[/nowhere]"], "hydra.searchpath holds /nowhere, which is not a folder"),
        (["hydra.searchpath=[pkg://a,'file:///no where']"], "hydra.searchpath holds /no where, which is not a folder"),
    ],
)
def test_a_wrong_flag_is_one_line(words, line):
    with pytest.raises(UserError) as error:
        prepared(words, "evaluate")
    assert str(error.value).startswith(line)


@pytest.mark.parametrize("key", ["limit", "seed", "retention_ratio", "thresholds.tau_exp", "layers.indices", "tokens", "part"])
@pytest.mark.parametrize(
    "value", ["1" + "0" * 400, "-1" + "0" * 400, "1" * 5000, f"[1,{'9' * 400}]", "{a:1" + "0" * 400 + "}", "[" * 3000 + "]" * 3000]
)
def test_a_number_that_no_float_holds_is_one_short_line(key, value):
    """Catches the OverflowError of OmegaConf, the ValueError of Python (4300 digits) and the RecursionError of Hydra's parser."""
    with pytest.raises(UserError) as error:
        prepared([f"{key}={value}"], "evaluate")
    assert str(error.value).startswith(f"{key}=") and len(str(error.value)) < 320 and "\n" not in str(error.value)


def test_a_number_of_a_preset_or_of_a_share_that_no_float_holds_is_refused_where_it_is_checked():
    for key, value in (("limit", 10**400), ("retention_ratio", 10**400), ("shard", "1/" + "9" * 5000), ("tokens", "1/" + "9" * 5000)):
        with pytest.raises(UserError, match=f"^{key} must be"):
            check_values(EvaluateSettings, "", {key: value})
