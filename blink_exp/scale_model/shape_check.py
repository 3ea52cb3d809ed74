"""A published backbone at full size with random weights: do CLIP, HERO and Blink fit its shapes?

    python -m blink_exp.scale_model.shape_check llava_1_5_7b            # 15 GB of memory, minutes on a few cores
    python -m blink_exp.scale_model.shape_check llava_1_5_7b cuda:0

By hand, as it needs the memory of the real model; the tests do the same at small width. No number that it prints is a result.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from blink_exp.backbone import memory
from blink_exp.backbone.encode import encode
from blink_exp.backbone.model import Backbone
from blink_exp.backbone.published import NAMES, published_config
from blink_exp.core.method import Method
from blink_exp.core.views import ViewGeometry, VisualTokens, all_tokens
from blink_exp.decoder.attach import attach
from blink_exp.errors import UserError, nearest
from blink_exp.methods.blink import BlinkPolicy, blink
from blink_exp.methods.hero import Hero
from blink_exp.methods.none import none

LAYERS = tuple(range(12, 19))


def main(words: list[str]) -> None:
    name, device = words[0], words[1] if len(words) > 1 else "cpu"
    if name not in NAMES:
        raise UserError(f"{name} is no published backbone; {nearest(name, NAMES)}")
    config = published_config(name)
    memory.check(config, "bfloat16", device)
    started = time.time()
    backbone = random_backbone(name, config, device)
    print(
        f"{name}: {sum(p.numel() for p in backbone.model.parameters()) / 1e9:.2f} B random weights, {time.time() - started:.0f} s to fill"
    )
    for line in check(backbone):
        print(line)
    if device.startswith("cuda"):
        print(f"at most {memory.gb(torch.cuda.max_memory_allocated(device))} on {device}")
    print(f"at most {memory.gb(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)} of main memory")  # Linux counts in KiB


def random_backbone(name: str, config: Any, device: str) -> Backbone:
    """Random bfloat16 weights and no processor: what follows gives it pixels and token ids."""
    from transformers import AutoModelForImageTextToText

    model: Any = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
    return Backbone(name, model.eval().requires_grad_(False).to(device), None)


@torch.no_grad()
def check(backbone: Backbone) -> Iterator[str]:
    """Yields a line for each stage with its shapes and seconds. Asserts the shapes."""
    model, config, tokens = backbone.model, backbone.model.config, backbone.grid[0] * backbone.grid[1]
    size = config.vision_config.image_size
    views = ViewGeometry.of(config, (size, size))
    hero = Hero(0.2, frozenset(range(6, 11)), frozenset({22}), 1.0)
    started = time.time()
    pixels = torch.rand(views.count, 3, size, size)
    (encoding,) = encode(model, pixels, [views], hero.needs)
    assert encoding.hidden.shape == (views.count, tokens, config.vision_config.hidden_size)
    yield f"CLIP: {tuple(encoding.hidden.shape)}, {time.time() - started:.1f} s"
    selection = hero.select(encoding, "")
    assert selection is not None
    pruned = backbone.prune(encoding, selection, "valid_rows")
    whole = backbone.prune(encoding, all_tokens(views), "valid_rows")
    budget = int(views.count * tokens * 0.2)  # HERO rounds down, tile by tile
    assert budget - views.tiles <= len(pruned.source) - pruned.newlines <= budget
    yield f"HERO at 20 %: {tuple(pruned.features.shape)} of {tuple(whole.features.shape)}, newlines included"
    policy = BlinkPolicy(LAYERS, 0.0, 0.0)  # every selected layer expands
    for title, visual, method in (
        ("prompt", whole, none()),
        ("prompt with HERO", pruned, none()),
        ("prompt with Blink", whole, blink(policy)),
    ):
        started = time.time()
        logits, expanded = prompt(model, visual, method)
        assert logits.shape == (config.text_config.vocab_size,) and bool(logits.isfinite().all())
        assert expanded == ([tokens] * len(LAYERS) if method.policy else [])
        more = f" + {tokens} expanded" if expanded else ""
        yield f"{title}: {len(visual.source)} visual tokens{more}, {time.time() - started:.1f} s"


def prompt(model: Any, visual: VisualTokens, method: Method) -> tuple[torch.Tensor, list[int]]:
    """The next token's logits, (vocabulary,), behind 5 tokens, an image and 20 tokens, and the expanded tokens of each selected layer."""
    count = len(visual.source)
    image = torch.full((count,), model.config.image_token_id)
    ids = torch.cat([torch.arange(3, 8), image, torch.arange(100, 120)])[None].to(model.device)
    encoded = {"image": BaseModelOutputWithPooling(pooler_output=[visual.features])}
    with attach(model, method) as run:
        if run is not None:
            run.images = [[visual.base_map]]
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            mm_encoder_outputs=encoded,
            max_new_tokens=1,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
        )
        return out.logits[0][0], [r.visual_tokens - count for r in run.records] if run is not None else []


if __name__ == "__main__":
    try:
        main(sys.argv[1:] or [NAMES[0]])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
