"""Evaluates one configuration: `python evaluate.py method=blink thresholds=high_exp grid=3x3 layers=11-17`."""

from blink_exp.scripts import evaluate

if __name__ == "__main__":
    evaluate()
