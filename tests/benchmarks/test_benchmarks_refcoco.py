"""RefCOCO: its two conventions for coordinates, boxes in replies, and scores by hand."""

from __future__ import annotations

import pytest
from PIL import Image
from support.encoded_images import encoded, oriented
from support.hub import build, picture, refcoco, refcoco_row, write
from support.refusals import refusal

from blink_exp.backbone.canvas import square_canvas
from blink_exp.benchmarks.base import UnusableImage
from blink_exp.benchmarks.refcoco import centred, fractions, iou, padded_fractions, predicted_box
from blink_exp.evaluation.records import graded
from blink_exp.images import ImageOptions, image_size, open_image


def test_each_expression_of_a_row_is_a_sample_on_the_row_s_image(tmp_path):
    samples = build("refcoco", refcoco(tmp_path)).samples()
    assert [s.id for s in samples] == [f"refcoco/testA/{k}" for k in ("00000/0", "00000/1", "00001/0", "00002/0")]
    assert [s.question for s in samples] == ["left cup", "the blue one", "right cup", "man in red"]
    photographs = ["000000000001"] * 3 + ["000000000002"]
    assert [s.image_id for s in samples] == [f"refcoco/testA/image/COCO_train2014_{k}.jpg" for k in photographs]
    assert [s.image().tobytes() for s in samples] == [picture(1).tobytes()] * 3 + [picture(2, (32, 48)).tobytes()]


@pytest.mark.parametrize(
    ("protocol", "boxes", "last"),
    [
        # 48 x 32, padded by 8 rows above; 32 x 48, padded by 8 columns on the left
        ("llava", [(0, 8 / 48, 0.5, 0.5), (0.5, 16 / 48, 1, 32 / 48), (0.25, 0.25, 28 / 48, 0.75)], "[0.25, 0.25, 0.58, 0.75]"),
        ("lmms_eval", [(0, 0, 0.5, 0.5), (0.5, 0.25, 1, 0.75), (0.125, 0.25, 0.625, 0.75)], "[0.12, 0.25, 0.62, 0.75]"),
    ],
)
def test_references_are_fractions_of_the_padded_image_or_of_the_image(protocol, boxes, last, tmp_path):
    samples = build("refcoco", refcoco(tmp_path), protocol=protocol).samples()
    for sample, box in zip(samples, (boxes[0], *boxes), strict=True):
        assert sample.fields["box"] == pytest.approx(box)
    assert samples[-1].answer == last
    assert [s.regions for s in samples] == [((0, 0, 0.5, 0.5),)] * 2 + [((0.5, 0.25, 1, 0.75),), ((0.125, 0.25, 0.625, 0.75),)]


@pytest.mark.parametrize("size", [(47, 32), (32, 47), (5, 4), (40, 40)], ids=str)
def test_padding_is_that_of_the_square_that_the_model_sees(size):
    """Odd differences too: a white image on the canvas has its edges where the box of all of it says."""
    seen = square_canvas(Image.new("RGB", size, "white"), pad=True)
    box = seen.convert("L").point(lambda v: 255 * (v == 255)).getbbox()
    assert padded_fractions((0, 0, *size), size) == pytest.approx([v / seen.width for v in box])


def test_the_region_of_a_box_that_leaves_its_image_ends_at_the_edge(tmp_path):
    folder = write(tmp_path, "testA", [refcoco_row(["a"], [-12, 16, 72, 32], picture())])
    [sample] = build("refcoco", folder, protocol="lmms_eval").samples()
    assert sample.regions == ((0, 0.5, 1, 1),)
    assert sample.fields["box"] == [-0.25, 0.5, 1.25, 1.5]  # the score's is not cut, as lmms-eval's


