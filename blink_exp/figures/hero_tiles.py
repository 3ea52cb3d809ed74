"""Tile scores: CLSsim, from the image alone, and CLIPscore, which depends on the question (HERO, Fig. 1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from blink_exp.backbone.model import Backbone
from blink_exp.benchmarks.base import Benchmark, Box, Sample, group_by_image
from blink_exp.core.encoding import EncoderRequirements, Encoding
from blink_exp.core.views import ViewGeometry
from blink_exp.errors import UserError
from blink_exp.evaluation.answering import prompt_of, prompts_of
from blink_exp.evaluation.evaluator import chosen
from blink_exp.figures import shared as draw
from blink_exp.figures.base import COLORS, COLUMN, Claim, Drawing, Study
from blink_exp.figures.hero_kept import key_of
from blink_exp.figures.hero_measures import annotation_mask, objects, token_cover
from blink_exp.figures.verdicts import RULES, combined_verdict, differences, mean, values
from blink_exp.methods.hero import clip_score, cls_similarity

CLS, CLIP = "CLSsim", "CLIPscore"


@dataclass(frozen=True)
class RankedTiles:
    """A question with its tiles' scores, each (K,), and the tile that holds most of what is asked about and of all objects; None where
    nothing is annotated or no tile stands out."""

    sample: Sample
    scores: dict[str, torch.Tensor]
    region: int | None
    main: int | None

    def first(self, name: str) -> int:
        """The tile with the highest score; the lowest index of equal ones."""
        return int(self.scores[name].argmax())

    @property
    def tiles(self) -> int:
        return len(self.scores[CLS])


def tile_scores(encoding: Encoding, question: str) -> dict[str, torch.Tensor]:
    """(K,) cosine of each tile's CLS token with the thumbnail's, and of its image embedding with the question's (Sec. IV-B-1)."""
    return {CLS: cls_similarity(encoding).cpu(), CLIP: clip_score(encoding, question).cpu()}


def normalised(scores: torch.Tensor) -> torch.Tensor:
    """(K,) scores from 0 (the lowest tile) to 1 (the highest)."""
    span = scores.max() - scores.min()
    return (scores - scores.min()) / span if float(span) > 0 else torch.ones_like(scores)


def outstanding(area: torch.Tensor, majority: bool) -> int | None:
    """The tile with the largest of (K,) areas: with ``majority`` only if it has more than half of all, else only if no other has as
    much."""
    best = int(area.argmax())
    enough = area[best] > area.sum() / 2 if majority else int((area == area[best]).sum()) == 1
    return best if float(area[best]) > 0 and bool(enough) else None


def rank_tiles(backbone: Backbone, benchmark: Benchmark, samples: Sequence[Sample]) -> list[RankedTiles]:
    """Every question on an image of two or more tiles that opens."""
    needs = EncoderRequirements(cls=True, text=True)
    backbone.check(needs)
    rows = []
    for group in group_by_image(list(samples)):
        try:
            image = group[0].image()
        except OSError:
            continue
        views = ViewGeometry.of(backbone.model.config, (image.height, image.width))
        if views.tiles < 2:
            continue
        key = key_of(benchmark, group[0])
        encoding = backbone.encodings({key: image}, needs)[key]
        everything = objects(group, image.size)
        main = outstanding(tile_areas(backbone, views, everything), False) if everything is not None else None
        prompts = prompts_of(backbone, benchmark, group)
        for sample in (s for s in group if s.id in prompts):
            mask = annotation_mask(sample, image.size)
            region = outstanding(tile_areas(backbone, views, mask), True) if mask is not None else None
            rows.append(RankedTiles(sample, tile_scores(encoding, prompts[sample.id]), region, main))
    return rows


def tile_areas(backbone: Backbone, views: ViewGeometry, mask: np.ndarray) -> torch.Tensor:
    """(K,) area of a mask in each tile, in tokens."""
    return token_cover(backbone, views, mask)[1:].sum(1)


def preference_claim(rows: Sequence[RankedTiles], where: str, ours: str, theirs: str, subject: str, count: str) -> Claim:
    """That score ``ours`` ranks the tile ``where`` first, more often than ``theirs`` and than chance. ``where``: ``region`` or ``main``."""
    marked = [row for row in rows if getattr(row, where) is not None]
    images = [[row for row in marked if row.sample.image_id == name] for name in dict.fromkeys(row.sample.image_id for row in marked)]

    def hits(name: str) -> list[float]:
        return [float(np.mean([row.first(name) == getattr(row, where) for row in group])) for group in images]

    chance = [1 / group[0].tiles for group in images]
    rate, other_rate = hits(ours), hits(theirs)
    gaps = {f"{ours} less chance": mean(np.subtract(rate, chance)), f"{ours} less {theirs}": mean(np.subtract(rate, other_rate))}
    return Claim(
        f"{ours} favours {subject}",
        f"How often it ranks first {count}, mean over {len(images)} images with {len(marked)} such questions; chance: 1 / tiles. {RULES}",
        values({f"first by {ours}": mean(rate), f"first by {theirs}": mean(other_rate), "chance": mean(chance)}) | differences(gaps),
        combined_verdict(gap.above for gap in gaps.values()),
    )


