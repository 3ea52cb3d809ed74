"""Files that earlier runs or a user left, cut off or of another shape: one line that names the file, or the point is measured again."""

from __future__ import annotations

import json
import logging
import os
import random
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from support.instruction_data import picture
from support.refusals import refusal

from blink_exp import files
from blink_exp.cli import lenient_output
from blink_exp.evaluation import store
from blink_exp.evaluation.records import RecordLog, read, write_lines
from blink_exp.evaluation.store import SHARED_NOTE, pop_shared_note
from blink_exp.files import write_json, write_text
from blink_exp.reports import html
from blink_exp.reports.console import wide_console
from blink_exp.settings.compose import composed
from blink_exp.settings.roots import TrainSettings
from blink_exp.settings.values import read_settings, to_yaml
from blink_exp.studies import jobs, listing, matching, point
from blink_exp.studies.point import measured_point
from blink_exp.studies.rescoring import made_with, predicted
from blink_exp.training import llava_665k, resume

BROKEN = {
    "empty": b"",
    "cut": b'{"id": "a", "prediction": "ye',
    "no UTF-8": b"\xff\xfe\x00",
    "nothing but zeros": bytes(512),
    "null": b"null\n",
    "a list": b"[]\n",
    "text": b'"x"\n',
    "a number": b"7\n",
    "without end": b"[" * 100_000,
    "a long number": b"1" * 10_000,
}


# Predictions


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"id": "b", "prediction": None}, "line 3 of {} (b) has prediction=null, which is no text; give predictions="),
        ({"id": "b", "prediction": 3}, "line 3 of {} (b) has prediction=3, which is no text"),
        ({"id": "b", "prediction": ["x"]}, "line 3 of {} (b) has prediction=['x'], which is no text"),
        ({"id": 7, "prediction": "x"}, "line 3 of {} has id=7, which is no text"),
        ({"id": None, "prediction": "x"}, "line 3 of {} has id=null, which is no text"),
        ({"prediction": "x"}, "line 3 of {} has no id, so it is no record"),
        ({"id": "b"}, "line 3 of {} has no prediction, so it is no record"),
        (["b", "x"], "line 3 of {} is a list, not a record"),
        ("b", "line 3 of {} is text, not a record"),
        (None, "line 3 of {} is null, not a record"),
        ({"id": "a", "prediction": "x"}, "a is answered twice in {}, lines 1 and 3"),
        ({"id": "b", "prediction": "x", "layers": 3}, "line 3 of {} has layers=3, no list of decisions"),
        ({"id": "b", "prediction": "x", "layers": [{"layer": "12"}]}, "line 3 of {} has layers="),
    ],
)
def test_a_line_that_is_no_prediction_is_named(line, message, tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"id": "a", "prediction": "x"}) + "\n\n" + json.dumps(line) + "\n", encoding="utf-8")
    assert message.format(path) in refusal(lambda: predicted(str(path)))


