"""docs/extending.md, followed to the letter: its files make a package, and its commands run with it."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml
from support import packages
from support.scripts import ROOT

PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r'```\w+ title="([^"]+)"\n(.*?)```', PAGE, flags=re.S))
COMMANDS = [shlex.split(line)[1:] for block in re.findall(r"```bash\n(.*?)```", PAGE, flags=re.S) for line in block.splitlines()]
RECIPES = re.findall(r"^## (.+)$", PAGE, flags=re.M)
SHORT = {
    "train.py": ["data.train_size=8", "data.held_out_size=2"],
    "evaluate.py": ["limit=4", "cost=0"],
    "sweep.py": ["limit=4", "report={tmp}/report"],
}


def written(folder: Path) -> Path:
    """The package of the page below ``folder``, and what pip writes beside it when it installs it."""
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    project = tomllib.loads(FILES["mine/pyproject.toml"])["project"]
    groups = {group: "\n".join(f"{name} = {value}" for name, value in points.items()) for group, points in project["entry-points"].items()}
    installed = folder / "mine" / f"{project['name']}-{project['version']}.dist-info"
    installed.mkdir()
    metadata = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    (installed / "METADATA").write_text(metadata, encoding="utf-8")
    entry_points = "\n".join(f"[{group}]\n{text}" for group, text in groups.items())
    (installed / "entry_points.txt").write_text(entry_points, encoding="utf-8")
    return folder / "mine"


def test_the_page_has_six_recipes_of_about_ten_lines():
    assert [name.split()[-1] for name in RECIPES] == ["scorer", "preset", "architecture", "method", "benchmark", "table"]
    assert len(COMMANDS) >= len(RECIPES)
    assert max(sum(bool(line) for line in text.splitlines()) for text in FILES.values()) <= 12


@pytest.mark.slow
def test_a_reader_who_follows_the_page_gets_what_it_says(tmp_path):
    site = written(tmp_path)
    commands = []
    for n, words in enumerate(COMMANDS):
        out = "hydra.sweep.dir" if "-m" in words else "hydra.run.dir"
        words = [word.replace("outputs/mine", f"{tmp_path}/modules") for word in words]
        store = [] if words[0] == "train.py" else [f"store={tmp_path}/points"]
        commands.append([*words, *(word.format(tmp=tmp_path) for word in SHORT[words[0]]), *store, f"{out}={tmp_path}/{n}"])
    done = packages.run(commands, site)
    assert packages.codes(done) == [0] * len(COMMANDS), done.stdout + done.stderr
    runs = {" ".join(words): tmp_path / str(n) for n, words in enumerate(COMMANDS)}
    used = {words: yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8")) for words, run in runs.items() if "evaluate" in words}
    chosen = [(s["saliency"]["scorer"], s["thresholds"]["tau_exp"], s["tokensr"]["architecture"]) for s in used.values()]
    assert chosen == [
        *(("mine", 0.5, "conv"), ("attention", 0.55, "conv"), ("attention", 0.5, "mine")),
        *[("attention", 0.5, "conv")] * 2,
    ]
    assert [s["method"]["_target_"] for s in used.values()][3] == "mine.methods.mine"
    assert [s["benchmark"]["_target_"] for s in used.values()][4] == "mine.benchmarks.Colours"
    table = (runs["sweep.py table=mine"] / "table.md").read_text(encoding="utf-8")
    assert "| default |" in table and "| 3 x 3 |" in table
    assert "method=mine" in (runs["sweep.py -m method=mine,fastv retention_ratio=0.5"] / "summary.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_file_of_the_page_has_a_name_of_the_package(name):
    assert name.startswith("mine/") and ".." not in name
