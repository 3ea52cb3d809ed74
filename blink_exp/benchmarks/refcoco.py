"""RefCOCO, RefCOCO+ and RefCOCOg (Kazemzadeh et al., 2014; Yu et al., 2016; Mao et al., 2016): where is what an expression refers to?

The published copies (lmms-lab-encoder/RefCOCO, RefCOCOplus, RefCOCOg) have a row per object: ``answer`` lists the expressions, ``bbox`` is
[left, top, width, height] in pixels, ``file_name`` is that of the COCO image with the annotation's number. ``question`` asks for a caption
and is not read here.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from blink_exp.benchmarks.base import Box, Count, OpenImage, Sample, Score, UnusableImage, mark_skipped, mean
from blink_exp.benchmarks.cells import LABEL, TEXTS, Cell, Row, blank
from blink_exp.benchmarks.rows import Published, root_of
from blink_exp.documents.records import Record
from blink_exp.files import brief
from blink_exp.images import image_size

ASKED = "Please provide the bounding box coordinate of the region this sentence describes: "
FORMAT = (
    "Bounding box coordinates are specified in the format (top-left x, top-left y, bottom-right x, bottom-right y). "
    "All values are floating point numbers bounded between 0 and 1. "
)
FOUR_NUMBERS = re.compile(r"\[\s*" + r",\s*".join([r"(-?\d+(?:\.\d+)?)"] * 4) + r"\s*\]")
THRESHOLDS = (0.5, 0.1, 0.3, 0.7, 0.9)  # the headline first


def _bbox(value: Any) -> Any:
    four = isinstance(value, list) and len(value) == 4 and all(type(v) in (int, float) and math.isfinite(v) for v in value)
    if not four or min(value[2:]) <= 0:
        raise ValueError(f"is {brief(value)}, not [left, top, width, height] with a width and a height above 0")
    return value


class RefCOCO(Published):
    """One sample per expression. A reply's box is the first ``[x1, y1, x2, y2]`` in it, its numbers taken as they are; a reply without one
    scores 0 everywhere and is counted in ``no_box``. Scores: the share of boxes with an IoU of at least 0.5 (``acc@0.5``) and of other
    bounds, the mean ``iou``, and ``center_acc``, the share of boxes whose centre lies in the reference.

    ``llava``: the question of LLaVA-1.5's instruction data, whose boxes are fractions of the image padded to a square
    (https://github.com/haotian-liu/LLaVA/issues/606); LLaVA has no script for this task. ``lmms_eval``: its task ``refcoco_bbox_rec``,
    which names the format first and compares with fractions of the image itself.
    """

    name = "refcoco"
    headline = "acc@0.5"
    columns: ClassVar = {"answer": TEXTS, "bbox": Cell(_bbox, []), "file_name": LABEL}
    tokens: ClassVar = {"llava": 128, "lmms_eval": 1024}

    def read(self) -> Iterator[Sample]:
        rows = self.rows()
        for i, whole in enumerate(super().read()):
            if isinstance(whole.image, UnusableImage):
                yield whole
                continue
            try:
                size = image_size(rows[i][self.image_column], self.image_loading, root_of(self.path))
            except OSError as error:
                yield mark_skipped(whole, str(error))
            else:
                yield from self.expressions(whole, size)

    def sample(self, i: int, row: Row, image: OpenImage) -> Sample:
        """A whole row, which ``expressions`` divides."""
        if not row["answer"] or any(blank(expression) for expression in row["answer"]):
            raise ValueError("answer holds no expression or a blank one")
        photograph = re.sub(r"(_\d{12})_\d+(?=\.|$)", r"\1", row["file_name"])  # without the annotation's number
        fields = {"expressions": row["answer"], "bbox": row["bbox"]}
        return Sample(self.id(f"{i:05d}"), self.id(f"image/{photograph}"), image, row["answer"][0], None, "all", fields=fields)

    def expressions(self, whole: Sample, size: tuple[int, int]) -> Iterator[Sample]:
        """The samples of a row. ``size``: width and height of its image."""
        left, top, width, height = whole.fields["bbox"]
        corners = (left, top, left + width, top + height)
        of_image = fractions(corners, size)
        box = padded_fractions(corners, size) if self.protocol == "llava" else of_image
        left, top, right, bottom = (min(max(v, 0.0), 1.0) for v in of_image)
        answer = "[{:.2f}, {:.2f}, {:.2f}, {:.2f}]".format(*box)
        one = dataclasses.replace(whole, answer=answer, regions=((left, top, right, bottom),), fields={"box": list(box)})
        for k, expression in enumerate(whole.fields["expressions"]):
            yield dataclasses.replace(one, id=f"{whole.id}/{k}", question=expression)

    def prompt(self, sample: Sample) -> str:
        return ("" if self.protocol == "llava" else FORMAT) + ASKED + sample.question

    def correct(self, sample: Sample, prediction: str) -> float | None:
        return None if sample.answer is None else iou(predicted_box(prediction), sample.fields["box"]) >= THRESHOLDS[0]

    def score(self, records: list[Record]) -> dict[str, Score]:
        pairs = [(predicted_box(r["prediction"]), r["fields"]["box"]) for r in records]
        overlaps = [iou(*pair) for pair in pairs]
        return {
            **{f"acc@{bound}": mean(overlap >= bound for overlap in overlaps) for bound in THRESHOLDS},
            "iou": mean(overlaps),
            "center_acc": mean(centred(*pair) for pair in pairs),
            "no_box": Count(sum(box is None for box, _ in pairs), len(pairs)),
        }


def fractions(box: Box, size: tuple[int, int]) -> Box:
    """A box in pixels as fractions of the image."""
    (left, top, right, bottom), (width, height) = box, size
    return left / width, top / height, right / width, bottom / height


def padded_fractions(box: Box, size: tuple[int, int]) -> Box:
    """A box in pixels as fractions of the smallest square around the image, which lies in its middle, as LLaVA pads it."""
    side = max(size)
    right_by, down_by = ((side - length) // 2 for length in size)
    left, top, right, bottom = box
    return fractions((left + right_by, top + down_by, right + right_by, bottom + down_by), (side, side))


def predicted_box(text: str) -> Box | None:
    """The first four numbers in square brackets, or None."""
    match = FOUR_NUMBERS.search(text)
    if match is None:
        return None
    left, top, right, bottom = map(float, match.groups())
    return (left, top, right, bottom) if all(map(math.isfinite, (left, top, right, bottom))) else None


def iou(box: Sequence[float] | None, reference: Sequence[float]) -> float:
    """Intersection over union; 0 without a box, and for one whose corners are reversed."""
    if box is None:
        return 0.0
    width, height = (min(box[k + 2], reference[k + 2]) - max(box[k], reference[k]) for k in (0, 1))
    if width <= 0 or height <= 0:
        return 0.0
    areas = sum((b[2] - b[0]) * (b[3] - b[1]) for b in (box, reference))
    return width * height / (areas - width * height)


def centred(box: Sequence[float] | None, reference: Sequence[float]) -> bool:
    """Whether the centre of a box lies in the reference or on its edge."""
    return box is not None and all(reference[k] <= (box[k] + box[k + 2]) / 2 <= reference[k + 2] for k in (0, 1))
