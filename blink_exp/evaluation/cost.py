"""Measures the cost of a method: tokens, FLOPs, KV-cache bytes and seconds per prompt at batch size 1. All methods use the same meter.

Choosing tokens before the LLM is a part of encoding, and also timed alone.

FLOPs are given twice. By the papers' formula (HERO, Sec. IV-C): a decoder layer that runs q tokens over k keys costs
8 q d^2 + 4 q k d + 6 q d m, which for a whole prompt (q = k = n) is 8 n d^2 + 4 n^2 d + 6 n d m; a TokenSR module costs twice its
weights at every position of its output. The tower's pass over the image is not counted, that over a part of it is (a second view). And by
torch's FLOP counter on the running model, which includes the cost of scoring.
"""

from __future__ import annotations

import contextlib
import resource
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers.modeling_outputs import BaseModelOutputWithPooling

from blink_exp.backbone.cache_name import CACHE
from blink_exp.backbone.model import Backbone
from blink_exp.core.method import Method
from blink_exp.core.views import VisualTokens
from blink_exp.decoder.answers import visual_tokens
from blink_exp.decoder.attach import attach
from blink_exp.decoder.second_views import Asking
from blink_exp.decoder.shared_attention import SharedKVCache
from blink_exp.documents.runs import Cost
from blink_exp.evaluation.tokens import layer_flops
from blink_exp.flops import CPU_ATTENTION

DECODED = 8  # tokens generated to time decoding, regardless of the answer


def tower_flops(config: Any) -> int:
    """FLOPs of one view through tower and projector of a LLaVA model."""
    vision, d = config.vision_config, config.text_config.hidden_size
    v, m, patches = vision.hidden_size, vision.intermediate_size, (vision.image_size // vision.patch_size) ** 2
    n = patches + 1  # with CLS
    layer = 8 * n * v**2 + 4 * n**2 * v + 4 * n * v * m  # its MLP has two matrices
    features = v * (1 if isinstance(config.vision_feature_layer, int) else len(config.vision_feature_layer))
    return int(vision.num_hidden_layers * layer + 2 * patches * (3 * vision.patch_size**2 * v + features * d + d**2))


@torch.no_grad()
def measure_cost(backbone: Backbone, method: Method, prompts: Sequence[tuple[Any, Asking | str]]) -> Cost:
    """Mean cost over ``prompts``, pairs of (image, question), each run alone after one warm-up."""
    with attach(backbone.model, method) as attached:
        visual, batch, _ = _inputs(backbone, method, attached, *prompts[0])
        _generate(backbone.model, batch, visual, 2)
        rows = [_one(backbone, method, attached, image, question) for image, question in prompts]
    means: Any = {k: sum(r[k] for r in rows) / len(rows) for k in rows[0] if not isinstance(rows[0][k], list)}
    by_layer = list(zip(*(r["tokens_by_layer"] for r in rows), strict=True))
    device = backbone.model.device
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    cost: Cost = means | {
        "tokens_by_layer": [sum(layer) / len(rows) for layer in by_layer],
        "peak_memory_bytes": peak,
        "peak_memory_is": "allocated on the device" if device.type == "cuda" else "resident set of the process",
        "prompts": len(rows),
    }
    return cost


def _inputs(
    backbone: Backbone, method: Method, attached: Any, image: Any, question: Asking | str
) -> tuple[VisualTokens, dict[str, torch.Tensor], float]:
    """(visual tokens, batch, seconds of encoding) of one prompt, of which nothing is stored yet."""
    asking = _asking(question)
    backbone.forget()
    started = _now(backbone.model)
    visual = visual_tokens(backbone, method, {asking.image: image}, [asking])[0]
    if attached is not None:
        attached.see([visual])
        attached.regions = [list(backbone.regions({asking.image: image}).values())]
    seconds = _now(backbone.model) - started
    return visual, backbone.batch([visual.features], [asking.question]), seconds


def _asking(question: Asking | str) -> Asking:
    return Asking("image", question) if isinstance(question, str) else question


def _one(backbone: Backbone, method: Method, attached: Any, image: Any, question: Asking | str) -> dict[str, Any]:
    model, asking = backbone.model, _asking(question)
    visual, batch, encode_seconds = _inputs(backbone, method, attached, image, asking)
    with (
        _counted(backbone, method.amplifiers) as formula,
        FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter,
    ):
        if method.second_view is not None:  # its scan and its part of the image count, as the image itself does not
            backbone.second_views.clear()
            visual_tokens(backbone, method, {asking.image: image}, [asking])
        cache = _forward(model, batch, visual)[CACHE]
    backbone.closeups.clear()  # part of a prompt's prefill
    begun = _now(model)
    cache_again = _forward(model, batch, visual)[CACHE]  # timed separately, since the FLOP counter slows the first pass
    prefilled = _now(model)
    del cache_again
    backbone.closeups.clear()
    _generate(model, batch, visual, DECODED)
    decode = max(1e-9, _now(model) - prefilled - (prefilled - begun))
    lengths = [layer.keys.shape[2] for layer in cache.layers]
    views = visual.views
    return {
        "visual_tokens_nominal": views.count * views.tokens,
        "visual_tokens": len(visual.source) - visual.newlines,
        "newline_tokens": visual.newlines,
        "prompt_tokens": batch["input_ids"].shape[1],
        "tokens_by_layer": lengths,
        "prefill_flops_formula": formula[0],
        "prefill_flops_counted": counter.get_total_flops(),
        "kv_bytes": sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers),
        "encode_seconds": encode_seconds,
        "prefill_seconds": prefilled - begun,
        **_selection_seconds(backbone, method, image, asking.question),
        "decode_tokens_per_second": (DECODED - 1) / decode,
    }


