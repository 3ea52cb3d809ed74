"""Rows that cannot be asked, from the file to the end of a run: skipped, named and counted, in the order of the rows."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.hub import build, picture, ten, vqav2_row, write
from support.hub_choices import MAKERS
from support.refusals import refusal
from support.viewing import Tables, config

from blink_exp.benchmarks.base import ExactMatch, Sample, UnusableImage
from blink_exp.benchmarks.easyvqa import EasyVQA
from blink_exp.errors import UserError, printable, reason
from blink_exp.evaluation import terminal
from blink_exp.evaluation.answering import prompt_of
from blink_exp.evaluation.evaluator import evaluate
from blink_exp.methods.none import none
from blink_exp.reports.console import wide_console
from blink_exp.viewer import run as viewer


def skipped(samples: list[Sample]) -> dict[str, str]:
    return {s.id: s.image.why for s in samples if isinstance(s.image, UnusableImage)}


def easyvqa(folder: Path, rows: object, encoding: str = "utf-8") -> EasyVQA:
    """``rows``: of questions.json, or all that it holds as text or bytes."""
    (folder / "images").mkdir(exist_ok=True)
    picture(1, (64, 64)).save(folder / "images" / "0.png")
    text = rows if isinstance(rows, str | bytes) else json.dumps(rows)
    (folder / "questions.json").write_bytes(text.encode(encoding) if isinstance(text, str) else text)
    return EasyVQA(str(folder))


GOOD = ["what color is the shape?", "red", 0]
BAD = [
    *(None, 7, "row", {}, [], ["what?"], ["what?", "red"], ["what?", "red", 0, 1]),
    *([None, "red", 0], ["", "red", 0], [" \n", "red", 0], [3, "red", 0], [["a"], "red", 0]),
    *(["what?", None, 0], ["what?", 3, 0], ["what?", ["red"], 0], ["what?", "red", None], ["what?", "red", [0]], ["what?", "red", {}]),
    *(["what?", "red", 0.5], ["what?", "red", True], ["what?", "x" * 2**20, 0][:2]),
]


def test_bad_rows_of_questions_json_are_skipped_and_the_others_keep_their_ids(tmp_path):
    samples = easyvqa(tmp_path, [row for bad in BAD for row in (bad, GOOD)]).samples()
    assert [s.id for s in samples] == [f"easyvqa/test/{i:05d}" for i in range(2 * len(BAD))]
    why = skipped(samples)
    assert list(why) == [s.id for s in samples[::2]]
    assert all(text.isprintable() and 0 < len(text) <= 200 for text in why.values())
    assert "not [question, answer, image id]" in why["easyvqa/test/00000"]
    assert why["easyvqa/test/00016"] == "the row has no question"
    assert "answer is a number (3), not text" in why["easyvqa/test/00028"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("", "questions.json is damaged or cut off"),
        ('[["what?", "red"', "questions.json is damaged or cut off"),
        ("[" * 100_000, "questions.json is damaged or cut off"),
        (b"\xff\xfe\x00[", "questions.json is damaged or cut off (no UTF-8 text)"),
        ({"questions": []}, "questions.json holds an object, not a list of rows"),
        (None, "questions.json holds null, not a list of rows"),
        ([], "questions.json holds no row"),
        ([["what?"]] * 3, "none of its 3 rows can be asked, first easyvqa/test/00000: the row is ['what?'], not"),
    ],
)
def test_a_questions_json_of_another_shape_is_one_line(rows, message, tmp_path):
    assert message in refusal(easyvqa(tmp_path, rows).samples)


def test_a_byte_order_mark_and_lone_surrogates_are_read(tmp_path):
    (sample,) = easyvqa(tmp_path, [["what \ud83d color?", "red\udc80", 0]], "utf-8-sig").samples()
    assert (sample.question, sample.answer) == ("what \ufffd color?", "red\ufffd")


@pytest.mark.slow
def test_an_evaluation_of_odd_rows_ends_and_names_them(scale, tmp_path, monkeypatch, capsys):
    """A placeholder is taken out, as the lmms-eval door does; two of them, a prompt without end and a short row are skipped."""
    rows = [
        GOOD,
        ["<image>\nwhat color is the shape?", "red", 0],
        ["<image> or <image>?", "red", 0],
        ["why " * 2**18, "red", 0],
        ["what?"],
        ["what [/bold] \ud800 <b>\u2028?", "[/bold]", 0],
    ]
    benchmark = easyvqa(tmp_path, rows)
    monkeypatch.setattr(type(benchmark), "max_new_tokens", 2)
    records, left_out = evaluate(scale, none(), benchmark, batch_size=2)
    assert [r["id"][-1] for r in records] == ["0", "1", "5"]
    assert records[0]["prediction"] == records[1]["prediction"]
    assert [s["id"][-1] for s in left_out] == ["2", "3", "4"]
    two, long, short = (s["why"] for s in left_out)
    assert "names 2 images (<image>)" in two
    assert "tokens, more than the LLM's 2,048 positions" in long and len(long) <= 200
    assert "the row is ['what?']" in short
    assert "3 of 6 samples skipped, first easyvqa/test/00002: the question names 2 images" in capsys.readouterr().out


def test_a_prompt_is_asked_without_the_placeholder_wherever_it_stands():
    backbone = SimpleNamespace(processor=SimpleNamespace(image_token="<image>"), model=SimpleNamespace(config=SimpleNamespace()))
    backbone.model.config.text_config = SimpleNamespace(max_position_embeddings=100)

    def asked(text: str) -> str:
        return prompt_of(backbone, ExactMatch(), Sample("a", "a", lambda: None, text, None, ""))

    assert asked("<image>\nWhat?") == asked("What?<image>") == asked("What?") == "What?"
    with pytest.raises(UserError, match="names 3 images"):
        asked("<image><image><image>")


def test_of_two_rows_with_one_id_the_first_is_asked(tmp_path):
    rows = [vqav2_row(k, "What?", ten("red")) for k in (1000, 1001, 1000, 1000)]
    samples = build("vqav2", write(tmp_path, "validation", rows)).samples()
    assert [s.id for s in samples[:2]] == ["vqav2/validation/1000", "vqav2/validation/1001"]
    assert skipped(samples) == {
        f"vqav2/validation/1000 (row {k})": f"row {k} has the id vqav2/validation/1000 of an earlier row" for k in (2, 3)
    }


@pytest.mark.parametrize("count", [1, 9, 11])
def test_vqa_accuracy_is_defined_over_ten_people(count, tmp_path):
    rows = [vqav2_row(1000, "What?", ten("red")), vqav2_row(1001, "What?", ["red"] * count), vqav2_row(1002, "What?", None)]
    samples = build("vqav2", write(tmp_path, "validation", rows)).samples()
    assert skipped(samples) == {"vqav2/validation/1001": f"answers are {count}, not 10: VQA accuracy is defined over that many"}
    assert [s.answer for s in samples] == ["red", None, None]


def test_text_that_is_no_utf_8_skips_its_row(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    (file,) = MAKERS["chartqa"](tmp_path).rglob("*.parquet")
    table = pq.read_table(file)
    broken = pa.array([b"What?", b"\xff\xfe", b"Which?"]).view(pa.string())
    pq.write_table(table.set_column(table.column_names.index("question"), "question", broken), file)
    samples = build("chartqa", tmp_path).samples()
    assert len(samples) == 3 and samples[0].question == "What?"
    assert list(skipped(samples)) == ["chartqa/test/row 00001"] and "cannot be read" in next(iter(skipped(samples).values()))


def test_numbers_that_a_null_made_floats_keep_their_ids(tmp_path):
    rows = [vqav2_row(1000, "What?", ten("red")) | {"question_id": k} for k in (1000, None, 1002)]
    samples = build("vqav2", write(tmp_path, "validation", rows)).samples()
    assert [s.id for s in samples] == ["vqav2/validation/1000", "vqav2/validation/row 00001", "vqav2/validation/1002"]
    assert skipped(samples) == {"vqav2/validation/row 00001": "the row has no question_id"}


def test_a_table_without_rows_is_one_line(tmp_path):
    pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    (file,) = MAKERS["chartqa"](tmp_path).rglob("*.parquet")
    pq.write_table(pq.read_table(file)[:0], file)
    assert "holds no row" in refusal(build("chartqa", tmp_path).samples)


# The viewer


@pytest.mark.slow
def test_a_page_takes_the_placeholder_out_and_escapes_what_is_markup(tmp_path):
    question = "<image>\n</script><script>alert('[/bold]')</script> \udcff?"
    picture(1, (64, 64)).save(tmp_path / "0.png")
    page = viewer.view(config("method=none", image=str(tmp_path / "0.png"), question=question), tmp_path)
    parsed = Tables(page.read_text(encoding="utf-8"))
    assert "script" not in parsed.tags and "</script><script>alert('[/bold]')</script> \ufffd?" in parsed.text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("row", "message"),
    [
        (["", "red", 0], "sample=easyvqa/test/00001 is a row that cannot be asked (the row has no question); choose another sample"),
        (["what?"], "sample=easyvqa/test/00001 is a row that cannot be asked (the row is ['what?'], not [question, answer, image id])"),
        (["what?", "red", 1], "sample=easyvqa/test/00001 has an image that cannot be read ("),
        (["<image> <image>", "red", 0], "the question names 2 images (<image>)"),
        (["<image>", "red", 0], "the question is empty"),
        (["why? " * 2**18, "red", 0], "tokens, more than the LLM's 2,048 positions"),
    ],
)
def test_a_page_of_a_row_that_cannot_be_shown_is_one_line(row, message, tmp_path):
    path = easyvqa(tmp_path, [GOOD, row]).path
    cfg = config("method=none", "benchmark=easyvqa", f"benchmark.path={path}", sample="easyvqa/test/00001")
    assert message in refusal(lambda: viewer.view(cfg, tmp_path))
    assert not (tmp_path / "view.html").exists()


# What is printed


@pytest.mark.parametrize(
    "name", ["[/bold]", "[red]x", "[link=http://x]y[/link]", ":smile:", "a\x1b[31mb\nc", "x" * 2**20, "\ud800", "<b>&amp;"]
)
def test_categories_are_printed_as_they_are_on_one_line(name, capsys):
    score = {"value": 1.0, "stderr": 0.0, "samples": 4}
    head = {
        "method": name[:99],
        "benchmark": name[:99],
        "protocol": "own",
        "backbone": name[:99],
        "layers": [],
        "cost": None,
        "skipped": [],
    }
    terminal.show(head | {"scores": {name: score}, "samples": 4, "without_answer": 0, "dtype": name[:99]})
    out = capsys.readouterr().out
    assert printable(name)[:20].split()[0] in out
    assert "\x1b" not in out and max(map(len, out.splitlines())) < 200
    with terminal.bar(4, f"{name} on {name}", False) as advance:
        advance(1)


def test_every_console_of_the_project_prints_markup_as_text(capsys):
    wide_console().print("[/bold] [red]x[/red] :smile:")
    assert capsys.readouterr().out.strip() == "[/bold] [red]x[/red] :smile:"
    made = [p for p in Path("blink_exp").rglob("*.py") if "Console(" in p.read_text(encoding="utf-8")]
    assert [str(p) for p in made] == ["blink_exp/reports/console.py"]


def test_a_reason_is_one_line_without_addresses():
    why = reason(OSError(f"cannot identify {object()!r}\n\t<_io.BytesIO object at 0x7f3c2b1a> in\x1b[0m \ud800 it"))
    assert why == "cannot identify in [0m \ufffd it"
    assert reason(ValueError()) == "ValueError"
    assert len(reason("x" * 2**20)) == 200 and reason("x" * 300).endswith("x...")
