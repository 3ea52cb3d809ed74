"""Drawn scenes and their questions: what the mosaic benchmarks and the scale models are made of."""
