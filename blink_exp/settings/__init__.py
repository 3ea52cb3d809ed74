"""Typed settings: schemas and limits of all settings, checked before any work is done.

``roots`` and ``groups`` are dataclass schemas that Hydra composes conf/ into; ``targets`` those of models, methods, benchmarks, judges,
data sources and loggers. ``check`` validates composed settings; ``messages`` turns Hydra's errors into one line; ``words`` parses the
command line; ``compose`` composes settings without one.
"""
