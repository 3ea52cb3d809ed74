"""Many configurations, one table: `python sweep.py -m thresholds=high_exp,low_drop`, `python sweep.py table=blink_table2`."""

from blink_exp.scripts import sweep  # makes it a command by @hydra.main, a word that Hydra's completion looks for here

if __name__ == "__main__":
    sweep()
