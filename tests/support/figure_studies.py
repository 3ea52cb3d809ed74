"""What the tests of figures share: studies without a configuration, stored points, patches, and what a picture says."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path

from blink_exp.benchmarks.mme import score_pairs
from blink_exp.core.saliency import PatchGrid
from blink_exp.figures.base import TIP, Study
from blink_exp.settings.compose import composed
from blink_exp.settings.roots import EvaluateSettings
from support.scripts import ROOT

CONF = ROOT / "conf"
GRID = PatchGrid(2, 4, 4)
QUARTERS = [GRID.box(region) for region in range(4)]
# {subtask: (right on yes, right on no) of each image}
ONE = {"color": [(1, 1), (1, 0), (0, 0)], "count": [(1, 1), (0, 1)]}
TWO = {"color": [(1, 1), (1, 1), (1, 1)], "count": [(0, 1), (1, 1)]}


@functools.cache
def _settings() -> EvaluateSettings:
    return composed("evaluate", ["method=random", "benchmark=mmstar", "batch_size=8"])


def settings_of(**changes) -> EvaluateSettings:
    """Settings of a figure without a model of its own."""
    return dataclasses.replace(_settings(), **changes)


def tips(figure) -> list[str]:
    """What a picture says where the pointer rests."""
    return [a.get_gid().removeprefix(TIP) for a in figure.findobj() if (a.get_gid() or "").startswith(TIP)]


@dataclasses.dataclass(frozen=True)
class Opened(Study):
    """A study whose model, method and benchmark are given."""

    three: tuple = ()

    def load(self):
        return self.three


def study(name, three=(), rows=(), **settings):
    return Opened(name, settings_of(**settings), list(rows), three)


def point(folder, records, **row):
    folder.mkdir(parents=True)
    (folder / "records.jsonl").write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    return {"status": "done", "folder": str(folder), "backbone": "scale@1", "point": "p"} | row


def pairs(right: dict[str, list[tuple[int, int]]]) -> list[dict]:
    """Records of MME's form: {subtask: (right on yes, right on no) of each image}."""
    return [
        {"id": f"{s}/{i}/{k}", "image_id": f"{s}/{i}", "category": s, "correct": bool(hit), "answer": "yes", "layers": [], "regions": []}
        for s, images in right.items()
        for i, image in enumerate(images)
        for k, hit in enumerate(image)
    ]


def stored(folder: Path, label: str, right: dict, **more) -> dict:
    """A measured point as a figure gets it."""
    folder = folder / label.replace("/", "_")
    folder.mkdir()
    (folder / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in pairs(right)), encoding="utf-8")
    (folder / "metrics.json").write_text('{"benchmark": "mosaic_mme"}', encoding="utf-8")
    scores = {k: v.value for k, v in score_pairs(pairs(right), tuple(right), ()).items()}
    common = {"status": "done", "folder": str(folder), "scores": scores, "backbone": "b", "samples": 10}
    return {"point": label, **common, **more}


def scanned(regions: list[list[int]], right: list[int] | None, rho: float | list[float] = 0.5) -> list[dict]:
    """Records of four layers: the top patch of each, by question; ``right``: the patches of the annotated regions."""
    return [
        {
            **{"id": str(k), "image_id": str(k), "question": "what?", "correct": True},
            "regions": [QUARTERS[r] for r in right] if right else [],
            "layers": [
                {"layer": i, "region": r, "rho": rho[i] if isinstance(rho, list) else rho, "decision": "keep"} for i, r in enumerate(line)
            ],
        }
        for k, line in enumerate(regions)
    ]
