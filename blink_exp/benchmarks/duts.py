"""CLS attention of CLIP by layer against the salient-object mask of an image: DUTS (Wang et al., 2017), as in HERO's Figure 4.

Of each layer the patches with the largest CLS attention, averaged over heads, are compared with the object's mask by intersection over
union. Their area is fixed, 50 of 576 patches or 8.7 % of the view, which bounds the values from above: large objects score low everywhere.

HERO says neither how images are prepared nor on which grid it compares. Chosen: the backbone's own preprocessing, with the mask going
through the same steps (padding is background), and the view's pixels, of which a patch covers all of its own. ``patch_iou`` is the check on
the patch grid, where a patch belongs to the object if the object covers half of it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from blink_exp.backbone.encode import encode
from blink_exp.backbone.model import Backbone
from blink_exp.benchmarks.base import Count, Sample, Score, mean, spread
from blink_exp.core.encoding import EncoderRequirements, check_layers
from blink_exp.core.views import ViewGeometry
from blink_exp.documents.records import Record, Skipped
from blink_exp.errors import UserError, reason
from blink_exp.images import ImageOptions, open_image
from blink_exp.methods.budgets import top

FOREGROUND = 127  # grey levels above it belong to the object
SITE = "http://saliencydetection.net/duts/"


class Duts:
    """Mean IoU by layer, times 100.

    Args:
        path: the unpacked zip: a folder with ``DUTS-<split>-Image/*.jpg`` and ``DUTS-<split>-Mask/*.png``.
        split: ``TE`` (5,019 images) or ``TR`` (10,553).
        layers: CLIP layers, 1-based.
        top: patches compared (50 of 576).
        batch: images encoded at once.
        image_loading: see ``images.ImageOptions``.
    """

    name = "duts"
    protocol = "own"
    headline = "iou"
    max_new_tokens = 1

    def __init__(
        self,
        path: str | None = None,
        split: str = "TE",
        layers: Sequence[int] = tuple(range(1, 13)),
        top: int = 50,
        batch: int = 16,
        image_loading: Any = None,
    ):
        if split not in ("TE", "TR"):
            raise UserError(f"benchmark.split={split} is not one of DUTS; use TE or TR")
        if top < 1 or batch < 1:
            raise UserError(f"benchmark.top={top} and benchmark.batch={batch} must both be 1 or more")
        self.path, self.split, self.layers, self.top, self.batch = path, split, sorted(set(layers)), top, batch
        self.image_loading = ImageOptions.of(image_loading)

    def samples(self) -> list[Sample]:
        """The images, each with its mask. Raises UserError if the folders or their files are not there."""
        if self.path is None:
            raise UserError(f"benchmark=duts has no data; unpack DUTS-{self.split}.zip from {SITE} and give benchmark.path=<its folder>")
        images, masks = (Path(self.path) / f"DUTS-{self.split}-{kind}" for kind in ("Image", "Mask"))
        files = sorted(images.glob("*.jpg"))
        if not files:
            raise UserError(f"{images} holds no *.jpg; give benchmark.path=<the folder with DUTS-{self.split}-Image and -Mask>")
        return [
            Sample(
                f"duts/{self.split}/{file.stem}",
                f"duts/{self.split}/{file.stem}",
                functools.partial(open_image, f"{images.name}/{file.name}", self.image_loading, self.path),
                "",
                None,
                "saliency",
                mask=functools.partial(_mask, f"{masks.name}/{file.stem}.png", self.image_loading, self.path),
            )
            for file in files
        ]

    def prompt(self, sample: Sample) -> str:
        return ""

    def correct(self, sample: Sample, prediction: str) -> float | None:
        return None

    def probe(self, backbone: Backbone, limit: int | None, advance: Callable[[int], None]) -> tuple[list[Record], list[Skipped]]:
        """One record an image, and the images or masks that could not be read. An image whose object does not show in the view (an empty
        mask, or one outside the crop) has no IoU."""
        layers = check_layers("benchmark.layers", self.layers, backbone.model.config.vision_config.num_hidden_layers)
        side = backbone.grid[0]
        if self.top >= side**2:
            raise UserError(f"benchmark.top={self.top} does not choose among {side**2} patches; use less")
        samples = spread(self.samples(), limit)
        records: list[Record] = []
        skipped: list[Skipped] = []
        for start in range(0, len(samples), self.batch):
            batch = []
            for sample in samples[start : start + self.batch]:
                try:
                    image, mask = sample.image(), sample.mask()  # type: ignore[misc]
                    if mask.shape != (image.height, image.width):
                        raise OSError(f"the mask has {mask.shape[1]} x {mask.shape[0]} pixels, the image {image.width} x {image.height}")
                    batch.append((sample, backbone.transform(image), on_view(backbone, mask)))
                except OSError as error:
                    skipped.append({"id": sample.id, "why": reason(error)})
            if batch:
                pixels = torch.stack([p for _, p, _ in batch])
                encodings = encode(backbone.model, pixels, [ViewGeometry(side)] * len(batch), EncoderRequirements(attention=layers))
                for (sample, _, mask), encoding in zip(batch, encodings, strict=True):
                    patches = {layer: top(encoding.cls_attention((layer,))[0], self.top) for layer in sorted(layers)}
                    records.append(record(sample, mask, patches, side))
            advance(min(self.batch, len(samples) - start))
        return records, skipped

    def score(self, records: list[Record]) -> dict[str, Score]:
        """``iou_layer_<n>`` and ``patch_iou_layer_<n>``, their means over layers, and the count of images without a visible object."""
        out: dict[str, Score] = {}
        for kind in ("iou", "patch_iou"):
            cells = [r["iou"] if kind == "iou" else r["patch_iou"] for r in records]
            rows = [row for row in cells if row is not None]
            layers = sorted({layer for row in rows for layer in row}, key=int)
            out[kind] = mean(sum(row.values()) / len(row) for row in rows)
            out |= {f"{kind}_layer_{layer}": mean(row[layer] for row in rows) for layer in layers}
        return out | {"empty_masks": Count(sum(r["iou"] is None for r in records), len(records))}


def record(sample: Sample, mask: torch.Tensor, patches: dict[int, torch.Tensor], side: int) -> Record:
    """``iou`` and ``patch_iou`` by layer (as text, which JSON keys are); None where the mask is empty on that grid. ``object``: the share
    of the view that the mask covers."""
    cells = cover(mask, side)
    grids = {"iou": cells, "patch_iou": (cells >= 0.5).float()}
    ious = {name: {str(n): iou(grid, index) for n, index in patches.items()} if bool(grid.any()) else None for name, grid in grids.items()}
    share = round(float(cells.mean()), 6)
    return {
        "id": sample.id,
        "image_id": sample.image_id,
        "category": sample.category,
        "prediction": None,
        "layers": [],
        "object": share,
        "iou": ious["iou"],
        "patch_iou": ious["patch_iou"],
    }


def cover(mask: torch.Tensor, side: int) -> torch.Tensor:
    """(side * side,) share of each patch that a (size, size) bool mask covers."""
    blocks: torch.Tensor = mask.double().unflatten(0, (side, -1)).unflatten(2, (side, -1))
    return blocks.mean((1, 3)).flatten()


def iou(cover: torch.Tensor, patches: torch.Tensor) -> float:
    """Intersection over union of a set of patches (indices) and a mask, given as the share of each patch that it covers."""
    hit = float(cover[patches].sum())
    return hit / (len(patches) + float(cover.sum()) - hit)


def on_view(backbone: Backbone, mask: np.ndarray) -> torch.Tensor:
    """(size, size) bool: a (height, width) bool mask on the base view, by the backbone's image processor without rescaling values."""
    image = Image.fromarray(mask.astype(np.uint8) * 255).convert("RGB")
    plain = {"resample": Image.Resampling.NEAREST, "do_rescale": False, "do_normalize": False, "image_mean": [0.0, 0.0, 0.0]}
    pixels: torch.Tensor = backbone.processor.image_processor(images=image, return_tensors="pt", **plain).pixel_values[0]
    return (pixels[0] if backbone.tiled else pixels)[0] > FOREGROUND


def _mask(name: str, options: ImageOptions, root: str) -> np.ndarray:
    grey = open_image(name, dataclasses.replace(options, alpha="drop"), root).convert("L")
    return np.asarray(grey) > FOREGROUND
