"""What the server of scripts.py does once, before it forks for each command: it imports what the commands import, loads the scale model,
and reads what ships and never changes."""

from __future__ import annotations

import gc
import importlib

from hydra._internal.hydra import Hydra
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

from blink_exp.scenes.scenes import load_tiles
from blink_exp.settings.build import build
from blink_exp.settings.compose import composed

for name in (
    *("torch", "pytorch_lightning", "pandas", "rich.table", "matplotlib.pyplot", "easy_vqa"),
    *("hydra.main", "hydra._internal.hydra", "hydra.core.override_parser.overrides_parser"),
    *("transformers.models.llava.modeling_llava", "transformers.models.llava_next.modeling_llava_next"),
    *("transformers.models.clip.modeling_clip", "transformers.models.auto.modeling_auto", "transformers.models.auto.processing_auto"),
    *("transformers.models.llama.modeling_llama", "transformers.models.llava.processing_llava"),
    *("transformers.models.clip.image_processing_pil_clip", "transformers.models.llava_next.processing_llava_next"),
    *(f"blink_exp.commands.{command}" for command in ("evaluate", "train", "sweep", "view", "rescore", "compare", "parity")),
    *("blink_exp.methods.blink", "blink_exp.methods.hero", "blink_exp.methods.pair", "blink_exp.methods.fastv"),
):
    importlib.import_module(name)

get_checkpoint_conversion_mapping("llava")  # compiles some thousand patterns of key names
for split in ("train", "test"):
    load_tiles(split)
build(composed("evaluate", []).model)  # load() keeps the last model; a command on another one loads that

_get_mode = Hydra.get_mode


def get_mode(self, config_name, overrides):
    """Hydra composes everything once more, which takes as long again, to see whether something sets hydra.mode; no preset here does."""
    return _get_mode(self, config_name, overrides) if any("hydra.mode" in word for word in overrides) else None


Hydra.get_mode = get_mode  # type: ignore[method-assign]
gc.freeze()  # a collection in a command's process then leaves all of this alone, and its memory shared
