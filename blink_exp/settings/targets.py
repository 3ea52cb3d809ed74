"""Schemas of the config groups whose presets differ: a model, a method, a benchmark, a judge, training data, a logger are what their
``_target_`` says.

What a package outside of this one brings has no schema here; its own constructor checks it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from blink_exp.settings import limits

MODES = ("paper", "reference")
NEWLINES = ("all_rows", "valid_rows", "none")


@dataclass
class Model:
    path: str = limits.text("a hub id or a folder")
    name: str | None = limits.text("a name")
    revision: str | None = limits.text("a branch, tag or commit")
    dtype: str = limits.words("float32", "float16", "bfloat16")
    device: str = limits.text("a device such as cpu, cuda or cuda:0")
    device_map: str | None = limits.words("auto", "balanced", "balanced_low_0", "sequential")
    attn_implementation: str = limits.words("sdpa", "eager", "flash_attention_2")
    quantization: str | None = limits.words("4bit", "8bit")
    pad: bool = limits.flag()
    system_prompt: str | None = limits.words("none", "vicuna_v1")
    clip: str | None = limits.text("a hub id or a folder")


@dataclass
class Untouched:
    """method=none has no settings."""


@dataclass
class Blink:
    amplify: bool = limits.flag()
    saliency: str = limits.text("the name of a scorer")
    p: int = limits.whole(1)
    scale_thresholds: bool = limits.flag()
    tau_exp: float = limits.number(0, 1)
    tau_drop: float = limits.number(0, 1)
    layers: Any = limits.group()
    resolution: Any = limits.group()
    tokensr: Any = limits.group()
    seed: int = limits.seed()


@dataclass
class Hero:
    retention_ratio: float = limits.number(0, 1, above=True)
    tokens_per_view: int | None = limits.whole(1)
    alpha: float = limits.number(0, 1)
    low: list[int] = limits.layer_list()
    high: list[int] = limits.layer_list()
    relative: bool = limits.flag()
    newline_policy: str = limits.words(*NEWLINES)
    options: Any = limits.group()


@dataclass
class Control:
    ratio: float = limits.number(0, 1, above=True)
    newline_policy: str = limits.words(*NEWLINES)


@dataclass
class RandomControl(Control):
    seed: int = limits.seed()


@dataclass
class FasterVLM:
    retention_ratio: float = limits.number(0, 1, above=True)
    layer: int | None = limits.whole(1)
    mode: str = limits.words(*MODES)
    newline_policy: str | None = limits.words(*NEWLINES)


@dataclass
class GlobalCom2(FasterVLM):
    temperature: float = limits.number(0, above=True)


@dataclass
class HiRED:
    retention_ratio: float = limits.number(0, 1, above=True)
    alpha: float = limits.number(0, 1)
    allocation_layer: int | None = limits.whole(1)
    selection_layer: int | None = limits.whole(1)
    mode: str = limits.words(*MODES)
    newline_policy: str | None = limits.words(*NEWLINES)


@dataclass
class PruMergePlus:
    layer: int | None = limits.whole(1)
    neighbours: int = limits.whole(1)
    iqr_factor: float = limits.number()
    densify: int = limits.whole(1)
    mode: str = limits.words(*MODES)
    newline_policy: str = limits.words(*NEWLINES)


@dataclass
class FastV:
    full_layers: int = limits.whole(1)
    retention_ratio: float = limits.number(0, 1, above=True)
    mode: str = limits.words(*MODES)
    relative: bool = limits.flag()


def _schedule(value: Any) -> bool:
    return value is None or value in (192, 128, 96, 64) or (limits.is_list(value, limits.is_whole) and len(value) > 0)


@dataclass
class SparseVLM:
    schedule: Any = limits.such("192, 128, 96, 64, a list of tokens to keep behind each of its layers, or null", _schedule)
    retention_ratio: float | None = limits.number(0, 1, above=True)
    layers: list[int] = field(default_factory=list, metadata={"limit": limits.Each(limits.Between(0, noun="a whole number"))})
    relative: bool = limits.flag()


@dataclass
class Thumbnail:
    newline_policy: str = limits.words(*NEWLINES)


@dataclass
class ThumbnailPlusTile(Thumbnail):
    metric: str = limits.words("clip_score", "cls_similarity")
    rank: int = limits.whole(1, 4)
    fewer: str = limits.words("thumbnail", "last")
    cls_source: str = limits.words("pooled", "last_hidden", "projected")


@dataclass
class TwoViews:
    region: str = limits.words("most_salient", "annotated", "wrong", "random")
    p: int = limits.whole(1)
    layer: int = limits.whole(0)
    relative: bool = limits.flag()
    seed: int = limits.seed()
    alone: bool = limits.flag()


@dataclass
class ViCrop:
    layer: int = limits.whole(0)
    relative: bool = limits.flag()


@dataclass
class Pair:
    pruner: Any = limits.group()
    policy: Any = limits.group()
    fill: str = limits.words("neighbours", "recall")
    name: str | None = limits.text("a name")


@dataclass
class Rows:
    """A benchmark in the layout of the hub."""

    path: str = limits.text("a hub id or a folder")
    config: str | None = limits.text("the name of a configuration")
    revision: str | None = limits.text("a branch, tag or commit")
    split: str = limits.text("the name of a split")
    protocol: str = limits.text("the name of a protocol")
    exif: bool | None = limits.flag()
    image_loading: Any = limits.group()


@dataclass
class GQA(Rows):
    image_config: str = limits.text("the name of a configuration")


@dataclass
class Marked(Rows):
    """One whose answers a language model may mark."""

    judge: Any = limits.group()


@dataclass
class MMBench(Marked):
    language: str = limits.words("en", "cn")
    choice: str = limits.words("static", "judge")
    seed: int = limits.seed()


@dataclass
class Captions(Marked):
    request: str = limits.text("a prompt")
    max_new_tokens: int = limits.whole(1)
    seed: int = limits.seed()


@dataclass
class MMStar(Rows):
    rule: str = limits.words("lmms_eval", "paper")


@dataclass
class VQA(Rows):
    normalization: str = limits.words("always", "unless_equal")


@dataclass
class TextVQA(VQA):
    ocr: str | None = limits.words("row", "none")


@dataclass
class Duts:
    path: str | None = limits.path()
    image_loading: Any = limits.group()
    split: str = limits.words("TE", "TR")
    layers: list[int] = limits.layer_list()
    top: int = limits.whole(1)
    batch: int = limits.whole(1)


@dataclass
class EasyVQA:
    path: str | None = limits.path()
    image_loading: Any = limits.group()


@dataclass
class Mosaic:
    images: int = limits.whole(1, 100_000)  # each is drawn


@dataclass
class MosaicDetail(Mosaic):
    questions: str = limits.words("all", "open", "pairs")
    blank: bool = limits.flag()


@dataclass
class MosaicSaliency(Mosaic):
    layers: list[int] = limits.layer_list()
    top: int = limits.whole(1)
    of: int = limits.whole(1)
    batch: int = limits.whole(1)


@dataclass
class NoJudge:
    """judge=none has no settings."""


@dataclass
class OpenAIJudge:
    model: str = limits.text("the name of a model")
    base_url: str | None = limits.text("the address of an endpoint")
    key_variable: str = limits.text("the name of an environment variable")
    cache: str = limits.path()
    temperature: float | None = limits.number(0)
    max_tokens: int | None = limits.whole(1)
    max_retries: int = limits.whole(0)
    timeout: float = limits.number(0, above=True)
    threads: int = limits.whole(1)
    give_up: int = limits.whole(1)


@dataclass
class PairData:
    train_size: int = limits.whole(1)
    held_out_size: int = limits.whole(1)
    global_batch: int = limits.whole(1)
    batch_size: int | None = limits.whole(1)
    workers: int = limits.whole(0)
    quadrants: str = limits.words("one", "all")
    questions: int = limits.whole(1)
    cache_features: bool = limits.flag()
    cache_path: str = limits.path()
    cache_dtype: str = limits.words("bfloat16", "float32")


@dataclass
class SceneData(PairData):
    sizes: list[int] = limits.whole_list(1, 16)  # 16 x 16 small objects are all but 27 of the test images'
    small: bool = limits.flag()


@dataclass
class FolderData(PairData):
    path: str = limits.path()
    pad: bool = limits.flag()
    image_loading: Any = limits.group()


@dataclass
class LlavaData(PairData):
    json: str = limits.path()
    images: str = limits.path()
    train_size: int | None = limits.whole(1)  # type: ignore[assignment]
    held_out_size: int | None = limits.whole(1)  # type: ignore[assignment]
    held_out_share: float = limits.number(0, 1, above=True, below=True)
    pad: bool = limits.flag()
    image_loading: Any = limits.group()


@dataclass
class Checkpoints:
    """Lightning's ModelCheckpoint, as far as a training that goes on takes it."""

    every_n_train_steps: int = limits.whole(1)
    save_last: bool = limits.flag()
    save_top_k: int = limits.whole(-1)
    enable_version_counter: bool = limits.flag()


