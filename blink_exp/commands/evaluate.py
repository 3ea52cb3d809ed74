"""evaluate.py: which of its jobs a configuration asks for."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from blink_exp import tracking, viewer
from blink_exp.errors import UserError
from blink_exp.evaluation import results
from blink_exp.evaluation.evaluator import Incomplete, measure, prepare_benchmark
from blink_exp.evaluation.terminal import show
from blink_exp.settings.check import check
from blink_exp.studies.parity import run_parity
from blink_exp.studies.rescoring import score_again
from blink_exp.viewer.run import view


def run(cfg: DictConfig) -> dict[str, float]:
    """evaluate.py: measures ``cfg``, writes the output folder, prints a table. Returns the scores by name."""
    check(cfg)
    out = Path(HydraConfig.get().runtime.output_dir)
    if viewer.wanted(cfg):
        print(f"written to {view(cfg, out)}")
        return {}
    if OmegaConf.select(cfg, "table") is not None:
        if cfg.table.name != "parity":
            raise UserError(f"table={cfg.table.name} has many points; python sweep.py table={cfg.table.name}")
        run_parity(cfg, out)
        return {}
    if cfg.predictions is None:
        try:
            tracking.check(results.plain(cfg))
            finished = measure(cfg, out)
        except Incomplete as error:
            raise UserError(f"{error}; with hydra.run.dir={out} the same command goes on from the answers that are there") from None
        name = f"{finished['method']}-{finished['benchmark']}"
        tracking.log_point(results.plain(cfg), out, out, name, benchmark=partial(prepare_benchmark, cfg.copy()))
    else:
        finished = score_again(cfg, out)
    show(finished)
    for file in finished["files"]:
        print(f"to be scored elsewhere: {out / file}")
    print(f"written to {out}")
    return {k: v["value"] for k, v in finished["scores"].items()}
