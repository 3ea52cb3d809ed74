"""``python -m blink_exp.train``: train.py, where there is no clone. A table starts its trainings so."""

from blink_exp.scripts import train

if __name__ == "__main__":
    train()
