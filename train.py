"""Trains TokenSR modules: `python train.py layer=12` for one layer, `python train.py layers=12-18` for seven in one run."""

import hydra

from blink_exp.cli import entry


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg):
    from blink_exp.commands.train import run
    from blink_exp.studies.jobs import job

    return job(run, cfg)


if __name__ == "__main__":
    entry(main, "train")
