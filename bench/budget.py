"""Shared execution in less and less memory: what ``shared_gb`` allows, what is held at the worst moment, and what that costs in time."""

from __future__ import annotations

from typing import Any

from bench import report
from bench.meters import peak_bytes
from bench.sharing import composed
from bench.timing import compared, rounds

TITLE = "Shared execution: memory against shared_gb"
MEBIBYTES = (1024, 256, 64, 16, 1)
LEAST = 8  # of the scale model's prefixes, of which one takes 2.3 MiB, some fit from here on


def measure(size: str = "default", store: str = "outputs/points", questions: str | None = None) -> dict[str, Any]:
    """Points of Blink's Table 2. ``store``: where trained modules are looked for, and kept; ``questions``: of the benchmark."""
    from blink_exp.benchmarks.base import spread
    from blink_exp.decoder.answers import PointQuestion, answer
    from blink_exp.evaluation.evaluator import prepare

    small = size == "small"
    made = [prepare(cfg) for cfg in composed([("table", "blink_table2")], store)]
    (backbone, _, benchmark), methods = made[0], [method for _, method, _ in made][: 2 if small else None]
    samples = spread(benchmark.samples(), int(questions or (2 if small else 16)))
    images = {s.image_id: s.image() for s in samples}
    asked = [PointQuestion(s.image_id, benchmark.prompt(s), s.id, tuple(range(len(methods)))) for s in samples]
    texts: dict[int, Any] = {}
    backbone.forget()
    backbone.features(images)  # the tower's batch is the caller's, and no part of the budget

    def work(budget: int) -> None:
        backbone.prefixes.clear()
        backbone.shared_bytes = budget * 2**20
        answers = answer(backbone, methods, images, asked, benchmark.max_new_tokens, batch_size=1)
        texts[budget] = {key: one.text for key, one in answers.items()}

    before = backbone.shared_bytes  # of a backbone that others are given too
    taken = rounds({str(b): lambda b=b: work(b) for b in MEBIBYTES}, 1 if small else 3)
    rows = []
    for budget in MEBIBYTES:
        backbone.prefixes.clear()  # what a round before left behind would be freed inside the meter, and hide as much
        beside = compared(taken[str(budget)], taken[str(MEBIBYTES[0])])
        rows.append(
            {
                "shared_gb, in MiB": budget,
                "peak MiB": peak_bytes(lambda b=budget: work(b)) / 2**20,
                "seconds": beside.first,
                "time / most memory": beside.ratio,
                "other answers": sum(texts[budget][key] != text for key, text in texts[MEBIBYTES[0]].items()),
            }
        )
    backbone.shared_bytes = before
    notes = [
        f"{len(methods)} points of Blink's Table 2 on {len(samples)} questions, batch_size=1: the budget alone decides what runs at once.",
        "peak: all tensors beyond the weights and the images' features; a single text's are among them, whatever the budget.",
    ]
    bars = [report.bar("answers that differ", sum(r["other answers"] for r in rows), 0)]
    for row in rows:
        if row["shared_gb, in MiB"] >= LEAST:
            bars.append(report.bar(f"peak / {row['shared_gb, in MiB']} MiB", row["peak MiB"] / row["shared_gb, in MiB"], 1.25))
    return report.result(TITLE, rows, bars, notes)
