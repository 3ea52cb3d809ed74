"""Random models of several shapes, prompts for them, and encodings without a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

# torch and transformers are imported where they are used: the process that hands the tests out to others reads this file too, and waits
if TYPE_CHECKING:
    import torch
    from transformers import LlavaForConditionalGeneration, LlavaNextForConditionalGeneration

    from blink_exp.core.encoding import Encoding
    from blink_exp.core.views import ViewGeometry
IMAGE, PAD = 3, 0


def random_llava(layers=4, width=32, heads=4, kv_heads=4, side=6, attn="sdpa", seed=0) -> LlavaForConditionalGeneration:
    """A LLaVA with random weights large enough that attention is not flat. ``side``: the visual grid is side x side."""
    import torch
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    torch.manual_seed(seed)
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=4 * side, patch_size=4
    )
    text = LlamaConfig(
        vocab_size=64,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        initializer_range=0.2,
        pad_token_id=PAD,
        bos_token_id=1,
        eos_token_id=63,
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE, image_seq_length=side * side)
    config._attn_implementation = attn
    model = LlavaForConditionalGeneration._from_config(config, attn_implementation=attn)
    return model.eval().requires_grad_(False)


def prompts(model, texts: list[list[int]], images: int | list[int] = 1, seed: int = 0) -> dict[str, torch.Tensor]:
    """A left-padded batch: [1, 5] | image | [7] | image ... | text, with random pixels."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    counts = [images] * len(texts) if isinstance(images, int) else images
    visual = model.config.image_seq_length
    rows = []
    for text, count in zip(texts, counts, strict=True):
        row = [1, 5]
        for i in range(count):
            row += ([7] if i else []) + [IMAGE] * visual
        rows.append(row + text)
    length = max(map(len, rows))
    ids = torch.tensor([[PAD] * (length - len(r)) + r for r in rows])
    mask = torch.tensor([[0] * (length - len(r)) + [1] * len(r) for r in rows])
    size = model.config.vision_config.image_size
    pixels = torch.randn(sum(counts), 3, size, size, generator=generator)
    return {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels}


def one(batch: dict[str, torch.Tensor], row: int, images: list[int]) -> dict[str, torch.Tensor]:
    """Row ``row`` of a batch as a batch of its own, without padding. ``images``: how many each row has."""
    mask = batch["attention_mask"][row].bool()
    first = sum(images[:row])
    return {
        "input_ids": batch["input_ids"][row][mask][None],
        "attention_mask": batch["attention_mask"][row][mask][None],
        "pixel_values": batch["pixel_values"][first : first + images[row]],
    }


def random_next(layers=4, width=32, side=6, seed=0) -> LlavaNextForConditionalGeneration:
    """A LLaVA-NeXT with random weights and the five kinds of grid of the published checkpoints, views of side x side patches."""
    import torch
    from transformers import LlavaNextConfig, LlavaNextForConditionalGeneration

    plain = random_llava(layers=layers, width=width, side=side, seed=seed).config
    size = plain.vision_config.image_size
    grids = [[size, 2 * size], [2 * size, size], [2 * size, 2 * size], [3 * size, size], [size, 3 * size]]
    config = LlavaNextConfig(
        vision_config=plain.vision_config, text_config=plain.text_config, image_token_index=IMAGE, image_grid_pinpoints=grids
    )
    torch.manual_seed(seed)
    return LlavaNextForConditionalGeneration(config).eval().requires_grad_(False)


def random_encoding(views: ViewGeometry, layers=range(1, 5), heads=2, width=8, seed=0, text=None) -> Encoding:
    """An Encoding of random tensors for a geometry, as a pruner sees it; no model is run. ``text``: a (width,) text embedding."""
    import torch

    from blink_exp.core.encoding import Encoding

    g = torch.Generator().manual_seed(seed)
    v, n = views.count, views.tokens
    out = Encoding(views, torch.randn(v, n, width, generator=g))
    for layer in layers:
        out.logits[layer] = torch.randn(v, heads, n + 1, generator=g)
        out.queries[layer] = torch.randn(v, width, generator=g)
        out.keys[layer] = torch.randn(v, n + 1, width, generator=g)
    out.last_hidden, out.pooled, out.projected = (torch.randn(v, width, generator=g) for _ in range(3))
    out.embed_text = lambda question: torch.ones(width) if text is None else text
    out.hidden_cls, out.llm_features = torch.randn(v, width, generator=g), torch.randn(v, n, width, generator=g)
    out.newline = torch.randn(width, generator=g) if views.newline else None
    return out


def model_inputs(backbone, images, questions: list[str]) -> dict[str, torch.Tensor]:
    """A left-padded batch of one image and one question each, by the backbone's own processor."""
    texts = [backbone.prompt(question) for question in questions]
    batch = backbone.processor(images=images, text=texts, return_tensors="pt", padding=True)
    return {name: part.to(backbone.model.device) for name, part in batch.items()}
