"""Images opened and prepared ahead: nothing of a result depends on who does it, or when."""

from __future__ import annotations

import dataclasses
import functools
import io
import os

import numpy as np
import pytest
import torch
from PIL import Image

from blink_exp.backbone import pictures
from blink_exp.benchmarks.mosaic_hr import MosaicHR
from blink_exp.benchmarks.mosaic_mme import MosaicMME
from blink_exp.core.method import Method
from blink_exp.errors import UserError
from blink_exp.evaluation.evaluator import evaluate
from blink_exp.methods.hero import Hero
from blink_exp.methods.none import none


def noise(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def missing() -> Image.Image:
    raise OSError("no such\nfile")


def cut_off() -> Image.Image:
    """Opens, and turns out to be cut off when it is looked at."""
    file = io.BytesIO()
    noise(64, 64).save(file, "PNG")
    return Image.open(io.BytesIO(file.getvalue()[:200]))


def broken_at(samples, places):
    return [dataclasses.replace(s, image=places.get(s.image_id, s.image)) for s in samples]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(scale, workers):
    samples = MosaicMME(images=1).samples()[:9]  # with batches of 4, a question of an image stands on either side of a border
    ids = list(dict.fromkeys(s.image_id for s in samples))
    samples = broken_at(samples[1:], {ids[1]: missing, ids[3]: cut_off})
    runs = []
    for number in (0, workers):
        scale.forget()
        runs.append(evaluate(scale, none(), MosaicMME(), batch_size=4, samples=samples, workers=number))
    assert runs[0] == runs[1]
    records, skipped = runs[1]
    assert [s["id"] for s in skipped] == [s.id for s in samples if s.image_id in (ids[1], ids[3])] and skipped[0]["why"] == "no such file"
    assert [r["id"] for r in records] == [s.id for s in samples if s.image_id not in (ids[1], ids[3])]


@pytest.mark.slow
def test_workers_change_nothing_of_tiles(scale_next):
    """Thumbnail and tiles; a batch of images with unlike numbers of tiles, by a method that reads the tower as well."""
    samples = MosaicHR(images=1).samples()[:4]
    views = {s.image_id: noise(100 + 90 * k, 260) for k, s in enumerate(samples)}
    samples = [dataclasses.replace(s, image=functools.partial(views.get, s.image_id)) for s in samples]
    for method in (none(), Method(pruner=Hero(0.3, frozenset({6, 7}), frozenset({22}), 1.0))):
        runs = []
        for number in (0, 1):
            scale_next.forget()
            runs.append(evaluate(scale_next, method, MosaicHR(), batch_size=4, samples=samples, workers=number))
        assert runs[0] == runs[1] and len(runs[0][0]) == 4


def test_prepared_one_by_one_or_by_the_stock_processor_together(scale_next):
    """The stock processor pads images of few tiles to those of many; what the model sees is the same."""
    images = {"wide": noise(90, 300), "tall": noise(400, 120), "square": noise(200, 200)}
    batch = scale_next.processor.image_processor(images=list(images.values()), return_tensors="pt")
    with torch.no_grad():
        stock = scale_next.model.get_image_features(**batch).pooler_output
    scale_next.forget()
    prepared = {k: pictures.prepare_image(v, scale_next.processor.image_processor) for k, v in images.items()}
    assert len({len(p.views) for p in prepared.values()}) > 1
    for features in (scale_next.features(images), scale_next.features(prepared)):
        assert all(torch.equal(a, b) for a, b in zip(features.values(), stock, strict=True))
        scale_next.forget()


def test_an_image_is_opened_once_and_not_before_its_batch(scale):
    opened: list[str] = []
    samples = MosaicMME(images=1).samples()[1:8]

    def counting(sample):
        opened.append(sample.image_id)
        return sample.image()

    coming = pictures.open_images([functools.partial(counting, s) for s in samples], scale)
    next(coming), next(coming)
    assert len(opened) == 2
    opened.clear()
    counted = [dataclasses.replace(s, image=functools.partial(counting, s)) for s in samples]
    evaluate(scale, none(), MosaicMME(), batch_size=2, samples=counted)  # every batch but the last ends between two questions of an image
    assert opened == list(dict.fromkeys(s.image_id for s in samples))


def test_the_run_s_random_numbers_are_its_own(scale):
    state = torch.get_rng_state()
    list(pictures.open_images([lambda: noise(8, 8)], scale))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_worker_that_dies_is_one_line(scale):
    with pytest.raises(UserError, match=r"^workers=1: a process that reads images died \(.+\); use fewer, or workers=0$"):
        list(pictures.open_images([functools.partial(os._exit, 1)], scale, workers=1))


@pytest.mark.parametrize(("asked", "device", "cores", "workers"), [(None, "cpu", 16, 0), (None, "cuda", 16, 8), (None, "cuda:1", 4, 3)])
def test_how_many(monkeypatch, asked, device, cores, workers):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    assert pictures.check_workers(asked, device) == workers
    assert pictures.check_workers(5, device) == 5
    for wrong in (-1, 1.5, "two"):
        with pytest.raises(UserError, match=f"workers={wrong} is no number of processes; use 0 or more"):
            pictures.check_workers(wrong, device)
