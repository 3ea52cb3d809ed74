"""Checks that a checkpoint's config, processor and special tokens are supported, before the weights are read.

An unsupported value would give wrong results silently (a CLS token counted as a patch, tiles of another size than the tower's), so each
is refused with the file, the key, its value, the supported values and the cure.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image
from transformers.utils import logging as transformers_logging

from blink_exp.backbone.memory import TEXT, visual_tokens
from blink_exp.backbone.pictures import prepare_image
from blink_exp.core.views import ViewGeometry
from blink_exp.errors import UserError, flat, out_of_memory

LLMS = ("llama", "mistral", "qwen2")  # decoders with the layer structure that ``decoder`` assumes
TOWERS = {"clip_vision_model": "default", "siglip_vision_model": "full"}  # and the strategy that leaves patches alone: SigLIP has no CLS
MOST_TILES = 100
MOST = {"num_hidden_layers": 1000, "image_size": 10_000}  # larger values are errors, which would take hours to fail
MOST_NUMBER = 10_000_000
CONFIG = "config.json"
IMAGES = ("preprocessor_config.json", "processor_config.json")  # files of an image processor; newer folders hold it in the second


def refusal(
    path: str, file: str, key: str, value: Any, limit: str, cure: str = "correct the file, or give another checkpoint"
) -> UserError:
    return UserError(
        f"model.path={path}: {file} has {key}={flat(list(value) if isinstance(value, tuple) else value, 120)}, but {limit}; {cure}"
    )


def images_file(path: str) -> str:
    """Name of the file that the image processor of ``path``, a folder or a hub id, is read from."""
    return next((name for name in IMAGES if Path(path, name).is_file()), IMAGES[0])


@contextlib.contextmanager
def read_by_library(path: str, content: str) -> Iterator[None]:
    """Converts exceptions of a library that reads a checkpoint to UserError, as they are not documented, and silences its warnings."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or out_of_memory(error):
            raise
        why = flat(f"{type(error).__name__}: {error}", 240)
        raise UserError(f"model.path={path} has no {content} ({why}); give a complete checkpoint") from error
    finally:
        transformers_logging.set_verbosity(before)


def check_raw(raw: Any, path: str) -> None:
    """Checks the parsed config.json. Raises UserError."""
    if not isinstance(raw, dict):
        raise UserError(f"model.path={path} has a config.json that is no object but {flat(raw, 40)}; download it again")
    for key in ("text_config", "vision_config"):
        if key in raw and not isinstance(raw[key], dict):
            raise refusal(path, CONFIG, key, raw[key], "it must be an object")
    if raw.get("quantization_config") is not None:
        cure = "give the unquantised checkpoint; model.quantization=4bit or 8bit quantises it at load"
        raise refusal(
            path, CONFIG, "quantization_config", raw["quantization_config"], "weights that are stored quantised are not read", cure
        )


