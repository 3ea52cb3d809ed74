"""The scale model of LLaVA-NeXT: started from the scale LLaVA-1.5, trained on scenes of up to 4 x 4 small objects, of many shapes.

The stock processor makes a thumbnail and tiles of every scene; a tile of a 4 x 4 scene is a 2 x 2 scene, which LLaVA-1.5 reads already.
What has to be learned is to look through several views at once, and that the thumbnail says where and the tiles say what.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from transformers.image_processing_utils import get_patch_output_size
from transformers.image_utils import ChannelDimension
from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape

from blink_exp.backbone.views import NEWLINE, Views, everything
from blink_exp.backbone.views import pack as pack_views
from blink_exp.scale_model import build_models, hr_questions, packing
from blink_exp.scale_model.packing import hidden_of, look_loss, wrong_tokens
from blink_exp.scale_model.recipe import Checkpoint, cosine_lr
from blink_exp.scale_model.scenes import TILE, Scene, many_objects, random_scene

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


def coverage(scene: Scene, views: Views) -> torch.Tensor:
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
    return (out >= 0.5).unflatten(1, (views.count, views.tokens))


@dataclass
class Batch:
    """Scenes of one size with their questions. ``source``: (tokens,) where each visual token comes from, as ``views.pack`` says."""

    scenes: list[Scene]
    asked: list[list]
    pixels: torch.Tensor
    views: Views
    source: torch.Tensor


def batch_of(rng: np.random.Generator, processor, split: str, scenes: int, asked: int, shares: dict[str, float] | None = None) -> Batch:
    rows, columns = many_objects(rng)
    drawn = [random_scene(rng, split, rows, columns, small=True) for _ in range(scenes)]
    pixels = processor.image_processor(images=[s.canvas for s in drawn], return_tensors="pt").pixel_values
    size = (rows * TILE, columns * TILE)
    r, c = get_anyres_image_grid_shape(size, build_models.PINPOINTS, build_models.IMAGE_SIZE)
    views = Views(build_models.IMAGE_SIZE // build_models.PATCH_SIZE, r, c, size, newline=True)
    return Batch(drawn, [hr_questions.draw(rng, s, asked, shares) for s in drawn], pixels, views, pack_views(views, everything(views)))


def features_of(model, batch: Batch, blank: bool = False) -> torch.Tensor:
    """(scenes, tokens, hidden): what the stock model puts in place of the image."""
    pixels = torch.zeros_like(batch.pixels) if blank else batch.pixels
    sizes = torch.tensor([batch.views.size] * len(pixels))
    return torch.stack(list(model.get_image_features(pixel_values=pixels, image_sizes=sizes).pooler_output))


def targets_of(batch: Batch, tokenizer, packed: packing.Pack) -> tuple[torch.Tensor, torch.Tensor]:
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
def held_out(model, processor, scenes: int = 96, seen: str = "all", seed: int = 1) -> dict[str, float]:
    """Exact-match accuracy by kind on test scenes. ``seen``: ``all`` views, the ``thumbnail`` alone, or a ``blank`` image."""
    right: dict[str, list[bool]] = defaultdict(list)
    for start in range(0, scenes, 16):
        rng = np.random.default_rng((seed, 77, start))
        batch = batch_of(rng, processor, "test", min(16, scenes - start), 10)
        packed = packing.pack(processor.tokenizer, [[(q.text, q.answer) for q in row] for row in batch.asked], rng, 0)
        features = features_of(model, batch, seen == "blank")
        if seen == "thumbnail":
            features = features[:, : batch.views.tokens]
        hidden, _ = hidden_of(model, processor.tokenizer, [features], packed)
        wrong = wrong_tokens(model, hidden, packed)
        for b, row in enumerate(batch.asked):
            for j, question in enumerate(row):
                right[question.kind].append(not wrong[b][packed.owner[b] == j].any())
    answers = [v for kind in right.values() for v in kind]
    return {"all": float(np.mean(answers)), **{k: float(np.mean(v)) for k, v in sorted(right.items())}}


def train_next(llava, tokenizer, out: Path, seed: int, phases: Sequence[Phase] = PHASES):
    """Runs all phases from ``llava``, an 8-layer LLaVA-1.5, resuming from ``out``, and returns the LLaVA-NeXT model."""
    torch.manual_seed(seed)
    model = build_models.build_next(llava)
    processor = build_models.build_next_processor(tokenizer)
    for number, phase in enumerate(phases):
        depth = len(model.model.language_model.layers)
        if phase.layers != depth:
            model = build_models.deepen(model, phase.layers // depth)
        model.model.vision_tower.requires_grad_(False)
        weights = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(weights, lr=phase.lr, betas=(0.9, 0.98), weight_decay=0.02, fused=True)
        checkpoint = Checkpoint(out / f"next_phase{number}.pt", model, optimizer)
        started, running = time.time(), None
        for step in range(checkpoint.step, phase.steps):
            rng = np.random.default_rng((seed, 20 + number, step))
            batch = batch_of(rng, processor, "train", phase.batch, phase.asked, phase.shares)
            packed = packing.pack(tokenizer, [[(q.text, q.answer) for q in row] for row in batch.asked], rng, SHIFT)
            features = features_of(model, batch)
            if rng.random() < phase.dropped:
                seen = torch.from_numpy(rng.random(len(batch.source)) < rng.uniform(0.15, 0.7)) | (batch.source == NEWLINE)
                features, batch.source = features[:, seen], batch.source[seen]
            at, wanted = targets_of(batch, tokenizer, packed) if phase.look else (None, None)
            for group in optimizer.param_groups:
                group["lr"] = cosine_lr(step, phase.steps, phase.lr, phase.floor)
            hidden, looks = hidden_of(model, tokenizer, [features], packed, at)
            said = packed.labels >= 0
            loss = F.cross_entropy(model.lm_head(hidden[said]), packed.labels[said])
            total = loss + phase.look * look_loss(looks, wanted) if wanted is not None else loss
            optimizer.zero_grad()
            total.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            running = loss.item() if running is None else 0.95 * running + 0.05 * loss.item()
            if step % 25 == 0 or step + 1 == phase.steps:
                look = f" look {total.item() - loss.item():.2f}" if looks else ""
                print(f"next phase {number} step {step} loss {running:.3f}{look} {time.time() - started:.0f} s", flush=True)
            if (step % 100 == 0 and step) or step + 1 == phase.steps:
                checkpoint.save(step + 1)
                for seen_part in ("all", "thumbnail"):
                    scores = held_out(model, processor, 48, seen_part)
                    print(f"  held out, {seen_part}: " + " ".join(f"{k} {100 * v:.0f}" for k, v in scores.items()), flush=True)
    return model
