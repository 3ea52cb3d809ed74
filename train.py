"""Trains TokenSR modules: `python train.py layer=12` for one layer, `python train.py layers=12-18` for seven in one run."""

from blink_exp.scripts import train  # makes it a command by @hydra.main, a word that Hydra's completion looks for here

if __name__ == "__main__":
    train()
