"""Runs the questions of a benchmark on one or several points and records the answers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as Rows
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from blink_exp.backbone.model import Backbone
from blink_exp.backbone.pictures import ImagesById, OpenedImage, UnreadableImage, open_images
from blink_exp.backbone.prompts import without_placeholder
from blink_exp.benchmarks.base import Benchmark, Sample
from blink_exp.core.method import Method
from blink_exp.core.views import VisualTokens
from blink_exp.decoder.answers import PointQuestion, answer, shareable, visual_tokens
from blink_exp.decoder.attach import attach
from blink_exp.decoder.second_views import Asking
from blink_exp.documents.records import Record, Skipped
from blink_exp.errors import UserError, out_of_memory, reason
from blink_exp.evaluation import placement, ranks
from blink_exp.evaluation.batches import BatchSize, Unit, cut
from blink_exp.evaluation.records import RecordLog, record
from blink_exp.evaluation.tokens import layer_average, prompt_flops
from blink_exp.settings.doors import command_name
from blink_exp.settings.roots import PointSettings


@dataclass(frozen=True)
class Devices:
    """``count``: processes that answer a point's questions, see ``ranks``; ``settings``: with which each of them makes the point."""

    count: int
    settings: PointSettings


@dataclass
class Point:
    """A method under evaluation. ``record_log``: its records on disk, those of an interrupted run included; ``done``: {id: record};
    ``devices``: None for this process alone; needs a ``record_log``."""

    method: Method
    record_log: RecordLog | None = None
    done: dict[str, Record] = field(default_factory=dict)
    devices: Devices | None = None


@torch.no_grad()
def ask(
    backbone: Backbone,
    points: Rows[Point],
    benchmark: Benchmark,
    samples: Rows[Sample],
    batch_size: int | BatchSize,
    advance: Callable[[int], None],
    workers: int = 0,
) -> list[Skipped]:
    """Fills ``done`` of every point and returns the samples skipped because their row or image could not be read.

    Records in a point's ``record_log`` are reused, and every batch is appended to it. Samples are grouped by image, so that their shared
    image features are computed once. ``batch_size``: a ``BatchSize`` holds afterwards what fitted in memory; ``advance``: called with the
    number of new answers; ``workers``: see ``pictures.open_images``.
    """
    size = batch_size if isinstance(batch_size, BatchSize) else BatchSize(batch_size)
    for point in points:
        point.done = point.record_log.done(benchmark, list(samples)) if point.record_log is not None else {}
    answered = sum(len(point.done) for point in points)
    if 0 < answered < len(samples) * len(points):
        print(f"going on: {answered} of {len(samples) * len(points)} {'samples' if len(points) == 1 else 'answers'} are done")
    advance(answered)
    units = cut(samples, size.size)
    left = [n for n, unit in enumerate(units) if any(_missing(points, sample) for batch in unit for sample in batch)]
    devices = [point.devices for point in points if point.devices is not None and point.devices.count > 1]
    if left and len(devices) == len(points):
        skipped = _ask_ranks(backbone, points, benchmark, units, left, size, advance, workers, devices)
    else:
        skipped = answer_units(backbone, points, benchmark, [units[n] for n in left], size, advance, workers)
    order = [s.id for s in samples if s.id in skipped]
    return [{"id": name, "why": skipped[name]} for name in order]


def _missing(points: Rows[Point], sample: Sample) -> list[int]:
    """Indices of the points that have no answer to ``sample``."""
    return [p for p, point in enumerate(points) if sample.id not in point.done]


