"""Copies of published data sets as people have them: every layout of the hub, and what is missing, cut off or odd in them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import hub_choices  # noqa: F401 (enters its makers)
import pytest
from hub import MAKERS, build, chartqa, gqa, mme, picture, png, write

from blink_exp.benchmarks.folders import local_files
from blink_exp.benchmarks.rows import load_rows, open_image
from blink_exp.errors import UserError
from blink_exp.experiments.evaluate import evaluate
from blink_exp.methods.none import none

HASHES = ("a25dbe3b44c4fda6", "7d22c7f1aba6fca4", "594798fd3f5b029c", "53ae1794f93b1e35")


def hashed(folder: Path) -> Path:
    """The folder with the hub's older file names."""
    for file, mark in zip(sorted(folder.rglob("*.parquet")), HASHES, strict=False):
        file.rename(file.with_name(f"{file.stem}-{mark}.parquet"))
    return folder


def carded(folder: Path, *entries: str) -> Path:
    (folder / "README.md").write_text("---\nlicense: mit\nconfigs:\n" + "\n".join(entries) + "\n---\n# A data set\n---\nconfigs: no\n")
    return folder


def said(error) -> str:
    text = str(error.value)
    assert isinstance(error.value, UserError) and "\n" not in text
    return text


def files(folder: Path, split: str, config: str | None = None) -> list[str]:
    return [Path(file).relative_to(folder).as_posix() for file in local_files(folder, split, config)]


# Layouts


def test_hashes_in_file_names_are_no_part_of_the_split(tmp_path):
    """As lmms-lab's MME has them; order is by number, not by hash."""
    plain = build("mme", mme(tmp_path / "plain")).samples()
    found = build("mme", hashed(mme(tmp_path / "hashed")))
    assert found.samples() == plain
    assert [Path(f).name for f in local_files(tmp_path / "hashed", "test", None)] == [
        f"test-00000-of-00002-{HASHES[0]}.parquet",
        f"test-00001-of-00002-{HASHES[1]}.parquet",
    ]


def test_the_card_says_which_file_is_which_split(tmp_path):
    """MMStar on the hub: one file at the root, whose name is no split, and a configuration that benchmark.config=null must find."""
    plain = build("mmstar", MAKERS["mmstar"](tmp_path / "plain")).samples()
    shutil.copytree(tmp_path / "plain", tmp_path / "star")
    next((tmp_path / "star/data").iterdir()).rename(tmp_path / "star/mmstar.parquet")
    with pytest.raises(UserError, match="benchmark.split=val is not in .*; use one of: mmstar"):
        build("mmstar", tmp_path / "star").samples()
    folder = carded(tmp_path / "star", "- config_name: val", "  data_files:", "  - split: val", "    path: mmstar.parquet")
    assert build("mmstar", folder).samples() == plain
    assert build("captions", folder).samples()[3].id == "captions/val/0003"


def test_the_card_s_globs_lists_defaults_and_folders(tmp_path):
    """Never more than the card names: the file beside them belongs to no split."""
    rows = [{"question": "?", "image": picture()}]
    for split, config in (("a", "data"), ("b", "data"), ("old", "data"), ("x", "other")):
        write(tmp_path, split, rows, config)
    whole = "-00000-of-00001.parquet"
    carded(
        tmp_path,
        *("- config_name: first", "  data_files:", "  - split: test", "    path: [data/a-*, 'data/b-*']"),
        *("- config_name: 2012", "  default: true", "  data_dir: other", "  data_files:", "  - {split: test, path: x-*}"),
        *("- config_name: unsplit", "  data_files: data/[ab]-*"),
        *("- config_name: outside", "  data_files: ../*.parquet", "- config_name: absolute", "  data_files: /*.parquet"),
    )
    assert files(tmp_path, "test", "first") == [f"data/a{whole}", f"data/b{whole}"]
    assert files(tmp_path, "test") == files(tmp_path, "test", "2012") == [f"other/x{whole}"]
    assert files(tmp_path, "train", "unsplit") == [f"data/a{whole}", f"data/b{whole}"]
    with pytest.raises(UserError, match="split=old is not in"):
        local_files(tmp_path, "old", None)
    for config in ("outside", "absolute"):
        with pytest.raises(UserError, match=f"config={config} is not in .*, which holds: 2012, first, other, unsplit"):
            local_files(tmp_path, "train", config)


