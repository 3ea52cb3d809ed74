"""Loads a checkpoint's processor and aligns it with the config: square padding, system prompt, number of image tokens."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from blink_exp.backbone.prompts import SYSTEM_PROMPTS, chat_prompt
from blink_exp.backbone.supported import read_by_library
from blink_exp.errors import UserError, nearest

# ":", "▁", the image, "▁", newline: LLaVA tokenised the text before and behind an image apart, each part with Llama's prefix space.
AROUND_AN_IMAGE = (29901, 29871, 32000, 29871, 13)


def load_processor(folder: Path, config: Any, path: str, pad: bool, system_prompt: str) -> Any:
    """The processor in ``folder``, resizing by PIL as LLaVA does, with or without torchvision.

    Args:
        config: the model's; sets values for counting image tokens that older processors lack.
        path: the checkpoint's name in messages.
        pad, system_prompt: see ``Backbone``.

    Raises UserError where the files are unusable.
    """
    from transformers import AutoProcessor

    with read_by_library(path, "processor and tokenizer that load"):
        processor: Any = AutoProcessor.from_pretrained(str(folder), backend="pil", trust_remote_code=False)
    lacking = [part for part in ("image_processor", "tokenizer", "image_token", "chat_template") if not hasattr(processor, part)]
    if lacking:
        kind = f"{type(processor).__name__} without {' and '.join(lacking)}"
        cure = "correct processor_class in processor_config.json, or give a complete checkpoint"
        raise UserError(f"model.path={path} has a {kind} for a processor; {cure}")
    tokenizer = processor.tokenizer
    tokenizer.padding_side = "left"  # the last prompt token of every row must stand last
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    _agree(processor, config, path)
    if not processor.chat_template or not isinstance(processor.chat_template, str):
        raise UserError(f"model.path={path} has no chat template (chat_template.jinja or .json); give a newer revision of the checkpoint")
    if pad:
        processor.image_processor = square_padding(processor.image_processor, config)
    _check_system_prompt(processor, system_prompt, path)
    return processor


def _agree(processor: Any, config: Any, path: str) -> None:
    """Sets the values that determine the number of image tokens to the model's. Raises UserError for another image token."""
    processor.patch_size = config.vision_config.patch_size
    processor.vision_feature_select_strategy = config.vision_feature_select_strategy
    processor.num_additional_image_tokens = int("clip" in config.vision_config.model_type)  # the CLS token
    token_id = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
    if token_id != config.image_token_id:
        raise UserError(
            f"model.path={path} has {processor.image_token} as token {token_id} but its config says {config.image_token_id};"
            " give the tokenizer and config of one checkpoint"
        )


def square_padding(image_processor: Any, config: Any) -> Any:
    """The image processor with LLaVA-1.5's padding: the image is centred on a square of the mean colour before the crop. Published
    checkpoints name CLIP's processor, which ignores ``do_pad``."""
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    if hasattr(config, "image_grid_pinpoints"):
        raise UserError("model.pad=true is LLaVA-1.5's padding, but LLaVA-NeXT pads its tiles by itself; use model.pad=false")
    steps = ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb")
    names = (*steps, "size", "resample", "crop_size", "rescale_factor", "image_mean", "image_std")
    lacking = [name for name in names if not hasattr(image_processor, name)]
    if lacking:
        kind = type(image_processor).__name__
        raise UserError(f"model.pad=true pads before CLIP's crop, but {kind} has no {lacking[0]}; use model.pad=false")
    settings = {name: getattr(image_processor, name) for name in names}
    return LlavaImageProcessorPil(**settings, do_pad=True)


def _check_system_prompt(processor: Any, system_prompt: str, path: str) -> None:
    if system_prompt not in SYSTEM_PROMPTS:
        raise UserError(f"model.system_prompt={system_prompt} is not known; {nearest(system_prompt, SYSTEM_PROMPTS)}")
    text = SYSTEM_PROMPTS[system_prompt]
    if not text:
        return
    with read_by_library(path, "chat template that makes a prompt"):
        prompt = chat_prompt(processor, "?", system_prompt)
    if not prompt.startswith(f"{text} USER: "):
        raise UserError(
            f"model.system_prompt={system_prompt} is not what the chat template of {path} was made for; use model.system_prompt=none"
        )


def warn_of_tokens(processor: Any, config: Any, prompt: str) -> None:
    """One line on stderr if a Vicuna checkpoint's tokens around the image in ``prompt`` are not those that LLaVA was trained with."""
    text = config.text_config
    if text.model_type != "llama" or text.vocab_size != 32064 or config.image_token_id != AROUND_AN_IMAGE[2]:
        return
    ids = processor.tokenizer(prompt).input_ids
    position = ids.index(config.image_token_id)
    around = tuple(ids[max(0, position - 2) : position + 3])
    if around != AROUND_AN_IMAGE:
        print(
            f"warning: tokens {list(around)} stand around the image, not {list(AROUND_AN_IMAGE)} as in LLaVA's training;"
            " scores will shift (tokenizer not in legacy mode?)",
            file=sys.stderr,
        )
