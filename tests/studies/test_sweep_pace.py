"""The first line of sweep.py -m: what it runs, and how long the same sweep took the last time."""

from __future__ import annotations

import os
import time

import pytest
import yaml
from support.scripts import printed

from blink_exp.files import write_json, write_text
from blink_exp.studies.sweep_folder import COMMAND, ROW
from blink_exp.studies.sweep_pace import announcement, last_time

WORDS = ["thresholds=high_exp,low_drop", "limit=4"]
BASIC = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
OPTUNA = "hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper"


def config_of(words, sweeper=BASIC):
    choices = {"method": "blink", "benchmark": "mosaic_mme", "model": "scale_llava"}
    sweep = {"overrides": {"task": words}, "sweeper": {"_target_": sweeper, "n_trials": 20}}
    return {"hydra": sweep | {"runtime": {"choices": choices}}}


def earlier(folder, words, seconds, ended):
    """A sweep of two points that took ``seconds`` and ended at ``ended``."""
    write_text(folder / COMMAND, yaml.safe_dump(config_of(words)))
    os.utime(folder / COMMAND, (ended - seconds, ended - seconds))
    for number, preset in enumerate(("high_exp", "low_drop")):
        row = {"number": number, "point": preset, "status": "failed", "overrides": [f"thresholds={preset}", *words[1:]]}
        write_json(folder / str(number) / ROW, row)
        os.utime(folder / str(number) / ROW, (ended - 1 + number, ended - 1 + number))


def test_the_line_counts_the_points_and_names_the_presets_that_the_command_leaves_out(tmp_path):
    line = announcement(config_of(["method=blink,none", "layer=range(3,6)"]), tmp_path / "new")
    assert line == "sweeping 6 points: benchmark=mosaic_mme model=scale_llava method=blink,none layer=range(3,6)"
    assert announcement(config_of(["search=blink"], OPTUNA), tmp_path / "new").startswith("sweeping 20 points: method=blink ")


def test_the_last_time_is_of_the_newest_whole_sweep_of_the_same_words(tmp_path):
    now = time.time()
    assert last_time(WORDS, tmp_path / "new") is None
    earlier(tmp_path / "old", WORDS, 200.0, now - 5000)
    earlier(tmp_path / "newer", [WORDS[0], "store=elsewhere", WORDS[1]], 65.0, now - 3000)  # where it writes changes nothing
    earlier(tmp_path / "other", [WORDS[0], "limit=5"], 10.0, now - 1000)
    earlier(tmp_path / "cut", WORDS, 10.0, now - 500)
    (tmp_path / "cut" / "1" / ROW).unlink()  # it was stopped: its time is not that of the sweep
    earlier(tmp_path / "damaged", WORDS, 10.0, now - 100)
    (tmp_path / "damaged" / COMMAND).write_text("{", encoding="utf-8")
    assert last_time(WORDS, tmp_path / "new").startswith("1 min 05 s (20")
    assert last_time(WORDS[::-1], tmp_path / "new").startswith("1 min 05 s")
    assert last_time(["thresholds=high_exp", WORDS[1]], tmp_path / "new") is None


@pytest.mark.slow
def test_a_sweep_says_first_what_it_runs_and_the_second_time_how_long_it_took(tmp_path):
    words = ("sweep.py", "-m", "thresholds=high_exp,low_drop", "layer=12", "limit=2", "cost=0", f"store={tmp_path / 'store'}")
    first = printed(*words, f"hydra.sweep.dir={tmp_path / 'sweeps' / 'a'}").splitlines()[0]
    assert first.startswith("sweeping 2 points: method=blink benchmark=mosaic_mme model=scale_llava thresholds=high_exp,low_drop layer=12")
    assert "last time" not in first
    second = printed(*words, f"hydra.sweep.dir={tmp_path / 'sweeps' / 'b'}").splitlines()[0]
    assert "; last time " in second
