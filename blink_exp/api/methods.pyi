"""Written by `python -m blink_exp.api.stubs` from conf/method and the schemas."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from blink_exp.api.choice import MethodChoice

class Untouched(MethodChoice):
    """The untouched model."""

    def __init__(self) -> None: ...

class Blink(MethodChoice):
    """Blink (scan, expand through TokenSR, drop)."""

    def __init__(
        self,
        *,
        amplify: bool = True,
        saliency: str = 'attention',
        p: int = 2,
        scale_thresholds: bool = True,
        tau_exp: float = 0.5,
        tau_drop: float = 0.4,
        layers: str | int | Sequence[int] | Mapping[str, Any] = ...,
        resolution: str | Mapping[str, Any] = ...,
        tokensr: str | Path | Mapping[str, Any] = ...,
        seed: int = 0,
    ) -> None: ...

class BlinkInterp(MethodChoice):
    """Blink-interp: expansions are interpolated only, nothing is trained."""

    def __init__(
        self,
        *,
        amplify: bool = False,
        saliency: str = 'attention',
        p: int = 2,
        scale_thresholds: bool = True,
        tau_exp: float = 0.5,
        tau_drop: float = 0.4,
        layers: str | int | Sequence[int] | Mapping[str, Any] = ...,
        resolution: str | Mapping[str, Any] = ...,
        tokensr: str | Path | Mapping[str, Any] = ...,
        seed: int = 0,
    ) -> None: ...

class HERO(MethodChoice):
    """HERO: drops visual tokens before the LLM."""

    def __init__(
        self,
        *,
        retention_ratio: float = 0.2,
        tokens: int | str | None = None,
        tokens_per_view: int | None = None,
        alpha: float = 0.5,
        low: Sequence[int] = [6, 7, 8, 9, 10],
        high: Sequence[int] = [22],
        relative: bool = True,
        newline_policy: str = 'valid_rows',
        options: Mapping[str, Any] = ...,
    ) -> None: ...

class FasterVLM(MethodChoice):
    """FasterVLM: CLS attention of one late CLIP layer, the same budget for every view. mode=reference: as the authors' code has it."""

    def __init__(
        self,
        *,
        retention_ratio: float = 0.2,
        tokens: int | str | None = None,
        layer: int | None = None,
        mode: str = 'paper',
        newline_policy: str | None = None,
    ) -> None: ...

class HiRED(MethodChoice):
    """HiRED: tiles share a budget by what an early CLIP layer marks on the thumbnail; a late layer selects. mode=reference: as the authors' code has it."""

    def __init__(
        self,
        *,
        retention_ratio: float = 0.2,
        tokens: int | str | None = None,
        alpha: float = 0.5,
        allocation_layer: int | None = None,
        selection_layer: int | None = None,
        mode: str = 'paper',
        newline_policy: str | None = None,
    ) -> None: ...

class GlobalCom2(MethodChoice):
    """GlobalCom2: tiles keep more where the thumbnail's attention is; thumbnail and tile attention select together. mode=reference: as the authors' code has it."""

    def __init__(
        self,
        *,
        retention_ratio: float = 0.2,
        tokens: int | str | None = None,
        layer: int | None = None,
        mode: str = 'paper',
        newline_policy: str | None = None,
        temperature: float = 10.0,
    ) -> None: ...

class PruMergePlus(MethodChoice):
    """PruMerge+: as many tokens as CLS attention has outliers, and a grid between them; what is dropped is merged into what stays."""

    def __init__(
        self,
        *,
        tokens: int | str | None = None,
        layer: int | None = None,
        neighbours: int = 32,
        iqr_factor: float = 1.5,
        densify: int = 3,
        mode: str = 'paper',
        newline_policy: str = 'valid_rows',
    ) -> None: ...

class VisionZip(MethodChoice):
    """VisionZip: each view keeps what CLS attends to, CLS included; the rest is merged. mode=reference: as the authors' code packs LLaVA-NeXT."""

    def __init__(
        self,
        *,
        retention_ratio: float = 0.2,
        tokens: int | str | None = None,
        dominant: int | None = None,
        contextual: int | None = None,
        layer: int | None = None,
        mode: str = 'paper',
        newline_policy: str = 'valid_rows',
    ) -> None: ...

class DivPrune(MethodChoice):
    """DivPrune: the projected tokens that are spread the widest, without attention or question. mode=reference: as the authors' code has it."""

    def __init__(
        self,
        *,
        retention_ratio: float = 0.2,
        tokens: int | str | None = None,
        order: str = 'sorted',
        mode: str = 'paper',
        newline_policy: str = 'valid_rows',
    ) -> None: ...

class CDPruner(MethodChoice):
    """CDPruner: tokens that matter to the question and differ from one another, by a determinantal point process; reads CLIP's text tower."""

    def __init__(
        self,
        *,
        retention_ratio: float = 0.2,
        tokens: int | str | None = None,
        relevance_sign: int = -1,
        theta: float | None = None,
        mode: str = 'paper',
        newline_policy: str | None = None,
    ) -> None: ...

