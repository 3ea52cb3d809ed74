"""Every command in the README, in the first hour and on the page of commands does what it says, shortened where a setting allows it."""

from __future__ import annotations

import re
import shlex
import subprocess
import tomllib

import pytest
from support import hub, scripts
from support.instruction_data import instruction_data
from support.scripts import ROOT

SHORT = {
    "train.py": ["data.train_size=16", "data.held_out_size=8", "data.cache_path={tmp}/features"],
    "evaluate.py": ["limit=4", "cost=0"],
    "sweep.py": ["limit=2", "cost=0", "store={tmp}/points", "report={tmp}/report", "hydra.sweep.dir={tmp}/sweep"],
}

COSTED = ("method=pair", "method=blink_hero")  # a pruner before a policy: what the cost meter has no test of its own for

SMALL = [
    "model.clip=scale",
    "model.device=cpu",
    "model.dtype=float32",
    "model.pad=false",
    "model.system_prompt=none",
    "model.quantization=null",
]


def stand_ins(words: list[str], tmp) -> list[str]:
    """What a command on published weights and data needs to run here: the scale model under its settings, small data in its layout."""
    model = next((w.removeprefix("model=") for w in words if w.startswith("model=llava")), None)
    if model is None:
        return []
    path, name = ("scale_next", "scale-llava-next") if "next" in model else ("scale", "scale-llava-1.5")
    out = [f"model.path={path}", f"model.name={name}", *SMALL]
    benchmark = next((w.removeprefix("benchmark=") for w in words if w.startswith("benchmark=")), None)
    if benchmark in hub.MAKERS:
        out += [f"benchmark.path={hub.MAKERS[benchmark](tmp / 'rows')}"]
    if "parity" in words:
        hub.MAKERS["mme"](tmp / "rows" / "MME")
        out += [f"data_root={tmp / 'rows'}", f"store={tmp / 'points'}"]
    if "tokensr.path=outputs/train/RUN/tokensr" in words:
        out += ["tokensr.path=null"]
    if words[1] == "train.py":
        rows, images = instruction_data(tmp)
        out += [
            f"data.json={rows}",
            f"data.images={images}",
            "data.held_out_share=0.2",
            "data.train_size=16",
            "data.workers=0",
            "layers.indices=[3]",
        ]
        out += ["trainer.accelerator=cpu", "trainer.devices=1"]
    return out


ELSEWHERE = {  # beginnings of commands that other tests run, and which
    "python sweep.py table=blink_table2": "entry_points::test_table_2_runs_and_keeps_published_and_measured_apart",
    "python sweep.py table=blink_table3 logger=wandb": "entry_points::test_a_table_is_logged_point_by_point_and_as_a_whole",
    "python sweep.py dashboard=wandb": "entry_points::test_a_dashboard_is_built_without_an_account",
    "python -m blink_exp view image=photo.jpg": "entry_points::test_the_viewer_takes_any_picture_and_any_question",
    "python sweep.py tables=all figures=all": "catalog::test_all_runs_every_table_and_figure_and_goes_on_behind_a_failure",
    "python sweep.py table=rivals_llava": "rivals::test_a_table_of_rivals_runs",
    "python sweep.py tables=list figures=list": "catalog::test_a_list_counts_what_is_done_and_guesses_what_is_left",
    "python sweep.py table=positions": "catalog::test_all_runs_every_table_and_figure_and_goes_on_behind_a_failure",
    "python sweep.py figure=budget_curve": "catalog::test_all_runs_every_table_and_figure_and_goes_on_behind_a_failure",
    "python -m blink_exp compare benchmark=mosaic_mme": "rescoring::test_two_runs_are_compared_question_by_question",
    "python sweep.py -m search=blink": "sweeps::test_a_search_chooses_on_validation_reports_on_test_and_goes_on_from_the_store",
}


PAGES = ("README.md", "docs/first_hour.md", "docs/commands.md")


def commands(*pages: str) -> list[str]:
    """The commands of ``pages``, each once."""
    texts = [(ROOT / page).read_text(encoding="utf-8") for page in pages]
    blocks = [block for text in texts for block in re.findall(r"```bash\n(.*?)```", text, flags=re.S)]
    lines = [line.split(" #")[0].strip() for block in blocks for line in block.splitlines()]
    return list(dict.fromkeys(line for line in lines if line and not line.startswith(("git clone", "cd "))))


def test_the_readme_is_short_and_its_second_and_third_line_are_demo_and_test():
    assert commands("README.md")[:2] == ["make demo", "make test"]
    assert len(commands("README.md")) >= 12
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 150
    assert all(commands(page) for page in PAGES)


@pytest.mark.slow
@pytest.mark.parametrize("command", commands(*PAGES))
def test_command(command, tmp_path):
    words = shlex.split(command)
    if words[0] == "make":  # CI runs `make test`; that it is this suite, and what demo runs, is read off make itself
        plan = subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert plan.returncode == 0, plan.stderr
        assert {"demo": "sweep.py table=blink_table2", "test": "pytest"}.get(words[1], "") in plan.stdout
        return
    elsewhere = next((where for start, where in ELSEWHERE.items() if command.startswith(start)), None)
    if elsewhere is not None:
        file, _, name = elsewhere.partition("::")
        assert f"def {name}(" in next((ROOT / "tests").rglob(f"test_{file}.py")).read_text(encoding="utf-8")
        return
    if words[0] == "pip":
        extra = words[-1].partition("[")[2].rstrip("]")
        assert extra in tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
        return
    assert words[0] == "python", command
    if words[1:3] == ["-m", "blink_exp"]:
        words += [*stand_ins(words, tmp_path), f"hydra.run.dir={tmp_path / 'run'}"]
    elif words[1] == "-m":
        words = [*words[:3], "--help"]
    else:
        words += stand_ins(words, tmp_path) or [w.format(tmp=tmp_path) for w in SHORT[words[1]]]
        words += [] if "-m" in words else [f"hydra.run.dir={tmp_path / 'run'}"]
        words += ["cost=1"] if words[1] == "evaluate.py" and {*words} & {*COSTED} else []
    done = scripts.run(words[1:])
    assert done.returncode == 0, done.stdout + done.stderr