@pytest.mark.parametrize("how", BROKEN)
def test_a_predictions_file_that_is_none_is_one_line(how, tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_bytes(BROKEN[how])
    message = refusal(lambda: predicted(str(path)))
    assert str(path) in message and "give" in message and len(message) < 400 + len(str(path))
    assert "against=" in refusal(lambda: predicted(str(path), "against"))
    (tmp_path / "empty").mkdir()
    assert "predictions=" in refusal(lambda: predicted(str(tmp_path / "empty")))


def test_predictions_are_read_with_a_mark_blank_lines_and_any_line_end(tmp_path):
    rows = [{"id": "a\ud800", "prediction": "x\u2028y"}, {"id": "b", "prediction": "\udfff"}]
    (tmp_path / "p.jsonl").write_bytes(b"\xef\xbb\xbf" + "\r\n\r\n".join(json.dumps(r) for r in rows).replace("\\u2028", "\u2028").encode())
    assert list(predicted(str(tmp_path / "p.jsonl")).values()) == [
        {"id": "a\ufffd", "prediction": "x\u2028y"},
        {"id": "b", "prediction": "\ufffd"},
    ]


@pytest.mark.parametrize("how", [*BROKEN, "blink"])
def test_a_broken_metrics_json_beside_predictions_is_one_line(how, tmp_path):
    (tmp_path / "records.jsonl").write_text('{"id": "a", "prediction": "x"}\n', encoding="utf-8")
    (tmp_path / "metrics.json").write_bytes(BROKEN.get(how, b'{"blink": 3}'))
    assert "metrics.json" in refusal(lambda: made_with(str(tmp_path)))


def test_records_that_cannot_be_gone_on_with_are_asked_again(tmp_path):
    path = tmp_path / "records.part"
    log = RecordLog(path, "s")
    log.add([{"id": "a", "question": "?", "prediction": "x", "layers": []}])
    whole = path.read_bytes()
    for line in (*BROKEN.values(), b'{"id": "b"}', b'{"id": "b", "question": 3, "prediction": "x"}', b'{"id": 3}'):
        path.write_bytes(whole + line + b"\n")
        reopened = RecordLog(path, "s")
        assert list(reopened.records) == ["a"] and reopened.whole == len(whole)


def test_no_text_of_a_row_ends_a_run_at_its_end(tmp_path, capsys):
    odd = "a\ud800\udc00\udfff\x00\u2028b"
    write_text(tmp_path / "x.csv", odd)
    write_json(tmp_path / "x.json", {odd: [odd]})
    (tmp_path / "records.jsonl").write_bytes(write_lines([{"id": odd, "layers": []}]).encode())
    assert read(tmp_path)[0]["id"].startswith("a\ufffd") and files.read_json(tmp_path / "x.json", "")
    lenient_output()
    wide_console().print(odd)
    print(odd)


# The store


FINISHED = {
    "method": "none",
    "scores": {"accuracy": {"value": 5.0, "stderr": 1.0}},
    "samples": 1,
    "skipped": [],
    "seconds": 2.0,
    "backbone": "scale-llava-1.5@0",
    "benchmark": "mosaic_mme",
    "protocol": "own",
    "headline": "accuracy",
    "blink": {},
    "cost": None,
    "commit": None,
}
CHANGES = ({"scores": {"accuracy": 3}}, {"scores": {"accuracy": {"value": "5"}}}, {"samples": "1"}, {"seconds": []}, {"skipped": None})
OTHER_SHAPES = [b"{}", b'{"scores": 3}', *(json.dumps(FINISHED | change).encode() for change in CHANGES)]
STORED = {
    "metrics.json": [*BROKEN.values(), *OTHER_SHAPES],
    "records.jsonl": [*BROKEN.values(), b'{"layers": 3}\n', b'{"layers": [3]}\n'],
    "config.yaml": [b"", b"a: [", b"- a\n", b"text", b"\xff", b"a: ${b\n", b"!!python/object:x {}"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", STORED)
def test_a_broken_entry_of_the_store_is_named_and_measured_again(name, tmp_path, monkeypatch, caplog):
    calls = []

    def measure(cfg, folder, parts, devices, before):
        calls.append(folder)
        write_text(folder / "config.yaml", to_yaml(cfg))
        write_text(folder / "records.jsonl", write_lines([{"id": "a", "visual_tokens": 7, "newline_tokens": 1, "layers": []}]))
        write_json(folder / "metrics.json", FINISHED)
        return FINISHED

    monkeypatch.setattr(point, "measure", measure)
    cfg = composed("sweep", ["method=none", f"store={tmp_path}", "cost=0"])
    assert not measured_point(cfg)["reused"] and measured_point(cfg)["reused"]
    for data in STORED[name]:
        store.name_once.cache_clear()
        caplog.clear()
        (calls[0] / name).write_bytes(data)
        with caplog.at_level(logging.WARNING):
            listing.Store(cfg)
            row = measured_point(cfg)
        assert not row["reused"] and row["scores"] == {"accuracy": 5.0}, data[:80]
        assert str(calls[0] / name) in caplog.text, data[:80]
        assert measured_point(cfg)["reused"]
    assert len(calls) == 1 + len(STORED[name])


@pytest.mark.parametrize("how", BROKEN)
def test_other_broken_files_of_a_sweep_are_left_out(how, tmp_path, caplog):
    (tmp_path / SHARED_NOTE).write_bytes(BROKEN[how])
    assert pop_shared_note(tmp_path) is None and not (tmp_path / SHARED_NOTE).exists()
    (tmp_path / "matched.json").write_bytes(BROKEN[how])
    assert matching.stored_match(tmp_path / "matched.json") is None
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "job.json").write_bytes(BROKEN[how])
    row = {"number": 1, "overrides": [], "point": "p", "status": "failed", "error": "e"}
    write_json(tmp_path / "1" / "job.json", row)
    assert jobs.multirun(OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}})).rows() == [row]
    assert str(tmp_path / "0" / "job.json") in caplog.text


