"""The scale model of LLaVA-NeXT: started from the scale LLaVA-1.5, trained on scenes of up to 4 x 4 small objects, of many shapes.

The stock processor makes a thumbnail and tiles of every scene; a tile of a 4 x 4 scene is a 2 x 2 scene, which LLaVA-1.5 reads already.
What has to be learned is to look through several views at once, and that the thumbnail says where and the tiles say what.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from transformers.image_processing_utils import get_patch_output_size
from transformers.image_utils import ChannelDimension
from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape

from blink_exp.core.views import NEWLINE, ViewGeometry, all_tokens
from blink_exp.core.views import pack as pack_views
from blink_exp.scale_model import build_models, packing
from blink_exp.scale_model.packing import answer_loss, hidden_of, look_loss, show
from blink_exp.scale_model.recipe import Movable, PhaseRun
from blink_exp.scenes import hr_questions
from blink_exp.scenes.questions import SceneQuestion
from blink_exp.scenes.scenes import TILE, Scene, many_objects, random_scene

SHIFT = 64


@dataclass(frozen=True)
class Phase:
    """A part of the curriculum. ``dropped``: share of batches of which only a random part of the visual tokens is seen, so that the
    model does not take a missing token for a missing object; ``look``: weight of ``look_loss``; ``shares``: how often each kind of question
    is asked, all alike if None."""

    layers: int
    steps: int
    lr: float
    batch: int = 16
    asked: int = 16
    dropped: float = 0.25
    look: float = 0.0
    shares: dict[str, float] | None = None
    floor: float = 0.2  # share of the learning rate that is left at the end


SPATIAL = {"small_object": 0.1, "count": 0.15, "position": 0.3, "attribute": 0.1, "relation": 0.35}
PHASES = (
    Phase(8, 400, 1.5e-3, dropped=0.5, look=0.15),
    Phase(8, 600, 1.5e-3, look=0.15, shares=SPATIAL),
    Phase(32, 60, 5e-4, batch=8, floor=0.03),
)


def coverage(scene: Scene, views: ViewGeometry) -> torch.Tensor:
    """(objects, views, N) bool: the visual tokens that show each object, at least half as much as the one that shows most of it."""
    masks = torch.from_numpy(scene.masks()).float()[None]
    size = views.side * build_models.PATCH_SIZE
    height, width = views.rows * size, views.columns * size
    h, w = get_patch_output_size(masks[0].numpy(), (height, width), ChannelDimension.FIRST)  # the processor's own rounding
    inside = F.interpolate(masks, size=(h, w), mode="bilinear", antialias=True, align_corners=False)
    top, left = (height - h) // 2, (width - w) // 2
    padded = F.pad(inside, (left, width - w - left, top, height - h - top))
    tiles = F.avg_pool2d(padded, build_models.PATCH_SIZE)[0]
    thumbnail = F.adaptive_avg_pool2d(masks, views.side)[0].flatten(1)
    out = torch.zeros(len(tiles), views.count * views.tokens)
    out[:, : views.tokens] = thumbnail / thumbnail.amax(1, keepdim=True)
    out[:, views.stitched.flatten()] = tiles.flatten(1) / tiles.flatten(1).amax(1, keepdim=True)
    shown: torch.Tensor = (out >= 0.5).unflatten(1, (views.count, views.tokens))
    return shown


@dataclass
class Batch:
    """Scenes of one size with their questions. ``source``: (tokens,) where each visual token comes from, as ``views.pack`` says."""

    scenes: list[Scene]
    asked: list[list[SceneQuestion]]
    pixels: torch.Tensor
    views: ViewGeometry
    source: torch.Tensor


def batch_of(
    rng: np.random.Generator, processor: Any, split: str, scenes: int, asked: int, shares: dict[str, float] | None = None
) -> Batch:
    rows, columns = many_objects(rng)
    drawn = [random_scene(rng, split, rows, columns, small=True) for _ in range(scenes)]
    pixels = processor.image_processor(images=[s.canvas for s in drawn], return_tensors="pt").pixel_values
    size = (rows * TILE, columns * TILE)
    r, c = get_anyres_image_grid_shape(size, build_models.PINPOINTS, build_models.IMAGE_SIZE)
    views = ViewGeometry(build_models.IMAGE_SIZE // build_models.PATCH_SIZE, r, c, size, newline=True)
    return Batch(drawn, [hr_questions.draw(rng, s, asked, shares) for s in drawn], pixels, views, pack_views(views, all_tokens(views)))


def features_of(model: Any, batch: Batch | Example, blank: bool = False) -> torch.Tensor:
    """(scenes, tokens, hidden): what the stock model puts in place of the image."""
    pixels = (torch.zeros_like(batch.pixels) if blank else batch.pixels).to(model.device)
    sizes = torch.tensor([batch.views.size] * len(pixels))
    return torch.stack(list(model.get_image_features(pixel_values=pixels, image_sizes=sizes).pooler_output))


def targets_of(batch: Batch, tokenizer: Any, packed: packing.Pack) -> tuple[torch.Tensor, torch.Tensor]:
    """Where text should look: (n, 2) row and column of text tokens and (n, tokens) 0/1.

    The last token of a prompt looks at the objects of its question in all views. Where places matter it looks, and so do the words
    that name an object, in the thumbnail, which alone shows places as they are in the image; the last token then looks at no more than
    one object, as it could not tell the places of two apart.
    """
    at, wanted = [], []
    shown = batch.source != NEWLINE
    question = 0
    for scene, asked in zip(batch.scenes, batch.asked, strict=True):
        covered = coverage(scene, batch.views).flatten(1)[:, batch.source.clamp(min=0)] & shown
        overview = covered & (batch.source < batch.views.tokens)
        for q in asked:
            if q.objects and len(q.mentions) < 2:
                at.append(packed.last[question])
                wanted.append((overview if q.mentions else covered)[list(q.objects)].any(0))
            for text, tile in q.mentions:
                words = len(packing.ids_of(tokenizer, f"\n{text}"))
                at.append(packed.first[question] + torch.tensor([0, words - 1]))
                wanted.append(overview[tile])
            question += 1
    return torch.stack(at), torch.stack(wanted).float()


@torch.no_grad()
def held_out(model: Any, processor: Any, scenes: int = 96, seen: str = "all", seed: int = 1) -> dict[str, float]:
    """Exact-match accuracy by kind on test scenes. ``seen``: ``all`` views, the ``thumbnail`` alone, or a ``blank`` image."""

    def batches() -> Iterator[tuple[list[list[SceneQuestion]], list[torch.Tensor]]]:
        for start in range(0, scenes, 16):
            batch = batch_of(np.random.default_rng((seed, 77, start)), processor, "test", min(16, scenes - start), 10)
            features = features_of(model, batch, seen == "blank")
            yield batch.asked, [features[:, : batch.views.tokens] if seen == "thumbnail" else features]

    return packing.exact_match(model, processor.tokenizer, batches())


@dataclass
class Example(Movable):
    """What one step learns from. ``seen``: (tokens,) bool, the visual tokens that are left, None: all; ``at`` and ``wanted``: as
    ``targets_of`` says, None where the phase does not teach where to look."""

    pixels: torch.Tensor
    views: ViewGeometry
    packed: packing.Pack
    seen: torch.Tensor | None
    at: torch.Tensor | None
    wanted: torch.Tensor | None


def example_of(rng: np.random.Generator, phase: Phase, processor: Any) -> Example:
    batch = batch_of(rng, processor, "train", phase.batch, phase.asked, phase.shares)
    packed = packing.pack(processor.tokenizer, packing.asked_of(batch.asked), rng, SHIFT)
    seen = None
    if rng.random() < phase.dropped:
        seen = torch.from_numpy(rng.random(len(batch.source)) < rng.uniform(0.15, 0.7)) | (batch.source == NEWLINE)
        batch.source = batch.source[seen]
    at, wanted = targets_of(batch, processor.tokenizer, packed) if phase.look else (None, None)
    return Example(batch.pixels, batch.views, packed, seen, at, wanted)


def train_next(llava: Any, tokenizer: Any, out: Path, seed: int, phases: Sequence[Phase] = PHASES, workers: int = 0) -> Any:
    """Runs all phases from ``llava``, an 8-layer LLaVA-1.5, on its device, resuming from ``out``, and returns the LLaVA-NeXT model."""
    torch.manual_seed(seed)
    model = build_models.build_next(llava).to(llava.device)
    processor = build_models.build_next_processor(tokenizer)
    for number, phase in enumerate(phases):
        depth = len(model.model.language_model.layers)
        if phase.layers != depth:
            model = build_models.deepen(model, phase.layers // depth).to(llava.device)
        model.model.vision_tower.requires_grad_(False)
        run = PhaseRun(f"next phase {number}", out / f"next_phase{number}.pt", model, phase.steps, phase.lr, phase.floor)
        make = functools.partial(example_of, phase=phase, processor=processor)
        for step, batch in run.batches(make, (seed, 20 + number), workers):
            features = features_of(model, batch)
            features = features if batch.seen is None else features[:, batch.seen]
            hidden, looks = hidden_of(model, tokenizer, [features], batch.packed, batch.at)
            look = phase.look * look_loss(looks, batch.wanted) if batch.wanted is not None else None
            run.learn(step, answer_loss(model, hidden, batch.packed), look)
            if run.keep(step, 100):
                for part in ("all", "thumbnail"):
                    show(f"held out, {part}", held_out(model, processor, 48, part))
    return model
