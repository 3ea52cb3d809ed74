"""Folders in the layout of the published checkpoints: real configs at small width, the hub's file names and its older key names, a
tokenizer with Llama's special ids and the chat templates. Made here, with random weights."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoModelForImageTextToText

from blink_exp.backbone.published import GRIDS, published_config, published_json

# Few heads: attention over some two thousand tokens is what these models spend their time on.
SMALL = {
    "llava_1_5_7b": {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "vision_width": 32},
    "llava_1_5_13b": {"hidden_size": 80, "intermediate_size": 96, "num_attention_heads": 5, "vision_width": 32},
    "llava_next_7b": {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "vision_width": 32},
    "llava_next_mistral_7b": {
        **{"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 1, "vision_width": 32},
    },
}
# Templates of our own that render what the published ones do.
VICUNA = (
    "{% for message in messages %}"
    "{% if message['role'] != 'system' %}{{ message['role'] | upper }}: {% endif %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] + ' ' }}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
MISTRAL = (
    "{% for message in messages %}"
    "{% set text = message['content'] | selectattr('type', 'equalto', 'text') | map(attribute='text') | join(' ') %}"
    "{% if message['role'] == 'system' %}{{ '<<SYS>>\n' + text + '\n<</SYS>>\n\n' }}"
    "{% elif message['role'] == 'user' %}[INST] "
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}{{ text }} [/INST]"
    "{% else %}{{ ' ' + text + '</s> ' }}{% endif %}{% endfor %}"
)
HUB_NAMES = (  # ours, and how the hub's files call it
    (r"^model\.language_model\.", "language_model.model."),
    (r"^lm_head\.", "language_model.lm_head."),
    (r"^model\.vision_tower\.(?!vision_model)", "vision_tower.vision_model."),
    (r"^model\.", ""),
)
WORDS = "USER ASSISTANT A chat between a curious user and an assistant gives helpful answers Is there a red circle in the image Yes No"


def write_folder(name: str, folder: Path) -> dict[str, torch.Tensor]:
    """Writes the checkpoint ``name`` at small width in shards. Returns its weights by the hub's key names."""
    folder.mkdir(parents=True)
    raw = published_json(name, **SMALL[name])
    (folder / "config.json").write_text(json.dumps(raw, indent=2), encoding="utf-8")
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(published_config(name, **SMALL[name])).half()
    state = {hub_name(key): weight.contiguous() for key, weight in model.state_dict().items()}
    write_shards(state, folder)
    write_tokenizer(folder)
    write_processor(folder, tiled="next" in name, template=MISTRAL if "mistral" in name else VICUNA)
    # The published file of LLaVA-NeXT asks for sampling, which an evaluation must not do.
    odd = {"do_sample": True, "temperature": 0.9, "top_p": 0.6} if "next" in name else {}
    (folder / "generation_config.json").write_text(
        json.dumps({"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 32001, **odd}), encoding="utf-8"
    )
    return state


def hub_name(key: str) -> str:
    for ours, theirs in HUB_NAMES:
        new = re.sub(ours, theirs, key)
        if new != key:
            return new
    return key


def write_shards(state: dict[str, torch.Tensor], folder: Path) -> None:
    split = split_torch_state_dict_into_shards(state, filename_pattern="model{suffix}.safetensors", max_shard_size="4MB")
    for file, keys in split.filename_to_tensors.items():
        save_file({key: state[key] for key in keys}, folder / file, metadata={"format": "pt"})
    index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def write_tokenizer(folder: Path) -> None:
    """A BPE with bytes to fall back on, 32000 pieces of which ":" and "▁" have Llama's ids, and <image> and <pad> behind them. A text's
    start and what follows a special token get a prefix space, which is what tokenizers call legacy."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    trained.train_from_iterator(["▁" + WORDS.replace(" ", "▁")] * 3, trainers.BpeTrainer(vocab_size=200, show_progress=False))
    learned = json.loads(trained.to_str())["model"]
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in learned["merges"]]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *("".join(m) for m in merges)]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))} | {"▁": 29871, ":": 29901}
    letters = [c for c in "etaonisrhldcumpgfwybvkxjqzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,?!'()-/[]<>" if c not in vocab]
    free = (i for i in range(29872, 32000) if i != 29901)
    vocab |= dict(zip(letters, free, strict=False))
    taken = set(vocab.values())
    vocab |= {f"<unused_{i}>": i for i in range(32000) if i not in taken}
    out = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    out.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    strip = decoders.Strip(content=" ", left=1, right=0)
    out.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip])
    out.add_special_tokens(["<unk>", "<s>", "</s>", "<image>", "<pad>"])
    out.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A $B", [("<s>", 1)])
    out.save(str(folder / "tokenizer.json"))
    config = {
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "legacy": True,
        "padding_side": "left",
        "tokenizer_class": "LlamaTokenizer",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


def write_processor(folder: Path, tiled: bool, template: str) -> None:
    kind = "LlavaNext" if tiled else "CLIP"
    image = {
        "image_processor_type": f"{kind}ImageProcessor",
        "processor_class": "LlavaNextProcessor" if tiled else "LlavaProcessor",
        "do_resize": True,
        "size": {"shortest_edge": 336},
        "do_center_crop": True,
        "crop_size": {"height": 336, "width": 336},
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "do_convert_rgb": True,
    }
    if tiled:
        image |= {"do_pad": True, "image_grid_pinpoints": GRIDS, "aspect_ratio_setting": "anyres"}
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    else:
        (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}), encoding="utf-8")
    (folder / "preprocessor_config.json").write_text(json.dumps(image), encoding="utf-8")
    counts = {"patch_size": 14, "num_additional_image_tokens": 1, "vision_feature_select_strategy": "default", "image_token": "<image>"}
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": image["processor_class"], **counts}), encoding="utf-8")
