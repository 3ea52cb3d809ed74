"""Parts of a benchmark: disjoint, complete, and the same for ever."""

from __future__ import annotations

import hashlib

import pytest
from PIL import Image
from support.hub import picture

from blink_exp.benchmarks.base import Sample
from blink_exp.benchmarks.duts import Duts
from blink_exp.benchmarks.easyvqa import EasyVQA
from blink_exp.benchmarks.mosaic_detail import MosaicDetail
from blink_exp.benchmarks.mosaic_hr import MosaicHR
from blink_exp.benchmarks.mosaic_mme import MosaicMME
from blink_exp.benchmarks.mosaic_open import MosaicOpen
from blink_exp.benchmarks.parts import check_part, first_ids, in_validation, part_of
from blink_exp.errors import UserError
from blink_exp.evaluation import identity
from blink_exp.evaluation.evaluator import chosen
from blink_exp.settings.compose import composed


def sample(image_id: str, image: Image.Image | None, question: str = "q") -> Sample:
    def opened() -> Image.Image:
        if image is None:
            raise OSError("broken")
        return image

    return Sample(f"{image_id}/{question}", image_id, opened, question, "yes", "all")


def test_an_image_s_part_is_what_its_id_hashes_to():
    """By the definition, and for ids written down: a sample that was ever reported on never becomes one that is chosen on."""
    for name in map(str, range(300)):
        assert in_validation(name) == (int(hashlib.sha256(name.encode()).hexdigest()[:16], 16) % 100 < 30)
    held = [i for i in range(20) if in_validation(f"mosaic_mme/v1/existence/{i:04d}")]
    assert held == FROZEN
    assert 0.27 < sum(in_validation(str(i)) for i in range(3000)) / 3000 < 0.33


FROZEN = [2, 3, 5, 6, 11, 12, 14, 16]


def test_parts_are_disjoint_complete_in_order_and_whole_images():
    samples = MosaicMME(6).samples()
    held, test = part_of(samples, "validation"), part_of(samples, "test")
    assert part_of(samples, "all") is samples
    assert sorted([*held, *test], key=samples.index) == samples
    assert held == sorted(held, key=samples.index) and test == sorted(test, key=samples.index)
    assert not {s.image_id for s in held} & {s.image_id for s in test}
    assert all(sum(s.image_id == t.image_id for t in held) == 2 for s in held)  # a yes and a no


def test_one_image_under_many_ids_is_in_one_part():
    """Rows of published benchmarks have ids of their own and share images. 40 ids fall into both parts by their hashes."""
    same = [sample(str(i), picture(0)) for i in range(40)]
    assert {in_validation(s.image_id) for s in same} == {True, False}
    other = [sample(f"other {i}", picture(i + 1)) for i in range(40)]
    mixed = [s for pair in zip(same, other, strict=True) for s in pair]
    parts = [part_of(mixed, part) for part in ("validation", "test")]
    assert [sum(s in same for s in part) for part in parts] in ([40, 0], [0, 40])
    assert (same[0] in parts[0]) == in_validation("0")  # by the first id, whichever part of the rows a run takes
    assert {s.image_id for s in parts[0] if s in other} == {s.image_id for s in other if in_validation(s.image_id)}


def test_equal_bytes_of_another_shape_are_another_image_and_broken_images_are_all_their_own():
    wide, tall = Image.new("RGB", (8, 2)), Image.new("RGB", (2, 8))
    firsts = first_ids([sample("a", wide), sample("b", tall), sample("c", None), sample("d", None), sample("e", wide.copy())])
    assert firsts == {"a": "a", "b": "b", "c": "c", "d": "d", "e": "a"}


def test_an_empty_part_an_unknown_one_and_a_benchmark_without_questions_are_refused():
    only = next(str(i) for i in range(100) if not in_validation(str(i)))
    with pytest.raises(UserError, match="part=validation of 1 images is empty; use a benchmark with more images"):
        part_of([sample(only, picture(0))], "validation")
    with pytest.raises(UserError, match="part=valid is not known; did you mean validation"):
        check_part("valid", MosaicMME(1))
    with pytest.raises(UserError, match="part=test: duts asks no question"):
        check_part("test", Duts("x"))
    check_part("all", Duts("x"))


@pytest.mark.slow
@pytest.mark.parametrize("make", [MosaicMME, MosaicHR, MosaicOpen, MosaicDetail, EasyVQA])
def test_no_picture_of_a_shipped_benchmark_is_in_both_parts(make):
    samples = make().samples()
    pixels = []
    for part in ("validation", "test"):
        images = {s.image_id: s for s in part_of(samples, part)}
        pixels.append({hashlib.sha256(s.image().tobytes()).hexdigest() for s in images.values()})
    assert not pixels[0] & pixels[1]
    assert 0.2 < len(pixels[0]) / len(pixels[0] | pixels[1]) < 0.4


def test_the_limit_counts_within_the_part_and_the_part_makes_another_point():
    cfgs = {part: composed("evaluate", [f"part={part}", "limit=12"]) for part in ("all", "validation", "test")}
    benchmark = MosaicMME(6)
    for part in ("validation", "test"):
        taken = chosen(benchmark, cfgs[part])
        assert len(taken) == 12 and set(taken) <= set(part_of(benchmark.samples(), part))
    assert len({identity.config_hash(cfg, {}) for cfg in cfgs.values()}) == 3
