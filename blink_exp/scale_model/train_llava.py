"""Stage 2 of the scale model: projector and LLM on conversations about scenes, over the frozen CLIP tower of stage 1.

A step asks a dozen questions about each scene. They are packed behind one visual prefix and do not see each other, so that no answer
can be had from another question's text; each is what the first turn of a conversation is at test time. A question starts up to
``SHIFT`` positions behind the prefix (as a later turn would), and a part of the batches carries a second view, a quadrant of the same
canvas: LLaVA-1.5 meets text at many distances and more than one image, and so must its scale model.
"""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from blink_exp.scale_model import build_models, questions
from blink_exp.scale_model.recipe import Checkpoint, cosine_lr, pixels
from blink_exp.scale_model.scenes import Scene, official_questions, random_scene

SHIFT = 320


@dataclass(frozen=True)
class Phase:
    """A part of the curriculum. ``weights``: shares of 1 x 1, 2 x 2, 3 x 3 and 4 x 4 scenes; ``two_views``: share of batches with a
    quadrant as a second view; ``captions``: whether "describe the image." is among the questions."""

    layers: int
    steps: int
    weights: tuple[float, float, float, float]
    lr: float
    batch: int = 32
    asked: int = 12
    two_views: float = 0.0
    captions: bool = False


PHASES = (
    Phase(8, 300, (1.0, 0, 0, 0), 2e-3, captions=True),
    Phase(8, 1500, (0.15, 0.85, 0, 0), 2e-3, captions=True),
    Phase(8, 700, (0.1, 0.5, 0.1, 0.3), 1.5e-3, two_views=0.2),
    Phase(32, 700, (0.1, 0.5, 0.1, 0.3), 1e-3, two_views=0.2),
)


def scene_questions(rng: np.random.Generator, scene: Scene, asked: int, split: str = "train") -> list[questions.Question]:
    """Questions on a scene; a single image is asked easy-VQA's own questions."""
    if scene.n > 1:
        return questions.draw(rng, scene, questions.KINDS, asked)
    own = _official_by_image(split)[scene.tiles[0].image_id]
    return [own[i] for i in rng.permutation(len(own))[:asked]]


_OFFICIAL: dict[str, dict[int, list[questions.Question]]] = {}


def _official_by_image(split: str) -> dict[int, list[questions.Question]]:
    if split not in _OFFICIAL:
        rows = _OFFICIAL[split] = defaultdict(list)
        for text, answer, image_id in official_questions(split):
            rows[image_id].append(questions.Question("easy_vqa", text, answer, (0,)))
    return _OFFICIAL[split]


@dataclass
class Pack:
    """Questions of a batch as token rows behind their scenes' prefixes. All tensors are (batch, text)."""

    ids: torch.Tensor
    owner: torch.Tensor  # index of the question a token belongs to, -1 on padding
    offset: torch.Tensor  # position behind the prefix
    labels: torch.Tensor  # the token to be predicted here, -100 where none is


