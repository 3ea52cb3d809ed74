"""Questions about drawn scenes as samples."""

from __future__ import annotations

import functools

from PIL import Image

from blink_exp.benchmarks.base import Sample
from blink_exp.scenes.questions import SceneQuestion
from blink_exp.scenes.scenes import Scene

GREY = (128, 128, 128)


def scene_sample(
    image_id: str, name: str, scene: Scene, question: SceneQuestion, category: str, *, masked: bool = False, blank: bool = False
) -> Sample:
    """``name``: of the question among those on its image; ``masked``: with the mask of what it is about; ``blank``: a grey image instead of
    the scene."""
    return Sample(
        f"{image_id}/{name}",
        image_id,
        functools.partial(_picture, scene, blank),
        question.text,
        question.answer,
        category,
        tuple(scene.box(k) for k in question.objects),
        functools.partial(scene.mask, question.objects) if masked else None,
    )


def _picture(scene: Scene, blank: bool) -> Image.Image:
    return Image.new("RGB", scene.canvas.size, GREY) if blank else scene.canvas
