"""Blink: Dynamic Visual Token Resolution for Enhanced Multimodal Understanding.

A vision-language model looks at an image once, at one resolution. Blink lets it look closer at what it is looking at anyway. Before
each of a few middle layers it

  1. scans: how much does the last text token attend to each of the image's p x p patches? The share of the largest one is the
     saliency ratio rho (Sec. 3.1, Eqs. 1-3; ``blink_exp.core.saliency``);
  2. decides (Sec. 3.2, Alg. 1; ``BlinkPolicy.decide`` below):

         rho > tau_expand   the focus is sharp: EXPAND that patch. Its h x w tokens are enlarged to the full H x W grid, refined by
                            the layer's trained TokenSR module, and put between the visual tokens and the text;
         rho < tau_drop     the focus is gone: DROP the expanded tokens;
         otherwise          leave the sequence as it is.

Layers behind the last selected one keep what is there. Decisions are taken once, on the prompt; generated tokens find the sequence as
each layer left it. What a decision makes of the sequence is ``blink_exp.core.sequence`` (``transition``); what carries it out on hidden
states is ``blink_exp.decoder.branch_decoder``.

Options that the paper does not settle are arguments here, with the reading that this project takes as default.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from blink_exp.core.method import Method, Scan
from blink_exp.core.saliency import RANDOM, RANDOM_REGION, PatchGrid, Scorer, find_scorer
from blink_exp.core.sequence import Decision, Drop, Expand, Keep
from blink_exp.documents.settings import PlainSettings
from blink_exp.errors import UserError, nearest
from blink_exp.finite import first_nonfinite
from blink_exp.settings.doors import command_name
from blink_exp.tokensr import checkpoint
from blink_exp.tokensr.modules import ARCHITECTURES

if TYPE_CHECKING:
    from blink_exp.backbone.model import Backbone

POLICIES = ("threshold", "cycle", "expand_once", "copy")
PRESETS = ("11-17", "12-18", "12-20", "13-19", "14-20", "all")  # files of the config group ``layers``
CLOSEUP = "closeup"  # in place of an architecture: expanded tokens from the image's own pixels; ours, not the paper's
ON_REEXPAND = ("replace", "keep", "append")


@dataclass(frozen=True)
class BlinkPolicy:
    """Blink's decisions. Pure: the same scan always gives the same decision.

    Args:
        layers: selected layers, 0-based, ascending (the paper's main setting is 12-18 of 32).
        tau_expand: rho above which a layer expands (tau_exp); compared as given, see ``scaled_threshold`` for p != 2.
        tau_drop: rho below which a layer drops. The expansion test comes first, so tau_expand <= tau_drop is legal (the paper
            uses 0.25 / 0.4: always expand). Equality leaves the sequence as it is.
        p: patches a side (Sec. 3.1; 2 in the main experiments, 3 and 4 in App. E).
        saliency: a scorer's name (``blink_exp.core.saliency``), or ``random``: patch and action drawn at random (Table 2, "w/o SGS"), or
            ``random_region`` (ours): the actions of ``attention``, by its rho and the thresholds, on a patch drawn at random.
        resolution: ``threshold`` (Alg. 1); ``cycle``: expand, drop, expand, ... over the selected layers whatever rho is (Table 2,
            "w/o DTR"; the order is not given, chosen: expand first); ``expand_once``: expand at the first selected layer and keep
            (Sec. 4.4); ``copy``: the same without TokenSR (Fig. 4).
        on_reexpand: what an expansion does to an expanded segment that is already there: ``replace`` it, ``keep`` it, or ``append``.
        scan_expanded: count attention on expanded tokens towards the patch that they show (not given; chosen: False).
        interpolate: enlarge the patch to the full grid before TokenSR; False is Table 7's "w/o interp".
        inherit_positions: give expanded tokens the fractional positions of the patch that they show, instead of positions of their
            own in front of the text (Sec. 3.2.1 only says that positions are updated; chosen: False, contiguous).
        seed: of ``saliency=random`` and ``random_region``.
    """

    layers: tuple[int, ...]
    tau_expand: float = 0.5
    tau_drop: float = 0.4
    p: int = 2
    saliency: str = "attention"
    resolution: str = "threshold"
    on_reexpand: str = "replace"
    scan_expanded: bool = False
    interpolate: bool = True
    inherit_positions: bool = False
    seed: int = 0

    drops = False  # visual tokens are kept, expanded ones are added

    def __post_init__(self) -> None:
        for name, value, choices in (
            ("resolution.policy", self.resolution, POLICIES),
            ("resolution.on_reexpand", self.on_reexpand, ON_REEXPAND),
        ):
            if value not in choices:
                raise UserError(f"{name}={value} is not known; {nearest(str(value), choices)}")
        check_threshold("tau_exp", self.tau_expand)
        check_threshold("tau_drop", self.tau_drop)
        _ = self.scorer  # raises UserError for an unknown name

    @functools.cached_property
    def scorer(self) -> Scorer | None:
        if self.saliency == RANDOM:
            return None
        return find_scorer("attention" if self.saliency == RANDOM_REGION else self.saliency)

    @property
    def thresholds(self) -> dict[str, float]:
        return {"tau_exp": self.tau_expand, "tau_drop": self.tau_drop}

    def layer_tokens(self, visual: int, depth: int) -> None:
        return None  # what is expanded depends on the question

    def decide(self, layer: int, scan: Scan) -> Decision:
        """What to do with one image at one layer (Alg. 1, lines 6-14)."""
        drawn = self._draw(layer, scan) if self.saliency in (RANDOM, RANDOM_REGION) else None
        region = scan.region if drawn is None else drawn[0]
        assert region is not None
        expand = Expand(region, self.on_reexpand, amplify=self.resolution != "copy")
        if self.resolution == "cycle":
            return expand if self.layers.index(layer) % 2 == 0 else Drop()
        if self.resolution in ("expand_once", "copy"):
            return expand if layer == self.layers[0] else Keep()
        if drawn is not None and self.saliency == RANDOM:  # Table 2, "w/o SGS": neither selection nor drop by saliency
            return (expand, Drop(), Keep())[drawn[1]]
        assert scan.rho is not None
        if scan.rho > self.tau_expand:
            return expand
        if scan.rho < self.tau_drop:
            return Drop()
        return Keep()

    def _draw(self, layer: int, scan: Scan) -> tuple[int, int]:
        """(region, one of three actions) from (seed, sample, image, layer), so a result depends neither on batch size nor on order."""
        word = f"{self.seed}|{scan.sample}|{scan.image}|{layer}"
        draw = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "big")
        return draw % self.p**2, draw // self.p**2 % 3


def check_threshold(name: str, tau: float) -> None:
    if not 0 <= tau <= 1:
        raise UserError(f"thresholds.{name}={tau} is outside [0, 1], the range of the saliency ratio; use a value inside")


def scaled_threshold(tau: float, p: int) -> float:
    """A threshold given for 2 x 2 patches, for p x p: tau * (1 / p^2) / (1 / 4) (App. E)."""
    return tau * 4 / p**2


def blink(policy: BlinkPolicy, amplifiers: nn.ModuleDict | None = None) -> Method:
    """Blink with TokenSR modules, or, without ``amplifiers``, Blink-interp: plain interpolation, nothing trained."""
    return Method(policy, amplifiers, name="blink" if amplifiers is not None else "blink_interp")


def layer_range(first: int, last: int) -> tuple[int, ...]:
    """Layers ``first`` to ``last``, both included, as the paper writes them."""
    return tuple(range(first, last + 1))


def relative_layers(layers: Rows[int], depth: int, base: int = 0, relative: bool = True) -> tuple[int, ...]:
    """Layers written for a 32-layer LLM, for one of ``depth`` layers: round(l * depth / 32), duplicates removed.

    ``base``: 1 reads the given numbers as 1-based. ``relative``: False takes them as they are.
    """
    chosen = {layer - base if not relative or depth == 32 else round((layer - base) * depth / 32) for layer in layers}
    for layer in sorted(chosen):
        if not 0 <= layer < depth:
            raise UserError(f"layer={layer + base} is outside the backbone's {depth} layers; use {base} to {depth - 1 + base}")
    return tuple(sorted(chosen))


def configure(backbone: Backbone, *, amplify: bool, tokensr: PlainSettings, layers: PlainSettings, **decisions: Any) -> Method:
    """Blink on ``backbone`` from the values of the config groups (conf/method/blink.yaml). ``decisions``: see ``policy_of``."""
    policy = policy_of(backbone, layers=layers, **decisions)
    numbers = policy.layers
    architecture, path = tokensr["architecture"], tokensr["path"]
    if not amplify or architecture == "interp" or policy.resolution == "copy":
        return blink(policy)
    if architecture == CLOSEUP:
        if path is not None:
            raise UserError(f"tokensr.path={path}, but tokensr=closeup has no modules to load; use tokensr.path=null")
        if not policy.interpolate:
            raise UserError("resolution.interpolate=false, but a close-up has the tokens of a full view; use tokensr=conv, or true")
        return Method(policy, closeup=True, name="blink_closeup")
    if architecture not in ARCHITECTURES:
        raise UserError(f"tokensr.architecture={architecture} is not known; {nearest(str(architecture), ARCHITECTURES)}")
    if path is not None and not str(path).strip():
        raise UserError("tokensr.path= is empty; give a folder of trained modules, or null for those that ship with the model")
    folder = path or backbone.tokensr
    model = "" if backbone.name == "scale-llava-1.5" else "model=... "  # train.py's default model
    command = f"{command_name('train')} {model}{training_words(architecture, layers, numbers)} output=FOLDER, then tokensr.path=FOLDER"
    if folder is None:
        raise UserError(f"tokensr.path=null, but {backbone.name} ships without TokenSR modules; train them for this model: {command}")
    for number in numbers:
        stored = checkpoint.architecture_of(Path(folder), number)
        if stored is not None and stored != architecture:
            owner = f"{folder} holds" if path else f"{backbone.name} ships with"
            raise UserError(f"tokensr={architecture}, but {owner} {stored} modules; use tokensr={stored}, or train: {command}")
    return blink(policy, nn.ModuleDict({str(number): tokensr_module(backbone, Path(folder), number) for number in numbers}))


def policy_of(
    backbone: Backbone,
    *,
    saliency: str,
    p: int,
    scale_thresholds: bool,
    tau_exp: float,
    tau_drop: float,
    layers: PlainSettings,
    resolution: PlainSettings,
    seed: int,
) -> BlinkPolicy:
    """Blink's decisions on ``backbone`` from the values of the config groups."""
    check_threshold("tau_exp", tau_exp)  # before scaling, which could bring a wrong value into range
    check_threshold("tau_drop", tau_drop)
    numbers = selected_layers(backbone.depth, **layers)
    scale = scaled_threshold if scale_thresholds else lambda tau, p: tau
    policy = BlinkPolicy(
        layers=numbers,
        tau_expand=min(1.0, scale(tau_exp, p)),
        tau_drop=min(1.0, scale(tau_drop, p)),
        p=p,
        saliency=saliency,
        resolution=resolution["policy"],
        on_reexpand=resolution["on_reexpand"],
        scan_expanded=_choice("resolution.scan", resolution["scan"], ("visual", "visual_and_expanded")) == "visual_and_expanded",
        interpolate=resolution["interpolate"],
        inherit_positions=_choice("resolution.positions", resolution["positions"], ("contiguous", "inherit")) == "inherit",
        seed=seed,
    )
    PatchGrid(p, *backbone.grid)  # raises UserError for a p that does not divide the grid, before modules are loaded
    return policy


def training_words(architecture: str, layers: PlainSettings, numbers: Rows[int]) -> str:
    """train.py's overrides for modules of an architecture and these layers. ``layers``: as in ``configure``."""
    indices, plain = layers["indices"], (layers["base"], layers["relative"]) == (0, True)
    if isinstance(indices, list) and len(indices) == 1 and not layers["relative"]:
        overrides = f"layer={indices[0]}" if layers["base"] == 0 else f"layer={indices[0]} layers.base={layers['base']}"
    elif plain and isinstance(indices, str) and indices in PRESETS:
        overrides = f"layers={indices}"
    else:
        overrides = f"layers.indices=[{','.join(map(str, numbers))}] layers.relative=false"
    return f"tokensr={architecture} {overrides}"


def tokensr_module(backbone: Backbone, folder: Path, layer: int) -> nn.Module:
    """A trained module, one object for all methods that use it, so that they share expanded segments."""
    file = folder / f"layer_{layer:02d}.safetensors"
    stat = (file.stat().st_size, file.stat().st_mtime_ns) if file.is_file() else None  # part of the cache key: the file may be retrained
    return _module(folder, layer, stat, backbone.identity, backbone.width, backbone.model.device, backbone.model.dtype)


@functools.lru_cache(maxsize=128)
def _module(folder: Path, layer: int, _stat: object, backbone: str, width: int, device: torch.device, dtype: torch.dtype) -> nn.Module:
    module = checkpoint.load(folder, layer, backbone, width).to(device, dtype)
    bad = first_nonfinite(module.named_parameters())
    if bad is not None:
        kind = str(dtype).removeprefix("torch.")
        raise UserError(f"the TokenSR module of layer {layer} in {folder} leaves the range of model.dtype={kind} in {bad}; use bfloat16")
    return module


def selected_layers(depth: int, *, indices: Any, base: int, relative: bool) -> tuple[int, ...]:
    """Layers of an LLM of ``depth`` layers from the group `layers`: a list, "12-18", "12", or "all"."""
    if indices == "all":
        return tuple(range(depth))
    if isinstance(indices, str):
        first, _, last = indices.partition("-")
        if not first.isdigit() or not (last or first).isdigit():
            raise UserError(f"layers.indices={indices} is no range; write 12-18, [12,13] or all")
        indices = list(range(int(first), int(last or first) + 1))
    if indices is None:
        raise UserError("layers.indices=null names no layer; add layer=12")
    if isinstance(indices, int):
        indices = [indices]
    if not indices:
        return ()
    return relative_layers(indices, depth, base, relative)


def _choice(name: str, value: str, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise UserError(f"{name}={value} is not known; {nearest(str(value), choices)}")
    return value
