"""Stage 2 of the scale model: projector and LLM on conversations about scenes, over the frozen CLIP tower of stage 1.

A step asks a dozen questions about each scene, packed behind one visual prefix (see ``packing``). A question starts up to ``SHIFT``
positions behind the prefix (as a later turn would), and a part of the batches carries a second view, a quadrant of the same canvas:
LLaVA-1.5 meets text at many distances and more than one image, and so must its scale model.

``PHASES`` makes the model that ships. ``NO_LOOK_LOSS`` makes one that nothing teaches where to look. ``ONE_SCALE`` makes one whose LLM
has seen scenes of 1 x 1 and 2 x 2 only, so that the tokens of larger scenes hold more than it reads. ``ONE_SCALE_READER`` takes the first
layers from the model that ships and trains the others so, those that read an expanded segment. In half of the batches such a segment
stands behind the image, as it does at inference: the close-up of a random quadrant, which mostly is not the one asked about, or the
image's own interpolated patch, which shows nothing new.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from blink_exp.scale_model import build_models
from blink_exp.scale_model.expansion import ExpandedForward
from blink_exp.scale_model.packing import Pack, answer_loss, asked_of, exact_match, hidden_of, look_loss, pack, show, view_features
from blink_exp.scale_model.recipe import Movable, PhaseRun, pixels
from blink_exp.scale_model.train_clip import object_weights
from blink_exp.scenes import questions
from blink_exp.scenes.questions import SceneQuestion
from blink_exp.scenes.scenes import Scene, official_questions, random_scene

SHIFT = 320


@dataclass(frozen=True)
class Phase:
    """A part of the curriculum. ``weights``: shares of 1 x 1, 2 x 2, 3 x 3 and 4 x 4 scenes; ``two_views``: share of batches with a
    quadrant as a second view; ``captions``: whether "describe the image." is among the questions; ``look``: weight of the loss that
    teaches the last prompt token where to look (see ``look_loss``); ``expanded``: share of batches with an expanded segment, of which
    ``interpolated`` are patches of the image's own tokens, the others close-ups of a quadrant; ``blurred``: share of images that are
    blurred, with an expanded segment or without, so that a close-up of the right quadrant is of use."""

    layers: int
    steps: int
    weights: tuple[float, float, float, float]
    lr: float
    batch: int = 32
    asked: int = 12
    two_views: float = 0.0
    captions: bool = False
    look: float = 0.0
    floor: float = 0.4  # share of the learning rate that is left at the end
    expanded: float = 0.0
    interpolated: float = 0.35
    blurred: float = 0.0


PHASES = (
    Phase(8, 200, (1.0, 0, 0, 0), 2e-3, captions=True),
    Phase(8, 800, (0.1, 0.6, 0.1, 0.2), 2e-3, captions=True, look=0.3),
    Phase(8, 600, (0.1, 0.55, 0.1, 0.25), 1.5e-3, two_views=0.3, captions=True, look=0.1),
    Phase(32, 100, (0.1, 0.5, 0.1, 0.3), 7e-4, batch=16, two_views=0.3, floor=0.03),
)
NO_LOOK_LOSS = (  # as PHASES, but for the loss and for 800 steps more, mostly on larger scenes, in which it matters where to look
    *(replace(phase, look=0.0) for phase in PHASES[:-1]),
    Phase(8, 800, (0.05, 0.35, 0.2, 0.4), 1.5e-3, two_views=0.15, floor=0.1),
    PHASES[-1],
)
ONE_SCALE = (
    Phase(8, 60, (1.0, 0, 0, 0), 2e-3, captions=True),
    Phase(8, 220, (0.15, 0.85, 0, 0), 2e-3, captions=True, look=0.3),
    Phase(8, 520, (0.15, 0.85, 0, 0), 1.5e-3, captions=True, look=0.3, expanded=0.5, blurred=0.35, floor=0.03),
)
ONE_SCALE_READER = (
    Phase(8, 60, (0.4, 0.6, 0, 0), 2e-3, batch=16, look=0.3, floor=0.9),
    Phase(8, 180, (0.15, 0.85, 0, 0), 2e-3, batch=16, look=0.3, expanded=0.5, blurred=0.35, floor=0.03),
)
RECIPES: dict[str, tuple[Phase, ...]] = {
    "all_scales": PHASES,
    "no_look_loss": NO_LOOK_LOSS,
    "one_scale": ONE_SCALE,
    "one_scale_reader": ONE_SCALE_READER,
}
READERS = ("one_scale_reader",)  # recipes that take over a LLaVA's layers before EXPANDED_AT
EXPANDED_AT = 3  # the layer of 8 before which an expanded segment enters: 12 of 32
BLUR = (5, 14)  # sides of the squares, in pixels of the view, that a blurred image is averaged over


def scene_questions(rng: np.random.Generator, scene: Scene, asked: int, split: str = "train") -> list[questions.SceneQuestion]:
    """Questions on a scene; a single image is asked easy-VQA's own questions."""
    if scene.n > 1:
        return questions.draw(rng, scene, questions.KINDS, asked)
    official = _official_by_image(split)[scene.tiles[0].image_id]
    return [official[i] for i in rng.permutation(len(official))[:asked]]


