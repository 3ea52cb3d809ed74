"""What a point is known by, and the progress of its evaluation in a file."""

from __future__ import annotations

import functools
import os
from dataclasses import replace

import pytest

from blink_exp.evaluation import identity
from blink_exp.evaluation.identity import file_stamp
from blink_exp.evaluation.terminal import Lines
from blink_exp.images import DEFAULT, open_image
from blink_exp.settings.compose import composed


@pytest.mark.slow
def test_image_files_are_part_of_what_a_point_is_known_by(tmp_path):
    def digests() -> dict[str, str]:
        return identity.digests(replace(composed("evaluate", ["method=none"]), benchmark={"path": str(tmp_path)}))

    (tmp_path / "questions.json").write_text("[]", encoding="utf-8")
    assert "images" not in digests()
    seen = [digests()["data"]]
    (tmp_path / "images" / "deep").mkdir(parents=True)
    for name, data in (("a.png", b"1"), ("images/b.JPG", b"1"), ("images/deep/c.webp", b"1"), ("images/b.JPG", b"22")):
        (tmp_path / name).write_bytes(data)
        assert digests()["data"] == seen[0]
        seen.append(digests()["images"])
    os.utime(tmp_path / "a.png", (1, 1))
    seen.append(digests()["images"])
    (tmp_path / "a.png").unlink()
    seen.append(digests()["images"])
    assert len(set(seen)) == len(seen)
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "d.png").write_bytes(b"1")
    (tmp_path / "README.md").write_text("x", encoding="utf-8")
    assert digests()["images"] == seen[-1]


def test_a_slow_look_through_a_folder_is_used_again_for_a_while(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(b"1")
    clock = iter([0.0, 1.0, 19.9, 20.1, 20.1])
    monkeypatch.setattr(identity.time, "monotonic", lambda: next(clock))
    first = identity.image_stamp(tmp_path)  # took a second
    (tmp_path / "a.png").write_bytes(b"22")
    assert identity.image_stamp(tmp_path) == first
    assert identity.image_stamp(tmp_path) != first


def test_progress_in_a_file_is_a_line_a_tenth_and_one_after_thirty_seconds(capsys):
    now = [0.0]
    lines = Lines(1000, "none on mme", lambda: now[0])
    for _ in range(1000):
        now[0] += 0.1
        lines.advance(1)
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 10
    assert printed[0] == "none on mme: 100 of 1000 (10 %), 10.0 s, about 1 min 30 s left"
    assert printed[-1] == "none on mme: 1000 of 1000 (100 %), 1 min 40 s"
    lines = Lines(1000, "none on mme", lambda: now[0])
    for _ in range(5):
        now[0] += 20
        lines.advance(1)
    assert [line.partition(" of")[0] for line in capsys.readouterr().out.splitlines()] == ["none on mme: 2", "none on mme: 4"]
    lines = Lines(None, "duts", lambda: now[0])
    now[0] += 31
    lines.advance(16)
    assert capsys.readouterr().out == "duts: 16, 31.0 s\n"


@pytest.mark.parametrize("name", ["images/a\0b.png", "images/\ud800.png", "x" * 5000, "images/gone.png"])
def test_a_name_that_no_file_can_have_has_no_stamp(name, tmp_path):
    """Such a row is skipped where its image is opened; its stamp, which is taken before, must not end the run."""
    assert file_stamp(functools.partial(open_image, name, DEFAULT, tmp_path)) is None
