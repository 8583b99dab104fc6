"""Validation: an emitted bundle against the original, by the metrics of its task, over an evaluation set."""