@dataclass
class NoSettings:
    """A callback that takes none."""


@dataclass
class NoLogger:
    """logger=csv has no settings."""


@dataclass
class TensorBoard:
    rows: int = limits.whole(0)
    images: int = limits.whole(0)


@dataclass
class MLflow(TensorBoard):
    project: str = limits.text("the name of an experiment")
    uri: str | None = limits.text("the address of a tracking server or database")


@dataclass
class WandB(TensorBoard):
    project: str = limits.text("the name of a project")
    entity: str | None = limits.text("the name of a user or team")
    mode: str = limits.words("online", "offline", "disabled")


_DATA = "blink_exp.training.data."
_LOGGERS = "blink_exp.tracking.loggers."
_METHODS = "blink_exp.methods."
_BENCHMARKS = "blink_exp.benchmarks."
BY_TARGET: dict[str, type] = {
    "blink_exp.backbone.load.load": Model,
    _DATA + "SceneData": SceneData,
    _DATA + "FolderData": FolderData,
    _DATA + "LlavaData": LlavaData,
    _LOGGERS + "Csv": NoLogger,
    _LOGGERS + "TensorBoard": TensorBoard,
    _LOGGERS + "MLflow": MLflow,
    _LOGGERS + "Wandb": WandB,
    "pytorch_lightning.callbacks.ModelCheckpoint": Checkpoints,
    "blink_exp.training.progress.progress": NoSettings,
    "blink_exp.training.signals.OwnSignals": NoSettings,
    "blink_exp.judge.no_judge": NoJudge,
    "blink_exp.judge.Judge": OpenAIJudge,
    **{
        _METHODS + name: schema
        for name, schema in {
            "none.none": Untouched,
            "blink.configure": Blink,
            "hero.configure": Hero,
            "controls.random": RandomControl,
            "controls.uniform": Control,
            "controls.downsample": Control,
            "fastervlm.configure": FasterVLM,
            "globalcom2.configure": GlobalCom2,
            "hired.configure": HiRED,
            "prumerge_plus.configure": PruMergePlus,
            "fastv.configure": FastV,
            "sparsevlm.configure": SparseVLM,
            "one_tile.thumbnail": Thumbnail,
            "one_tile.thumbnail_plus_tile": ThumbnailPlusTile,
            "pair.configure": Pair,
            "two_views.configure": TwoViews,
            "vicrop.configure": ViCrop,
        }.items()
    },
    **{
        _BENCHMARKS + name: schema
        for name, schema in {
            "captions.Captions": Captions,
            "chartqa.ChartQA": Rows,
            "duts.Duts": Duts,
            "easyvqa.EasyVQA": EasyVQA,
            "gqa.GQA": GQA,
            "mmbench.MMBench": MMBench,
            "mme.MME": Rows,
            "mmstar.MMStar": MMStar,
            "mmvet.MMVet": Marked,
            "mosaic_detail.MosaicDetail": MosaicDetail,
            "mosaic_hr.MosaicHR": Mosaic,
            "mosaic_mme.MosaicMME": Mosaic,
            "mosaic_open.MosaicOpen": Mosaic,
            "mosaic_saliency.MosaicSaliency": MosaicSaliency,
            "ocrbench.OCRBench": Rows,
            "pope.POPE": Rows,
            "realworldqa.RealWorldQA": Rows,
            "scienceqa.ScienceQA": Rows,
            "textvqa.TextVQA": TextVQA,
            "vizwiz.VizWiz": VQA,
            "vqav2.VQAv2": VQA,
        }.items()
    },
}
