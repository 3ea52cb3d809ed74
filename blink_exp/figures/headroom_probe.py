"""What the tokens hold: a probe on the states around an object, of the full view and of the close-up, by layer. In no paper.

A small MLP reads the 3 x 3 tokens around an object's centre and says its shape and its colour; it is trained on train scenes and tested on
test scenes of ``mosaic_detail``. No amplifier of tokens can put there what they do not hold: from tokens alone a method can gain at most
what the probe reads from the full view beyond what the model answers; the rest, up to the probe on the close-up, needs the image's pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn
from torch.nn import functional as F

from blink_exp.backbone.canvas import ImageRegions
from blink_exp.backbone.model import Backbone
from blink_exp.benchmarks.mosaic_detail import MosaicDetail
from blink_exp.decoder.visual_states import image_states
from blink_exp.errors import UserError
from blink_exp.evaluation.terminal import bar
from blink_exp.figures.base import COLORS, COLUMN, Claim, Drawing, Study, records_of
from blink_exp.figures.shared import canvas, curve, measured_on, styled
from blink_exp.figures.verdicts import RULE, mean
from blink_exp.methods.blink import relative_layers
from blink_exp.scenes import scenes
from blink_exp.scenes.detail import detail_scene

FULL, CLOSE = "full view", "close-up"
ATTRIBUTES = {"shape": scenes.SHAPES, "color": scenes.COLORS}
HIDDEN, EPOCHS, BATCH = 64, 30, 128
FEWEST = 4  # scenes of a short run
AROUND = 1  # cells beside the centre's: 3 x 3 tokens


@dataclass(frozen=True)
class Objects:
    """Objects of some scenes. ``states``: {(view, layer): (objects, 9 * width)}; ``labels``: {attribute: (objects,) class}; ``scene``:
    (objects,) number of its scene."""

    states: dict[tuple[str, int], torch.Tensor]
    labels: dict[str, torch.Tensor]
    scene: np.ndarray


def by_layer(study: Study, layers: tuple[int, ...], train: int, test: int, seed: int = 0) -> Drawing:
    """The probe's accuracy by layer. ``layers``: of 32; ``train``, ``test``: numbers of scenes, no more than ``limit``; ``seed``: of the
    probe."""
    backbone, _, benchmark = study.load()
    if not isinstance(benchmark, MosaicDetail):
        raise UserError(f"benchmark={benchmark.name} has no train scenes to train a probe on; use benchmark=mosaic_detail")
    if (limit := study.settings.limit) is not None:  # a short run has a short figure
        train, test = (min(count, max(FEWEST, limit)) for count in (train, test))
    numbers = relative_layers(layers, backbone.depth)
    with bar(train + test, "scenes for the probe", True) as advance:
        trained, tested = (objects_of(backbone, split, count, numbers, advance) for split, count in (("train", train), ("test", test)))
    hits = {
        (view, layer, attribute): probe(trained, tested, view, layer, attribute, seed)
        for view in (FULL, CLOSE)
        for layer in numbers
        for attribute in ATTRIBUTES
    }
    scene = tested.scene.astype(str).tolist()
    scores = {key: mean(hit.tolist(), scene) for key, hit in hits.items()}
    answered = {row["point"]: value for row in study.done if (value := row["scores"].get("accuracy")) is not None}
    deciding = min(numbers, key=lambda layer: abs(layer - first_layer(study, numbers[len(numbers) // 2])))
    data = {
        "layers": list(numbers),
        "objects": len(scene),
        "accuracy": {
            f"{view}, {attribute}": [100 * _value(scores[view, n, attribute]) for n in numbers]
            for view in (FULL, CLOSE)
            for attribute in ATTRIBUTES
        },
        "answers": answered,
    }
    where = measured_on(backbone.identity, benchmark.name, len(scene), "objects")
    return Drawing({"headroom_probe": plot(numbers, scores)}, data, bounds(scores, deciding, answered), caption(train, test), where)


def first_layer(study: Study, otherwise: int) -> int:
    """The first layer at which the figure's points decide."""
    decided = [step["layer"] for row in study.done for record in records_of(row)[:1] for step in record["layers"]]
    return min(decided, default=otherwise)


def _value(score: Any) -> float:
    assert score.value is not None
    return float(score.value)


@torch.no_grad()
def objects_of(backbone: Backbone, split: str, count: int, layers: Rows[int], advance: Callable[[int], object] = lambda _: None) -> Objects:
    """All objects of ``count`` scenes of a split, in both views. An object's close-up is the quadrant that its centre is in. ``advance`` is
    called with 1 behind each scene."""
    states: dict[tuple[str, int], list[torch.Tensor]] = {(view, layer): [] for view in (FULL, CLOSE) for layer in layers}
    labels: dict[str, list[int]] = {attribute: [] for attribute in ATTRIBUTES}
    owner: list[int] = []
    side = backbone.grid[0]
    for i in range(count):
        scene = detail_scene(split, i).scene
        image = scene.canvas
        regions = ImageRegions(backbone, "", image)
        views = torch.stack([backbone.transform(image), *(regions.pixels(region, 2) for region in range(4))])
        of_layer = image_states(backbone, views, list(layers))
        places = [located(scene.box(k), side) for k in range(len(scene.tiles))]
        for view in (FULL, CLOSE):
            number, index = (torch.stack(part) for part in zip(*(place[view] for place in places), strict=True))
            for layer in layers:
                states[view, layer].append(of_layer[layer].cpu()[number[:, None], index].flatten(1).float())
        for attribute, classes in ATTRIBUTES.items():
            labels[attribute] += [classes.index(getattr(tile, attribute)) for tile in scene.tiles]
        owner += [i] * len(scene.tiles)
        advance(1)
    return Objects(
        {key: torch.cat(rows) for key, rows in states.items()},
        {attribute: torch.tensor(values) for attribute, values in labels.items()},
        np.array(owner),
    )


