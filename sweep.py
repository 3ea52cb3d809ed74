"""Many configurations, one table: `python sweep.py -m thresholds=high_exp,low_drop`, `python sweep.py table=blink_table2`."""

from blink_exp.scripts import sweep

if __name__ == "__main__":
    sweep()
