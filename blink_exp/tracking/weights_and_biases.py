"""A run of Weights & Biases, online or offline."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from PIL import Image

from blink_exp.errors import UserError, flat
from blink_exp.keys import masked
from blink_exp.tracking.interface import Boxes, Picture, Run

ENTITY = r"[A-Za-z0-9_-]{1,64}"  # valid names of W&B users and teams
LONGEST = {"name": 128, "group": 128, "tag": 64}  # characters, W&B's limits
PATIENCE = {"init": 30, "finish": 300}  # timeouts in seconds without a network
_unreachable = False  # set by the first run that cannot connect: later runs start offline


def check_key(mode: str) -> None:
    """Raises UserError for `mode=online` without a key if it cannot be prompted for."""
    if mode != "online" or _unreachable:
        return
    import wandb

    try:
        wandb.login(verify=False)  # an invalid key or a missing network shows when a run starts
    except Exception as error:
        cure = "set WANDB_API_KEY, run `wandb login`, or use logger.mode=offline, which needs no account"
        raise UserError(f"logger=wandb cannot log in ({flat(masked(str(error)), 120)}); {cure}") from error


def check_names(project: str, entity: str | None) -> None:
    """Raises UserError for a project or entity that W&B would reject; the project by W&B's own check."""
    import wandb

    try:
        wandb.Settings(project=project)
    except Exception as error:
        why = flat(error).rpartition("': ")[2]
        raise UserError(f"logger.project={flat(project, 140)} is refused by W&B ({why}); use another name, e.g. blink-exp") from None
    if entity is not None and not re.fullmatch(ENTITY, str(entity)):
        raise UserError(f"logger.entity={flat(entity, 140)} is no user or team of W&B; use 1 to 64 letters, digits, - and _, or null")


def start_run(project: str, entity: str | None, mode: str, out: Path, run: Run) -> Any:
    """Starts a W&B run in ``out``/wandb. If W&B is unreachable, this run and later ones are kept offline."""
    global _unreachable
    import wandb

    mode = "offline" if mode == "online" and _unreachable else mode
    words: dict[str, Any] = {
        "project": project,
        "entity": entity,
        "dir": str(out),
        "name": run.name[: LONGEST["name"]],
        "group": run.group and run.group[-LONGEST["group"] :],  # the end distinguishes sweeps
        "tags": [tag[: LONGEST["tag"]] for tag in run.tags],
        "job_type": run.job,
        "config": run.config,
        "reinit": "finish_previous",
        "settings": wandb.Settings(
            init_timeout=PATIENCE["init"],
            finish_timeout=PATIENCE["finish"],
            console="off",
            quiet=run.job == "point",  # forty lines per point would bury the sweep's output
            x_disable_stats=run.job != "train",
        ),
    }
    try:
        return wandb.init(**words, mode=mode)  # type: ignore[arg-type]
    except Exception as error:
        if mode != "online":
            raise
        _unreachable = True
        later = f"wandb sync {out}/wandb/offline-run-*"
        print(
            f"warning: W&B is out of reach ({flat(masked(str(error)), 120)}); runs are kept offline, send them with: {later}",
            file=sys.stderr,
        )
        return wandb.init(**words, mode="offline")


class WandbTracker:
    """A ``Tracker`` that writes ``run``, W&B's (``start_run``). Tables and pictures are below ``out``/wandb/RUN/files/media."""

    def __init__(self, run: Any):
        self.run = run

    def metrics(self, values: dict[str, float]) -> None:
        self.run.log(values)

    def curve(self, axis: str, rows: list[dict[str, float]]) -> None:
        self.run.define_metric(axis, summary="none")
        for key in sorted({k for row in rows for k in row} - {axis}):
            self.run.define_metric(key, step_metric=axis, summary="none")
        for row in rows:
            self.run.log(row)

    def table(self, key: str, columns: list[str], rows: list[list[Any]]) -> None:
        import wandb

        self.run.log({key: wandb.Table(columns=list(columns), data=rows)})

    def image(self, key: str, picture: Picture, caption: str = "", boxes: Boxes = ()) -> None:
        import wandb

        data = str(picture) if isinstance(picture, str | Path) else picture
        if isinstance(data, Image.Image):
            data = data.convert("RGB")
        regions = {"regions": {"box_data": [box(b) for b in boxes], "class_labels": {0: "region"}}} if boxes else None
        self.run.log({key: wandb.Image(data, caption=caption or None, boxes=regions)})

    def close(self, failed: bool = False) -> None:
        self.run.finish(exit_code=int(failed))


def box(sides: tuple[float, float, float, float]) -> dict[str, Any]:
    """A box in W&B's format, in fractions of the picture."""
    left, top, right, bottom = sides
    return {"position": {"minX": left, "minY": top, "maxX": right, "maxY": bottom}, "class_id": 0, "box_caption": "region"}
