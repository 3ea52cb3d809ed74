"""train.py whose second process fails in its second step: what a broken disk or a full card does to one of many. See test_deepspeed.py."""

import sys
from pathlib import Path

import hydra

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))
import blink_exp.settings.roots  # noqa: F401


@hydra.main(version_base="1.3", config_path="../../conf", config_name="train")
def main(cfg):
    from blink_exp.cli import guard
    from blink_exp.commands.train import run
    from blink_exp.training.module import TokenSRTraining

    step = TokenSRTraining.training_step

    def training_step(self, batch, batch_idx):
        if self.global_rank == 1 and batch_idx == 1:
            raise RuntimeError("the second process fails here")
        return step(self, batch, batch_idx)

    TokenSRTraining.training_step = training_step
    return guard(run, cfg)


if __name__ == "__main__":
    main()