def located(box: scenes.Box, side: int) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """{view: (its number among the full view and the four quadrants, the (9,) tokens around the centre of ``box``)}."""
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    column, row = int(x >= 0.5), int(y >= 0.5)
    return {
        FULL: (torch.tensor(0), neighbourhood(x, y, side)),
        CLOSE: (torch.tensor(1 + 2 * row + column), neighbourhood(2 * x - column, 2 * y - row, side)),
    }


def neighbourhood(x: float, y: float, side: int) -> torch.Tensor:
    """(9,) raster indices of the 3 x 3 tokens of side x side around the point (x, y), fractions of the view; moved inside at an edge."""
    column, row = (min(max(int(v * side), AROUND), side - 1 - AROUND) for v in (x, y))
    offsets = torch.arange(-AROUND, AROUND + 1)
    return ((row + offsets)[:, None] * side + column + offsets).flatten()


def probe(train: Objects, test: Objects, view: str, layer: int, attribute: str, seed: int) -> np.ndarray:
    """(test objects,) 0 or 1: whether an MLP trained on ``train`` says their attribute right."""
    x, y = train.states[view, layer], train.labels[attribute]
    centre, spread = x.mean(0), x.std(0).clamp(min=1e-6)
    x, unseen = (x - centre) / spread, (test.states[view, layer] - centre) / spread
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(x.shape[1], HIDDEN), nn.GELU(), nn.Linear(HIDDEN, len(ATTRIBUTES[attribute])))
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.1)
        steps = EPOCHS * -(-len(x) // BATCH)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(EPOCHS):
            for rows in torch.randperm(len(x), generator=generator).split(BATCH):
                optimizer.zero_grad()
                F.cross_entropy(model(x[rows]), y[rows]).backward()
                optimizer.step()
                schedule.step()
    with torch.no_grad():
        hits: np.ndarray = (model(unseen).argmax(1) == test.labels[attribute]).float().numpy()
    return hits


def bounds(scores: dict[tuple[str, int, str], Any], layer: int, answered: dict[str, float]) -> list[Claim]:
    """What the tokens and the pixels allow at the first deciding layer, beside what the points answer. ``answered``: {point: accuracy}."""
    held = {view: 100 * sum(_value(scores[view, layer, a]) for a in ATTRIBUTES) / len(ATTRIBUTES) for view in (FULL, CLOSE)}
    numbers: dict[str, float | None] = {f"probe at layer {layer}, {view}": value for view, value in held.items()}
    numbers |= {f"answers, {point}": value for point, value in answered.items()}
    none = answered.get("none")
    if none is not None:
        numbers |= {
            "from tokens at most (probe on the full view - none)": held[FULL] - none,
            "needs pixels (probe on the close-up - on the full view)": held[CLOSE] - held[FULL],
        }
    amplified = [value for point, value in answered.items() if point.startswith("TokenSR")]
    error = 100 * max(_spread(scores[FULL, layer, a]) for a in ATTRIBUTES)
    holds = None if not amplified or none is None else max(amplified) <= held[FULL] + 2 * error
    how = "accuracy of the probe, mean of shape and colour, against accuracy of the answers about shape and colour on the same benchmark."
    return [Claim("What an amplifier of tokens answers stays within what the tokens hold.", f"{how} {RULE}", numbers, holds)]


def _spread(score: Any) -> float:
    return float(score.stderr or 0.0)


def caption(train: int, test: int) -> str:
    return (
        "Accuracy of an MLP that reads the 3 x 3 tokens around an object's centre, trained on the objects of"
        f" {train} train scenes and tested on those of {test} test scenes: solid, the tokens of the full view;"
        " dashed, those of the close-up of the object's quadrant."
    )


@styled()
def plot(layers: Rows[int], scores: dict[tuple[str, int, str], Any]) -> Figure:
    figure, axes = canvas(COLUMN, 2.4)
    axis = axes[0, 0]
    for color, attribute in zip(COLORS, ATTRIBUTES, strict=False):
        for view, style in ((FULL, "-"), (CLOSE, "--")):
            line = [scores[view, layer, attribute] for layer in layers]
            tips = [f"{attribute}, {view}, layer {layer}: {100 * _value(s):.1f} %" for layer, s in zip(layers, line, strict=True)]
            errors = [100 * _spread(s) for s in line]
            values = [100 * _value(s) for s in line]
            curve(axis, list(layers), values, tips, color, label=f"{attribute}, {view}", stderr=errors, linestyle=style)
    axis.set(xlabel="input of decoder layer", ylabel="probe accuracy (%)", ylim=(0, 102))
    axis.legend(loc="lower right")
    return figure
