"""A method on a LLaVA or LLaVA-NeXT of one's own, as transformers loads it."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypedDict

import torch
from transformers import LlavaForConditionalGeneration, LlavaNextForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutputWithPooling

from blink_exp.api.building import built_method
from blink_exp.api.choice import MethodChoice
from blink_exp.backbone.model import Backbone
from blink_exp.backbone.pictures import PreparedImage
from blink_exp.backbone.prompts import chat_prompt
from blink_exp.backbone.shipped import shipped
from blink_exp.backbone.supported import check_config
from blink_exp.core.method import Method, Record
from blink_exp.core.views import ViewGeometry, VisualTokens
from blink_exp.decoder import attach as decoder
from blink_exp.errors import UserError, flat
from blink_exp.settings.compose import composed, composed_plain
from blink_exp.settings.folders import CONF
from blink_exp.settings.values import read_yaml

KINDS = (LlavaForConditionalGeneration, LlavaNextForConditionalGeneration)
MARK = "What is asked?"  # stands for a question in a chat template


class Attached:
    """A method on a model.

    Args:
        questions: of the rows of the next prompt, for methods that read them; None: read off the prompt, behind its image.
        visual_tokens: those of each row of the last prompt that entered the LLM, newlines included; None: all, as the model has them.
    """

    def __init__(self, backbone: Backbone, method: Method, inner: decoder.Attachment | None):
        self.backbone, self.method, self.inner = backbone, method, inner
        self.questions: list[str] | None = None
        self.visual_tokens: list[int] | None = None
        self._generating = False
        self._generate = backbone.model.generate  # the stock one, or that of ``inner``

    def __repr__(self) -> str:
        return f"Attached({self.method.name!r} on {self.backbone.name!r})"

    @property
    def records(self) -> list[Record]:
        """The policy's decisions on the last prompt; empty for a method without one."""
        return [] if self.inner is None else self.inner.records

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """``model.generate`` on the visual tokens that the method keeps. The prompt is returned as it was given."""
        name = next((name for name in ("input_ids", "inputs") if name in kwargs), None)
        ids = kwargs[name] if name else args[0] if args else None
        if ids is None or kwargs.get("pixel_values") is None or not bool((ids == self._image_token).any()):
            return self._generate(*args, **kwargs)  # no image
        kwargs = {key: value for key, value in kwargs.items() if key != name}
        visual = self._visual(ids, kwargs.pop("pixel_values"), kwargs.pop("image_sizes", None), kwargs.get("attention_mask"))
        shorter, kwargs["attention_mask"] = self._prompt(ids, kwargs.get("attention_mask"), visual)
        if kwargs.get("max_length") is not None:
            kwargs["max_length"] -= ids.shape[1] - shorter.shape[1]  # it counts the prompt
        if self.inner is not None:
            self.inner.see(visual)
        self.visual_tokens = [len(tokens.features) for tokens in visual]
        encoded = {"image": BaseModelOutputWithPooling(pooler_output=[tokens.features for tokens in visual])}
        self._generating = True
        try:
            out = self._generate(*args[1:], input_ids=shorter, mm_encoder_outputs=encoded, **kwargs)
        finally:
            self._generating = False
        tokens = out if isinstance(out, torch.Tensor) else out.sequences
        prompts = ids.repeat_interleave(len(tokens) // len(ids), dim=0)
        whole = torch.cat([prompts, tokens[:, shorter.shape[1] :]], dim=1)
        if isinstance(out, torch.Tensor):
            return whole
        out.sequences = whole
        return out

    def refuse_forward(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, object]) -> None:
        if not self._generating and kwargs.get("pixel_values") is not None:
            raise UserError(f"method={self.method.name} drops visual tokens in front of the LLM, which model.generate() does; call that")

    @property
    def _image_token(self) -> int:
        return int(self.backbone.model.config.image_token_id)

    def _visual(self, ids: torch.Tensor, pixels: torch.Tensor, sizes: torch.Tensor | None, mask: torch.Tensor | None) -> list[VisualTokens]:
        """The visual tokens of each row that enter the LLM, from the processor's ``pixels``."""
        config = self.backbone.model.config
        if len(pixels) != len(ids) or not all(map(_one_block, ids == self._image_token)):
            raise UserError(
                f"method={self.method.name} drops visual tokens of prompts with one image each; this batch has {len(pixels)} images in"
                f" {len(ids)} prompts"
            )
        if self.backbone.tiled and sizes is None:
            raise UserError("a LLaVA-NeXT needs the images' sizes; pass image_sizes, as its processor returns it")
        images, keys = {}, []
        for row, views in enumerate(pixels):
            height, width = sizes[row].tolist() if sizes is not None else (1, 1)
            views = views[: ViewGeometry.of(config, (height, width)).count] if self.backbone.tiled else views[None]
            keys.append(hashlib.sha256(repr((height, width)).encode() + views.float().cpu().numpy().tobytes()).hexdigest())
            images[keys[-1]] = PreparedImage({None: views}, height, width)
        assert self.method.pruner is not None
        questions = self._asked(ids) if _reads_text(self.backbone, self.method) else [""] * len(ids)
        return self.backbone.visual(images, list(zip(keys, questions, strict=True)), self.method.pruner, self.method.restore_dropped)

    def _asked(self, ids: torch.Tensor) -> list[str]:
        """The question of each row: the text behind its image, without what the chat template puts around it."""
        if self.questions is not None:
            if len(self.questions) != len(ids):
                raise UserError(f".questions has {len(self.questions)} rows where the prompt has {len(ids)}; set it anew for every prompt")
            return self.questions
        processor = self.backbone.processor
        ahead, _, behind = chat_prompt(processor, MARK).partition(processor.image_token)[2].partition(MARK)
        out = []
        for row, image in zip(ids, ids == self._image_token, strict=True):
            text = processor.tokenizer.decode(row[int(image.nonzero()[-1]) + 1 :], skip_special_tokens=True)
            out.append(text.strip().removeprefix(ahead.strip()).removesuffix(behind.strip()).strip())
        return out

    def _prompt(self, ids: torch.Tensor, mask: torch.Tensor | None, visual: list[VisualTokens]) -> tuple[torch.Tensor, torch.Tensor]:
        """(token ids with a placeholder for each of the ``visual`` tokens, their mask); left-padded."""
        rows = []
        for b, row in enumerate(ids):
            real = row if mask is None else row[mask[b].bool()]
            image = real == self._image_token
            first = int(image.nonzero()[0])
            rows.append(torch.cat([real[:first], real[image][:1].expand(len(visual[b].features)), real[first + int(image.sum()) :]]))
        longest = max(map(len, rows))
        padded = ids.new_zeros((len(rows), longest))
        attention_mask = torch.zeros_like(padded)
        for b, row in enumerate(rows):
            padded[b, longest - len(row) :], attention_mask[b, longest - len(row) :] = row, 1
        return padded, attention_mask