def pack(tokenizer, rows: list[list[tuple[str, str]]], rng: np.random.Generator, shift: int) -> Pack:
    ids, owner, offset, labels = [], [], [], []
    for row in rows:
        line: tuple[list, list, list, list] = ([], [], [], [])
        for j, (question, answer) in enumerate(row):
            prompt = _ids(tokenizer, f"\n{question} ASSISTANT:")
            said = _ids(tokenizer, f" {answer}</s>")
            start = 0 if shift == 0 or rng.random() < 0.5 else int(rng.integers(shift))
            line[0].extend(prompt + said)
            line[1].extend([j] * (len(prompt) + len(said)))
            line[2].extend(range(start, start + len(prompt) + len(said)))
            line[3].extend([-100] * (len(prompt) - 1) + said + [-100])
        for store, part in zip((ids, owner, offset, labels), line, strict=True):
            store.append(part)
    width = -(-max(len(r) for r in ids) // 16) * 16

    def padded(store, value):
        return torch.tensor([r + [value] * (width - len(r)) for r in store])

    return Pack(padded(ids, 0), padded(owner, -1), padded(offset, 0), padded(labels, -100))


_IDS: dict[str, list[int]] = {}


def _ids(tokenizer, text: str) -> list[int]:
    if text not in _IDS:
        _IDS[text] = tokenizer(text, add_special_tokens=False).input_ids
    return _IDS[text]


def hidden_of(llava, tokenizer, views: torch.Tensor, packed: Pack) -> torch.Tensor:
    """(batch, text, hidden) final states of the packed questions. ``views``: (batch, images, 3, size, size)."""
    b, k = views.shape[:2]
    with torch.no_grad():
        features = llava.model.vision_tower(views.flatten(0, 1), output_hidden_states=True).hidden_states[-2][:, 1:]
    visual = llava.model.multi_modal_projector(features).unflatten(0, (b, k))
    embed = llava.get_input_embeddings()
    opening = embed(torch.tensor(_ids(tokenizer, "<s>USER: ")))
    newline = embed(torch.tensor(_ids(tokenizer, "\n")))
    parts = [opening.expand(b, -1, -1)]
    for i in range(k):
        parts += [visual[:, i]] + ([newline.expand(b, -1, -1)] if i + 1 < k else [])
    prefix = torch.cat(parts, dim=1)
    p, t = prefix.shape[1], packed.ids.shape[1]
    causal = torch.ones(p + t, p + t, dtype=torch.bool).tril()
    owner = F.pad(packed.owner, (p, 0), value=-2)
    same = owner[:, :, None] == owner[:, None, :]
    mask = (causal & (same | (torch.arange(p + t) < p)))[:, None]
    positions = torch.cat([torch.arange(p).expand(b, -1), p + packed.offset], dim=1)
    out = llava.model.language_model(
        inputs_embeds=torch.cat([prefix, embed(packed.ids)], dim=1), attention_mask=mask, position_ids=positions, use_cache=False
    )
    return out.last_hidden_state[:, p:]


@torch.no_grad()
def held_out(llava, tokenizer, n: int, scenes: int = 64, blank: bool = False, seed: int = 1) -> dict[str, float]:
    """Exact-match accuracy by question kind on test scenes of n x n tiles; ``blank`` replaces every image by a grey one."""
    right: dict[str, list[bool]] = defaultdict(list)
    for start in range(0, scenes, 32):
        rng = np.random.default_rng((seed, n, start))
        batch = [random_scene(rng, "test", n) for _ in range(min(32, scenes - start))]
        asked = [scene_questions(rng, s, 10, "test") for s in batch]
        views = torch.stack([pixels(s.canvas, build_models.IMAGE_SIZE) for s in batch])[:, None]
        packed = pack(tokenizer, [[(q.text, q.answer) for q in row] for row in asked], rng, 0)
        hidden = hidden_of(llava, tokenizer, torch.zeros_like(views) if blank else views, packed)
        wrong = (llava.lm_head(hidden).argmax(-1) != packed.labels) & (packed.labels >= 0)
        for b, row in enumerate(asked):
            for j, question in enumerate(row):
                right[question.kind].append(not wrong[b][packed.owner[b] == j].any())
    scores = {kind: float(np.mean(v)) for kind, v in sorted(right.items())}
    return {"all": float(np.mean(sum(right.values(), []))), **scores}


def quadrant(scene: Scene, index: int):
    """Quadrant ``index`` (raster order) of the canvas at its full resolution."""
    half = scene.canvas.width // 2
    r, c = divmod(index, 2)
    return scene.canvas.crop((c * half, r * half, (c + 1) * half, (r + 1) * half))


def batch_of(rng: np.random.Generator, phase: Phase, tokenizer) -> tuple[torch.Tensor, Pack]:
    n = int(rng.choice(4, p=phase.weights)) + 1
    scenes = [random_scene(rng, "train", n) for _ in range(phase.batch)]
    rows = [[(q.text, q.answer) for q in scene_questions(rng, s, phase.asked)] for s in scenes]
    if phase.captions and n <= 2:
        rows = [[*row, ("describe the image.", questions.caption(s))] for row, s in zip(rows, scenes, strict=True)]
    views = [[s.canvas] for s in scenes]
    if n > 1 and rng.random() < phase.two_views:
        views = [[*v, quadrant(s, int(rng.integers(4)))] for v, s in zip(views, scenes, strict=True)]
    x = torch.stack([torch.stack([pixels(image, build_models.IMAGE_SIZE) for image in v]) for v in views])
    return x, pack(tokenizer, rows, rng, SHIFT)


def train_llava(clip, tokenizer, out: Path, seed: int, phases: tuple[Phase, ...] = PHASES):
    """Runs all phases, resuming from ``out``, and returns the LLaVA model."""
    torch.manual_seed(seed)
    llava = build_models.build_llava(tokenizer, phases[0].layers)
    llava.model.vision_tower.load_state_dict(clip.vision_model.state_dict())
    for number, phase in enumerate(phases):
        depth = len(llava.model.language_model.layers)
        if phase.layers != depth:
            llava = build_models.deepen(llava, tokenizer, phase.layers // depth)
        llava.model.vision_tower.requires_grad_(False)
        weights = [p for p in llava.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(weights, lr=phase.lr, betas=(0.9, 0.98), weight_decay=0.02, fused=True)
        checkpoint = Checkpoint(out / f"llava_phase{number}.pt", llava, optimizer)
        started, running = time.time(), None
        for step in range(checkpoint.step, phase.steps):
            rng = np.random.default_rng((seed, 10 + number, step))
            x, packed = batch_of(rng, phase, tokenizer)
            last = number + 1 == len(phases)
            for group in optimizer.param_groups:
                group["lr"] = cosine_lr(step, phase.steps, phase.lr, floor=0.03 if last else 0.4)
            hidden = hidden_of(llava, tokenizer, x, packed)
            wanted = packed.labels >= 0
            loss = F.cross_entropy(llava.lm_head(hidden[wanted]), packed.labels[wanted])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            running = loss.item() if running is None else 0.95 * running + 0.05 * loss.item()
            if step % 50 == 0 or step + 1 == phase.steps:
                print(f"llava phase {number} step {step} loss {running:.3f} {time.time() - started:.0f} s", flush=True)
            if (step % 200 == 0 and step) or step + 1 == phase.steps:
                checkpoint.save(step + 1)
                for n in (1, 2, 4):
                    if phase.weights[n - 1]:
                        scores = held_out(llava, tokenizer, n)
                        print(f"  held out {n} x {n}: " + " ".join(f"{k} {100 * v:.0f}" for k, v in scores.items()), flush=True)
    return llava
