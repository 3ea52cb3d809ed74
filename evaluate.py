"""Evaluates one configuration: `python evaluate.py method=blink thresholds=high_exp grid=3x3 layers=11-17`."""

import hydra

from blink_exp.cli import entry


@hydra.main(version_base="1.3", config_path="conf", config_name="evaluate")
def main(cfg):
    from blink_exp.commands.evaluate import run
    from blink_exp.studies.jobs import job

    return job(run, cfg)


if __name__ == "__main__":
    entry(main, "evaluate")