def _one_block(image: torch.Tensor) -> bool:
    """Whether the true values of a row stand next to each other."""
    places = image.nonzero()[:, 0]
    return len(places) > 0 and int(places[-1] - places[0]) + 1 == len(places)


def _reads_text(backbone: Backbone, method: Method) -> bool:
    """Whether the pruner reads the question."""
    assert method.pruner is not None
    return method.pruner.needs.joint_patches or (method.pruner.needs.text and backbone.tiled)


class NoProcessor:
    """Stands where ``attach`` was given no processor."""

    image_processor = None  # images come as pixels, which are prepared already

    def __getattr__(self, name: str) -> Any:
        raise UserError("this method reads the text of the prompt; give attach(model, method, processor=...) the model's processor")


class KnownModel(TypedDict, total=False):
    """What is read of a preset of conf/model."""

    name: str
    clip: str | None
    path: str


def known(path: str) -> KnownModel:
    """The preset of conf/model that the weights at ``path`` are of; empty where there is none."""
    for file in sorted((CONF / "model").glob("*.yaml")):
        preset_path = str(read_yaml(file).get("path"))
        folders = shipped(preset_path)
        if path == preset_path or (folders is not None and Path(path).resolve() == folders[0]):
            preset: KnownModel = composed_plain("evaluate", [f"model={file.stem}"])["model"]
            return preset
    return {}


