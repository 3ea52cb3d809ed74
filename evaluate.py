"""Evaluates one configuration: `python evaluate.py method=blink thresholds=high_exp grid=3x3 layers=11-17`."""

from blink_exp.scripts import evaluate  # makes it a command by @hydra.main, a word that Hydra's completion looks for here

if __name__ == "__main__":
    evaluate()
