"""Copies of published data sets as people have them: every layout of the hub, configurations, and what is missing or doubled in them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support.hub import build, chartqa, gqa, mme, picture, write
from support.hub_choices import MAKERS
from support.refusals import refusal

from blink_exp.benchmarks.folders import local_files
from blink_exp.benchmarks.rows import load_rows
from blink_exp.errors import UserError

HASHES = ("a25dbe3b44c4fda6", "7d22c7f1aba6fca4", "594798fd3f5b029c", "53ae1794f93b1e35")


def hashed(folder: Path) -> Path:
    """The folder with the hub's older file names."""
    for file, mark in zip(sorted(folder.rglob("*.parquet")), HASHES, strict=False):
        file.rename(file.with_name(f"{file.stem}-{mark}.parquet"))
    return folder


def carded(folder: Path, *entries: str) -> Path:
    (folder / "README.md").write_text(
        "---\nlicense: mit\nconfigs:\n" + "\n".join(entries) + "\n---\n# A data set\n---\nconfigs: no\n", encoding="utf-8"
    )
    return folder


def files(folder: Path, split: str, config: str | None = None) -> list[str]:
    return [Path(file).relative_to(folder).as_posix() for file in local_files(folder, split, config)]


# Layouts


def test_hashes_in_file_names_are_no_part_of_the_split(tmp_path):
    """As lmms-lab's MME has them; order is by number, not by hash."""
    plain = build("mme", mme(tmp_path / "plain")).samples()
    benchmark = build("mme", hashed(mme(tmp_path / "hashed")))
    assert benchmark.samples() == plain
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
    (folder / "README.md").write_text(text, encoding="utf-8")
    assert files(folder, "test") == ["data/test-00000-of-00001.parquet"]


def test_a_card_whose_files_lie_elsewhere_leaves_it_to_names(tmp_path):
    folder = carded(chartqa(tmp_path), "- config_name: en", "  data_files: [{split: test, path: en/test-*}]")
    assert files(folder, "test", "en") == ["data/test-00000-of-00001.parquet"]


# Configurations


def test_another_configuration_s_rows_are_never_taken(tmp_path):
    """A copy that has English only, asked for Chinese: with rows in data/ or a card it would be English under a Chinese name."""
    folder = MAKERS["mmbench"](tmp_path)
    message = refusal(build("mmbench_cn", folder).samples)
    assert f"benchmark.config=cn is not in {folder}, which holds: en" in message
    shutil.copytree(folder / "en", folder / "data")
    message = refusal(build("mmbench_cn", folder).samples)
    assert "which holds: default, en" in message
    shutil.rmtree(folder / "data")
    message = refusal(build("mmbench", folder, config=None).samples)
    assert "benchmark.config=null names none of several" in message and "use one of: en" in message


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
    message = refusal(build("pope", folder, config="Full").samples)
    assert "benchmark.config=Full is not in" in message and "which holds: default" in message


def test_gqa_without_its_images_names_what_is_there(tmp_path):
    folder = gqa(tmp_path)
    shutil.rmtree(folder / "testdev_balanced_images")
    message = refusal(build("gqa", folder).samples)
    assert "config=testdev_balanced_images is not in" in message and "which holds: testdev_balanced_instructions" in message


# Whole or not


def test_half_a_set_is_refused(tmp_path):
    rows = [{"type": "human_test", "question": "?", "answer": "1", "image": picture()} for _ in range(4)]
    folder = hashed(write(tmp_path, "test", rows, shards=4))
    assert len(build("chartqa", folder).samples()) == 4
    load_rows.cache_clear()
    first, *_, last = sorted((folder / "data").iterdir())
    last.rename(tmp_path / "kept")
    message = refusal(build("chartqa", folder).samples)
    assert "1 of 4 files test-*.parquet of split test are missing, first number 00003; download them again" in message
    (tmp_path / "kept").rename(last)
    shutil.copy(first, first.with_name(f"test-00000-of-00004-{HASHES[3]}.parquet"))
    message = refusal(build("chartqa", folder).samples)  # the copy of two commits: some rows would count twice
    assert "two copies of files of split test" in message


def test_two_copies_under_two_names_are_refused(tmp_path):
    folder = chartqa(tmp_path)
    shutil.copy(folder / "data/test-00000-of-00001.parquet", folder / "data/test.parquet")
    message = refusal(build("chartqa", folder).samples)
    assert "two copies of files of split test" in message
