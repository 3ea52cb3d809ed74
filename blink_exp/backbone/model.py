"""The frozen vision-language model: prompts, pixels, and the prefix that depends on the image alone."""

from __future__ import annotations

import functools
import hashlib
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image
from transformers import LogitsProcessorList
from transformers.modeling_outputs import BaseModelOutputWithPooling

from blink_exp.backbone import weights
from blink_exp.backbone.canvas import ImageRegions, base_canvas
from blink_exp.backbone.clip_text import ClipText, load_clip_text
from blink_exp.backbone.encode import check_cls_token, compact, encode
from blink_exp.backbone.logits import Checked
from blink_exp.backbone.pictures import ImagesById, PreparedImage, prepare_image
from blink_exp.backbone.prompts import Prompts
from blink_exp.core.encoding import EncoderRequirements, Encoding, unions
from blink_exp.core.method import Method
from blink_exp.core.pruner import ViewPruner
from blink_exp.core.second_view import PixelBox
from blink_exp.core.views import EXTRA, NEWLINE, TileGrid, TokenSelection, ViewGeometry, VisualTokens, all_tokens, pack
from blink_exp.documents.runs import LoadingOptions

K = TypeVar("K")


@dataclass(eq=False)
class Backbone(Prompts):
    """A LLaVA or LLaVA-NeXT model with its processor.

    ``name``: its name in results and checkpoints; ``tokensr``: folder of the TokenSR modules that ship with it, or None; ``pad``: whether
    images are padded to squares instead of cropped; ``system_prompt``: a key of ``prompts.SYSTEM_PROMPTS``; ``quantization``: null, 4bit
    or 8bit; ``revision``: the commit or branch of the hub that the weights come from; ``files``: folder of the saved
    weights.
    """

    name: str
    model: Any
    processor: Any
    tokensr: Path | None = None
    clip_path: str | None = None  # of the text tower; loaded when a method reads it
    cache_bytes: int = 2**28  # limit for cached tower outputs; the points of a sweep share images
    shared_bytes: int = 2**31  # limit for all shared data, cached images included (``blink_exp.decoder``)
    pad: bool = False
    system_prompt: str = "none"
    quantization: str | None = None
    revision: str | None = None
    files: Path | None = None
    prefixes: OrderedDict[str, Any] = field(default_factory=OrderedDict, repr=False)  # see ``decoder.answers.stored_prefixes``
    closeups: OrderedDict[tuple[str, int, int], Any] = field(default_factory=OrderedDict, repr=False)  # see ``decoder.closeups``
    second_views: OrderedDict[tuple[str, PixelBox], torch.Tensor] = field(default_factory=OrderedDict, repr=False)  # see ``parts``
    _features: OrderedDict[str, torch.Tensor] = field(default_factory=OrderedDict, repr=False)
    _encodings: OrderedDict[tuple[str, EncoderRequirements], Encoding] = field(default_factory=OrderedDict, repr=False)

    @property
    def llm(self) -> Any:
        return self.model.model.language_model

    @property
    def depth(self) -> int:
        return int(self.model.config.text_config.num_hidden_layers)

    @property
    def width(self) -> int:
        return int(self.model.config.text_config.hidden_size)

    @property
    def grid(self) -> tuple[int, int]:
        vision = self.model.config.vision_config
        return (vision.image_size // vision.patch_size,) * 2

    @functools.cached_property
    def identity(self) -> str:
        """Name and a digest of some weights, equal for float32 and bfloat16 copies of a model and different for a retrained one."""
        digest = hashlib.sha256()
        names = ("layers.0.self_attn.q_proj.weight", "multi_modal_projector.linear_2.weight")
        if self.files is not None and (self.quantization or len(set(getattr(self.model, "hf_device_map", {}).values())) > 1):
            chosen = [weights.read(self.files, name) for name in names]  # in memory they are quantised or offloaded
        else:
            chosen = [self.llm.layers[0].self_attn.q_proj.weight, self.model.model.multi_modal_projector.linear_2.weight]
        for weight in chosen:
            digest.update(weight.detach()[:16].cpu().to(torch.bfloat16).view(torch.int16).numpy().tobytes())
        return f"{self.name}@{digest.hexdigest()[:12]}"

    @property
    def settings(self) -> LoadingOptions:
        """Loading options that affect results, recorded with them."""
        return {
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "device": str(self.model.device),
            "attn_implementation": self.model.config._attn_implementation,
            "quantization": self.quantization,
            "pad": self.pad,
            "system_prompt": self.system_prompt,
            "revision": self.revision,
        }

    def transform(self, image: Image.Image) -> torch.Tensor:
        """(3, size, size) pixels of the base view by the backbone's own image processor."""
        return prepare_image(image, self.processor.image_processor).views[0]

    def canvas(self, image: Image.Image | PreparedImage) -> Image.Image:
        """What the base view shows of an image, at the image's own resolution (``canvas.base_canvas``)."""
        if not isinstance(image, PreparedImage):
            return base_canvas(image, self.processor.image_processor)
        if image.canvas is None:
            raise ValueError("an image was prepared without its canvas, which close-ups are cut from; prepare it with canvas=True")
        return image.canvas

    def regions(self, images: ImagesById) -> dict[str, ImageRegions]:
        """{id: the image's regions at its own resolution} of images by id."""
        return {key: ImageRegions(self, key, image) for key, image in images.items()}

    @property
    def tiled(self) -> bool:
        """Whether an image becomes a thumbnail and tiles (LLaVA-NeXT) or one view (LLaVA-1.5)."""
        return hasattr(self.model.config, "image_grid_pinpoints")

    @functools.cached_property
    def clip(self) -> ClipText:
        return load_clip_text(self.clip_path, self)

    def check(self, needs: EncoderRequirements) -> None:
        """Raises UserError where this backbone lacks an output that a method needs."""
        if needs.attention or needs.keys or needs.cls or needs.joint_patches:
            check_cls_token(self.model.model.vision_tower)
        if self._reads_clip(needs):
            _ = self.clip

    def _reads_clip(self, needs: EncoderRequirements) -> bool:
        return needs.joint_patches or (needs.text and self.tiled)

    def tile_grids(self, methods: Iterable[Method]) -> frozenset[TileGrid | None]:
        """The grids of tiles that some methods make images into; None: the backbone's own choice."""
        return frozenset(method.tile_grid if self.tiled else None for method in methods)

    @torch.no_grad()
    def features(self, images: ImagesById) -> dict[str, torch.Tensor]:
        """{id: (tokens, width)} projected visual tokens of images by id, as the stock model makes them, newlines included."""
        new = {k: v for k, v in images.items() if k not in self._features}
        if new:
            tokens: list[torch.Tensor] = []
            for pictures in self._at_once(new.values()):
                sizes = {"image_sizes": torch.tensor([[p.height, p.width] for p in pictures])} if self.tiled else {}
                tokens += self.model.get_image_features(pixel_values=self._pixels(pictures), **sizes).pooler_output
            self._features.update(zip(new, map(compact, tokens), strict=True))
        return self.recall(self._features, list(images), self.tower_bytes)

    @torch.no_grad()
    def encodings(self, images: ImagesById, needs: EncoderRequirements) -> dict[str, Encoding]:
        """{id: Encoding} of images by id."""
        needs = self._on_own_views(needs)
        wider = next((n for _, n in reversed(self._encodings) if n.covers(needs) and all((k, n) in self._encodings for k in images)), needs)
        needs = wider  # a cached encoding with more outputs serves too
        new = {k: v for k, v in images.items() if (k, needs) not in self._encodings}
        if new:
            encodings: list[Encoding] = []
            grid, clip = needs.tile_grid, self.clip if self._reads_clip(needs) else None
            for pictures in self._at_once(new.values(), grid):
                views = [ViewGeometry.of(self.model.config, (p.height, p.width), grid) for p in pictures]
                encodings += encode(self.model, self._pixels(pictures, grid), views, needs, clip)
            self._encodings.update(zip([(k, needs) for k in new], encodings, strict=True))
        return {k: encoding for (k, _), encoding in self.recall(self._encodings, [(k, needs) for k in images], self.tower_bytes).items()}

    def encode_together(self, images: ImagesById, requirements: Iterable[EncoderRequirements]) -> None:
        """Caches the encodings that meet all of some requirements, in one pass of the tower for each grid of tiles."""
        for needs in unions(map(self._on_own_views, requirements)):
            self.encodings(images, needs)

    def _on_own_views(self, needs: EncoderRequirements) -> EncoderRequirements:
        """Without tiles there is no grid of them to choose."""
        return needs if self.tiled or needs.tile_grid is None else replace(needs, tile_grid=None)

    @torch.no_grad()
    def parts(self, images: ImagesById, boxes: Collection[tuple[str, PixelBox]]) -> dict[tuple[str, PixelBox], torch.Tensor]:
        """{(id, box): (H * W, width) projected tokens} of parts of images, each shown as an image of its own, by its base view only.
        ``boxes``: (id, pixels of the image's canvas)."""
        canvases = {key: self.canvas(images[key]) for key, _ in boxes}
        new = [part for part in dict.fromkeys(boxes) if part not in self.second_views]
        for start in range(0, len(new), self.views_at_once):
            some = new[start : start + self.views_at_once]
            pixels = torch.stack([self.transform(canvases[key].crop(box)) for key, box in some])
            encodings = encode(self.model, pixels, [ViewGeometry(self.grid[0])] * len(some), EncoderRequirements())
            features = self.model.model.multi_modal_projector(torch.cat([encoding.hidden for encoding in encodings]))
            self.second_views.update(zip(some, map(compact, features), strict=True))
        return self.recall(self.second_views, list(dict.fromkeys(boxes)), self.tower_bytes)

    @property
    def tower_bytes(self) -> int:
        """Byte limit for cached features, for cached encodings, for second views, and for a pass of the tower, each."""
        return min(self.cache_bytes, self.shared_bytes // 8)

    @property
    def images_bytes(self) -> int:
        """Bytes of cached features, encodings, close-ups and second views."""
        caches: tuple[Iterable[Any], ...] = (
            *(self._features.values(), self._encodings.values()),
            *(self.closeups.values(), self.second_views.values()),
        )
        return sum(entry.nbytes for cache in caches for entry in cache)

    @property
    def views_at_once(self) -> int:
        """Views of a pass of the tower that fit into ``tower_bytes`` with all layers' states."""
        vision = self.model.config.vision_config
        view = self.grid[0] * self.grid[1] * vision.hidden_size * (vision.num_hidden_layers + 9)  # 9: activations inside a layer
        return max(1, self.tower_bytes // int(view * self.model.dtype.itemsize))

    def _at_once(self, images: Iterable[Image.Image | PreparedImage], tile_grid: TileGrid | None = None) -> Iterator[list[PreparedImage]]:
        """Batches of images prepared in a grid of tiles, ``views_at_once`` views each."""
        views, most = 0, self.views_at_once
        pictures: list[PreparedImage] = []
        for image in images:
            one = prepare_image(image, self.processor.image_processor, tile_grids=(tile_grid,))
            count = len(one.views_in(tile_grid))
            if pictures and views + count > most:
                yield pictures
                pictures, views = [], 0
            pictures.append(one)
            views += count
        yield pictures

    def _pixels(self, pictures: list[PreparedImage], tile_grid: TileGrid | None = None) -> torch.Tensor:
        """(all views, 3, size, size) on the tower's device, the views of the images one after another."""
        return torch.cat([p.views_in(tile_grid).to(self.model.device, self.model.dtype, non_blocking=True) for p in pictures])

    @staticmethod
    def shrink(cache: OrderedDict[K, Any], most: int, needed: Collection[K] = ()) -> None:
        """Evicts least recently used entries until a cache fits into ``most`` bytes; entries that are not ``needed`` first."""
        size = sum(v.nbytes for v in cache.values())
        for key in [k for k in cache if k not in needed] + [k for k in cache if k in needed]:
            if size <= most:
                return
            size -= cache.pop(key).nbytes

    @staticmethod
    def recall(cache: OrderedDict[K, Any], keys: list[K], most: int) -> dict[K, Any]:
        """Entries of a cache, which is then shrunk to ``most`` bytes."""
        for key in keys:
            cache.move_to_end(key)
        out = {key: cache[key] for key in keys}
        Backbone.shrink(cache, most)
        return out

    @torch.no_grad()
    def prune(self, encoding: Encoding, selection: TokenSelection, newline_policy: str, keep_dropped: bool = False) -> VisualTokens:
        """Projects the kept tokens only, which gives the same features as dropping behind the projector. ``keep_dropped``: also projects
        the whole base view, for ``VisualTokens.dropped_embeddings``."""
        flat = encoding.hidden.flatten(0, 1)
        if selection.merged is not None:
            flat = flat.clone()
            for view, (index, merged) in enumerate(zip(selection.indices, selection.merged, strict=True)):
                flat[view * encoding.views.tokens + index.to(flat.device)] = merged.to(flat)
        source = pack(encoding.views, selection, newline_policy)
        rows = flat[source.clamp(min=0).to(flat.device)]
        if selection.extra is not None:
            rows[source == EXTRA] = torch.cat(selection.extra).to(rows)
        out = rows.new_empty(len(source), self.width)
        out[source != NEWLINE] = self.model.model.multi_modal_projector(rows[source != NEWLINE]).to(out)
        if bool((source == NEWLINE).any()):
            out[source == NEWLINE] = self.model.model.image_newline.to(out)
        base_view_embeddings = self.model.model.multi_modal_projector(encoding.hidden[0]) if keep_dropped else None
        return VisualTokens(out, source, encoding.views, base_view_embeddings)

    def visual(
        self, images: ImagesById, questions: list[tuple[str, str]], pruner: ViewPruner | None, keep_dropped: bool = False
    ) -> list[VisualTokens]:
        """The visual tokens of each (image id, question), after ``pruner``. ``keep_dropped``: see ``prune``."""
        encodings = self.encodings(images, pruner.needs) if pruner is not None else {}
        selections = [pruner.select(encodings[key], question) if pruner is not None else None for key, question in questions]
        stock = self.features({key: images[key] for (key, _), k in zip(questions, selections, strict=True) if k is None})
        out = []
        for (key, _), selection in zip(questions, selections, strict=True):
            if selection is not None and pruner is not None:
                out.append(self.prune(encodings[key], selection, pruner.newline_policy, keep_dropped))
            else:
                views = ViewGeometry.of(self.model.config, (images[key].height, images[key].width))
                out.append(VisualTokens(stock[key], pack(views, all_tokens(views)), views))
        return out

    def forget(self) -> None:
        """Clears the caches."""
        self.prefixes.clear()
        self.closeups.clear()
        self.second_views.clear()
        self._features.clear()
        self._encodings.clear()

    @torch.no_grad()
    def generate(self, features: list[torch.Tensor], questions: list[str], max_new_tokens: int) -> list[str]:
        """Greedy answers of Hugging Face's generate() to one question an image, from the images' ``features``."""
        batch = self.batch(features, questions)
        encoded = {"image": BaseModelOutputWithPooling(pooler_output=features)}
        tokens = self.model.generate(
            **batch,
            mm_encoder_outputs=encoded,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            logits_processor=LogitsProcessorList([Checked()]),
        )
        answers = tokens[:, batch["input_ids"].shape[1] :]
        return [text.strip() for text in self.processor.batch_decode(answers, skip_special_tokens=True)]
