"""The visual tokens of a question: of the image, and of a second view of a part of it (``blink_exp.core.second_view``).

Two images in front of the text are one block of visual tokens, ``image | what stands between two images | part``, so that everything that
follows (prefixes, records, generate(), sharing) treats them as it treats one. Of LLaVA-NeXT's views the part has its thumbnail only.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from typing import NamedTuple

import torch

from blink_exp.backbone.canvas import region_box
from blink_exp.backbone.model import Backbone
from blink_exp.backbone.pictures import ImagesById
from blink_exp.core.method import Method
from blink_exp.core.saliency import PatchGrid
from blink_exp.core.second_view import Box, PixelBox, Placement, RegionChooser, SecondView, Subject
from blink_exp.core.views import NEWLINE, ViewGeometry, VisualTokens
from blink_exp.decoder.branch_decoder import BranchDecoder
from blink_exp.decoder.branches import QuestionInputs
from blink_exp.decoder.layers import chunks, run_prefixes
from blink_exp.errors import UserError
from blink_exp.methods.blink import BlinkPolicy, blink


class Asking(NamedTuple):
    """A question. ``image``: key of its image; ``sample``: see ``Scan``; ``regions``: where the answer is to be seen, as fractions of the
    image, where the benchmark says so."""

    image: str
    question: str
    sample: str = ""
    regions: tuple[Box, ...] = ()


@torch.no_grad()
def with_second_view(backbone: Backbone, method: Method, images: ImagesById, askings: Rows[Asking]) -> list[VisualTokens]:
    """The visual tokens that enter the LLM under a ``method`` with a second view, of each question."""
    chooser = method.second_view
    assert chooser is not None
    if not chooser.alone:
        visual = backbone.visual(images, [(a.image, a.question) for a in askings], method.pruner, method.restore_dropped)
    boxes = chosen(backbone, method, images, askings)
    parts = backbone.parts(images, [(a.image, box) for a, (box, _) in zip(askings, boxes, strict=True)])
    joined: dict[tuple[int, PixelBox], VisualTokens] = {}  # one object for all questions that see the same
    out = []
    for n, (asking, (box, shown)) in enumerate(zip(askings, boxes, strict=True)):
        part, image = parts[asking.image, box], images[asking.image]
        if chooser.alone:
            views = ViewGeometry.of(backbone.model.config, (image.height, image.width))
            out.append(VisualTokens(part, _sources(views), views, second=shown))
            continue
        key = id(visual[n].features), box
        if key not in joined:
            joined[key] = _joined(backbone, visual[n], part, shown)
        out.append(joined[key])
    return out


def _sources(views: ViewGeometry) -> torch.Tensor:
    """(N,) sources of a second view's tokens: behind all views of the image."""
    return views.count * views.tokens + torch.arange(views.tokens)


def _joined(backbone: Backbone, first: VisualTokens, second: torch.Tensor, shown: SecondView) -> VisualTokens:
    between = backbone.between_images
    source = torch.cat([first.source, torch.full((len(between),), NEWLINE), _sources(first.views)])
    return VisualTokens(torch.cat([first.features, between.to(first.features), second]), source, first.views, second=shown)


def chosen(backbone: Backbone, method: Method, images: ImagesById, askings: Rows[Asking]) -> list[tuple[PixelBox, SecondView]]:
    """The part that a method shows of each question's image: its pixels on the canvas, and what a record says of it."""
    chooser = method.second_view
    assert chooser is not None
    places = {key: Placement((image.width, image.height), backbone.canvas(image).size) for key, image in images.items()}
    scores, generic = _attention(backbone, method.name, chooser, images, askings)
    out = []
    for n, asking in enumerate(askings):
        placement = places[asking.image]
        regions = tuple(placement.on_canvas(box) for box in asking.regions)
        choice = chooser.choose(Subject(asking.sample, placement.canvas, regions, scores[n], generic[n]))
        box = region_box(choice, chooser.p, *placement.canvas) if isinstance(choice, int) else choice
        fractions = placement.on_image(box)
        rounded = (round(fractions[0], 4), round(fractions[1], 4), round(fractions[2], 4), round(fractions[3], 4))
        out.append((box, SecondView(rounded, choice if isinstance(choice, int) else None)))
    return out


