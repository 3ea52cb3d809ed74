"""Rows of published data sets: files that are cut off or broken, and cells that are odd or empty."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.encoded_images import encoded
from support.hub import build, chartqa, picture, write
from support.hub_choices import MAKERS
from support.refusals import refusal

from blink_exp.benchmarks.rows import load_rows, open_image

# Files


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"
BROKEN = {
    "cut": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "pointer": lambda data: POINTER,
    "footer": lambda data: data[:4] + bytes(len(data) - 4 - 600) + data[-600:],
}


def broken(folder: Path, how: str) -> Path:
    file = next((chartqa(folder) / "data").iterdir())
    file.write_bytes(BROKEN[how](file.read_bytes()))
    return file


@pytest.mark.parametrize("how", ["cut", "empty", "pointer", "footer"])
def test_a_broken_file_in_a_folder_is_named_with_its_cure(how, tmp_path):
    """ "footer": whole at its end and not before, which only reading it all can tell."""
    file = broken(tmp_path, how)
    message = refusal(build("chartqa", tmp_path).samples)
    assert str(file) in message or how == "footer"
    assert ("run git lfs pull" if how == "pointer" else "again") in message


@pytest.mark.parametrize("how", ["cut", "pointer"])
def test_a_broken_file_of_a_hub_id_is_named_with_its_cure(how, tmp_path, monkeypatch, capfd):
    """What a cache holds after a download that was cut off; `datasets` reads the file as ever, found here without a hub."""
    datasets = pytest.importorskip("datasets")
    file, load = broken(tmp_path, how), datasets.load_dataset
    files = {"test": str(file)}
    monkeypatch.setattr(datasets, "load_dataset", lambda path, name, revision, split: load("parquet", data_files=files, split=split))
    message = refusal(build("chartqa", "somebody/ChartQA", revision=how).samples)
    assert file.name in message
    assert "could not be read (" in message
    assert "run: hf download somebody/ChartQA --repo-type dataset --force-download" in message
    assert "Failed to read" not in capfd.readouterr().err  # the line above says it


def test_a_hub_id_that_cannot_be_had_is_not_called_broken(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def load(**_):
        raise ConnectionError("no\nroute") from KeyError("inner")

    monkeypatch.setattr(datasets, "load_dataset", load)
    message = refusal(build("chartqa", "somebody/Other").samples)
    assert message == "benchmark.path=somebody/Other could not be had (no route); download it, and give its folder as benchmark.path"


def test_a_full_disk_is_not_a_broken_file(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def load(**_):
        raise datasets.exceptions.DatasetGenerationError("An error occurred") from OSError(28, "No space left on device")

    monkeypatch.setattr(datasets, "load_dataset", load)
    message = refusal(build("chartqa", "somebody/Third").samples)
    assert "No space left on device" in message and "HF_DATASETS_CACHE" in message


# Cells


def test_images_may_be_paths_or_plain_bytes(tmp_path):
    picture(1).save(tmp_path / "1.png")
    data = encoded(picture(1))
    for cell in (str(tmp_path / "1.png"), data, {"bytes": None, "path": str(tmp_path / "1.png")}, {"bytes": data}):
        assert open_image(cell).tobytes() == picture(1).tobytes()


@pytest.mark.parametrize(
    "cell", [None, {}, "", "no such file", "\0", "i" * 9999, b"", b"x", 7, 0, [], {"bytes": "text"}, {"bytes": 3, "path": "x"}]
)
def test_any_other_image_cell_is_an_unreadable_image(cell):
    with pytest.raises(OSError) as error:
        open_image(cell)
    assert len(str(error.value)) <= 200


def test_a_column_of_paths_is_read_from_a_data_set(tmp_path):
    picture(1).save(tmp_path / "1.png")
    (tmp_path / "set").mkdir()
    picture(1).save(tmp_path / "set" / "2.png")
    paths = ("2.png", "gone.png", str(tmp_path / "1.png"), "http://example.org/1.png")
    rows = [{"type": "human_test", "question": "?", "answer": "1", "path": path} for path in paths]
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list(rows).rename_column("path", "image").to_parquet(str(tmp_path / "set/test.parquet"))
    there, *others = build("chartqa", tmp_path / "set").samples()
    assert there.image().size == (48, 32)
    for sample, why in zip(others, ("gone.png is missing", "leads out of the data's folder", "is a URL"), strict=True):
        with pytest.raises(OSError, match=why):
            sample.image()
    everywhere = build("chartqa", tmp_path / "set", image_loading={"outside": True}).samples()
    assert everywhere[2].image().size == (48, 32)


@pytest.mark.parametrize("name", sorted(set(MAKERS) - {"captions", "refcoco"}))  # which read no question
def test_a_row_without_a_question_cannot_be_opened(name, tmp_path):
    """It shares its image with a whole row, where a benchmark asks two questions an image: that must not get it asked."""
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    benchmark = build(name, MAKERS[name](tmp_path))
    whole = benchmark.samples()
    load_rows.cache_clear()
    for file in tmp_path.rglob("*.parquet"):
        table = pq.read_table(file)
        if "question" in table.column_names:
            at = table.column_names.index("question")
            texts = [*table["question"].to_pylist()[:-1], None]
            pq.write_table(table.set_column(at, table.schema.field("question"), pa.array(texts, table.schema.field("question").type)), file)
    samples = benchmark.samples()
    assert [s.id for s in samples] == [s.id for s in whole]
    changed = [(s, old) for s, old in zip(samples, whole, strict=True) if s != old]
    assert samples[-1] in [s for s, _ in changed]
    for sample, _ in changed:
        assert isinstance(benchmark.prompt(sample), str)
        with pytest.raises(OSError, match="the row has no question"):
            sample.image()
        assert sample.image_id not in {s.image_id for s in whole}


def test_scienceqa_s_answers_beyond_the_choices_are_none(tmp_path):
    """Four is a letter, but not of a question with two choices; six choices have five letters."""
    cases = [
        (["a", "b"], 1, "B"),
        (["a", "b"], 2, None),
        (["a", "b"], 4, None),
        (["a", "b"], -1, None),
        (list("abcdef"), 5, None),
        (None, 0, None),
    ]
    rows = [{"question": "?", "choices": choices, "answer": n, "hint": "", "image": picture()} for choices, n, _ in cases]
    benchmark = build("scienceqa", write(tmp_path, "test", rows, "ScienceQA-IMG"))
    assert [s.answer for s in benchmark.samples()] == [answer for *_, answer in cases]
    assert benchmark.correct(benchmark.samples()[1], "C") is None
    assert "\n\nAnswer" in benchmark.prompt(benchmark.samples()[5])
    json.dumps([s.fields for s in benchmark.samples()])


def test_a_missing_column_is_named_with_those_found(tmp_path):
    """No guess at another: "did you mean answers?" would have somebody rename a column of other content."""
    rows = [{"type": "human_test", "question": "?", "answers": "1", "image": picture()}]
    message = refusal(build("chartqa", write(tmp_path, "test", rows)).samples)
    assert "lacks the column answer, which chartqa reads; it has type, question, answers, image: take a copy" in message
    assert "did you mean" not in message
