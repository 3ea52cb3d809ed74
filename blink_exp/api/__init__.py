"""The project as Python calls: models that answer, methods with their settings, a method on a model of one's own (docs/python.md)."""
