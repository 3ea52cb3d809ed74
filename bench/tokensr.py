"""TokenSR training: seven layers in one pass against seven runs, an epoch from the feature cache against one without, what the layout of
convolutions and checkpointing change, and on CUDA a step at the width of LLaVA-1.5-7B.

Epochs here are plain loops over a data module's loader, forward, backward and optimizer, on both sides of a ratio; a run's fixed cost
(imports, loading the model) would be paid once by one pass and seven times by seven runs, and is left out.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Callable, Iterable
from typing import Any

import torch

from bench import report, tokensr_cuda
from bench.meters import peak_bytes
from bench.timing import interleaved, median_seconds, seconds
from blink_exp.backbone.load import load
from blink_exp.errors import UserError
from blink_exp.training.canvases import BaseView
from blink_exp.training.capture import Ranks, prepare_features
from blink_exp.training.data import SceneData
from blink_exp.training.feature_cache import Features
from blink_exp.training.module import TokenSRTraining

TITLE = "TokenSR training: one pass for seven layers, features from disk"
LAYERS = list(range(12, 19))
STEPS = {"default": 3, "small": 1}  # of 8 pairs
WIDTHS = {"default": (64, 256), "small": (16,)}
COLUMNS = ["what", "s", "against", "s of that", "ratio", "spread", "loss differs", "peak MB", "MB of that"]


def measure(size: str = "default", device: str | None = None, repeats: int = 3, cpu: str = "true") -> dict[str, Any]:
    """``device``: the GPU to measure; None: the first one, if there is any. The other rows are of the scale model on the CPU; ``cpu=false``
    leaves them out, where the time on a GPU is dear."""
    device = device or ("cuda" if torch.cuda.is_available() else None)
    if device is not None and size == "default" and not (device.startswith("cuda") and torch.cuda.is_available()):
        raise UserError(f"device={device} is no GPU that torch can use; leave it out, or use device=cuda")
    if cpu.lower() == "false":
        result = report.result(TITLE, tokensr_cuda.rows(device, size), (), (), ["what", "s", *tokensr_cuda.COLUMNS])
        return result | ({"device": device} if device else {})
    bench = Scale(STEPS[size], int(repeats) if size == "default" else 1, LAYERS if size == "default" else LAYERS[:2])
    together, stored = bench.seven(), bench.cached()
    rows = [together, *stored, bench.quadrants()]
    rows += [row for width in WIDTHS[size] for row in variants(width, bench.repeats)]

    def ratio(row: dict[str, Any]) -> float | None:
        return row["ratio"] if size == "default" else None  # toy shapes say nothing of speed

    bars = [
        report.bar(f"{len(bench.layers)} layers in one pass: times faster than one run a layer", ratio(together), 5, at_most=False),
        report.bar("an epoch from the cache (bfloat16): times faster than one without", ratio(stored[0]), 3, at_most=False),
    ]
    notes = [bench.parts(), bench.opening, "ratio: s of that / s; loss differs: the largest difference at any step and layer"]
    if device is None:
        notes.append("no GPU: the rows at 7B width are not measured")
    result = report.result(TITLE, [*rows, *tokensr_cuda.rows(device, size)], bars, notes, [*COLUMNS, *tokensr_cuda.COLUMNS])
    return result | ({"device": device} if device else {})


def epoch(module: TokenSRTraining, batches: Iterable[Any], start: dict[str, torch.Tensor]) -> torch.Tensor:
    """(steps, layers) losses of one pass over ``batches`` from the weights ``start``."""
    module.amplifiers.load_state_dict({k: v for k, v in start.items() if k.partition(".")[0] in module.amplifiers})
    optimizer = torch.optim.AdamW(module.amplifiers.parameters(), 3e-3, weight_decay=0.0)
    history = []
    for batch in batches:
        losses = module.losses(batch)
        losses.sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        history.append(losses.detach())
    return torch.stack(history)


class Scale:
    """The scale model, its training data, and one epoch of ``steps`` steps."""

    def __init__(self, steps: int, repeats: int, layers: list[int]):
        self.backbone, self.steps, self.repeats, self.layers = load("scale", "scale-llava-1.5"), steps, repeats, layers
        torch.manual_seed(0)
        self.module = TokenSRTraining(self.backbone, layers)
        self.start = {k: v.clone() for k, v in self.module.amplifiers.state_dict().items()}
        self.opening = ""

    def data(self, **settings: Any) -> SceneData:
        made = SceneData(BaseView(self.backbone.processor.image_processor), train_size=8 * self.steps, held_out_size=8, **settings)
        made.setup()
        return made

    def compared(self, what: str, work: Callable[[], torch.Tensor], against: str, other: Callable[[], torch.Tensor]) -> dict[str, Any]:
        """A row. What both give is compared too."""
        losses: dict[str, torch.Tensor] = {}
        times = interleaved(lambda: losses.update(other=other()), lambda: losses.update(work=work()), self.repeats)
        row = {"what": what, "s": times.second, "against": against, "s of that": times.first}
        same = losses["work"].shape == losses["other"].shape
        differ = float((losses["work"] - losses["other"]).abs().max()) if same else None
        return row | {"ratio": times.ratio, "spread": times.spread, "loss differs": differ}

    def parts(self) -> str:
        """Where the time of a step without a cache goes."""
        loaded: dict[str, Any] = {}
        loading = median_seconds(lambda: loaded.update(batches=list(self.data().train_dataloader())), self.repeats) / self.steps
        batch = loaded["batches"][0]
        features = self.module.capture(batch)
        passes = median_seconds(lambda: self.module.frozen(batch), 3 * self.repeats)
        modules = median_seconds(lambda: epoch(self.module, [features], self.start), 3 * self.repeats)
        return f"a step of 8 pairs: images {loading:.3f} s, backbone {passes:.3f} s, modules and optimizer {modules:.3f} s"

    def seven(self) -> dict[str, Any]:
        data = self.data()
        singles = [TokenSRTraining(self.backbone, [layer]) for layer in self.layers]

        def one_by_one() -> torch.Tensor:
            return torch.cat([epoch(single, data.train_dataloader(), self.start) for single in singles], dim=1)

        many = len(self.layers)
        return self.compared(
            f"{many} layers in one pass", lambda: epoch(self.module, data.train_dataloader(), self.start), f"{many} runs", one_by_one
        )

    def cached(self) -> list[dict[str, Any]]:
        rows, plain = [], self.data()
        for dtype in ("bfloat16", "float32"):
            with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
                data = self.data(cache_features=True, cache_path=folder, cache_dtype=dtype)

                def look(data: SceneData = data) -> None:
                    data.stored = prepare_features(self.backbone, self.layers, self.module.capture, data, "none", Ranks())

                made, checked = seconds(look), seconds(look)
                self.opening = f"a cache of {8 * self.steps + 8} pairs: {made:.2f} s to make, {checked:.2f} s to find and check"
                rows.append(
                    self.compared(
                        f"epoch from the cache, {dtype}",
                        lambda data=data: epoch(self.module, data.train_dataloader(), self.start),  # type: ignore[misc]
                        "epoch without",
                        lambda: epoch(self.module, plain.train_dataloader(), self.start),
                    )
                )
                data.stored = {}
        return rows

    def quadrants(self) -> dict[str, Any]:
        """As many pairs; the losses are those of other pairs and not compared."""
        one, every = self.data(), self.data(quadrants="all")
        row = self.compared(
            "data.quadrants=all",
            lambda: epoch(self.module, every.train_dataloader(), self.start),
            "data.quadrants=one",
            lambda: epoch(self.module, one.train_dataloader(), self.start),
        )
        return row | {"loss differs": None}


class Width:
    """What a training asks of a backbone that it never runs."""

    def __init__(self, width: int, side: int):
        self.width, self.grid, self.identity = width, (side, side), "random"


def variants(width: int, repeats: int, side: int = 12, pairs: int = 8) -> list[dict[str, Any]]:
    """A step of seven modules on random features on the CPU: channels-last weights and checkpointing, against neither."""
    torch.manual_seed(0)
    many = len(LAYERS)
    batch = Features(torch.randn(pairs, many, side * side // 4, width), torch.randn(pairs, many, side * side, width))
    plain = TokenSRTraining(Width(width, side), LAYERS)  # type: ignore[arg-type]

    def step(module: TokenSRTraining) -> torch.Tensor:
        module.amplifiers.zero_grad()
        losses = module.losses(batch)
        losses.sum().backward()
        return losses.detach()

    rows = []
    for what in ("channels_last", "checkpoint_activations"):
        other = TokenSRTraining(Width(width, side), LAYERS, **{what: True})  # type: ignore[arg-type]
        other.amplifiers.load_state_dict(plain.amplifiers.state_dict())
        times = interleaved(lambda: step(plain), lambda other=other: step(other), 2 * repeats)  # type: ignore[misc]
        rows.append(
            {
                "what": f"{what}, width {width}",
                "s": times.second,
                "against": "a step without",
                "s of that": times.first,
                "ratio": times.ratio,
                "spread": times.spread,
                "loss differs": float((step(other) - step(plain)).abs().max()),
                "peak MB": peak_bytes(lambda other=other: step(other)) / 1e6,  # type: ignore[misc]
                "MB of that": peak_bytes(lambda: step(plain)) / 1e6,
            }
        )
    return rows