@pytest.mark.parametrize("data", STORED["config.yaml"])
def test_a_broken_config_of_a_training_is_one_line(data, tmp_path, monkeypatch):
    monkeypatch.setattr(resume, "latest", lambda folder, names: resume.Checkpoint(folder / "last.ckpt", 1, {}, {}))
    (tmp_path / "config.yaml").write_bytes(data)
    message = refusal(lambda: resume.resume_from(TrainSettings(resume=str(tmp_path)), tmp_path))
    assert str(tmp_path / "config.yaml") in message and "copy it again or start a new run" in message
    (tmp_path / "config.yaml").write_bytes(b"\xef\xbb\xbfa: 1\n")
    assert read_settings(tmp_path / "config.yaml", "") == {"a": 1}


def test_a_report_names_what_it_cannot_show_and_shows_the_rest(tmp_path):
    from support.made_up_table import document

    write_json(tmp_path / "blink_table2" / "m" / "table.json", document())
    odd = [*BROKEN.values(), b'{"name": 3, "title": "t", "published_columns": {}, "groups": [], "rows": []}']
    odd += [json.dumps(document() | {key: value}).encode() for key in ("rows", "groups") for value in ([3], [{}], [[]])]
    for k, data in enumerate(odd):
        (tmp_path / f"blink_table{k + 10}" / "m").mkdir(parents=True)
        (tmp_path / f"blink_table{k + 10}" / "m" / "table.json").write_bytes(data)
    page = html.gather(tmp_path).read_text(encoding="utf-8")
    assert "modules &amp; thresholds" in page
    assert all(f"blink_table{k + 10}/m/table.json" in page for k in range(len(odd)))


# Instruction data


def instruction(folder: Path, rows: object, encoding: str = "utf-8") -> llava_665k.ImageListing:
    picture(folder / "images" / "coco" / "a.png", 1)
    (folder / "rows.json").write_text(json.dumps(rows), encoding=encoding)
    return llava_665k.find(folder / "rows.json", folder / "images")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("name", ["coco/a.png", "coco\\a.png", ".\\coco\\a.png"])
def test_images_are_found_behind_a_mark_and_windows_separators(name, encoding, tmp_path):
    image_listing = instruction(tmp_path, [{"image": name}, {"id": "text only"}, {}, {"image": "coco\\gone.png"}], encoding)
    assert [os.path.normpath(n) for n in image_listing.names] == ["coco/a.png"]
    assert (image_listing.rows, image_listing.with_image, image_listing.missing) == (4, 2, {"coco": 1})


