"""Stage 1 of the scale model: a contrastive CLIP on single images, then on scenes.

Each step scores a batch of scenes against captions of single objects ("a red circle", "a red circle at the top left", "a circle")
with SigLIP's pairwise sigmoid loss. Captions of different scenes coincide all the time here (there are 24 kinds of object), so the
matching pairs are read off the scenes instead of being assumed to lie on the diagonal. Beside the whole image (its CLS token), the
mean patch feature of every object is scored against the captions, as RegionCLIP does: LLaVA reads the patches, and
64 numbers of a CLS token cannot hold sixteen objects.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from blink_exp.scale_model import build_models
from blink_exp.scale_model.recipe import CPU, Movable, PhaseRun, pixels
from blink_exp.scenes.scenes import COLORS, SHAPES, Scene, Tile, load_tiles, random_scene

# (steps, learning rate, image size, batch, shares of scenes of 1 x 1, 2 x 2, 3 x 3, 4 x 4, weight of ``place_loss``)
Stage = tuple[int, float, int, int, tuple[float, float, float, float], float]
STAGES: tuple[Stage, ...] = (
    (1000, 1e-3, 48, 64, (1.0, 0.0, 0.0, 0.0), 0.0),
    (1200, 8e-4, 96, 32, (0.1, 0.55, 0.1, 0.25), 0.0),
    (250, 8e-4, 96, 32, (0.05, 0.55, 0.1, 0.3), 10.0),
)

Caption = tuple[str, str | None, str | None, int | None]


def captions(n: int, rng: np.random.Generator, most: int = 160) -> list[Caption]:
    """(text, colour, shape, tile index) of captions for n x n scenes; None where a caption leaves something open."""
    plain: list[Caption] = [(f"a {c} {s}", c, s, None) for c in COLORS for s in SHAPES]
    plain += [(f"a {s}", None, s, None) for s in SHAPES] + [(f"a {c} shape", c, None, None) for c in COLORS]
    if n == 1:
        return plain
    place_name = Scene((None,) * (n * n)).place  # type: ignore[arg-type]
    placed: list[Caption] = [(f"a {c} {s} at {place_name(i)}", c, s, i) for c in COLORS for s in SHAPES for i in range(n * n)]
    keep = rng.permutation(len(placed))[: most - len(plain)]
    return plain + [placed[i] for i in keep]


def matches(scenes: list[Scene], caps: list[Caption]) -> torch.Tensor:
    """(scenes, captions) 0/1: does some object of the scene fit the caption? All scenes have the same n."""
    color = torch.tensor([[COLORS.index(t.color) for t in scene.tiles] for scene in scenes])[:, None]
    shape = torch.tensor([[SHAPES.index(t.shape) for t in scene.tiles] for scene in scenes])[:, None]
    codes = torch.tensor(
        [[-1 if c is None else COLORS.index(c), -1 if s is None else SHAPES.index(s), -1 if i is None else i] for _, c, s, i in caps]
    )
    c, s, i = (codes[:, k, None] for k in range(3))
    fits = ((c < 0) | (color == c)) & ((s < 0) | (shape == s)) & ((i < 0) | (torch.arange(color.shape[-1]) == i))
    return fits.any(-1).float()


def text_features(clip: Any, tokenizer: Any, texts: list[str]) -> torch.Tensor:
    """(texts, projection_dim) unit vectors."""
    tokens = tokenizer([f"{t}</s>" for t in texts], return_tensors="pt", padding=True, padding_side="right").to(clip.device)
    out = clip.get_text_features(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).pooler_output
    return F.normalize(out, dim=-1)


def image_features(clip: Any, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(images, projection_dim) unit vectors of the CLS token, (images, projection_dim, side, side) projected patches, and
    (images, side * side, width) the patch features that LLaVA gets (layer -2)."""
    out = clip.get_image_features(pixel_values=images, output_hidden_states=True)
    patches = clip.visual_projection(clip.vision_model.post_layernorm(out.last_hidden_state[:, 1:])).mT
    side = round(patches.shape[-1] ** 0.5)
    return F.normalize(out.pooler_output, dim=-1), patches.unflatten(-1, (side, side)), out.hidden_states[-2][:, 1:]


@functools.cache
def _coverage(tile: Tile, cell: int) -> torch.Tensor:
    """(cell, cell) share of a tile's object on each patch of its cell."""
    covered = F.adaptive_avg_pool2d(torch.from_numpy(tile.mask).float()[None], cell)[0]
    return covered / covered.sum()


def object_weights(scenes: list[Scene], side: int) -> torch.Tensor:
    """(objects of all scenes, side * side): how much of each object lies on each patch, summing to 1 over the patches."""
    n = scenes[0].n
    cell = side // n
    out = torch.zeros(len(scenes), n * n, side, side)
    for a, scene in enumerate(scenes):
        for i, tile in enumerate(scene.tiles):
            r, c = divmod(i, n)
            out[a, i, r * cell : (r + 1) * cell, c * cell : (c + 1) * cell] = _coverage(tile, cell)
    return out.flatten(0, 1).flatten(1)


@dataclass
class Batch(Movable):
    """``scenes`` of n x n and captions. ``whole``: (scenes, captions) and ``single``: (objects of all scenes, captions) 0/1, which fit;
    ``weights``: as ``object_weights`` makes them, (scenes, objects, patches)."""

    n: int
    pixels: torch.Tensor
    texts: list[str]
    whole: torch.Tensor
    single: torch.Tensor
    weights: torch.Tensor


