"""Loads a backbone: a scale model of this package, a folder in Hugging Face layout, or a repository of the hub."""

from __future__ import annotations

import functools
import gc
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from blink_exp.backbone import memory, supported, weights
from blink_exp.backbone.model import Backbone
from blink_exp.backbone.processor import load_processor, warn_of_tokens
from blink_exp.backbone.prompts import chat_prompt
from blink_exp.backbone.shipped import SCALE, shipped
from blink_exp.errors import UserError, nearest
from blink_exp.settings.check import fields, value_type
from blink_exp.settings.schemas.models import Model


def _cache_last(function: Callable[..., Backbone]) -> Callable[..., Backbone]:
    """Like lru_cache(1), but evicts before loading another: a GPU may not hold two."""
    loaded: dict[tuple[Any, ...], Backbone] = {}

    @functools.wraps(function)
    def load(*args: Any, **kwargs: Any) -> Backbone:
        key = (args, tuple(sorted(kwargs.items())))
        if key not in loaded:
            loaded.clear()
            gc.collect()  # models hold cycles
            torch.cuda.empty_cache()
            loaded[key] = function(*args, **kwargs)
        return loaded[key]

    return load


@_cache_last
def load(
    path: str = "scale",
    name: str | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    attn_implementation: str = "sdpa",
    clip: str | None = None,
    revision: str | None = None,
    device_map: str | None = None,
    quantization: str | None = None,
    pad: bool = False,
    system_prompt: str | None = "none",
) -> Backbone:
    """The model in folder ``path`` (or hub id), frozen; ``scale`` and ``scale_next`` ship with this package.

    Cached for the next call with the same arguments, so the jobs of a sweep share one copy.

    Args:
        revision: branch, tag or commit of a hub id; a folder has none.
        device_map: spreads a model over GPUs and main memory (needs accelerate); null: all of it on ``device``.
        quantization: 4bit (nf4) or 8bit weights of the language model (needs bitsandbytes and a GPU); null: ``dtype``.
        pad, system_prompt: see ``Backbone``; the published scores of LLaVA-1.5 were taken with true and vicuna_v1.

    Raises UserError before weights are read if they are missing, cut off or too large, or if a setting is invalid.
    """
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    system_prompt = system_prompt or "none"
    choices = {"dtype": dtype, "attn_implementation": attn_implementation, "quantization": quantization, "device_map": device_map}
    check_words(**choices, system_prompt=system_prompt)
    check_device(device, quantization, device_map, attn_implementation, dtype)
    shipped_folders = shipped(path)
    folder = shipped_folders[0] if shipped_folders else weights.find_config(path, revision)
    config, commit = weights.read_config(folder, path), None
    if not shipped_folders:
        with supported.read_by_library(path, "config.json that makes a model"):
            memory.check(config, dtype, device, quantization, device_map)
        folder, commit = weights.fetch(path, revision)
        weights.check_complete(folder, path)
    processor = load_processor(folder, config, path, pad, system_prompt)
    if not shipped_folders:
        supported.check_images(processor.image_processor, config, path)
        supported.check_tokens(processor, config, functools.partial(chat_prompt, processor, system_prompt=system_prompt), path)
    model = _model(folder, path, dtype, device, attn_implementation, device_map, quantization)
    if not shipped_folders:
        _greedy(model, path)
    backbone = Backbone(
        name or (SCALE[path][2] if shipped_folders else path),
        model,
        processor,
        shipped_folders[1] if shipped_folders else None,
        clip,
        pad=pad,
        system_prompt=system_prompt,
        quantization=quantization,
        revision=commit,
        files=folder,
    )
    warn_of_tokens(processor, config, backbone.prompt("?"))
    return backbone


