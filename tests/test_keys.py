"""Keys come from the environment, and stand in no file and no line that a run writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support import scripts
from support.hub_choices import MAKERS
from support.refusals import one_line_of, refusal

from blink_exp.cli import one_line
from blink_exp.errors import reason
from blink_exp.keys import holds_key, masked
from blink_exp.settings import secrets
from blink_exp.tracking.interface import attempt

KEYS = {
    "OPENAI_API_KEY": "sk-proj-4f0aFake0Key0For0Tests0aaaa",
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
    "HF_TOKEN": "hf_FakeTokenForTestsFakeTokenForTests",
}


@pytest.fixture
def keys(monkeypatch):
    for name, key in KEYS.items():
        monkeypatch.setenv(name, key)
    return KEYS


def holders(folder: Path) -> list[str]:
    """Files below ``folder`` with a key in their name or their bytes."""
    return [
        str(file.relative_to(folder))
        for file in folder.rglob("*")
        for key in KEYS.values()
        if key in str(file) or (file.is_file() and key.encode() in file.read_bytes())
    ]


def test_what_is_printed_names_the_variable_in_place_of_the_key(keys, capsys):
    text = f"401: Incorrect API key {keys['OPENAI_API_KEY']} for {keys['WANDB_API_KEY']}"
    wanted = "401: Incorrect API key [OPENAI_API_KEY] for [WANDB_API_KEY]"
    assert masked(text) == wanted == one_line(ValueError(text)) == reason(text)
    attempt("wandb", lambda: (_ for _ in ()).throw(ValueError(text)))
    assert wanted in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("key sk-proj-1234567890abcdefghij here", "key [key] here"),
        ("hf_abcdefghijklmnopqrstuvwxyz", "[key]"),
        ("https://user:pass@host/v1", "https://[key]@host/v1"),
        ("postgresql://u:p@db:5432/x", "postgresql://[key]@db:5432/x"),
    ],
)
def test_what_has_the_form_of_a_key_is_masked_wherever_it_comes_from(text, wanted):
    assert masked(text) == wanted and holds_key(text)


@pytest.mark.parametrize(
    "text", ["risk-assessment-of-20-models-in-2025", "http://host:8000/v1", "7e31021", "a@b:c", "token_price=0.1", "sk-learn"]
)
def test_what_is_none_is_left_alone(text):
    assert masked(text) == text and not holds_key(text)


WORDS = (
    *(
        "judge.api_key=abc",
        "+judge.key=abc",
        "judge.key_variable=sk-abc",
        "judge.base_url=https://me:secret@host/v1",
        "+logger.api_key=abc",
    ),
    *(f"judge.key_variable={KEYS['OPENAI_API_KEY']}", f"model.path={KEYS['HF_TOKEN']}", "model.revision=${oc.env:HF_TOKEN}"),
    *(
        "logger.uri=postgresql://u:pw@db/x",
        "+hydra.job.env_set.OPENAI_API_KEY=abc",
        f"logger.project={KEYS['WANDB_API_KEY']}",
        "+token=abc",
    ),
)


@pytest.mark.parametrize("word", WORDS)
def test_a_key_on_the_command_line_is_refused_without_being_shown(word, keys):
    name, _, value = word.lstrip("+").partition("=")
    line = refusal(lambda: secrets.check_words([word]))
    assert line.startswith(f"{name} gives a key") and "in the environment instead" in line and value not in line


@pytest.mark.parametrize(
    "word", ["judge.key_variable=MY_KEY", "token_price=0.1", "tokens=64", "judge.max_tokens=5", "question=a key?", "model.path=a/b"]
)
def test_settings_that_only_sound_like_it_are_taken(word, keys):
    secrets.check_words([word])


@pytest.mark.parametrize("word", WORDS[5:8])
def test_a_command_with_a_key_writes_nothing(word, keys, tmp_path):
    line = one_line_of(["evaluate.py", "method=none", "judge=openai", word, f"hydra.run.dir={tmp_path / 'run'}"])
    assert "gives a key" in line and not any(key in line for key in KEYS.values())
    assert list(tmp_path.iterdir()) == []


def test_a_key_in_a_config_folder_is_refused(keys, tmp_path):
    (tmp_path / "conf" / "judge").mkdir(parents=True)
    preset = (
        (scripts.ROOT / "conf" / "judge" / "openai.yaml")
        .read_text(encoding="utf-8")
        .replace("OPENAI_API_KEY #", "${oc.env:OPENAI_API_KEY} #")
    )
    (tmp_path / "conf" / "judge" / "mine.yaml").write_text(preset, encoding="utf-8")
    line = one_line_of(["evaluate.py", "--config-dir", str(tmp_path / "conf"), "judge=mine", f"hydra.run.dir={tmp_path / 'run'}"])
    assert line.startswith("error: judge.key_variable gives a key") and not (tmp_path / "run").exists()


@pytest.mark.slow
def test_keys_of_the_environment_stand_in_nothing_that_runs_write(keys, tmp_path):
    """An evaluation and a multirun, logged by W&B (offline) and MLflow, and one whose judge cannot be reached."""
    pytest.importorskip("wandb")
    pytest.importorskip("mlflow")
    data = MAKERS["mmvet"](tmp_path / "mmvet")
    common = ["method=none", "limit=2", "cost=0", f"store={tmp_path / 'store'}"]
    judged = ["benchmark=mmvet", f"benchmark.path={data}", "judge=openai", "judge.model=m", "judge.base_url=http://127.0.0.1:9/v1"]
    for number, (words, code) in enumerate(
        (
            (["evaluate.py", *common, "logger=wandb", "logger.mode=offline"], 0),
            (["sweep.py", "-m", *common, "seed=0,1", "logger=mlflow"], 0),
            (["evaluate.py", *common, *judged, "judge.max_retries=0", f"judge.cache={tmp_path / 'cache'}"], 2),
        )
    ):
        folder = tmp_path / f"run{number}"
        done = scripts.run([*words, f"hydra.run.dir={folder}", f"hydra.sweep.dir={folder}"], env=keys)
        assert done.returncode == code, done.stdout + done.stderr
        assert not any(key in done.stdout + done.stderr for key in KEYS.values())
        assert list(folder.rglob("*.json")) or code
    assert holders(tmp_path) == []
    (tmp_path / "leak.json").write_text(json.dumps({"a": KEYS["HF_TOKEN"]}), encoding="utf-8")
    assert holders(tmp_path) == ["leak.json"]  # that it is found where there is one
