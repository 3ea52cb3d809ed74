"""The answers of several processes in one folder: each its own file, and all of them taken over by the next run."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blink_exp.evaluation.records import RecordLog, files_of, rank_files


def line(name: str, prediction: str = "x") -> dict:
    return {"id": name, "question": "?", "prediction": prediction, "layers": []}


def written(path) -> list[str]:
    return [entry["id"] for entry in map(json.loads, path.read_text("utf-8").splitlines()[1:])]


@settings(max_examples=30)
@given(st.lists(st.lists(st.integers(0, 12), max_size=6, unique=True), min_size=1, max_size=4), st.integers(0, 40))
def test_answers_of_any_number_of_ranks_are_taken_over(tmp_path_factory, by_rank, cut_off):
    path = tmp_path_factory.mktemp("log") / "records.part"
    RecordLog(path, "s").add([line("first")])
    for rank, ids in enumerate(by_rank):
        log = RecordLog(path, "s", rank)
        assert list(log.records) == ["first"]  # every rank starts from the same answers
        for n in ids:
            log.add([line(str(n))])
    files = rank_files(path)
    if files:  # a kill in the middle of a line
        torn = files[-1].read_bytes()
        files[-1].write_bytes(torn[: max(0, len(torn) - cut_off)])
    whole = {n for file in files for n in _complete(file)}
    log = RecordLog(path, "s")
    assert set(log.records) == {"first", *whole} and log.earlier == 1 + len(whole)
    assert not rank_files(path) and set(written(path)) == {"first", *whole}
    log.add([line("last")])
    assert written(path)[-1] == "last"


def _complete(file) -> list[str]:
    lines = file.read_bytes().splitlines(keepends=True)
    if not lines or lines[0] != b'{"settings": "s"}\n':
        return []
    return [json.loads(text)["id"] for text in lines[1:] if text.endswith(b"\n")]


def test_a_take_over_that_was_killed_doubles_nothing(tmp_path, monkeypatch):
    path = tmp_path / "records.part"
    RecordLog(path, "s", 1).add([line("a"), line("b")])
    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.unlink", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            RecordLog(path, "s")
    assert rank_files(path)
    assert list(RecordLog(path, "s").records) == written(path) == ["a", "b"]


def test_a_later_answer_of_a_rank_replaces_an_earlier_one(tmp_path):
    path = tmp_path / "records.part"
    RecordLog(path, "s").add([line("a", "before the image was replaced")])
    RecordLog(path, "s", 0).add([line("a", "after")])
    assert RecordLog(path, "s").records["a"]["prediction"] == "after"
    assert RecordLog(path, "s").records["a"]["prediction"] == "after"


def test_files_of_other_settings_count_for_nothing_and_all_are_removed(tmp_path):
    path = tmp_path / "records.part"
    RecordLog(path, "other", 0).add([line("a")])
    assert RecordLog(path, "s").records == {} and not files_of(path)
    RecordLog(path, "s", 0).add([line("a")])
    RecordLog(path, "s", 12).add([line("b")])
    path.with_name("records.part.part").write_text("cut off", encoding="utf-8")
    log = RecordLog(path, "s", 1)
    log.remove()
    assert list(tmp_path.iterdir()) == []
