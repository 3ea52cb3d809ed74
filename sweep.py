"""Many configurations, one table: `python sweep.py -m thresholds=high_exp,low_drop`, `python sweep.py table=blink_table2`."""

import hydra

from blink_exp.cli import entry, guard


@hydra.main(version_base="1.3", config_path="conf", config_name="sweep")
def main(cfg):
    from blink_exp.commands.sweep import run

    return guard(run, cfg)


def of_folder(words):
    from blink_exp.commands.sweep_folder import run

    return run(words)


if __name__ == "__main__":
    entry(main, "sweep", of_folder)
