"""Each command has its own words: a word of another is one line with the command to use. evaluate.py loads no more than it needs."""

from __future__ import annotations

import shlex
import subprocess
import sys

import pytest
from support.scripts import ROOT, run

from blink_exp.errors import UserError
from blink_exp.settings.doors import COMMANDS, command_line, redirection
from blink_exp.settings.roots import ROOTS
from blink_exp.settings.words import prepared

UNUSED = ("matplotlib", "scipy.stats", "pandas", "wandb", "pytorch_lightning")


@pytest.mark.parametrize(
    ("root", "words", "command"),
    [
        ("evaluate", ["limit=3", "view=a/b"], "python -m blink_exp view limit=3 sample=a/b"),
        ("evaluate", ["image=my photo.jpg", "question=what?"], "python -m blink_exp view 'image=my photo.jpg' 'question=what?'"),
        ("evaluate", ["compare=[none]"], "python -m blink_exp view 'compare=[none]'"),
        ("evaluate", ["benchmark=mme", "predictions=a"], "python -m blink_exp rescore benchmark=mme predictions=a"),
        ("evaluate", ["predictions=a", "against=b"], "python -m blink_exp compare predictions=a against=b"),
        ("evaluate", ["table=parity", "limit=3"], "python -m blink_exp parity limit=3"),
        ("evaluate", ["table=blink_table2"], "python sweep.py table=blink_table2"),
        ("evaluate", ["figure=all"], "python sweep.py figures=all"),
        ("sweep", ["-m", "predictions=a"], "python -m blink_exp rescore -m predictions=a"),
        ("sweep", ["table=parity"], "python -m blink_exp parity"),
        ("sweep", ["table=list", "figure=list"], "python sweep.py tables=list figures=list"),
        ("sweep", ["table=all", "limit=2"], "python sweep.py tables=all limit=2"),
        ("view", ["view=a"], "python -m blink_exp view sample=a"),
        ("rescore", ["predictions=a", "against=b"], "python -m blink_exp compare predictions=a against=b"),
    ],
)
def test_a_word_of_another_command_is_answered_with_that_command(root, words, command):
    with pytest.raises(UserError) as error:
        prepared(words, root)
    line = str(error.value)
    assert line.endswith(f"use {command}") and line.partition(" is not taken by ")[0] in words and "\n" not in line


@pytest.mark.parametrize(
    ("root", "words"),
    [
        ("view", ["sample=a", "compare=[none]"]),
        ("compare", ["predictions=a"]),
        ("sweep", ["table=blink_table2", "figures=all"]),
        ("evaluate", ["limit=3", "tresholds=default"]),
    ],
)
def test_a_command_s_own_words_stay_where_they_are(root, words):
    assert redirection(words, root, [field for field in ROOTS[root].__dataclass_fields__]) is None


@pytest.mark.slow
def test_every_door_has_settings_and_a_help():
    for name in COMMANDS:
        process = run(["-m", "blink_exp", name, "--help"])
        assert process.returncode == 0 and f"python -m blink_exp {name}" in process.stdout and f"conf/{name}.yaml:" in process.stdout
    listed = run(["-m", "blink_exp"])
    assert listed.returncode == 0 and all(f"  {name}: " in listed.stdout for name in COMMANDS)
    wrong = run(["-m", "blink_exp", "vew"])
    assert (wrong.returncode, wrong.stderr) == (2, f"error: vew is not a command; use one of: {', '.join(COMMANDS)}\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["rescore"], "predictions must be given: predictions=..."),
        (["compare", "predictions=/nowhere"], "against must be given: against=..."),
        (["view"], "nothing to show; add sample=ID"),
        (["view", "sample=nothing"], "sample=nothing is not among the 640 samples of mosaic_mme"),
        (["view", "smaple=x"], "smaple is not a setting; did you mean sample"),
    ],
)
def test_bad_input_of_a_door_is_one_line(words, line, tmp_path):
    done = run(["-m", "blink_exp", *words, f"hydra.run.dir={tmp_path}"])
    assert done.returncode == 2 and done.stderr.startswith("error: ") and line in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.slow
def test_an_evaluation_loads_no_plots_no_statistics_and_no_loggers(tmp_path):
    """In a process of its own, a whole run; transformers itself imports scipy.optimize."""
    words = ["evaluate.py", "method=blink", "limit=1", "cost=1", f"hydra.run.dir={tmp_path}"]
    code = f"import runpy, sys; sys.argv = {words}; sys.path.insert(0, '.'); runpy.run_path('evaluate.py', run_name='__main__')\n"
    code += f"print('LOADED', [name for name in {UNUSED} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "LOADED []" in done.stdout


def test_tab_completes_presets_and_settings():
    for words, proposals in (("method=hi", {"method=hired"}), ("thresholds.ta", {"thresholds.tau_exp=", "thresholds.tau_drop="})):
        line = f"python evaluate.py {words}"
        done = run(["evaluate.py", "-sc", "query=bash"], {"COMP_LINE": line, "COMP_POINT": str(len(line))})
        assert set(done.stdout.split()) == proposals, done.stdout + done.stderr


def test_completion_in_fish_takes_the_scripts_for_hydra_s():
    """Its function completes nothing for a file without this word, and says nothing either."""
    assert "@hydra.main" in run(["evaluate.py", "-sc", "install=fish"]).stdout
    for script in ("train.py", "evaluate.py", "sweep.py"):
        assert "@hydra.main" in (ROOT / script).read_text(encoding="utf-8"), script


def test_a_printed_command_has_no_quotes_that_neither_hydra_nor_the_shell_needs():
    words = ["tokensr.path='outputs/mine'", "model.device='cuda'", "question='what is it?'", "model.revision='1e5'", "model.name='true'"]
    line = command_line("evaluate", words)
    assert "tokensr.path=outputs/mine model.device=cuda" in line
    assert shlex.split(line)[-3:] == words[-3:]  # these would be read as something else