@pytest.mark.parametrize("key", ["images", "image_path", "img", "Image"])
def test_another_key_than_image_is_named(key, tmp_path):
    message = refusal(lambda: instruction(tmp_path, [{"id": 1, key: "coco/a.png"}, {"id": 2}]))
    assert (
        f'none of the 2 rows of data.json={tmp_path}/rows.json has the key "image" (keys: id, {key}); rename "{key}" to "image"' in message
    )
    image_listing = instruction(tmp_path, [{"id": 1, key: "coco/a.png"}, {"image": "coco/a.png"}])
    assert image_listing.summary["other_key"] == 1 and "1 rows name theirs under another key" in str(image_listing)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "is an empty list"),
        ([{"text": 1}] * 3, "none of the 3 rows of data.json="),
        ([{"image": "C:\\x\\a.png"}], "1 images are URLs or lead out of data.images"),
        ([{"image": "..\\a.png"}], "1 images are URLs or lead out of data.images"),
        ([{"image": "\\\\server\\a.png"}], "1 images are URLs or lead out of data.images"),
        ([{"image": " "}], "must be a path below data.images"),
        ([{"image": 3}], "row 1 of"),
        ([{"image": "coco/\ud800.png"}], "holds none of the 1 images"),
        ([{"image": "coco\0/a.png"}], "holds none of the 1 images"),
        ([{"image": "x" * 2**20 + "/a.png"}], "holds none of the 1 images"),
        ([[["a" * 999]]], "is no {...} but"),
    ],
)
def test_odd_instruction_data_is_one_line(rows, message, tmp_path):
    text = refusal(lambda: instruction(tmp_path, rows))
    assert message in text and len(text) < 500 + 2 * len(str(tmp_path))


@pytest.mark.parametrize(
    "data", [b"[" * 100_000, b"[1" + b"1" * 10_000 + b"]", b"[nope]", b"\xef\xbb\xbf[{]", b"\xff", b'["' + b"x" * 9000]
)
def test_instruction_data_that_is_no_json_is_one_line(data, tmp_path):
    (tmp_path / "rows.json").write_bytes(data)
    assert "rows.json" in refusal(lambda: list(llava_665k.rows(tmp_path / "rows.json")))
    assert "is not there or no file" in refusal(lambda: list(llava_665k.rows(tmp_path)))


def test_a_bad_row_of_instruction_data_is_passed_over_and_counted(tmp_path):
    """One of 665,000 rows must not end a training."""
    rows = [{"image": "coco/a.png"}, 5, None, "x", {"image": 3}, {"image": ["coco/a.png"]}, {"image": " "}, {"text": "no image"}]
    image_listing = instruction(tmp_path, rows)
    assert image_listing.names == ["coco/a.png"] and (image_listing.rows, image_listing.with_image) == (8, 1)
    assert image_listing.summary["wrong_rows"] == 6
    assert f"6 rows are passed over, first row 2 of {tmp_path}/rows.json is no {{...}} but 5" in str(image_listing)


def test_a_fifo_or_a_device_is_not_read(tmp_path):
    """Catches a run that waits for ever for somebody to write into a FIFO."""
    os.mkfifo(tmp_path / "a.json")
    assert "a.json is no ordinary file" in refusal(lambda: list(llava_665k.rows(tmp_path / "a.json")))
    for path in (tmp_path / "a.json", Path("/dev/zero")):
        assert "no ordinary file" in refusal(lambda path=path: files.read_json(path, "copy it again"))
        refusal(lambda path=path: read_settings(path, "copy it again"))
        assert f"predictions={path} is no ordinary file" in refusal(lambda path=path: predicted([str(path)]))


def test_a_row_without_an_end_is_not_read_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(llava_665k, "LONGEST_ROW", 1000)
    (tmp_path / "rows.json").write_text('["' + "x" * 100_000, encoding="utf-8")
    decoded = []
    real = json.JSONDecoder.raw_decode
    monkeypatch.setattr(json.JSONDecoder, "raw_decode", lambda self, *a: decoded.append(1) or real(self, *a))
    assert "damaged or cut off" in refusal(lambda: list(llava_665k.rows(tmp_path / "rows.json", chunk=100)))
    assert len(decoded) < 20


@pytest.mark.parametrize("seed", range(20))
def test_any_byte_that_changes_in_a_file_is_one_line_or_another_value(seed, tmp_path):
    """A thousand files that differ in a few bytes from a whole one."""
    rng, path = random.Random(seed), tmp_path / "records.jsonl"
    whole = b"".join(json.dumps({"id": f"{k}", "prediction": "a\u00e9", "layers": []}).encode() + b"\n" for k in range(4))
    for _ in range(50):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(data)
        try:
            assert all(isinstance(r["prediction"], str) for r in predicted(str(path)).values())
        except files.UserError as error:
            assert "\n" not in str(error) and str(path) in str(error)
