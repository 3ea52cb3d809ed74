"""Schemas of the config groups whose presets differ, a file a kind; ``targets`` has them by ``_target_``."""
