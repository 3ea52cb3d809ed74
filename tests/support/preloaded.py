"""What the server of scripts.py does once, before it forks for each command: it imports what the commands import, and reads what ships and
never changes."""

from __future__ import annotations

import gc
import importlib

from transformers.conversion_mapping import get_checkpoint_conversion_mapping

from blink_exp.scenes.scenes import load_tiles

for name in (
    *("torch", "pytorch_lightning", "pandas", "rich.table", "matplotlib.pyplot", "easy_vqa"),
    *("hydra.main", "hydra._internal.hydra", "hydra.core.override_parser.overrides_parser"),
    *("transformers.models.llava.modeling_llava", "transformers.models.llava_next.modeling_llava_next"),
    *("transformers.models.clip.modeling_clip", "transformers.models.auto.modeling_auto", "transformers.models.auto.processing_auto"),
    *("transformers.models.llama.modeling_llama", "transformers.models.llava.processing_llava"),
    *("transformers.models.clip.image_processing_pil_clip", "transformers.models.llava_next.processing_llava_next"),
):
    importlib.import_module(name)

get_checkpoint_conversion_mapping("llava")  # compiles some thousand patterns of key names
for split in ("train", "test"):
    load_tiles(split)
gc.freeze()  # a collection in a command's process then leaves all of this alone, and its memory shared