@pytest.mark.parametrize(
    "text", ["", "# no front matter", "---\nconfigs: [\n---\n", "---\nconfigs: x\n---\n", "---\n- a\n---\n", "---\nconfigs:\n- y\n---"]
)
def test_a_card_that_says_nothing_leaves_it_to_names(text, tmp_path):
    folder = chartqa(tmp_path)
    (folder / "README.md").write_text(text)
    assert files(folder, "test") == ["data/test-00000-of-00001.parquet"]


def test_a_card_whose_files_lie_elsewhere_leaves_it_to_names(tmp_path):
    folder = carded(chartqa(tmp_path), "- config_name: en", "  data_files: [{split: test, path: en/test-*}]")
    assert files(folder, "test", "en") == ["data/test-00000-of-00001.parquet"]


# Configurations


def test_another_configuration_s_rows_are_never_taken(tmp_path):
    """A copy that has English only, asked for Chinese: with rows in data/ or a card it would be English under a Chinese name."""
    folder = MAKERS["mmbench"](tmp_path)
    with pytest.raises(UserError) as error:
        build("mmbench_cn", folder).samples()
    assert f"benchmark.config=cn is not in {folder}, which holds: en" in said(error)
    shutil.copytree(folder / "en", folder / "data")
    with pytest.raises(UserError) as error:
        build("mmbench_cn", folder).samples()
    assert "which holds: default, en" in said(error)
    shutil.rmtree(folder / "data")
    with pytest.raises(UserError) as error:
        build("mmbench", folder, config=None).samples()
    assert "benchmark.config=null names none of several" in said(error) and "use one of: en" in said(error)


def test_a_folder_without_configurations_has_the_one_asked_for(tmp_path):
    wanted = build("mmbench", MAKERS["mmbench"](tmp_path / "whole")).samples()
    shutil.copytree(tmp_path / "whole/en", tmp_path / "flat/data")
    assert build("mmbench", tmp_path / "flat").samples() == wanted
    assert build("mmbench", tmp_path / "whole/en").samples() == wanted


def test_a_configuration_that_the_card_knows_and_the_copy_lacks_is_refused(tmp_path):
    """POPE: data/ is "default", Full has its own folder, which was not copied."""
    folder = MAKERS["pope"](tmp_path)
    default = ("- config_name: default", "  data_files: [{split: test, path: data/test-*}]")
    carded(folder, *default, "- config_name: Full", "  data_files: [{split: test, path: Full/test-*}]")
    assert len(build("pope", folder).samples()) == 12
    with pytest.raises(UserError) as error:
        build("pope", folder, config="Full").samples()
    assert "benchmark.config=Full is not in" in said(error) and "which holds: default" in said(error)


# Files


def test_half_a_set_is_refused(tmp_path):
    rows = [{"type": "human_test", "question": "?", "answer": "1", "image": picture()} for _ in range(4)]
    folder = hashed(write(tmp_path, "test", rows, shards=4))
    assert len(build("chartqa", folder).samples()) == 4
    load_rows.cache_clear()
    first, *_, last = sorted((folder / "data").iterdir())
    last.rename(tmp_path / "kept")
    with pytest.raises(UserError) as error:
        build("chartqa", folder).samples()
    assert "1 of 4 files test-*.parquet of split test are missing, first number 00003; download them again" in said(error)
    (tmp_path / "kept").rename(last)
    shutil.copy(first, first.with_name(f"test-00000-of-00004-{HASHES[3]}.parquet"))
    with pytest.raises(UserError) as error:  # the copy of two commits: some rows would count twice
        build("chartqa", folder).samples()
    assert "two copies of files of split test" in said(error)


def test_two_copies_under_two_names_are_refused(tmp_path):
    folder = chartqa(tmp_path)
    shutil.copy(folder / "data/test-00000-of-00001.parquet", folder / "data/test.parquet")
    with pytest.raises(UserError) as error:
        build("chartqa", folder).samples()
    assert "two copies of files of split test" in said(error)


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
    with pytest.raises(UserError) as error:
        build("chartqa", tmp_path).samples()
    assert str(file) in said(error) or how == "footer"
    assert ("run git lfs pull" if how == "pointer" else "again") in said(error)