@pytest.mark.parametrize(
    ("text", "box"),
    [
        ("[0.61, 0.36, 0.92, 0.83]", (0.61, 0.36, 0.92, 0.83)),
        ("The man is at [ 0.1,0.2,  0.3,\n0.4 ].", (0.1, 0.2, 0.3, 0.4)),
        ("[1, 2] and [0, 0, 1, 1], not [0.1, 0.2, 0.3, 0.4]", (0, 0, 1, 1)),
        ("[100, 200, 300, 400]", (100, 200, 300, 400)),  # not rescaled
        ("[-0.1, 0.2, 0.3, 0.4]", (-0.1, 0.2, 0.3, 0.4)),
        ("[0.9, 0.8, 0.2, 0.1]", (0.9, 0.8, 0.2, 0.1)),
        ("[[0.1, 0.2, 0.3, 0.4]]", (0.1, 0.2, 0.3, 0.4)),
        *((text, None) for text in ("", "on the left", "0.1, 0.2, 0.3, 0.4", "[0.1, 0.2, 0.3]", "[0.1, 0.2, 0.3, 0.4, 0.5]")),
        *((text, None) for text in ("(0.1, 0.2, 0.3, 0.4)", "[0.1 0.2 0.3 0.4]", "[0.1, 0.2, 0.3, 0.", "[.1, .2, .3, .4]")),
        (f"[0, 0, {'9' * 400}, 1]", None),  # infinite as a float
    ],
)
def test_the_box_of_a_reply(text, box):
    assert predicted_box(text) == box


@pytest.mark.parametrize(
    ("box", "overlap", "middle"),
    [
        ((1, 1, 3, 3), 1, True),
        ((0, 0, 2, 2), 1 / 7, True),  # its centre is a corner of the reference
        ((2, 2, 4, 4), 1 / 7, True),
        ((1, 1, 3, 2), 1 / 2, True),
        ((1, 1, 2, 2), 1 / 4, True),
        ((0, 0, 4, 4), 1 / 4, True),
        ((0, 1, 2, 3), 1 / 3, True),
        ((3, 1, 5, 3), 0, False),  # edge to edge
        ((1, 3, 3, 5), 0, False),
        ((1, -2, 3, 1.5), 1 / 10, False),  # 1 of 7 + 4 - 1, centre above the reference
        ((-2, 1, 1.5, 3), 1 / 10, False),
        ((3, 3, 1, 1), 0, True),  # reversed corners enclose nothing
        ((3, 1, 1, 3), 0, True),
        ((1, 3, 3, 1), 0, True),
        ((2, 2, 2, 2), 0, True),
        (None, 0, False),
    ],
    ids=str,
)
def test_overlap_and_centre_by_hand(box, overlap, middle):
    """Of the reference (1, 1, 3, 3)."""
    assert iou(box, (1, 1, 3, 3)) == pytest.approx(overlap)
    assert centred(box, (1, 1, 3, 3)) is middle


def test_an_overlap_of_boxes_is_that_of_their_pixels_in_both_conventions():
    pixels, reference, size = (3, 4, 30, 20), (8, 2, 40, 19), (64, 31)
    for convention in (fractions, padded_fractions):
        assert iou(convention(pixels, size), convention(reference, size)) == pytest.approx(iou(pixels, reference))


def test_scores_by_hand(tmp_path):
    """Overlaps of 1, 1/2, 1/4 and no box; of the last two the one with a box has its centre in the reference."""
    benchmark = build("refcoco", refcoco(tmp_path), protocol="lmms_eval")
    replies = ["[0, 0, 0.5, 0.5]", "It is at [0.0, 0.0, 0.5, 0.25].", "[0.5, 0.25, 0.75, 0.5]", "the man"]
    records = [graded(benchmark, s, text) for s, text in zip(benchmark.samples(), replies, strict=True)]
    assert [r["correct"] for r in records] == [True, True, False, False]
    scores = benchmark.score(records)
    assert next(iter(scores)) == benchmark.headline == "acc@0.5"
    assert {k: v.value for k, v in scores.items()} == {
        **{"acc@0.1": 75, "acc@0.3": 50, "acc@0.5": 50, "acc@0.7": 25, "acc@0.9": 25},
        **{"iou": 43.75, "center_acc": 75, "no_box": 1},
    }
    assert {v.samples for v in scores.values()} == {4}


def test_a_reply_is_right_in_the_convention_of_its_protocol(tmp_path):
    """An object in the upper left quarter of 64 x 16 pixels, padded by 24 rows above: each convention's box overlaps the other's by 1/4."""
    folder = write(tmp_path, "testA", [refcoco_row(["a"], [0, 0, 32, 8], picture(size=(64, 16)))])
    for protocol, right in (("llava", [True, False]), ("lmms_eval", [False, True])):
        benchmark = build("refcoco", folder, protocol=protocol)
        [sample] = benchmark.samples()
        records = [graded(benchmark, sample, text) for text in ("[0, 0.375, 0.5, 0.5]", "[0, 0, 0.5, 0.5]")]
        assert [r["correct"] for r in records] == right
        assert benchmark.score(records)["iou"].value == 62.5


