"""Typed settings: what every setting of train.py, evaluate.py and sweep.py may be, checked before any work is done.

``roots`` and ``groups`` are dataclass schemas that Hydra composes conf/ into; ``targets`` those of models, methods, benchmarks, judges,
data sources and loggers. ``check`` holds composed settings against them; ``messages`` says Hydra's errors in one line; ``words`` reads
the command line; ``compose`` is for whoever has no command line.
"""