def _ask_ranks(
    backbone: Backbone,
    points: Rows[Point],
    benchmark: Benchmark,
    units: list[Unit],
    left: list[int],
    size: BatchSize,
    advance: Callable[[int], None],
    workers: int,
    devices: list[Devices],
) -> dict[str, str]:
    """Answers the units ``left`` on several processes, of which this one is the first. Returns {sample id: why it was skipped}."""
    logs = [point.record_log for point in points if point.record_log is not None]
    count = devices[0].count
    team = ranks.team(count)
    shares = [left[rank::count] for rank in range(count)]
    job: ranks.Job = {
        "points": [{"settings": asdict(of.settings), "log": log.address()} for of, log in zip(devices, logs, strict=True)],
        "units": shares,
        "batch_size": size.size,
        "first_gpu": placement.first_gpu(device) if (device := backbone.settings["device"]).startswith("cuda") else 0,
        "workers": max(1, workers // team.local) if workers else 0,
    }
    for log in logs:
        log.begin_rank(0)
    with team.job(job) as running:
        mine = [units[n] for n in shares[0]]
        skipped = answer_units(backbone, points, benchmark, mine, size, running.advancing(advance), job["workers"])
        for result in running.results(advance):
            skipped |= result["skipped"]
            before, size.size = size.size, min(size.size, result["batch_size"])
            note_smaller(size, before)
    samples = [sample for unit in units for batch in unit for sample in batch]
    for point, log in zip(points, logs, strict=True):
        log.gather()
        point.done = log.done(benchmark, samples)
    lost = [s.id for n in left for batch in units[n] for s in batch if s.id not in skipped and _missing(points, s)]
    if lost:
        raise UserError(
            f"{len(lost)} answers of other processes are not in {logs[0].path.parent}, first {lost[0]}; devices and nodes of one run need a"
            f" common file system; without one, give each its shard=k/n and put them together with {command_name('rescore')}"
        )
    return skipped


def answer_units(
    backbone: Backbone,
    points: Rows[Point],
    benchmark: Benchmark,
    units: Rows[Unit],
    size: BatchSize,
    advance: Callable[[int], None],
    workers: int = 0,
) -> dict[str, str]:
    """Answers what the points have not, batch by batch. Returns {sample id: why it was skipped}."""
    skipped: dict[str, str] = {}
    prepared = {
        "canvas": any(point.method.needs_canvas for point in points),
        "tile_grids": backbone.tile_grids(point.method for point in points),
    }
    cut_batches = ([sample for sample in batch if _missing(points, sample)] for unit in units for batch in unit)
    batches = [batch for batch in cut_batches if batch]
    for asked, images in _with_images(backbone, batches, size.size, workers, prepared):
        batch, images_by_id = [], {}
        for sample in asked:
            image = images[sample.image_id]
            if isinstance(image, UnreadableImage):
                skipped[sample.id] = image.why
                continue
            try:
                prompt_of(backbone, benchmark, sample)
            except UserError as error:
                skipped[sample.id] = reason(error)
                continue
            batch.append(sample)
            images_by_id[sample.image_id] = image
        for records, answers_of_batch in _fitting(backbone, points, benchmark, batch, images_by_id, size):
            for p, rows in records.items():
                points[p].done |= {r["id"]: r for r in rows}
                if (record_log := points[p].record_log) is not None:
                    record_log.add(rows)
            advance(answers_of_batch)
    return skipped


def _fitting(
    backbone: Backbone, points: Rows[Point], benchmark: Benchmark, batch: list[Sample], images: dict[str, Any], size: BatchSize
) -> Iterator[tuple[dict[int, list[Record]], int]]:
    """Yields ({point index: records}, number of answers) of a batch, in pieces where it does not fit in memory as a whole."""
    start, before = 0, size.size
    while start < len(batch):
        piece = batch[start : start + size.size]
        points_by_sample = [_missing(points, sample) for sample in piece]
        piece_images = {sample.image_id: images[sample.image_id] for sample in piece}
        try:
            records = _answered(backbone, points, benchmark, piece, points_by_sample, piece_images, size.size)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            if not size.halve(len(piece)):
                note_smaller(size, before)
                raise
            records = None
        if records is None:  # outside the except clause, whose traceback holds the tensors
            backbone.forget()
            backbone.shared_bytes //= 2
            torch.cuda.empty_cache()
            continue
        note_smaller(size, before)
        before = size.size
        start += len(piece)
        yield records, sum(map(len, points_by_sample))


def note_smaller(size: BatchSize, before: int) -> None:
    if size.size < before:
        print(f"a batch did not fit in memory: batch_size={size.size} from here on, instead of {before}", flush=True)


def _with_images(
    backbone: Backbone, batches: Rows[list[Sample]], ahead: int, workers: int, prepared: dict[str, Any]
) -> Iterator[tuple[list[Sample], dict[str, OpenedImage]]]:
    """Yields batches of samples with their images by id. Each image is opened once; the samples are grouped by image.
    ``ahead``, ``workers`` and, in ``prepared``, ``canvas`` and ``tile_grids``: see ``pictures.open_images``."""
    images: dict[str, Callable[[], Any]] = {}
    for batch in batches:
        for sample in batch:
            images.setdefault(sample.image_id, sample.image)
    coming = zip(images, open_images(list(images.values()), backbone, workers, ahead, **prepared), strict=True)
    cached: dict[str, OpenedImage] = {}
    for batch in batches:
        wanted = {s.image_id for s in batch}
        cached = {name: image for name, image in cached.items() if name in wanted}
        while wanted - cached.keys():
            cached.update([next(coming)])
        yield batch, cached


def check_annotation(method: Method, source: str, samples: Iterable[Sample]) -> None:
    """Raises UserError if ``method`` goes by annotated regions and no sample of ``source`` has any."""
    if method.second_view is not None and method.second_view.annotated and not any(sample.regions for sample in samples):
        raise UserError(
            f"method={method.name} shows a region by the annotation, and {source} says nowhere where the answer is to be seen;"
            " use method.region=most_salient or random"
        )


def prompt_of(backbone: Backbone, benchmark: Benchmark, sample: Sample) -> str:
    """The benchmark's prompt without the image placeholder.

    Raises UserError for an empty prompt, several placeholders, or more tokens than the LLM has positions.
    """
    prompt = without_placeholder(benchmark.prompt(sample), backbone.processor.image_token)
    if not prompt.strip():
        raise UserError("the question is empty; ask something")
    most = backbone.model.config.text_config.max_position_embeddings
    if len(prompt.encode()) > most:  # a token has at least one byte, so few prompts need tokenizing
        tokens = len(backbone.processor.tokenizer(prompt).input_ids)
        if tokens > most:
            raise UserError(f"the question has {tokens:,} tokens, more than the LLM's {most:,} positions; shorten it")
    return prompt


def prompts_of(backbone: Backbone, benchmark: Benchmark, samples: Iterable[Sample]) -> dict[str, str]:
    """{sample id: prompt} of the samples with a valid prompt."""
    prompts = {}
    for sample in samples:
        with contextlib.suppress(UserError):
            prompts[sample.id] = prompt_of(backbone, benchmark, sample)
    return prompts


def _answered(
    backbone: Backbone,
    points: Rows[Point],
    benchmark: Benchmark,
    batch: list[Sample],
    points_by_sample: list[list[int]],
    images: ImagesById,
    batch_size: int,
) -> dict[int, list[Record]]:
    """{point index: records} of a batch; ``points_by_sample``: for each sample the indices of the points that need its answer."""
    source = f"{getattr(benchmark, 'path', None)}:{getattr(benchmark, 'image_loading', None)}"  # the same id in two folders is two images
    keys = [f"{source}:{sample.image_id}" for sample in batch]
    pictures = {key: images[sample.image_id] for key, sample in zip(keys, batch, strict=True)}
    prompts = [prompt_of(backbone, benchmark, sample) for sample in batch]
    together = range(len(points)) if shareable(backbone) else range(0)
    requests = [
        PointQuestion(key, prompt, sample.id, tuple(p for p in asking if p in together), sample.regions)
        for key, prompt, sample, asking in zip(keys, prompts, batch, points_by_sample, strict=True)
    ]
    out: dict[int, list[Record]] = {}
    text_tokens = [len(ahead) + len(behind) for ahead, behind in backbone.around(prompts)]

    def note(p: int, n: int, prediction: str, visual: VisualTokens, decisions: list[Any]) -> None:
        row = record(benchmark, batch[n], prediction, decisions)
        row["visual_tokens"], row["newline_tokens"] = len(visual.source) - visual.newlines, visual.newlines
        row["layer_tokens"] = round(layer_average(row, backbone.depth) or 0, 2)
        row["prefill_flops"] = prompt_flops(row, text_tokens[n], backbone.model.config.text_config)
        if visual.second is not None:
            row["second_view"] = visual.second.to_json()
        out.setdefault(p, []).append(row)

    if any(a.points for a in requests):
        shared_answers = answer(backbone, [point.method for point in points], pictures, requests, benchmark.max_new_tokens, batch_size)
        for (n, p), shared_answer in sorted(shared_answers.items()):
            note(p, n, shared_answer.text, shared_answer.visual, shared_answer.decisions)
    for p, point in enumerate(points):
        rows = [n for n, asking in enumerate(points_by_sample) if p in asking]
        if p in together or not rows:
            continue
        with attach(backbone.model, point.method) as attached:
            if attached is not None:
                attached.samples = [batch[n].id for n in rows]
            batch_images = {keys[n]: pictures[keys[n]] for n in rows}
            predictions, visual = answers(
                *(backbone, point.method, attached, batch_images),
                [Asking(keys[n], prompts[n], batch[n].id, batch[n].regions) for n in rows],
                benchmark.max_new_tokens,
            )
        for b, n in enumerate(rows):
            note(p, n, predictions[b], visual[b], [r for r in attached.records if r.row == b] if attached is not None else [])
    return out


def answers(
    backbone: Backbone,
    method: Method,
    attached: Any,
    images: ImagesById,
    prompts: Rows[Asking | tuple[str, str]],
    max_new_tokens: int,
) -> tuple[list[str], list[VisualTokens]]:
    """Greedy answers of Hugging Face's generate() to one batch of questions, ``Asking`` or its first fields, and their visual tokens.
    ``attached``: the object yielded by ``attach(model, method)``, or None."""
    askings = [Asking(*prompt) for prompt in prompts]
    visual = visual_tokens(backbone, method, images, askings)
    if attached is not None:
        attached.see(visual)
        regions = backbone.regions(images) if method.closeup else {}
        attached.regions = [[regions[asking.image]] for asking in askings] if regions else None
    return backbone.generate([v.features for v in visual], [asking.question for asking in askings], max_new_tokens), visual
