"""What an experiment runs. A file of conf/table or conf/figure is data:

overrides       of every point, before its own, as evaluate.py takes them; what the user says on the command line comes last and wins
here, there     the benchmarks that it runs on: on a model that ships with this project, on any other. The user's ``benchmark=`` wins
at              {benchmark: overrides of every point on that one}
points          label, overrides; optionally ``published`` ({table, row, ...}, see ``reference.entry``), ``baseline`` (label of the
                point that it is compared with), ``match`` (see ``matching``), and for figures ``series`` and ``x``
sweeps          short for many points: series, x (a list) and overrides in which {x} stands for each
trains          overrides of a training whose modules the points use
"""

from __future__ import annotations

import hashlib
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from blink_exp.cli import one_line
from blink_exp.errors import UserError
from blink_exp.experiments.sweep import guarded

# of the sweep, not of its points
OWN_SETTINGS = ("table=", "table.", "figure=", "figure.", "store=", "force=", "report=", "dashboard=", "hydra.")


def own_words() -> list[str]:
    """What the user set on the command line for every point."""
    from hydra.core.hydra_config import HydraConfig

    return [word for word in HydraConfig.get().overrides.task if not word.startswith(OWN_SETTINGS)]


def key(word: str) -> str:
    return word.split("=")[0].lstrip("+~")


def points(experiment: dict[str, Any]) -> list[dict[str, Any]]:
    """Its points, those of ``sweeps`` written out."""
    found = list(experiment.get("points") or [])
    for sweep in experiment.get("sweeps") or []:
        for x in sweep["x"]:
            said = [word.replace("{x}", str(x)) for word in sweep["overrides"]]
            found.append({"label": f"{sweep['series']}: {x}", "series": sweep["series"], "x": x, "overrides": said})
    return found


def benchmarks(experiment: dict[str, Any], own: list[str], scale: bool) -> list[str]:
    """The benchmark presets that it runs on; the user's own, else ``here`` for a scale model and ``there`` for another."""
    said = [word.partition("=")[2] for word in own if key(word) == "benchmark"]
    listed = said[-1:] or experiment.get("here" if scale else "there") or []
    return [listed] if isinstance(listed, str) else list(listed)


def on_scale_model(experiment: dict[str, Any], own: list[str]) -> bool:
    """Whether it runs on a model that ships with this project."""
    from hydra import compose

    from blink_exp.backbone.load import shipped

    return shipped(compose("sweep", overrides=[*experiment.get("overrides", []), *own]).model.path) is not None


def words(experiment: dict[str, Any], point: dict[str, Any], benchmark: str) -> list[str]:
    """The overrides of a point on a benchmark. Of two with the same key, Hydra takes the later."""
    at = (experiment.get("at") or {}).get(benchmark, [])
    return [*experiment.get("overrides", []), f"benchmark={benchmark}", *at, *point["overrides"]]


def command(overrides: list[str], script: str = "evaluate.py") -> str:
    """The line that runs a point alone: of two words with the same key, the later."""
    last = {key(word): word for word in overrides}
    return shlex.join(["python", script, *last.values()])


def measured_run(cfg: DictConfig, first: list[str], own: list[str], label: str, match: str | None = None, **logged: Any) -> dict[str, Any]:
    """A point measured, or why it could not be. ``cfg``: the sweep's own settings. ``match``: see ``matching``; ``logged``: ``experiment``
    and ``x``, see ``sweep.guarded``."""
    from hydra import compose

    sweep = [f"store={cfg.store}", f"force={cfg.force}"]
    try:
        if match:
            from blink_exp.experiments.matching import matched

            first = [*first, *matched(compose("sweep", overrides=[*first, *own, *sweep]), match)]
        composed = compose("sweep", overrides=[*first, *own, *sweep])
    except UserError as error:
        return {"point": label, "status": "failed", "error": one_line(error)}
    return guarded(composed, label, **logged) | {"command": command([*first, *own])}


def trained(cfg: DictConfig, experiment: dict[str, Any], own: list[str]) -> list[str]:
    """The override that names the modules which an experiment ``trains``, on the user's own model and data; the training is run now unless
    the store has it. Nothing where the experiment trains none or the user names modules."""
    from hydra import compose

    from blink_exp.experiments import results
    from blink_exp.experiments.sweep import digests

    if not experiment.get("trains") or any(word.startswith("tokensr.path=") for word in own):
        return []
    models = [word for word in experiment.get("overrides", []) if key(word).partition(".")[0] == "model"]
    overrides = [
        *models,
        *experiment["trains"],
        *(word for word in own if key(word).partition(".")[0] in ("model", "trainer", "data", "seed")),
    ]
    settings = results.plain(compose("train", overrides=overrides))
    text = json.dumps([settings, digests(settings)["model"]], sort_keys=True)
    folder = (Path(cfg.store) / "trained" / hashlib.sha256(text.encode()).hexdigest()[:16]).resolve()
    if not (folder / "metrics.json").is_file():
        script = Path(__file__).resolve().parent.parent.parent / "train.py"
        print(f"training first: {command(overrides, 'train.py')}", flush=True)
        resume = [f"resume={folder}"] if (folder / "last.ckpt").is_file() else []
        done = subprocess.run([sys.executable, str(script), *overrides, *resume, f"hydra.run.dir={folder}"])
        if done.returncode:
            raise UserError(f"the training that this needs failed; see it alone: {command(overrides, 'train.py')}")
    return [f"tokensr.path={folder / 'tokensr'}"]
