"""A model that answers: ``load("scale_llava").answer(image, question, method=Blink())``."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from PIL import Image

from blink_exp.api.answers import Answer, Page, Trace
from blink_exp.api.benchmarks import load_benchmark
from blink_exp.api.building import AnyMethod, built_method, rows_of
from blink_exp.api.errors import in_one_line
from blink_exp.api.scores import scores
from blink_exp.backbone.model import Backbone
from blink_exp.backbone.prompts import without_placeholder
from blink_exp.benchmarks.base import Benchmark, Sample, spread
from blink_exp.core.method import Method
from blink_exp.decoder.second_views import Asking
from blink_exp.documents.records import Record
from blink_exp.errors import UserError, flat, nearest
from blink_exp.evaluation.answering import Point, ask, check_annotation, prompt_of
from blink_exp.evaluation.cost import measure_cost
from blink_exp.evaluation.evaluator import prepare_backbone
from blink_exp.evaluation.tokens import tokens_by_layer
from blink_exp.figures.hero_kept import as_maps
from blink_exp.images import ImageOptions, to_rgb
from blink_exp.settings.check import format_value, unknown
from blink_exp.settings.compose import composed, composed_plain
from blink_exp.settings.presets import presets
from blink_exp.settings.roots import EvaluateSettings
from blink_exp.viewer import page as pages
from blink_exp.viewer.run import grid_of
from blink_exp.viewer.subject import OwnQuestion, Subject, open_picture
from blink_exp.viewer.trace import trace

if TYPE_CHECKING:
    import pandas as pd

Picture = str | Path | Image.Image
Pictures = list[Picture] | list[str] | list[Path] | list[Image.Image] | tuple[Picture, ...]
Questions = list[str] | tuple[str, ...]


class VLM:
    """A vision-language model. ``model`` and ``processor`` are those of Hugging Face; ``settings``: those of conf/evaluate.yaml."""

    def __init__(self, backbone: Backbone, settings: EvaluateSettings):
        self.backbone, self.settings = backbone, settings

    def __repr__(self) -> str:
        return f"VLM({self.backbone.name!r})"

    @property
    def model(self) -> Any:
        return self.backbone.model

    @property
    def processor(self) -> Any:
        return self.backbone.processor

    @overload
    def answer(
        self,
        image: Picture,
        question: str,
        *,
        method: AnyMethod = None,
        max_new_tokens: int = 64,
        tokensr: str | Path | None = None,
        batch_size: int = 32,
        cost: bool = False,
    ) -> Answer: ...

    @overload
    def answer(
        self,
        image: Pictures,
        question: str | Questions,
        *,
        method: AnyMethod = None,
        max_new_tokens: int = 64,
        tokensr: str | Path | None = None,
        batch_size: int = 32,
        cost: bool = False,
    ) -> list[Answer]: ...

    @overload
    def answer(
        self,
        image: Picture,
        question: Questions,
        *,
        method: AnyMethod = None,
        max_new_tokens: int = 64,
        tokensr: str | Path | None = None,
        batch_size: int = 32,
        cost: bool = False,
    ) -> list[Answer]: ...

    def answer(
        self,
        image: Picture | Pictures,
        question: str | Questions,
        *,
        method: AnyMethod = None,
        max_new_tokens: int = 64,
        tokensr: str | Path | None = None,
        batch_size: int = 32,
        cost: bool = False,
    ) -> Answer | list[Answer]:
        """The greedy answer of ``method`` to a question about an image, as evaluate.py would give it; of lists, a list of answers.

        Args:
            image: a file, a PIL image, or a list of them; one image is that of all questions.
            question: the prompt, without the image's placeholder, or a list; one question is asked about all images. Questions on the
                same image share what depends on the image alone (docs/sharing.md).
            method: a constructor's, such as ``HERO(tokens=128)``, a preset of conf/method, or a ``blink_exp.core.method.Method`` of
                one's own; None: the untouched model.
            max_new_tokens: most tokens of an answer.
            tokensr: folder of TokenSR modules, instead of those of ``method``.
            batch_size: questions that start together.
            cost: whether to measure each question alone, after it was answered: ``Trace.cost``.

        Raises UserError, a ValueError of one line, for an image that cannot be read, an empty question, or a method that does not fit
        the model.
        """
        pairs, single = _pairs(image, question)
        _check_counts(max_new_tokens=max_new_tokens, batch_size=batch_size)
        if not isinstance(cost, bool):
            raise UserError(f"cost={flat(cost, 80)} must be True or False")
        chosen = self.method(method, tokensr)
        benchmark: Any = OwnQuestion()  # of no samples of its own
        benchmark.max_new_tokens = min(max_new_tokens, self.model.config.text_config.max_position_embeddings)
        opened = {id(given): self._opened(given) for given in {id(given): given for given, _ in pairs}.values()}  # each once
        samples = [self._sample(*opened[id(given)], text) for given, text in pairs]
        for sample in samples:
            prompt_of(self.backbone, benchmark, sample)  # raises for a prompt that cannot be asked
        point = Point(chosen)
        different = list({sample.id: sample for sample in samples}.values())
        skipped = ask(self.backbone, [point], benchmark, different, batch_size, lambda count: None)
        if skipped:
            raise UserError(skipped[0]["why"])
        answers = [self._answer(chosen, point.done[sample.id], sample if cost else None) for sample in samples]
        return answers[0] if single else answers

    def view(self, image: Picture, question: str, *, method: AnyMethod = None, compare: Sequence[AnyMethod] = ()) -> Page:
        """The page of one question: what the model saw, decided and attended to under ``method``, layer by layer.

        ``compare``: methods whose answers the page shows beside its own.
        """
        if not isinstance(compare, list | tuple):
            raise UserError(f"compare={flat(compare, 80)} must be a list of methods, such as [None, HERO(tokens=48)]")
        name, opened = self._opened(image)
        subject = Subject(self._sample(name, opened, question), opened, OwnQuestion())
        traces = [trace(self.backbone, self.method(one), subject.benchmark, subject.sample, opened) for one in (method, *compare)]
        grid = grid_of(self.backbone, traces[0].method, self.settings.grid.p)
        lines = [pages.answer(traced.method.name, traced, n == 0) for n, traced in enumerate(traces)]
        contents = pages.contents(self.backbone, subject, traces[0], grid, lines, None)
        tiles, base = as_maps(traces[0].presence, traces[0].visual.views)
        html = pages.render(self.backbone, subject, traces[0], grid, contents)
        return Page(html, contents, base.numpy(), None if tiles is None else tiles.numpy())

    @in_one_line()
    def evaluate(
        self,
        benchmark: str | Benchmark,
        methods: Mapping[str, AnyMethod] | Sequence[AnyMethod],
        *,
        limit: int | None = None,
        batch_size: int = 32,
    ) -> pd.DataFrame:
        """Scores of ``methods`` on a benchmark, one row each, with what they spent. What they share is run once (docs/sharing.md).

        Nothing is stored; for tables that resume, with paired tests, use sweep.py.

        Args:
            benchmark: a preset of conf/benchmark, or what ``load_benchmark`` returns.
            methods: {row: method}, or methods whose names become the rows.
            limit: about so many samples; None: all.
        """
        _check_counts(batch_size=batch_size, **({} if limit is None else {"limit": limit}))
        chosen = load_benchmark(benchmark) if isinstance(benchmark, str) else benchmark
        if not hasattr(chosen, "samples"):
            raise UserError(f"benchmark={flat(benchmark, 80)} is no benchmark; give the name of a preset, or what load_benchmark returns")
        methods = rows_of(methods)
        built = {name: self.method(one, own=False) for name, one in methods.items()}
        return scores(self.backbone, built, chosen, spread(chosen.samples(), limit), batch_size)

    def method(self, method: AnyMethod, tokensr: str | Path | None = None, *, own: bool = True) -> Method:
        """``method`` built for this model. ``tokensr``: folder of its TokenSR modules; ``own``: for questions of one's own, which have no
        annotated regions."""
        built = built_method(self.backbone, self.settings, method, tokensr)
        if own:
            check_annotation(built, "a question of your own", ())
        return built

    @in_one_line()
    def _opened(self, given: Any) -> tuple[str, Image.Image]:
        """(a digest of its pixels, the image in RGB)."""
        options = ImageOptions.of(asdict(self.settings.image_loading))
        if isinstance(given, str | Path):
            image = open_picture(given, options)
        elif isinstance(given, Image.Image):
            try:
                image = to_rgb(given, options)
            except Exception as error:  # lazily opened files are decoded here; decoders raise all kinds of errors
                raise UserError(f"image={flat(given, 80)} cannot be read ({flat(error, 200)}); give another") from error
        else:
            raise UserError(f"image={flat(given, 80)} is of type {type(given).__name__}; give the file of a picture or a PIL image")
        return hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest(), image

    def _sample(self, name: str, image: Image.Image, question: Any) -> Sample:
        if not isinstance(question, str):
            raise UserError(f"question={flat(question, 80)} is of type {type(question).__name__}; give text")
        digest = hashlib.sha256(f"{name}\n{question}".encode(errors="surrogatepass")).hexdigest()
        return Sample(digest[:16], name, lambda: image, question, None, "")

    def _answer(self, method: Method, record: Record, measured: Sample | None) -> Answer:
        """``measured``: the question, where its cost is to be measured."""
        cost = None
        if measured is not None:
            asking = Asking(measured.image_id, without_placeholder(measured.question, self.processor.image_token), measured.id)
            cost = measure_cost(self.backbone, method, [(measured.image(), asking)])
        traced = Trace(
            method.name,
            record["layers"],
            int(record["visual_tokens"]),
            int(record["newline_tokens"]),
            tokens_by_layer(record, self.backbone.depth),
            record["layer_tokens"],
            record["prefill_flops"],
            record.get("second_view"),
            cost,
        )
        return Answer(record["prediction"], traced)


def _check_counts(**counts: Any) -> None:
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UserError(f"{name}={flat(value, 80)} must be a whole number of at least 1")


def _pairs(image: Any, question: Any) -> tuple[list[tuple[Any, Any]], bool]:
    """((image, question) of each answer, whether one answer was asked for)."""
    images, questions = (list(given) if isinstance(given, list | tuple) else None for given in (image, question))
    if images is None and questions is None:
        return [(image, question)], True
    if images is None or questions is None:
        count = len(images if images is not None else questions or [])
        images, questions = images or [image] * count, questions or [question] * count
    if len(images) != len(questions):
        raise UserError(f"{len(images)} images and {len(questions)} questions; give one of one, or as many of both")
    return list(zip(images, questions, strict=True)), False


@in_one_line()
def load(model: str | Path = "scale_llava", **settings: Any) -> VLM:
    """A model: a preset of conf/model, a folder in Hugging Face's layout, or a hub id.

    Args:
        model: ``scale_llava`` ships with this project and needs no download; ``"llava_1_5_7b"``; ``"/models/llava-1.5-7b-hf"``.
        settings: of conf/model that differ, such as ``device="cpu"``, ``dtype="float32"``, ``quantization="4bit"``.

    Raises UserError for an unknown model or setting, and where weights are missing or do not fit.
    """
    if not isinstance(model, str | Path):
        raise UserError(f"model={flat(model, 80)} is of type {type(model).__name__}; give the name of a preset, a folder or a hub id")
    words = [f"model={model}"]
    if str(model) not in presets("model") or isinstance(model, Path):
        if Path(model).expanduser().is_absolute() and not Path(model).expanduser().is_dir():
            raise UserError(f"model={flat(model, 80)} is not there; give a folder in Hugging Face's layout, a hub id or a preset")
        if not Path(model).is_dir() and "/" not in str(model):
            raise UserError(
                f"model={flat(model, 80)} is neither a preset nor a folder nor a hub id; {nearest(str(model), presets('model'))}"
            )
        words = ["model=folder", f"model.path={Path(model).expanduser() if isinstance(model, Path) else model}"]
    known = composed_plain("evaluate", words)["model"] if settings else {}
    for key in settings:
        if key not in known:
            raise UserError(unknown(f"model.{key}", known, f" of {words[0]}"))
    chosen = composed("evaluate", [*words, *(f"model.{key}={format_value(value)}" for key, value in settings.items())])
    return VLM(prepare_backbone(chosen), chosen)