def check_config(config: Any, path: str) -> None:
    """Checks the config of a LLaVA: vision tower, decoder and feature selection. Raises UserError."""
    vision, text = config.vision_config, config.text_config

    def refuse(key: str, value: Any, limit: str) -> UserError:
        return refusal(path, CONFIG, key, value, limit)

    if vision.model_type not in TOWERS:
        raise refuse("vision_config.model_type", vision.model_type, f"supported are {' and '.join(TOWERS)}")
    if text.model_type not in LLMS:
        raise refuse("text_config.model_type", text.model_type, f"supported are {', '.join(LLMS)}")
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    for name, part, keys in (
        ("vision_config", vision, (*sizes, "image_size", "patch_size")),
        ("text_config", text, (*sizes, "num_key_value_heads", "vocab_size")),
    ):
        for key in keys:
            value = getattr(part, key)
            if type(value) is not int or not 1 <= value <= MOST.get(key, MOST_NUMBER):
                raise refuse(f"{name}.{key}", value, f"it must be a whole number from 1 to {MOST.get(key, MOST_NUMBER)}")
        if part.hidden_size % part.num_attention_heads and not getattr(part, "head_dim", None):
            raise refuse(
                f"{name}.num_attention_heads", part.num_attention_heads, f"hidden_size={part.hidden_size} must be a multiple of it"
            )
    for key, part in (("vision_config.layer_norm_eps", vision), ("text_config.rms_norm_eps", text)):
        epsilon = getattr(part, key.split(".")[1])
        if not _is_number(epsilon) or not 0 < epsilon <= 0.01:
            raise refuse(key, epsilon, "it must be a small number above 0, at most 0.01")
    if text.num_attention_heads % text.num_key_value_heads:
        heads = f"num_attention_heads={text.num_attention_heads} must be a multiple of it"
        raise refuse("text_config.num_key_value_heads", text.num_key_value_heads, heads)
    if vision.patch_size > vision.image_size:
        raise refuse("vision_config.patch_size", vision.patch_size, f"a patch must fit into image_size={vision.image_size}")
    _check_selection(config, vision, refuse)
    if hasattr(config, "image_grid_pinpoints"):
        check_pinpoints(config.image_grid_pinpoints, vision.image_size, path, CONFIG)
    if type(config.image_token_id) is not int or not 0 <= config.image_token_id < text.vocab_size:
        limit = f"it must be a token of the vocabulary, 0 to {text.vocab_size - 1}"
        raise refuse("image_token_index", config.image_token_id, limit)
    window = getattr(text, "sliding_window", None) if getattr(text, "use_sliding_window", True) else None
    needed = visual_tokens(config) + (vision.image_size // vision.patch_size) ** 2 + TEXT
    if window is not None and window < needed:
        raise refuse("text_config.sliding_window", window, f"a prompt of up to {needed} tokens attends to all of itself; use null or more")


def _check_selection(config: Any, vision: Any, refuse: Callable[[str, Any, str], UserError]) -> None:
    """Which hidden states of the tower are read, and whether its CLS token is among them."""
    strategy, required = config.vision_feature_select_strategy, TOWERS[vision.model_type]
    if strategy != required:
        cls = "its CLS token would count as patch 0" if required == "default" else "it has no CLS token, so patch 0 would be lost"
        raise refuse("vision_feature_select_strategy", strategy, f"{vision.model_type} is supported with {required} only: {cls}")
    layers, depth = config.vision_feature_layer, vision.num_hidden_layers
    several = layers if isinstance(layers, list | tuple) else [layers]
    if type(layers) is int and layers == 0:
        raise refuse("vision_feature_layer", 0, f"transformers takes 0 for no layer; the tower's embeddings are {-depth - 1}")
    if not several or any(type(layer) is not int or not -depth - 1 <= layer <= depth for layer in several):
        limit = f"the tower has hidden states {-depth - 1} to {depth}; use one of them, or a list"
        raise refuse("vision_feature_layer", layers, limit)


def check_pinpoints(grids: Any, size: int, path: str, file: str) -> None:
    """LLaVA-NeXT's canvases: (height, width) in whole tiles of the tower's ``size``."""
    pairs = isinstance(grids, list | tuple) and all(isinstance(g, list | tuple) and len(g) == 2 for g in grids)
    if not pairs or not grids:
        limit = f"it must list [height, width] pairs in pixels, such as [{size}, {2 * size}]"
        raise refusal(path, file, "image_grid_pinpoints", grids, limit)
    for grid in grids:
        if any(type(side) is not int or side < size or side % size for side in grid):
            limit = f"sides must be multiples of the tower's image_size={size}"
            raise refusal(path, file, "image_grid_pinpoints", list(grid), limit)
        if grid[0] * grid[1] > MOST_TILES * size**2:
            raise refusal(path, file, "image_grid_pinpoints", list(grid), f"an image has at most {MOST_TILES} tiles of {size} pixels")


def check_images(image_processor: Any, config: Any, path: str) -> None:
    """The image processor: that an image of any shape becomes views of the tower's size, as many as the model expects."""
    size, file = config.vision_config.image_size, images_file(path)
    _check_pixels(image_processor, path)
    for key in ("size", *(["crop_size"] if getattr(image_processor, "do_center_crop", None) else [])):
        value = getattr(image_processor, key, None)
        sides = {k: v for k, v in dict(value).items() if v is not None} if value else {}
        if sides not in ({"height": size, "width": size}, {"shortest_edge": size}):
            raise refusal(path, file, key, sides or value, f"the tower's vision_config.image_size is {size}; the two must be the same")
    if hasattr(config, "image_grid_pinpoints"):
        pinpoints: Any = getattr(image_processor, "image_grid_pinpoints", None)
        check_pinpoints(pinpoints, size, path, file)
        if [*map(list, pinpoints)] != [*map(list, config.image_grid_pinpoints)]:  # order matters: the first of equally good grids is taken
            limit = f"config.json has {flat(config.image_grid_pinpoints, 120)}; the two must be the same"
            raise refusal(path, file, "image_grid_pinpoints", pinpoints, limit)
    for width, height in ((2 * size + 10, size // 2), (size // 3, size), (7, 5)):
        with read_by_library(path, f"{file} that prepares an image of {width} x {height} pixels"):
            views = prepare_image(Image.new("RGB", (width, height), (120, 60, 30)), image_processor).views
        shape = (ViewGeometry.of(config, (height, width)).count, 3, size, size)
        if tuple(views.shape) != shape:
            limit = f"the model takes {shape}; give the image processor and config of one checkpoint"
            raise refusal(path, file, f"views of an image of {width} x {height} pixels", tuple(views.shape), limit)
        if not bool(views.isfinite().all()):
            raise refusal(path, file, "image_std", getattr(image_processor, "image_std", None), "it gives pixels that are no numbers")


def _check_pixels(image_processor: Any, path: str) -> None:
    """Checks pixel preprocessing: CLIP and SigLIP read images resized by a filter, scaled to [0, 1] and normalised."""

    def refuse(key: str, limit: str) -> UserError:
        return refusal(path, images_file(path), key, getattr(image_processor, key, None), limit)

    for key in ("do_resize", "do_rescale", "do_normalize"):
        if getattr(image_processor, key, None) is not True:
            raise refuse(key, "the tower reads images that are resized, scaled and normalised; use true")
    if not (_is_number(image_processor.rescale_factor) and math.isclose(image_processor.rescale_factor, 1 / 255, rel_tol=0.01)):
        raise refuse("rescale_factor", "the tower reads colours from 0 to 1; use 1 / 255")
    for key, lowest in (("image_mean", 0.0), ("image_std", 0.01)):
        value = getattr(image_processor, key, None)
        if not (isinstance(value, list | tuple) and len(value) == 3 and all(_is_number(x) and lowest <= x <= 1 for x in value)):
            raise refuse(key, f"it must be three numbers from {lowest} to 1")
    resample = image_processor.resample
    if not isinstance(resample, int) or isinstance(resample, bool) or resample not in list(Image.Resampling):
        raise refuse("resample", "it must be a filter of PIL: 0 nearest, 1 Lanczos, 2 bilinear, 3 bicubic, 4 box, 5 Hamming")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_tokens(processor: Any, config: Any, prompt: Callable[[str], str], path: str) -> None:
    """Checks tokenizer and chat template: a prompt has one image and the question, in tokens of the model's vocabulary.

    ``prompt``: see ``Backbone``."""
    tokenizer, vocabulary = processor.tokenizer, config.text_config.vocab_size
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if largest >= vocabulary:
        limit = f"the model's text_config.vocab_size is {vocabulary}; give the tokenizer and config of one checkpoint"
        raise UserError(f"model.path={path} has a tokenizer with token {largest}, but {limit}")
    if tokenizer.pad_token_id is None:
        raise UserError(f"model.path={path} has a tokenizer without pad, unk and eos token, so no batch can be padded; give a whole one")
    question = "Is it red?"
    with read_by_library(path, "chat template and tokenizer that make a prompt"):
        text = prompt(question)
        ids = tokenizer(text, return_token_type_ids=False)["input_ids"]
    if question not in text:
        raise UserError(f"model.path={path} has a chat template that leaves out the question; give a newer revision of the checkpoint")
    if ids.count(config.image_token_id) != 1:
        token = processor.image_token
        raise UserError(
            f"model.path={path} has a prompt with {ids.count(config.image_token_id)} tokens {token} where it shows one image"
            f" ({token} must be one added token, and stand once in the chat template); give the tokenizer and template of one checkpoint"
        )


def check_ends(generation: Any, vocabulary: int, path: str) -> None:
    """Checks that the special tokens of generation_config.json are in the vocabulary."""
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = getattr(generation, key, None)
        several = value if isinstance(value, list | tuple) else [] if value is None else [value]
        if any(type(token) is not int or not 0 <= token < vocabulary for token in several):
            limit = f"it must be a token of the vocabulary, 0 to {vocabulary - 1}"
            raise refusal(path, "generation_config.json", key, value, limit)
