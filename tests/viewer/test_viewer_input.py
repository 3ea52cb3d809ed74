"""What a user of the viewer can get wrong, and words that must arrive as they were typed."""

from __future__ import annotations

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from support.refusals import refusal
from support.viewing import config, wide_photo

from blink_exp.benchmarks.base import Sample
from blink_exp.errors import UserError
from blink_exp.settings.words import quoted
from blink_exp.viewer import run as viewer
from blink_exp.viewer import subject


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"sample": "x", "image": "y.png", "question": "q"}, "sample=x and image=y.png are two pictures; give one of them"),
        ({"sample": "x", "question": "q"}, "question=q needs image=...; sample=x asks its own question"),
        ({}, "nothing to show; add sample=ID, or image=photo.jpg question="),
        ({"question": "q"}, "question=q has no picture; add image=photo.jpg"),
        ({"image": "y.png"}, 'image=y.png has no question; add question="What is in the picture?"'),
        ({"image": "y.png", "question": "  "}, 'image=y.png has no question; add question="What is in the picture?"'),
        ({"image": "no/y.png", "question": "q"}, "image=no/y.png is not there; give the file of a picture"),
        (
            {"image": "http://h/y.png", "question": "q"},
            "image=http://h/y.png is a URL, and nothing is downloaded; give the file of a picture",
        ),
        ({"image": ".", "question": "q"}, "image=. is a folder; give the file of a picture"),
        (
            {"sample": "mosaic_mme/v1/color/0007/no", "compare": ["blink", "herro"]},
            "compare=herro is no preset of method; did you mean hero or ",
        ),
    ],
)
def test_bad_input_is_one_line(keys, message, tmp_path):
    assert refusal(lambda: viewer.view(config(**keys), tmp_path)).startswith(message)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("data", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n" + bytes(40)])
def test_a_broken_picture_is_one_line(data, tmp_path):
    photo = wide_photo(tmp_path)
    for name, content in (("bad.png", data), ("cut.png", photo.read_bytes()[:-60])):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=rf"^image=.*{name} is no picture that can be read \(.+\); give a JPEG, PNG or WebP file$"):
            viewer.view(config(image=str(tmp_path / name), question="q"), tmp_path)


def test_an_unknown_sample_names_the_nearest():
    message = refusal(lambda: subject.load_subject(config(sample="mosaic_mme/v1/colr/0007/no")))
    assert message.startswith("sample=mosaic_mme/v1/colr/0007/no is not among the 640 samples of mosaic_mme; did you mean ")
    assert "mosaic_mme/v1/color/0007/no" in message and len(message) < 250
    many = [f"split/{k:06d}" for k in range(30000)]
    assert "split/012345" in subject.nearest_ids("12345", many) and "split/012340" in subject.nearest_ids("split/01234x", many)


def test_benchmarks_without_questions_and_samples_without_image_are_refused(monkeypatch):
    class Probing:
        name = "duts"

        def probe(self, backbone, limit, advance): ...

    def gone():
        raise OSError("cut\noff")

    class Broken:
        name = "x"

        def samples(self):
            return [Sample("7", "7", gone, "q", "a", "")]

    for benchmark, message in (
        (Probing(), "sample=7 needs a question, and benchmark=duts asks none; use another, e.g. mosaic_mme"),
        (Broken(), "sample=7 has an image that cannot be read (cut off); choose another sample"),
    ):
        monkeypatch.setattr(subject, "prepare_benchmark", lambda cfg, prepared=benchmark: prepared)
        assert refusal(lambda: subject.load_subject(config(sample="7"))) == message


@pytest.mark.parametrize(
    "text",
    [
        "Is it red, or blue?",
        'What\'s "this"?',
        "a\\",
        "a\\'b",
        "C:\\x\\y.jpg",
        "cost ${x}, $5",
        "\\${y}",
        "(a) {b} [c]: d=e #1",
        "0123",
        "1_000",
    ],
)
def test_questions_arrive_letter_by_letter(text):
    for key in ("question", "image", "sample"):
        (word,) = quoted([f"{key}={text}"])
        parsed = OverridesParser.create().parse_override(word)
        cfg = OmegaConf.create({key: None})
        OmegaConf.update(cfg, parsed.key_or_group, parsed.value())
        assert cfg[key] == text and not parsed.is_sweep_override()


def test_other_words_are_left_alone():
    words = ["method=a,b", "question=null", "image=", "question='as it is'", 'sample="x"', "--cfg", "job"]
    assert quoted(words) == words
    assert quoted(["-m", "sample=a,b"]) == ["-m", "sample='a','b'"]  # two values of a sweep