@pytest.mark.parametrize("how", ["cut", "pointer"])
def test_a_broken_file_of_a_hub_id_is_named_with_its_cure(how, tmp_path, monkeypatch, capfd):
    """What a cache holds after a download that was cut off; `datasets` reads the file as ever, found here without a hub."""
    datasets = pytest.importorskip("datasets")
    file, load = broken(tmp_path, how), datasets.load_dataset
    files = {"test": str(file)}
    monkeypatch.setattr(datasets, "load_dataset", lambda path, name, revision, split: load("parquet", data_files=files, split=split))
    with pytest.raises(UserError) as error:
        build("chartqa", "somebody/ChartQA", revision=how).samples()
    assert file.name in said(error)
    assert "could not be read (" in said(error)
    assert "run: hf download somebody/ChartQA --repo-type dataset --force-download" in said(error)
    assert "Failed to read" not in capfd.readouterr().err  # the line above says it


def test_a_hub_id_that_cannot_be_had_is_not_called_broken(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def load(**_):
        raise ConnectionError("no\nroute") from KeyError("inner")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(UserError) as error:
        build("chartqa", "somebody/Other").samples()
    assert said(error) == "benchmark.path=somebody/Other could not be had (no route); download it, and give its folder as benchmark.path"


def test_a_full_disk_is_not_a_broken_file(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def load(**_):
        raise datasets.exceptions.DatasetGenerationError("An error occurred") from OSError(28, "No space left on device")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(UserError) as error:
        build("chartqa", "somebody/Third").samples()
    assert "No space left on device" in said(error) and "HF_DATASETS_CACHE" in said(error)


# Cells


def test_images_may_be_paths_or_plain_bytes(tmp_path):
    picture(1).save(tmp_path / "1.png")
    for cell in (str(tmp_path / "1.png"), png(picture(1)), {"bytes": None, "path": str(tmp_path / "1.png")}, {"bytes": png(picture(1))}):
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
    rows = [{"type": "human_test", "question": "?", "answer": "1", "path": path} for path in (str(tmp_path / "1.png"), "gone.png")]
    datasets = pytest.importorskip("datasets")
    (tmp_path / "set").mkdir()
    datasets.Dataset.from_list(rows).rename_column("path", "image").to_parquet(str(tmp_path / "set/test.parquet"))
    there, gone = build("chartqa", tmp_path / "set").samples()
    assert there.image().size == (48, 32)
    with pytest.raises(OSError):
        gone.image()


@pytest.mark.parametrize("name", sorted(set(MAKERS) - {"captions"}))  # which asks every image the same
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
    found = benchmark.samples()
    assert [s.id for s in found] == [s.id for s in whole]
    changed = [(s, old) for s, old in zip(found, whole, strict=True) if s != old]
    assert found[-1] in [s for s, _ in changed]
    for sample, _ in changed:
        assert isinstance(benchmark.prompt(sample), str)
        with pytest.raises(OSError, match="the row has no question"):
            sample.image()
        assert sample.image_id not in {s.image_id for s in whole}


def test_rows_without_a_question_are_skipped_and_counted(scale, tmp_path, monkeypatch):
    """GQA reads its rows by itself, and the second question is on the image of the first."""
    rows = [{"id": str(k), "imageId": "n1", "question": q, "answer": "x"} for k, q in enumerate(("What?", None))]
    folder = write(tmp_path, "testdev", rows, "testdev_balanced_instructions")
    write(folder, "testdev", [{"id": "n1", "image": picture()}], "testdev_balanced_images")
    benchmark = build("gqa", folder)
    monkeypatch.setattr(type(benchmark), "max_new_tokens", 1)
    records, skipped = evaluate(scale, none(), benchmark, batch_size=2)
    assert [r["id"] for r in records] == ["gqa/testdev/0"]
    assert skipped == [{"id": "gqa/testdev/1", "why": "the row has no question"}]


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
    with pytest.raises(UserError) as error:
        build("chartqa", write(tmp_path, "test", rows)).samples()
    assert "lacks the column answer, which chartqa reads; it has type, question, answers, image: take a copy" in said(error)
    assert "did you mean" not in said(error)


def test_gqa_without_its_images_names_what_is_there(tmp_path):
    folder = gqa(tmp_path)
    shutil.rmtree(folder / "testdev_balanced_images")
    with pytest.raises(UserError) as error:
        build("gqa", folder).samples()
    assert "config=testdev_balanced_images is not in" in said(error) and "which holds: testdev_balanced_instructions" in said(error)