def test_a_box_at_the_corner_is_not_hit_by_silence(tmp_path):
    """lmms-eval reads no box as [0, 0, 0, 0], whose centre lies in a reference that touches the corner."""
    benchmark = build("refcoco", refcoco(tmp_path), protocol="lmms_eval")
    corner = benchmark.samples()[0]
    none, zeros = (benchmark.score([graded(benchmark, corner, text)]) for text in ("nowhere", "[0, 0, 0, 0]"))
    assert (none["center_acc"].value, none["no_box"].value) == (0, 1)
    assert (zeros["center_acc"].value, zeros["no_box"].value) == (100, 0)


@pytest.mark.parametrize(
    ("answer", "bbox", "why"),
    [
        (["a"], None, "bbox is null, not [left, top, width, height]"),
        (["a"], [1.0, 2.0, 3.0], "bbox is [1.0, 2.0, 3.0], not [left"),
        (["a"], [1.0, 2.0, 3.0, 4.0, 5.0], "bbox is [1.0, 2.0, 3.0, 4.0, 5.0], not [left"),
        (["a"], [1.0, 2.0, 0.0, 4.0], "bbox is [1.0, 2.0, 0.0, 4.0], not [left"),
        (["a"], [1.0, 2.0, 3.0, -4.0], "with a width and a height above 0"),
        (["a"], [1.0, 2.0, 3.0, float("nan")], "with a width and a height above 0"),
        (["a"], [float("inf"), 2.0, 3.0, 4.0], "with a width and a height above 0"),
        (["a", " "], [1.0, 2.0, 3.0, 4.0], "answer holds no expression or a blank one"),
        ([], [1.0, 2.0, 3.0, 4.0], "answer holds no expression or a blank one"),
    ],
    ids=str,
)
def test_a_row_without_a_box_or_an_expression_is_one_skipped_sample(answer, bbox, why, tmp_path):
    rows = [refcoco_row(["b"], [1.0, 2.0, 3.0, 4.0], picture()), refcoco_row(answer, bbox, picture())]
    good, bad = build("refcoco", write(tmp_path, "testA", rows)).samples()
    assert good.id == "refcoco/testA/00000/0" and bad.image_id != good.image_id
    assert isinstance(bad.image, UnusableImage) and why in bad.image.why


def test_a_row_whose_image_does_not_open_is_skipped_by_name(tmp_path):
    rows = [refcoco_row(["a", "b"], [1, 2, 3, 4], image) for image in (picture(), b"broken", None)]
    samples = build("refcoco", write(tmp_path / "some", "testA", rows)).samples()
    assert [s.id.removeprefix("refcoco/testA/") for s in samples] == ["00000/0", "00000/1", "00001", "00002"]
    assert "the row has no image" in samples[-1].image.why
    folder = write(tmp_path / "none", "testA", rows[1:2])
    assert "none of its 1 rows can be asked, first refcoco/testA/00000: the image is no image" in refusal(build("refcoco", folder).samples)


def jpeg(orientation: int) -> bytes:
    return encoded(picture(size=(48, 32)), "JPEG", exif=oriented(orientation))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_size_is_that_of_the_opened_image(orientation):
    for exif in (True, False):
        options = ImageOptions(exif=exif)
        assert image_size(jpeg(orientation), options) == open_image(jpeg(orientation), options).size
    assert image_size(jpeg(orientation)) == ((48, 32) if orientation < 5 else (32, 48))


def test_a_size_of_a_jpeg_is_read_from_its_start_and_of_no_image_refused(tmp_path):
    assert image_size(jpeg(1)[:-400]) == (48, 32)
    picture(size=(30, 20)).save(tmp_path / "a.png")
    assert image_size({"bytes": None, "path": "a.png"}, root=tmp_path) == (30, 20)
    for source, why in ((b"GIF", "no image of a format"), ({"bytes": None, "path": "../a.png"}, "leads out of"), (None, "has no image")):
        with pytest.raises(OSError, match=why):
            image_size(source, root=tmp_path)
    with pytest.raises(OSError, match="too thin"):
        image_size(encoded(Image.new("L", (401, 1)), "JPEG"))
