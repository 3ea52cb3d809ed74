"""Benchmarks of speed and memory: ``python -m bench``. What was measured where is in docs/performance.md; no test asserts a time."""
