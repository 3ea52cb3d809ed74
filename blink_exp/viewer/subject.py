"""The subject of a page: a sample of the benchmark, or the user's own picture and question."""

from __future__ import annotations

import difflib
import heapq
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from blink_exp.benchmarks.base import ExactMatch, Probes, Sample, UnusableImage
from blink_exp.errors import UserError, flat, reason
from blink_exp.evaluation.evaluator import prepare_benchmark
from blink_exp.images import URL, ImageOptions, open_image
from blink_exp.settings.roots import ViewSettings
from blink_exp.settings.words import NOTHING


@dataclass(frozen=True)
class Subject:
    """``benchmark``: defines the prompt, the scoring rule and the maximum answer length."""

    sample: Sample
    image: Image.Image
    benchmark: Any


class OwnQuestion(ExactMatch):
    """A question from the command line, used as the prompt. It has no reference answer."""

    name = "own question"
    max_new_tokens = 64


def load_subject(settings: ViewSettings) -> Subject:
    """Loads the picture and question named by ``settings``. Raises UserError if there is none, are two, or one is missing."""
    sample, image, question = settings.sample, settings.image, settings.question
    if sample is not None and image is not None:
        raise UserError(f"sample={sample} and image={image} are two pictures; give one of them")
    if sample is not None and question is not None:
        raise UserError(f"question={flat(question, 60)} needs image=...; sample={sample} asks its own question")
    if sample is not None:
        return _benchmark_sample(settings, sample)
    if image is None and question is None:
        raise UserError(NOTHING["view"][1])
    if image is None:
        raise UserError(f"question={flat(question, 60)} has no picture; add image=photo.jpg")
    if question is None or not str(question).strip():
        raise UserError(f'image={image} has no question; add question="What is in the picture?"')
    return _custom_subject(str(image), str(question).strip(), ImageOptions.of(asdict(settings.image_loading)))


def _benchmark_sample(settings: ViewSettings, wanted: str) -> Subject:
    benchmark = prepare_benchmark(settings)
    if isinstance(benchmark, Probes):
        raise UserError(f"sample={wanted} needs a question, and benchmark={benchmark.name} asks none; use another, e.g. mosaic_mme")
    samples = {sample.id: sample for sample in benchmark.samples()}
    if wanted not in samples:
        population = f"the {len(samples)} samples of {benchmark.name}"
        raise UserError(f"sample={flat(wanted, 80)} is not among {population}; {nearest_ids(wanted, samples)}")
    sample = samples[wanted]
    try:
        return Subject(sample, sample.image(), benchmark)
    except OSError as error:
        what = "is a row that cannot be asked" if isinstance(sample.image, UnusableImage) else "has an image that cannot be read"
        raise UserError(f"sample={wanted} {what} ({reason(error)}); choose another sample") from None


def nearest_ids(wanted: str, ids: Iterable[str], most: int = 400) -> str:
    """A sentence with the three ids most similar to ``wanted``; ties go to the longer common prefix. Only the ``most`` best candidates,
    by containment and common prefix, are compared letter by letter."""
    wanted = wanted[:200]
    likely = sorted(ids, key=lambda candidate: (wanted not in candidate, -_common(wanted, candidate)))[:most]

    def alike(candidate: str) -> tuple[float, int]:
        return difflib.SequenceMatcher(None, wanted, candidate).ratio(), _common(wanted, candidate)

    close = heapq.nlargest(3, likely, key=alike)
    return f"did you mean {' or '.join(close)}?" if close else "it is empty"


def _common(a: str, b: str) -> int:
    """Length of the common prefix."""
    return next((k for k, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _custom_subject(file: str, question: str, options: ImageOptions) -> Subject:
    image, name = open_picture(file, options), Path(file).name
    return Subject(Sample(name, name, lambda: image, question, None, ""), image, OwnQuestion())


def open_picture(file: str | Path, options: ImageOptions) -> Image.Image:
    """The picture of a file that the user names. Raises UserError where there is none that can be read."""
    path = Path(file).expanduser()
    if not path.is_file():
        if URL.match(str(file).strip().replace(":/", "://", 1)):  # a Path has lost a slash
            raise UserError(f"image={flat(file, 80)} is a URL, and nothing is downloaded; give the file of a picture")
        problem = "is a folder" if path.is_dir() else "is no ordinary file" if path.exists() else "is not there"
        raise UserError(f"image={path} {problem}; give the file of a picture")
    try:
        return open_image(path.absolute(), options)
    except OSError as error:
        raise UserError(f"image={path} is no picture that can be read ({reason(error)}); give a JPEG, PNG or WebP file") from None
