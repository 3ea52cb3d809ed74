"""Questions a second of an evaluation against batch size, on the scale models, and how often a method makes the host wait."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from bench import report
from bench.meters import HostReads, synchronisations
from bench.shapes import TINY, prefill
from bench.timing import compared, rounds
from bench.ways import Ground
from blink_exp.errors import UserError

TITLE = "Evaluation: questions a second against batch size"
SIZES = (1, 4, 16, 64)
SETTINGS = {
    "none": ["method=none"],
    "Blink": ["method=blink"],
    "HERO, R = 0.2": ["model=scale_llava_next", "benchmark=mosaic_hr", "method=hero", "retention_ratio=0.2"],
    "FastV, R = 0.2": ["model=scale_llava_next", "benchmark=mosaic_hr", "method=fastv", "retention_ratio=0.2"],
}
READING = ("reads a prompt", "reads a further layer", "waits a prompt", "waits a further layer")
COLUMNS = ("method", "batch size", "questions", "questions / s", "beside batch size 1", *READING)


def measure(
    size: str = "default", device: str = "cpu", questions: str | int | None = None, repeats: str | int | None = None
) -> dict[str, Any]:
    """``questions``: how many each batch size answers; ``repeats``: rounds of all batch sizes, which take turns."""
    small = size == "small"
    count, turns = (int(x or y) for x, y in ((questions, 4 if small else 128), (repeats, 1 if small else 3)))
    if count < 1 or turns < 1:
        raise UserError(f"questions={questions} and repeats={repeats} must be 1 or more")
    sizes = (1, 4) if small else SIZES
    waits = decisions(device)
    rows = []
    for name, overrides in list(SETTINGS.items())[: 1 if small else None]:
        rows += speeds(name, [*overrides, f"model.device={device}"], sizes, count, turns)
    rows += [{"method": name} | counts for name, counts in waits.items()]
    notes = [
        "Seconds of the evaluation loop: images, tower, prompt, answer. Nothing of images is kept from round to round.",
        "reads a prompt: how often Python reads numbers from a tensor at batch 1, beyond what the untouched model does; a further layer:"
        " what one more layer that decides adds. On a CPU also of tensors that would not be on a GPU, so at least as many as there.",
        "waits: how often the host waited for the device, by PyTorch's own record; on CUDA only.",
    ]
    return report.result(TITLE, rows, (), notes, COLUMNS) | {"device": device}


def speeds(name: str, overrides: list[str], sizes: tuple[int, ...], questions: int, repeats: int) -> list[dict[str, Any]]:
    """A row for each batch size."""
    from blink_exp.evaluation.evaluator import evaluate

    backbone, method, benchmark = prepared(overrides)

    def work(size: int) -> Any:
        backbone.forget()
        return evaluate(backbone, method, benchmark, batch_size=size, limit=questions)

    asked = len(work(sizes[-1])[0])
    taken = rounds({str(size): partial(work, size) for size in sizes}, repeats)
    rows = []
    for size in sizes:
        beside = compared(taken[str(sizes[0])], taken[str(size)])
        row = {"method": name, "batch size": size, "questions": asked, "questions / s": asked / beside.second}
        rows.append(row | {"beside batch size 1": beside.ratio})
    return rows


def prepared(overrides: list[str]) -> tuple[Any, Any, Any]:
    """Backbone, method and benchmark of a command line."""
    from blink_exp.evaluation.evaluator import prepare
    from blink_exp.settings.compose import composed

    return prepare(composed("evaluate", overrides))


def decisions(device: str = "cpu") -> dict[str, dict[str, Any]]:
    """By method: reads and waits of a prompt at batch 1, beyond those of the untouched model, and what each further layer that decides
    adds to them. Counts do not depend on the shape, so a toy will do."""
    ground = Ground.of(TINY, device)
    kind = None if device == "cpu" else device.partition(":")[0]
    whole, few = ground.whole(), slice(None, -1)  # made once: how a prompt is made is none of the method's business
    untouched = counted(lambda: prefill(ground.model, whole), device, kind)
    waits = {}
    for name, method in {
        "Blink, thresholds never met": ground.blink(False),
        "Blink, expanding": ground.blink(True),
        **ground.policies(0.3),
    }.items():
        policy: Any = method.policy
        whole_counts = counted(partial(ground.under, method, whole), device, kind)
        waits[name] = {"reads a prompt": whole_counts[0] - untouched[0], "waits a prompt": _less(whole_counts[1], untouched[1])}
        if len(policy.layers) > 1:
            shorter = replace(policy, layers=policy.layers[few], **({"shares": policy.shares[few]} if hasattr(policy, "shares") else {}))
            without = replace(method, policy=shorter)
            fewer = counted(partial(ground.under, without, whole), device, kind)
            waits[name] |= {"reads a further layer": whole_counts[0] - fewer[0], "waits a further layer": _less(whole_counts[1], fewer[1])}
    return waits


def _less(a: int | None, b: int | None) -> int | None:
    return None if a is None or b is None else a - b


def counted(work: Any, device: str, kind: str | None) -> tuple[int, int | None]:
    """(reads, waits) of a piece of work."""
    with HostReads(kind) as reads:
        work()
    with synchronisations(device) as waits:
        work()
    return reads.count, waits[0] if waits else None
