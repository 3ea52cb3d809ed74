"""Measurements of HERO's figures: CLS attention by layer, and mask coverage by token."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from blink_exp.backbone.encode import encode
from blink_exp.backbone.model import Backbone
from blink_exp.benchmarks.base import Benchmark, Sample, group_by_image
from blink_exp.benchmarks.duts import cover, on_view
from blink_exp.core.encoding import EncoderRequirements
from blink_exp.core.views import ViewGeometry
from blink_exp.errors import UserError
from blink_exp.evaluation.evaluator import chosen
from blink_exp.settings.roots import PointSettings

# images


def pictures_of(benchmark: Benchmark, settings: PointSettings) -> list[Sample]:
    """The first sample of each image that ``settings`` ask about: its part, limit and shard of the benchmark."""
    return [group[0] for group in group_by_image(chosen(benchmark, settings))]


def cls_attention_maps(
    backbone: Backbone, samples: Sequence[Sample], batch: int = 16
) -> Iterator[tuple[Sample, Image.Image, torch.Tensor]]:
    """(sample, image, (layers, heads, N) CLS-to-patch attention of the base view) of every sample whose image opens. Raises UserError if
    none does."""
    depth = backbone.model.config.vision_config.num_hidden_layers
    needs = EncoderRequirements(attention=frozenset(range(1, depth + 1)))
    backbone.check(needs)
    count = 0
    for start in range(0, len(samples), batch):
        opened = []
        for sample in samples[start : start + batch]:
            try:
                opened.append((sample, sample.image()))
            except OSError:
                continue
        if not opened:
            continue
        pixels = torch.stack([backbone.transform(image) for _, image in opened])
        encodings = encode(backbone.model, pixels, [ViewGeometry(backbone.grid[0])] * len(opened), needs)
        for (sample, image), encoding in zip(opened, encodings, strict=True):
            count += 1
            yield sample, image, torch.stack([encoding.attention(layer)[0] for layer in range(1, depth + 1)]).cpu()
    if not count:
        raise UserError(f"none of the {len(samples)} images could be read; is benchmark.path the whole copy of the data?")


# masks


def annotation_mask(sample: Sample, size: tuple[int, int]) -> np.ndarray | None:
    """(height, width) bool: the region of the answer, from the sample's mask or else its boxes; None without an annotation or if it is
    empty. ``size``: (width, height) of the image, as in PIL."""
    if sample.mask is not None:
        mask = np.asarray(sample.mask(), dtype=bool)
    else:
        w, h = size
        mask = np.zeros((h, w), dtype=bool)
        for left, top, right, bottom in sample.regions:
            mask[math.floor(top * h) : math.ceil(bottom * h), math.floor(left * w) : math.ceil(right * w)] = True
    return mask if mask.any() else None


def objects(samples: Iterable[Sample], size: tuple[int, int]) -> np.ndarray | None:
    """(height, width) bool: the union of the annotations of the questions on one image."""
    masks = [mask for mask in (annotation_mask(sample, size) for sample in samples) if mask is not None]
    return np.any(masks, axis=0) if masks else None


def token_cover(backbone: Backbone, views: ViewGeometry, mask: np.ndarray) -> torch.Tensor:
    """(views, N) share of each token's cell that a (height, width) mask covers; 0 on padding."""
    out = torch.zeros(views.count * views.tokens, dtype=torch.float64)
    out[: views.tokens] = cover(on_view(backbone, mask), views.side)
    if views.shown_tiles:
        positions = views.unpadded
        out[positions.flatten()] = F.adaptive_avg_pool2d(
            torch.from_numpy(mask)[None].double(), (positions.shape[0], positions.shape[1])
        ).flatten()
    return out.view(views.count, views.tokens)


# layers


def block(first: int, last: int, depth: int) -> list[int]:
    """Layers ``first`` to ``last`` of a 24-layer encoder at the same relative depth of one of ``depth`` layers, 1-based, at least one."""
    start = math.floor((first - 1) * depth / 24)
    return list(range(start + 1, max(start + 1, math.floor(last * depth / 24)) + 1))


def layer_names(layers: Sequence[int]) -> str:
    """ "layers 1-3, 11-24" or "layer 24"."""
    first = [k for k in layers if k - 1 not in layers]
    last = [k for k in layers if k + 1 not in layers]
    runs = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(first, last, strict=True))
    return f"layer{'s' if len(layers) > 1 else ''} {runs}"