def _model(
    folder: Path, path: str, dtype: str, device: str, attn_implementation: str, device_map: str | None, quantization: str | None
) -> Any:
    from transformers import AutoModelForImageTextToText, BitsAndBytesConfig

    kind: Any = getattr(torch, dtype)
    placed: dict[str, Any] = {"device_map": device_map} if device_map else {}
    if quantization:
        bits = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"} if quantization == "4bit" else {"load_in_8bit": True}
        skip = list(memory.KEPT)
        placed = {"device_map": device_map or {"": device}}
        placed["quantization_config"] = BitsAndBytesConfig(**bits, bnb_4bit_compute_dtype=kind, llm_int8_skip_modules=skip)
    with supported.read_by_library(path, "weights that load"):
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            str(folder),
            dtype=kind,
            attn_implementation=attn_implementation,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported by name in the loading info
            **placed,
        )
    model, report = loaded
    weights.check_loaded(report["missing_keys"], report["mismatched_keys"], path, report["unexpected_keys"])
    model = model if placed else model.to(device)
    weights.check_finite(model, path)
    return model


def _greedy(model: Any, path: str) -> None:
    """Keeps only the special tokens of generation_config.json, which may also set a temperature or a length."""
    from transformers import GenerationConfig

    old = model.generation_config
    supported.check_ends(old, model.config.text_config.vocab_size, path)
    model.generation_config = GenerationConfig(bos_token_id=old.bos_token_id, eos_token_id=old.eos_token_id, pad_token_id=old.pad_token_id)


def check_words(**settings: str | None) -> None:
    """Raises UserError for a value that a setting does not allow."""
    for key, value in settings.items():
        choices = fields(Model)[key].metadata["limit"].words
        if value not in choices and not (value is None and value_type(Model, key)[1]):
            raise UserError(f"model.{key}={value} is not known; {nearest(str(value), choices)}")


def check_there(
    path: str,
    revision: str | None = None,
    device: str = "cpu",
    quantization: str | None = None,
    device_map: str | None = None,
    attn_implementation: str = "sdpa",
    dtype: str = "float32",
    **_: Any,
) -> None:
    """Raises UserError, before anything is loaded, for a missing device, library, or model. The arguments are settings of ``model``."""
    check_device(device, quantization, device_map, attn_implementation, dtype)
    if not shipped(path):
        weights.find_config(path, revision)


def check_device(device: str, quantization: str | None, device_map: str | None, attn_implementation: str, dtype: str) -> None:
    """Raises UserError for a missing device, or a setting whose library or device is missing."""
    try:
        kind = torch.device(str(device))
    except RuntimeError as error:
        raise UserError(f"model.device={device} is no device; use cpu, cuda or cuda:0") from error
    if kind.type not in ("cpu", "cuda") or (kind.type == "cpu" and kind.index):
        raise UserError(f"model.device={device} is not supported; use cpu, cuda or cuda:0")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind.type == "cuda" and (kind.index or 0) >= count:
        raise UserError(
            f"model.device={device} is not there, torch sees {count} GPUs; use {'a lower number' if count else 'model.device=cpu'}"
        )
    if quantization and (kind.type != "cuda" or not count):
        raise UserError(f"model.quantization={quantization} needs a GPU, but model.device={device}; use model.quantization=null")
    flash = attn_implementation if "flash" in attn_implementation else None
    needed = [("model.quantization", quantization, "bitsandbytes"), ("model.quantization", quantization, "accelerate")]
    needed += [("model.device_map", device_map, "accelerate"), ("model.attn_implementation", flash, "flash_attn")]
    for key, value, library in needed:
        if value and importlib.util.find_spec(library) is None:
            raise UserError(f"{key}={value} needs {library}, which is not installed; run: pip install {library.replace('_', '-')}")
    if flash and kind.type != "cuda":
        raise UserError(f"model.attn_implementation={flash} needs a GPU, but model.device={device}; use model.attn_implementation=sdpa")
    if flash and dtype == "float32":
        raise UserError(f"model.attn_implementation={flash} has no float32; use model.dtype=bfloat16 or model.attn_implementation=sdpa")