def backbone_of(model: Any, processor: Any, clip: str | Path | None, name: str | None) -> Backbone:
    """``model`` as this project takes one. Raises UserError for a kind that is not supported."""
    if not isinstance(model, KINDS):
        raise UserError(f"a {type(model).__name__} is not supported; attach takes a {' or a '.join(kind.__name__ for kind in KINDS)}")
    if processor is not None and not all(hasattr(processor, part) for part in ("tokenizer", "image_processor")):
        raise UserError(f"processor={flat(processor, 80)} is no processor; give what AutoProcessor.from_pretrained returns for the model")
    if clip is not None and not isinstance(clip, str | Path):
        raise UserError(f"clip={flat(clip, 80)} is of type {type(clip).__name__}; give a folder or a hub id")
    if clip is not None and Path(clip).is_absolute() and not Path(clip).is_dir():
        raise UserError(f"clip={clip} is not there; give the folder of the CLIP that the vision tower was made from, or a hub id")
    path = str(model.config._name_or_path or "")
    check_config(model.config, path or type(model).__name__)
    preset = known(path)
    folders = shipped(preset.get("path", ""))
    return Backbone(
        name or preset.get("name") or path or type(model).__name__,
        model,
        processor if processor is not None else NoProcessor(),
        folders[1] if folders else None,
        str(clip) if clip is not None else preset.get("clip"),
    )


@contextlib.contextmanager
def attach(
    model: Any, method: MethodChoice | Method | str, *, processor: Any = None, clip: str | Path | None = None, name: str | None = None
) -> Iterator[Attached]:
    """Runs ``method`` on a stock ``LlavaForConditionalGeneration`` or ``LlavaNextForConditionalGeneration`` inside the block::

        with attach(model, HERO(tokens=128)) as run:
            model.generate(**processor(images=image, text=prompt, return_tensors="pt"), max_new_tokens=20)

    Inside the block ``model.generate`` takes what it takes otherwise; it returns the prompt as it was given, and the answer behind it.
    Behind the block the model is as it was.

    What works: methods inside the LLM (Blink, FastV, ...) with ``generate`` and ``model(...)``; methods that drop visual tokens in front
    of it (HERO, ...), also in a pair, with ``generate``, one image a prompt. Refused in one line: a second view and close-ups, which are
    cut from the image itself; tiles in a grid of the method's own (``mode="reference"`` of some); a static cache and assisted decoding.

    Args:
        processor: the model's, for methods that read the question (HERO on LLaVA-NeXT, CDPruner).
        clip: folder or hub id of the CLIP that the vision tower was made from, for the same; None: what conf/model says of the weights.
        name: of the model, as its TokenSR modules were trained with; None: that of conf/model.

    Raises UserError where the model, or the method on it, is not supported.
    """
    backbone = backbone_of(model, processor, clip, name)
    if {"blink_exp_method", "generate"} & set(model.__dict__):
        raise UserError(f"another method is attached to the {type(model).__name__} already; leave its with block first")
    built = built_method(backbone, composed("evaluate", []), method)
    if built.needs_canvas:
        raise UserError(f"method={built.name} cuts parts from the image itself, of which a prompt has pixels of the whole; use load(...)")
    if built.tile_grid is not None and backbone.tiled:
        raise UserError(f"method={built.name} has tiles in a grid of its own, and a prompt has the model's; use load(...), or mode='paper'")
    with decoder.attach(model, built) as inner:
        run = Attached(backbone, built, inner)
        if built.pruner is None:
            yield run
            return
        hook = model.register_forward_pre_hook(run.refuse_forward, with_kwargs=True)
        inside = model.__dict__.get("generate")  # of the policy
        object.__setattr__(model, "generate", run.generate)
        try:
            yield run
        finally:
            hook.remove()
            object.__delattr__(model, "generate")
            if inside is not None:
                object.__setattr__(model, "generate", inside)