class VisPruner(MethodChoice):
    """VisPruner: tokens with most CLS attention, and of the others those that are unlike one another."""

    def __init__(
        self,
        *,
        retention_ratio: float = 0.2,
        tokens: int | str | None = None,
        layer: int | None = None,
        mode: str = 'paper',
        newline_policy: str | None = None,
        important_ratio: float = 0.5,
    ) -> None: ...

class Thumbnail(MethodChoice):
    """The thumbnail alone (HERO, Table I): no tile enters the LLM."""

    def __init__(
        self,
        *,
        newline_policy: str = 'valid_rows',
    ) -> None: ...

class ThumbnailPlusTile(MethodChoice):
    """The thumbnail and one tile, whole (HERO, Table I)"""

    def __init__(
        self,
        *,
        newline_policy: str = 'valid_rows',
        metric: str = 'clip_score',
        rank: int = 1,
        fewer: str = 'thumbnail',
        cls_source: str = 'pooled',
    ) -> None: ...

class FastV(MethodChoice):
    """FastV: behind the first layers of the LLM only the visual tokens stay that the last prompt token attends to most."""

    def __init__(
        self,
        *,
        full_layers: int = 2,
        retention_ratio: float = 0.2,
        tokens: int | str | None = None,
        mode: str = 'paper',
        relative: bool = True,
    ) -> None: ...

class SparseVLM(MethodChoice):
    """SparseVLM: three times on the way through the LLM, visual tokens that relevant text tokens do not attend to are merged and dropped."""

    def __init__(
        self,
        *,
        schedule: int | Sequence[int] | None = None,
        retention_ratio: float | None = 0.2,
        tokens: int | str | None = None,
        layers: Sequence[int] = [2, 6, 15],
        relative: bool = True,
    ) -> None: ...

class PyramidDrop(MethodChoice):
    """PyramidDrop: at stages on the way through the LLM fewer and fewer visual tokens stay, those that the last prompt token is about to attend to."""

    def __init__(
        self,
        *,
        retention_ratio: float = 0.2,
        tokens: int | str | None = None,
        layers: Sequence[int] | None = None,
        ratios: Sequence[float] | None = None,
        schedule: Sequence[int] | None = None,
        mode: str = 'paper',
        relative: bool = True,
    ) -> None: ...

class DART(MethodChoice):
    """DART: behind the first layers of the LLM stay a few pivots and the visual tokens that resemble them least. No attention is read."""

    def __init__(
        self,
        *,
        full_layers: int = 2,
        retention_ratio: float = 0.2,
        tokens: int | str | None = None,
        mode: str = 'paper',
        relative: bool = True,
        truncation: int | None = None,
        visual_pivots: int = 4,
        text_pivots: int = 4,
    ) -> None: ...

class Random(MethodChoice):
    """Control: a random subset of every view."""

    def __init__(
        self,
        *,
        ratio: float = 0.2,
        tokens: int | str | None = None,
        newline_policy: str = 'valid_rows',
        seed: int = 0,
    ) -> None: ...

class Uniform(MethodChoice):
    """Control: a regular grid of tokens of every view."""

    def __init__(
        self,
        *,
        ratio: float = 0.2,
        tokens: int | str | None = None,
        newline_policy: str = 'valid_rows',
    ) -> None: ...

class Downsample(MethodChoice):
    """Control: every view's features averaged down to as many tokens as the budget allows."""

    def __init__(
        self,
        *,
        ratio: float = 0.2,
        tokens: int | str | None = None,
        newline_policy: str = 'valid_rows',
    ) -> None: ...

class TwoViews(MethodChoice):
    """Control: the image and one of its regions, at its own resolution, as two images in front of the text. Nothing is trained."""

    def __init__(
        self,
        *,
        region: str = 'most_salient',
        p: int = 2,
        layer: int = 12,
        relative: bool = True,
        seed: int = 0,
        alone: bool = False,
    ) -> None: ...

class Crop(MethodChoice):
    """Control: one region of the image, at its own resolution, in place of the image. python evaluate.py method=crop method.region=annotated"""

    def __init__(
        self,
        *,
        region: str = 'most_salient',
        p: int = 2,
        layer: int = 12,
        relative: bool = True,
        seed: int = 0,
        alone: bool = True,
    ) -> None: ...

class ViCrop(MethodChoice):
    """ViCrop, relative attention: the image and the box that the question looks at more than a generic one does. python evaluate.py method=vicrop"""

    def __init__(
        self,
        *,
        layer: int = 14,
        relative: bool = True,
    ) -> None: ...

class Pair(MethodChoice):
    """Any pruner with any policy"""

    def __init__(
        self,
        *,
        pruner: MethodChoice | str = ...,
        policy: MethodChoice | str = ...,
        fill: str = 'neighbours',
        tokens: int | str | None = None,
        name: str | None = None,
    ) -> None: ...

class BlinkHERO(MethodChoice):
    """HERO drops visual tokens before the LLM, Blink scans and expands what is left."""

    def __init__(
        self,
        *,
        pruner: MethodChoice | str = ...,
        policy: MethodChoice | str = ...,
        fill: str = 'neighbours',
        tokens: int | str | None = None,
        name: str | None = 'blink_hero',
    ) -> None: ...