def batch_of(rng: np.random.Generator, size: int, batch: int, shares: tuple[float, ...]) -> Batch:
    n = int(rng.choice(4, p=shares)) + 1
    scenes = [random_scene(rng, "train", n) for _ in range(batch)]
    caps = captions(n, rng)
    single = matches([Scene((tile,)) for scene in scenes for tile in scene.tiles], [(*c[:3], None) for c in caps])
    where = torch.tensor([-1 if c[3] is None else c[3] for c in caps])
    index = torch.arange(n * n).repeat(batch)[:, None]
    return Batch(
        n,
        torch.stack([pixels(s.canvas, size) for s in scenes]),
        [c[0] for c in caps],
        matches(scenes, caps),
        single * ((where < 0) | (where == index)),
        object_weights(scenes, size // build_models.PATCH_SIZE).unflatten(0, (batch, -1)),
    )


def loss_of(
    clip: Any, tokenizer: Any, bias: torch.Tensor, reader: torch.Tensor, batch: Batch, place_weight: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sigmoid loss of objects, summed over captions, a tenth of that of whole images, and ``place_weight`` times ``place_loss``, which
    comes second as well.

    Whole images need the place of one object among many, which they learn late: at equal weight their loss drowns the objects' and
    shape is unlearned.
    """
    text = text_features(clip, tokenizer, batch.texts)
    image, patches, states = image_features(clip, batch.pixels)
    scale = clip.logit_scale.exp()
    whole = F.binary_cross_entropy_with_logits(scale * image @ text.T + bias, batch.whole, reduction="sum")
    objects = F.normalize((batch.weights @ patches.flatten(2).mT).flatten(0, 1), dim=-1)  # the mean of each object's patches
    region = F.binary_cross_entropy_with_logits(scale * objects @ text.T + bias, batch.single, reduction="sum")
    where = place_loss(reader, states)
    return 0.1 * whole / len(image) + region / len(objects) + place_weight * where, where


def place_loss(reader: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """Mean squared error of reading each patch's row and column (-1 to 1) off the features that LLaVA gets. ``reader``: (width + 1, 2).

    Captions leave a patch no reason to remember where it stands: those that name a place are matched by the colour and shape they name as
    well. An LLM behind such patches sees what there is but not where.
    """
    side = round(states.shape[1] ** 0.5)
    positions = torch.stack(torch.meshgrid(*(torch.linspace(-1, 1, side),) * 2, indexing="ij"), dim=-1).flatten(0, 1).to(states)
    return F.mse_loss(F.layer_norm(states, states.shape[-1:]) @ reader[:-1] + reader[-1], positions.expand(len(states), -1, -1))


@torch.no_grad()
def zero_shot(clip: Any, tokenizer: Any, image_size: int, split: str = "test", limit: int | None = 400) -> dict[str, float]:
    """Held-out zero-shot accuracy on single images: best of the 24 captions, and its shape and colour apart."""
    caps = captions(1, np.random.default_rng(0))[:24]
    tiles = load_tiles(split)[:limit]
    x = torch.stack([pixels(Image.fromarray(t.pixels), image_size) for t in tiles])
    text = text_features(clip, tokenizer, [c[0] for c in caps])
    best = torch.cat([(image_features(clip, part.to(clip.device))[0] @ text.T).argmax(-1) for part in x.split(64)])
    predicted = [caps[i] for i in best.tolist()]
    shape = np.mean([s[2] == t.shape for s, t in zip(predicted, tiles, strict=True)])
    color = np.mean([s[1] == t.color for s, t in zip(predicted, tiles, strict=True)])
    return {"shape": float(shape), "color": float(color)}


def train_clip(tokenizer: Any, out: Path, seed: int, stages: Sequence[Stage] = STAGES, device: torch.device = CPU, workers: int = 0) -> Any:
    """Trains all stages, resuming from ``out`` if it holds a checkpoint, and returns the CLIP model at 96 px, on ``device``."""
    torch.manual_seed(seed)
    clip: Any = build_models.build_clip(tokenizer, stages[0][2])
    for stage, (steps, lr, size, batch, shares, place_weight) in enumerate(stages):
        if stage and size != stages[stage - 1][2]:
            clip = build_models.resize_positions(clip, tokenizer, size)
        clip.to(device)
        bias = torch.nn.Parameter(torch.tensor(-2.0, device=device))
        reader = torch.nn.Parameter(torch.zeros(build_models.WIDTH + 1, 2, device=device))
        run = PhaseRun(f"clip stage {stage}", out / f"clip_stage{stage}.pt", clip, steps, lr, decay=0.05, extra=(bias, reader))
        make = functools.partial(batch_of, size=size, batch=batch, shares=shares)
        for step, drawn in run.batches(make, (seed, stage), workers):
            loss, where = loss_of(clip, tokenizer, bias, reader, drawn, place_weight)
            run.update(step, loss)
            if step % (50 if place_weight else 200) == 0 or step + 1 == steps:
                run.checkpoint.save(step + 1)
                score = zero_shot(clip.eval(), tokenizer, size)
                clip.train()
                measures = f"n {drawn.n} loss {loss.item():.3f} place {where.item():.3f} {score} {time.time() - run.started:.0f} s"
                print(f"{run.label} step {step} {measures}", flush=True)
    return clip
