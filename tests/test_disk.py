"""What the operating system refuses: one line with the verb, the file and the cure, and nothing half-written."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from support import scripts
from support.small_disks import mounted

from blink_exp import disk
from blink_exp.cli import one_line
from blink_exp.disk import WriteError, disk_line, writing
from blink_exp.evaluation.records import RecordLog
from blink_exp.files import write_text


def fault(number: int, file: object = None, kind: type[OSError] = OSError) -> OSError:
    return kind(number, os.strerror(number), None if file is None else str(file))


def test_reading_and_writing_are_told_apart(tmp_path):
    (tmp_path / "there").write_text("x", encoding="utf-8")
    assert one_line(fault(errno.EACCES, tmp_path / "new")).startswith(f"no permission to write {tmp_path / 'new'}; choose another folder")
    assert one_line(fault(errno.EACCES, tmp_path / "there")).startswith(f"no permission to write {tmp_path / 'there'}; ")  # it can be read
    assert one_line(fault(errno.ENOENT, tmp_path / "gone")) == f"{tmp_path / 'gone'} is not there; check the path"
    with pytest.raises(WriteError) as error, writing(tmp_path / "gone" / "file"):
        (tmp_path / "gone" / "file").write_text("x", encoding="utf-8")
    assert one_line(error.value).startswith(f"{tmp_path / 'gone' / 'file'} could not be written, its folder is gone; run the same command")


def test_what_may_not_be_read_is_no_question_of_writing(tmp_path, monkeypatch):
    """Root reads everything, so the rights are made up."""
    (tmp_path / "closed").mkdir()
    (tmp_path / "secret").write_text("x", encoding="utf-8")
    real = os.access
    denied = {str(tmp_path / "secret"), str(tmp_path / "closed")}
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) not in denied and real(path, mode))
    for name in ("secret", "closed", "closed/file", "closed/folder/file"):
        assert one_line(fault(errno.EACCES, tmp_path / name)) == f"no permission to read {tmp_path / name}; chmod +r it, or give another"


@pytest.mark.parametrize("kind", [OSError, WriteError])
@pytest.mark.parametrize("number", sorted(errno.errorcode))
def test_every_error_of_the_system_is_one_line_that_names_the_file(number, kind, tmp_path):
    line = disk_line(fault(number, tmp_path / "file", kind))
    assert "\n" not in line and str(tmp_path / "file")[:60] in line and "Errno" not in line
    assert disk_line(fault(number))


def test_full_disks_quotas_and_what_is_in_the_way(tmp_path):
    assert disk_line(fault(errno.ENOSPC, "/x")).startswith("the disk is full (writing /x); free some space")
    assert disk_line(fault(errno.EDQUOT, "/x")).startswith("the quota of the disk is used up (writing /x); free some space")
    assert disk_line(fault(errno.EROFS, "/x")).startswith("/x is on a file system that is read-only; choose another folder")
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(WriteError) as error:
        write_text(tmp_path / "file" / "below", "x")
    assert disk_line(error.value).startswith(f"{tmp_path / 'file'} is a file where a folder is needed; move it, or choose another folder")


@pytest.mark.parametrize("error", [fault(errno.ENOSPC), KeyboardInterrupt()])
def test_a_write_that_fails_or_is_interrupted_leaves_the_old_file_and_no_part(error, tmp_path, monkeypatch):
    target = tmp_path / "metrics.json"
    write_text(target, "old")

    def stopped(self, data):
        self.touch()
        raise error

    monkeypatch.setattr(Path, "write_bytes", stopped)
    with pytest.raises(type(error)):
        write_text(target, "new")
    monkeypatch.undo()
    assert target.read_text(encoding="utf-8") == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.json"]


def test_records_on_a_full_disk_name_their_file_and_what_was_whole_stays(tmp_path, monkeypatch):
    log = RecordLog(tmp_path / "records.part", "settings")
    log.add([{"id": "a", "prediction": "x", "question": "q"}])

    class Full:
        def __init__(self, file):
            self.file = file

        def __getattr__(self, name):
            return getattr(self.file, name)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, data):
            self.file.write(data[:5])
            raise OSError(errno.ENOSPC, "No space left on device")  # without a name, as the system's own

    opened = Path.open
    monkeypatch.setattr(Path, "open", lambda self, *a, **k: Full(opened(self, *a, **k)))
    with pytest.raises(WriteError) as error:
        log.add([{"id": "b", "prediction": "y", "question": "q"}])
    assert f"the disk is full (writing {tmp_path / 'records.part'})" in disk_line(error.value)
    monkeypatch.undo()
    assert set(RecordLog(tmp_path / "records.part", "settings").records) == {"a"}
    log.add([{"id": "c", "prediction": "z", "question": "q"}])
    assert set(RecordLog(tmp_path / "records.part", "settings").records) == {"a", "c"}


@pytest.fixture
def small_disk(tmp_path):
    """A file system of twelve kilobytes."""
    with mounted(tmp_path / "disk") as folder:
        yield folder


def test_a_disk_that_is_full_is_one_line_whatever_is_written_first(small_disk):
    done = scripts.run(["evaluate.py", "method=none", "limit=2", "cost=0", f"hydra.run.dir={small_disk / 'run'}"])
    assert done.returncode == 2, done.stdout + done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: the disk is full (writing {small_disk / 'run'}") and "free some space" in line
    assert not list(small_disk.rglob("*.json.part")) + list(small_disk.rglob("*.yaml.part"))


def test_the_cure_names_the_setting_of_the_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "FOLDERS", {tmp_path: "hydra.run.dir", tmp_path / "points": "store"})
    line = disk_line(fault(errno.EROFS, tmp_path / "points" / "a" / "metrics.json"))
    assert line.endswith("choose another folder with store=...")
    assert disk_line(fault(errno.EROFS, tmp_path / "metrics.json")).endswith("choose another folder with hydra.run.dir=...")