@functools.cache
def _official_by_image(split: str) -> dict[int, list[questions.SceneQuestion]]:
    rows = defaultdict(list)
    for text, answer, image_id in official_questions(split):
        rows[image_id].append(questions.SceneQuestion("easy_vqa", text, answer, (0,)))
    return rows


@torch.no_grad()
def held_out(llava: Any, tokenizer: Any, n: int, scenes: int = 64, blank: bool = False, seed: int = 1) -> dict[str, float]:
    """Exact-match accuracy by question kind on test scenes of n x n tiles; ``blank`` replaces every image by a grey one."""

    def batches() -> Iterator[tuple[list[list[SceneQuestion]], list[torch.Tensor]]]:
        for start in range(0, scenes, 32):
            rng = np.random.default_rng((seed, n, start))
            batch = [random_scene(rng, "test", n) for _ in range(min(32, scenes - start))]
            asked = [scene_questions(rng, s, 10, "test") for s in batch]
            views = torch.stack([pixels(s.canvas, build_models.IMAGE_SIZE) for s in batch])[:, None].to(llava.device)
            yield asked, view_features(llava, torch.zeros_like(views) if blank else views)

    return exact_match(llava, tokenizer, batches())


def quadrant(scene: Scene, index: int) -> Image.Image:
    """Quadrant ``index`` (raster order) of the canvas at its full resolution."""
    half = scene.canvas.width // 2
    r, c = divmod(index, 2)
    return scene.canvas.crop((c * half, r * half, (c + 1) * half, (r + 1) * half))


def blurred(rng: np.random.Generator, image: Image.Image) -> Image.Image:
    """The image averaged over squares of a random side in BLUR, and enlarged again."""
    size = build_models.IMAGE_SIZE
    side = round(size / rng.uniform(*BLUR))
    return image.resize((side, side), Image.Resampling.BOX).resize((size, size), Image.Resampling.BICUBIC)


@dataclass
class Batch(Movable):
    """``pixels``: (batch, images, 3, size, size) views; ``targets``: (questions, visual) 0/1, where each question's objects are.

    ``regions``: (batch,) the quadrants of an expanded segment; None: there is none. It is the second view's close-up, or without a second
    view the interpolated patch.
    """

    pixels: torch.Tensor
    packed: Pack
    targets: torch.Tensor
    regions: torch.Tensor | None = None


