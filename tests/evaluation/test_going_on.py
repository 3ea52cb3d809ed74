"""An evaluation goes on from the records of one that was killed, and from no others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support import hub

from blink_exp.errors import UserError
from blink_exp.evaluation import answering, evaluator
from blink_exp.evaluation.records import RecordLog
from blink_exp.methods.none import none
from blink_exp.settings.compose import composed


@pytest.fixture
def easy(tmp_path, scale, monkeypatch):
    """easy-VQA with one image missing; ``ask(out, dies=n)`` measures it on the scale model and gives how many were asked (killed after n
    batches)."""
    import easy_vqa

    source = Path(easy_vqa.__file__).parent / "data" / "test"
    rows = json.loads((source / "questions.json").read_text(encoding="utf-8"))[:24]
    names = sorted({r[2] for r in rows})
    folder = tmp_path / "set"
    (folder / "images").mkdir(parents=True)
    (folder / "questions.json").write_text(json.dumps(rows), encoding="utf-8")
    for name in names[1:]:
        (folder / "images" / f"{name}.png").write_bytes((source / "images" / f"{name}.png").read_bytes())
    monkeypatch.setattr(evaluator, "prepare_model", lambda cfg: (scale, none()))
    real = answering.answer

    def ask(out: Path, *words: str, dies: int | None = None) -> int:
        asked: list[int] = []

        def answer(*args):
            if len(asked) == dies:
                raise KeyboardInterrupt
            asked.append(len(args[3]))
            return real(*args)

        monkeypatch.setattr(answering, "answer", answer)
        overrides = ["method=none", "benchmark=easyvqa", f"benchmark.path={folder}", "batch_size=4", "cost=0", "skip_limit=0.9"]
        cfg = composed("evaluate", [*overrides, *words])
        if dies is None:
            evaluator.measure(cfg, out)
        else:
            with pytest.raises(KeyboardInterrupt):
                evaluator.measure(cfg, out)
        return sum(asked)

    ask.missing = sum(r[2] == names[0] for r in rows)
    return ask


@pytest.mark.slow
def test_a_killed_evaluation_goes_on_and_ends_where_an_unbroken_one_does(easy, tmp_path, capsys):
    whole, out = tmp_path / "whole", tmp_path / "out"
    rest = 24 - easy.missing
    assert easy(whole) == rest
    done = easy(out, dies=3)
    part = out / "records.part"
    assert 0 < done < rest and not (out / "records.jsonl").exists() and len(part.read_text(encoding="utf-8").splitlines()) == done + 1
    part.write_bytes(part.read_bytes()[:-9])  # as a kill in the middle of a line leaves it
    more = easy(out, dies=1)
    assert f"going on: {done - 1} of 24 samples are done" in capsys.readouterr().out
    assert easy(out) == rest - (done - 1) - more
    assert (out / "records.jsonl").read_bytes() == (whole / "records.jsonl").read_bytes()
    first, last = (json.loads((folder / "metrics.json").read_text(encoding="utf-8")) for folder in (whole, out))
    assert len(first["skipped"]) == easy.missing
    assert all(first[key] == last[key] for key in ("scores", "samples", "skipped"))
    assert (first["kept"], last["kept"]) == (0, done - 1 + more)
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.slow
def test_other_settings_or_weights_in_the_folder_start_anew(easy, tmp_path, monkeypatch):

    from blink_exp.evaluation import identity

    rest = 24 - easy.missing
    assert 0 < easy(tmp_path / "a", dies=1) <= 4
    assert easy(tmp_path / "a", "seed=1") == rest
    assert 0 < easy(tmp_path / "b", dies=1) <= 4
    monkeypatch.setattr(identity, "without_images", lambda settings: {"tokensr": "trained again"})
    assert easy(tmp_path / "b") == rest


def test_a_kept_record_counts_only_for_the_question_it_answered(tmp_path):
    mme = hub.build("mme", hub.MAKERS["mme"](tmp_path / "mme"))
    a, b = mme.samples()[:2]
    log = RecordLog(tmp_path / "records.part", "s")
    assert not log.path.exists()  # nothing done, nothing left behind
    log.add([{"id": a.id, "question": mme.prompt(a), "prediction": "Yes", "layers": []}])
    log.add([{"id": b.id, "question": "another", "prediction": "Yes", "layers": []}])
    records = RecordLog(log.path, "s").done(mme, mme.samples())
    assert list(records) == [a.id] and records[a.id]["correct"] == (a.answer == "yes")
    assert RecordLog(log.path, "t").records == {}


def test_no_sample_left_is_said_with_the_reason(easy, tmp_path):
    for image in (tmp_path / "set" / "images").iterdir():
        image.unlink()
    with pytest.raises(UserError, match=r"^none of the 24 samples could be read, first easyvqa/test/00000: .*png"):
        easy(tmp_path / "out")
    with pytest.raises(UserError, match=r"^shard=99/99 of the 24 samples of easyvqa is empty; use fewer shards"):
        easy(tmp_path / "out", "shard=99/99")
    assert not list((tmp_path / "out").glob("*.part")) + list((tmp_path / "out").glob("records.jsonl"))