def _selection_seconds(backbone: Backbone, method: Method, image: Any, question: str) -> dict[str, float]:
    """Seconds in which the pruner chooses, behind the encoder; nothing for a policy, whose choice is part of the prefill."""
    if method.drops_inside:
        return {}
    started = _now(backbone.model)
    if method.pruner is not None:
        encoding = backbone.encodings({"image": image}, method.pruner.needs)["image"]
        started = _now(backbone.model)
        method.pruner.select(encoding, question)
    return {"selection_seconds": _now(backbone.model) - started}


def _output(visual: VisualTokens) -> dict[str, Any]:
    return {"image": BaseModelOutputWithPooling(pooler_output=[visual.features])}


def _generate(model: Any, batch: dict[str, torch.Tensor], visual: VisualTokens, tokens: int) -> None:
    model.generate(**batch, mm_encoder_outputs=_output(visual), min_new_tokens=tokens, max_new_tokens=tokens, do_sample=False)


def _forward(model: Any, batch: dict[str, torch.Tensor], visual: VisualTokens) -> Any:
    return model(**batch, mm_encoder_outputs=_output(visual), use_cache=True, logits_to_keep=1)


@contextlib.contextmanager
def _counted(backbone: Backbone, amplifiers: torch.nn.ModuleDict | None) -> Iterator[list[int]]:
    """Formula FLOPs of all decoder layers that run inside the block, by their actual numbers of queries and keys, plus all TokenSR
    modules, and the tower and projector, which run for parts of the image."""
    llm, config = backbone.llm, backbone.model.config.text_config
    total = [0]

    def before(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        states = args[0] if args else kwargs["hidden_states"]
        cache = kwargs.get(CACHE)
        cached_tokens = cache.known if isinstance(cache, SharedKVCache) else 0  # the stock forward runs a prompt in one piece
        rows, q = states.shape[:2]
        total[0] += rows * layer_flops(q, q + cached_tokens, config.hidden_size, config.intermediate_size)

    def behind(module: Any, args: tuple[Any, ...], out: torch.Tensor) -> None:
        channels = out.shape[1] if isinstance(module, torch.nn.Conv2d) else out.shape[-1]
        total[0] += 2 * module.weight.numel() * (out.numel() // channels)

    def encoded(module: Any, args: Any, out: Any) -> None:
        total[0] += len(out.last_hidden_state) * tower_flops(backbone.model.config)

    hooks = [layer.register_forward_pre_hook(before, with_kwargs=True) for layer in llm.layers]
    modules = amplifiers.modules() if amplifiers is not None else ()
    hooks += [m.register_forward_hook(behind) for m in modules if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    hooks.append(backbone.model.model.vision_tower.register_forward_hook(encoded))
    try:
        yield total
    finally:
        for hook in hooks:
            hook.remove()


def _now(model: Any) -> float:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.perf_counter()