Scores = list[tuple[float, ...]]


def _attention(backbone: Backbone, name: str, chooser: RegionChooser, images: ImagesById, askings: Rows[Asking]) -> tuple[Scores, Scores]:
    """What a chooser reads of the untouched model: the attention for each question, and for the generic one on its image."""
    nothing: Scores = [()] * len(askings)
    if chooser.layer is None:
        return nothing, nothing
    devices = set(getattr(backbone.model, "hf_device_map", {}).values())
    if len(devices) > 1:
        raise UserError(
            f"method={name} reads attention between layers, which model.device_map has put on {len(devices)} devices;"
            " use model.device_map=null, with model.quantization if one device is too small"
        )
    if chooser.generic is None:
        return attended(backbone, chooser.layer, chooser.p, images, askings), nothing
    keys = list(dict.fromkeys(a.image for a in askings))
    both = attended(backbone, chooser.layer, chooser.p, images, [*askings, *(Asking(key, chooser.generic) for key in keys)])
    of_image = dict(zip(keys, both[len(askings) :], strict=True))
    return both[: len(askings)], [of_image[a.image] for a in askings]


def attended(backbone: Backbone, layer: int, p: int, images: ImagesById, askings: Rows[Asking]) -> Scores:
    """(p * p,) attention of the untouched model's last prompt token on the cells of each question's image, at ``layer``: Blink's scan.

    An image runs once for all of its questions, and no further than the scan needs it.
    """
    method, grid = blink(BlinkPolicy((layer,), tau_expand=1.0, tau_drop=0.0, p=p)), PatchGrid(p, *backbone.grid)  # always keeps
    embed, cells = backbone.model.get_input_embeddings(), grid.height * grid.width
    visual = dict(zip(images, backbone.visual(images, [(key, "") for key in images], None), strict=True))
    around = backbone.around([a.question for a in askings])
    most, room, at_once = _limits(backbone, layer, max(len(v.features) for v in visual.values()))
    out: dict[int, tuple[float, ...]] = {}
    for keys in chunks(list(dict.fromkeys(a.image for a in askings)), most):
        numbers = [n for n, a in enumerate(askings) if a.image in keys]
        opening = embed(around[numbers[0]][0])  # the same in all prompts
        embeds = [torch.cat([opening, visual[key].features]) for key in keys]
        counts = [len(visual[key].features) for key in keys]
        prefixes = dict(zip(keys, run_prefixes(backbone.llm, embeds, counts, (layer,), [layer + 1] * len(keys), at_once), strict=True))
        maps = {key: None if visual[key].base_map.whole(cells) else visual[key].base_map for key in keys}
        inputs = [
            QuestionInputs((prefixes[askings[n].image],), embed(around[n][1]), askings[n].sample, (0,), (maps[askings[n].image],))
            for n in numbers
        ]
        decoder = BranchDecoder(backbone.llm, inputs, [method], [grid], room, depth=layer + 1)
        decoder.run(lambda final: None)
        out |= {n: decoder.records[q, 0][0].scan.patch_scores for q, n in enumerate(numbers)}
    return [out[n] for n in range(len(askings))]


def _limits(backbone: Backbone, layer: int, tokens: int) -> tuple[int, float, int]:
    """Images that are scanned together; memory for their texts in units of one token's keys and values in a layer; and images that run
    together. A quarter of the backbone's budget each for images and texts, as stored prefixes may take half of it."""
    config, size = backbone.llm.config, backbone.model.dtype.itemsize
    one = 2 * config.num_key_value_heads * backbone.llm.layers[0].self_attn.head_dim * size
    budget = max(0, backbone.shared_bytes - backbone.images_bytes)
    prefix = tokens * (one * (layer + 1) + config.hidden_size * size)
    work = (3 * config.intermediate_size + 4 * config.hidden_size) * size  # activations of a token in a layer
    return max(1, budget // 4 // prefix), budget / 4 / one, max(1, budget // (8 * work * tokens))
