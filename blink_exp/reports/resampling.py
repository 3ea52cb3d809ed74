"""Bootstrap draws of images: the same ones for both runs, each category with its count of images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from blink_exp.benchmarks.base import group_by
from blink_exp.documents.records import Record

Records = list[Record]


@dataclass(frozen=True)
class PairedImages:
    """The images of two runs: ``ours[i]`` and ``theirs[i]`` are the records of image i, ``strata`` (images,) the category each is in."""

    ours: list[Records]
    theirs: list[Records]
    strata: np.ndarray

    @staticmethod
    def of(ours: Records, theirs: Records) -> PairedImages:
        ours_by, theirs_by = group_by(ours, "image_id"), group_by(theirs, "image_id")
        categories = [{r.get("category") for r in image} for image in ours_by.values()]
        names = [str(next(iter(c))) if len(c) == 1 else "" for c in categories]
        codes, counts = np.unique(names, return_inverse=True, return_counts=True)[1:]
        if any(len(c) > 1 for c in categories) or counts.min() < 2:  # a category of one image would never vary
            codes = np.zeros(len(names), dtype=int)
        return PairedImages(list(ours_by.values()), list(theirs_by.values()), codes)


def draws(strata: np.ndarray, resamples: int, generator: np.random.Generator) -> np.ndarray:
    """(resamples, images): count of each image in each bootstrap draw."""
    weights = np.zeros((resamples, len(strata)), dtype=int)
    for stratum in np.unique(strata):
        images = np.flatnonzero(strata == stratum)
        weights[:, images] = generator.multinomial(len(images), np.full(len(images), 1 / len(images)), size=resamples)
    return weights


def resampled(run: list[Records], weight: np.ndarray) -> Records:
    """The records of a bootstrap draw. A repeated image gets a new id, as equal ids would merge its pairs."""
    return [
        r if k == 0 else {**r, "id": f"{r['id']}/again{k}", "image_id": f"{r['image_id']}/again{k}"}
        for image, times in zip(run, weight.tolist(), strict=True)
        for k in range(times)
        for r in image
    ]