def batch_of(rng: np.random.Generator, phase: Phase, tokenizer: Any) -> Batch:
    n = int(rng.choice(4, p=phase.weights)) + 1
    scenes = [random_scene(rng, "train", n) for _ in range(phase.batch)]
    asked = [scene_questions(rng, s, phase.asked) for s in scenes]
    rows = asked_of(asked)
    covered = (object_weights(scenes, build_models.IMAGE_SIZE // build_models.PATCH_SIZE) > 0).unflatten(0, (phase.batch, n * n))
    nothing = torch.zeros(covered.shape[-1], dtype=torch.bool)
    targets = [[covered[b, list(q.objects)].any(0) if q.objects else nothing for q in row] for b, row in enumerate(asked)]
    if phase.captions and n <= 2:
        rows = [[*row, ("describe the image.", questions.caption(s))] for row, s in zip(rows, scenes, strict=True)]
        targets = [[*row, nothing] for row in targets]
    views = [[s.canvas] for s in scenes]
    if n > 1 and rng.random() < phase.two_views:
        views = [[*v, quadrant(s, int(rng.integers(4)))] for v, s in zip(views, scenes, strict=True)]
    if phase.blurred:
        views = [[blurred(rng, full) if rng.random() < phase.blurred else full, *more] for full, *more in views]
    regions = None
    if phase.expanded and rng.random() < phase.expanded:
        regions = torch.from_numpy(rng.integers(4, size=phase.batch))
        views = [v[:1] for v in views]
        if rng.random() >= phase.interpolated:
            views = [[*v, quadrant(s, int(region))] for v, s, region in zip(views, scenes, regions, strict=True)]
    x = torch.stack([torch.stack([pixels(image, build_models.IMAGE_SIZE) for image in v]) for v in views])
    return Batch(x, pack(tokenizer, rows, rng, SHIFT), torch.stack([t for row in targets for t in row]).float(), regions)


def batch_hidden(llava: Any, tokenizer: Any, batch: Batch, at: torch.Tensor | None) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """As ``hidden_of``, with the batch's expanded segment, if it has one."""
    visual = view_features(llava, batch.pixels)
    if batch.regions is None:
        return hidden_of(llava, tokenizer, visual, batch.packed, at)
    depth = len(llava.model.language_model.layers)
    run = ExpandedForward(llava, tokenizer, visual[0], EXPANDED_AT * depth // 8)
    segment = run.close_up(visual[1]) if len(visual) > 1 else run.interpolated(batch.regions)
    return run.hidden(batch.packed, segment, at)


def train_llava(
    clip: Any, tokenizer: Any, out: Path, seed: int, phases: Sequence[Phase] = PHASES, workers: int = 0, other: Any = None
) -> Any:
    """Runs all phases on ``clip``'s device, resuming from ``out``, and returns the LLaVA model.

    ``other``: a LLaVA of as many layers, on the same tower, whose weights stay as they are up to layer EXPANDED_AT; None: all are trained.
    """
    torch.manual_seed(seed)
    llava = build_models.build_llava(tokenizer, phases[0].layers).to(clip.device)
    llava.model.vision_tower.load_state_dict(clip.vision_model.state_dict())
    with torch.no_grad():
        x = batch_of(np.random.default_rng((seed, 9)), Phase(0, 0, (0, 1.0, 0, 0), 0.0), tokenizer).pixels.to(clip.device)
        features = llava.model.vision_tower(x[:, 0], output_hidden_states=True).hidden_states[-2][:, 1:]
    build_models.standardize_projector(llava, features.flatten(0, 1))
    if other is not None:
        build_models.take_over(llava, other, EXPANDED_AT)
    for number, phase in enumerate(phases):
        depth = len(llava.model.language_model.layers)
        if phase.layers != depth:
            llava = build_models.deepen(llava, phase.layers // depth).to(clip.device)
        llava.model.vision_tower.requires_grad_(False)
        run = PhaseRun(f"llava phase {number}", out / f"llava_phase{number}.pt", llava, phase.steps, phase.lr, phase.floor)
        llava.model.vision_tower.load_state_dict(clip.vision_model.state_dict())
        make = functools.partial(batch_of, phase=phase, tokenizer=tokenizer)
        for step, batch in run.batches(make, (seed, 10 + number), workers):
            at = batch.packed.last if phase.look else None
            hidden, looks = batch_hidden(llava, tokenizer, batch, at)
            look = phase.look * look_loss(looks, batch.targets) if looks else None
            run.learn(step, answer_loss(llava, hidden, batch.packed), look)
            if run.keep(step, 200):
                for n in (1, 2, 4):
                    if phase.weights[n - 1]:
                        show(f"held out {n} x {n}", held_out(llava, tokenizer, n))
    return llava
