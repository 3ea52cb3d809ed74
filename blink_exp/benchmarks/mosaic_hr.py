"""High-resolution scenes of up to 4 x 4 small objects in many aspect ratios: five kinds of question for which details decide."""

from __future__ import annotations

import numpy as np

from blink_exp.benchmarks.base import ExactMatch, Sample
from blink_exp.benchmarks.scene_samples import scene_sample
from blink_exp.scenes.hr_questions import KINDS
from blink_exp.scenes.scenes import many_objects, random_scene

VERSION = 1
TRIES = 20  # draws of a question before a scene goes without one of that kind (a single row has nothing above anything else)


class MosaicHR(ExactMatch):
    """``images``: scenes, two questions of each kind that suit the scene. Yes and no, where a kind has them, take turns."""

    name = "mosaic_hr"

    def __init__(self, images: int = 48):
        self.images = images

    def samples(self) -> list[Sample]:
        out = []
        for i in range(self.images):
            rng = np.random.default_rng((200 + VERSION, i))
            scene = random_scene(rng, "test", *many_objects(rng), small=True)
            image_id = f"mosaic_hr/v{VERSION}/{i:04d}"
            for kind, make in KINDS.items():
                texts: set[str] = set()
                for answer in ("yes", "no"):
                    for _ in range(TRIES):
                        question = make(rng, scene, answer)
                        if question is not None and question.text not in texts:
                            break
                    else:
                        continue
                    texts.add(question.text)
                    out.append(scene_sample(image_id, f"{kind}/{answer}", scene, question, kind, masked=True))
        return out