@draw.styled()
def scores(study: Study) -> Drawing:
    """Fig. 1: both scores on the tiles of one image, and how often each ranks first what the paper says it favours."""
    backbone, _, benchmark = study.load()
    if not backbone.tiled:
        raise UserError(f"{study.name} is about tiles, and {backbone.name} has one view; use model=scale_llava_next or model=llava_next_7b")
    rows = rank_tiles(backbone, benchmark, chosen(benchmark, study.settings))
    if not rows:
        raise UserError(f"{study.name}: no image of {benchmark.name} has tiles; use another benchmark or a higher limit")
    # an image whose two rankings differ shows what the figure is about; it is the first such one, not the best
    disagreeing = [row for row in rows if row.first(CLS) != row.first(CLIP)]
    example = max(disagreeing or rows, key=lambda row: (row.region is not None, row.tiles >= 4))
    image = example.sample.image()
    views = ViewGeometry.of(backbone.model.config, (image.height, image.width))
    figure = tiles(image, example, tile_boxes(views), prompt_of(backbone, benchmark, example.sample))
    claims = [
        preference_claim(rows, "main", CLS, CLIP, "the main structure", "the tile with the largest area of annotated objects"),
        preference_claim(rows, "region", CLIP, CLS, "tiles that the question names", "the tile that holds most of what is asked about"),
    ]
    caption = (
        "Tiles of one image, blue as their score is high; numbers: scores from 0 (lowest tile) to 1 (highest). CLSsim: the cosine of a "
        "tile's CLS token with the thumbnail's. CLIPscore: of its image embedding with the question's. Dashed: what is asked about. "
        "Shown is the first question about an annotated region in four or more tiles whose two rankings differ, as far as there is one."
    )
    data = {
        "sample": example.sample.id,
        "question": example.sample.question,
        "scores": {name: one.tolist() for name, one in example.scores.items()},
        "region": example.region,
        "main": example.main,
    }
    measured_on = draw.measured_on(backbone.identity, benchmark.name, len(rows))
    return Drawing({study.name: figure}, data, claims, caption, measured_on)


def tile_boxes(views: ViewGeometry) -> list[Box]:
    """What each tile shows of the image, as fractions of it."""
    owner = views.unpadded // views.tokens - 1
    height, width = owner.shape
    boxes = []
    for k in range(views.tiles):
        rows, columns = (owner == k).any(1).nonzero()[:, 0], (owner == k).any(0).nonzero()[:, 0]
        if len(rows):
            boxes.append((int(columns[0]) / width, int(rows[0]) / height, (int(columns[-1]) + 1) / width, (int(rows[-1]) + 1) / height))
        else:
            boxes.append((0.0, 0.0, 0.0, 0.0))  # all padding
    return boxes


def tiles(image: Image.Image, row: RankedTiles, boxes: Sequence[Box], question: str) -> Figure:
    """One panel per score over the image."""
    wide = image.width > 1.6 * image.height
    shape = (2, 1) if wide else (1, 2)
    width = COLUMN if wide else COLUMN / 2
    figure, axes = draw.canvas(COLUMN, shape[0] * (min(width * image.height / image.width, 2 * COLUMN) + 0.2) + 0.3, *shape)
    for axis, (name, cosines) in zip(axes.flat, row.scores.items(), strict=True):
        draw.picture(axis, image, row.sample.regions, name)
        for (left, top, right, bottom), raw, value in zip(boxes, cosines.tolist(), normalised(cosines).tolist(), strict=True):
            tooltip = draw.tip(f"{name} {value:.2f} (cosine {raw:.4f})")
            box = ((left, top), right - left, bottom - top)
            axis.add_patch(Rectangle(*box, facecolor=COLORS[0], alpha=0.5 * value + 0.001, gid=tooltip))
            axis.add_patch(Rectangle(*box, fill=False, edgecolor="white", linewidth=1.5))
            if right > left:
                label = {"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 1}
                corner = (left + 0.03, top + 0.03 * image.width / image.height)
                axis.text(*corner, f"{value:.2f}", ha="left", va="top", fontsize=7, bbox=label, zorder=4)
    figure.suptitle(f"“{draw.shortened(question, 60)}”", fontsize=8)
    return figure
