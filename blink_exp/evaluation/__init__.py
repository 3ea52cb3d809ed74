"""Evaluates one configuration on one benchmark: predictions, records, scores, and the store of finished points."""
