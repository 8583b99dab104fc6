"""A user's graph in one form: one way to write what exporters write in many, and no node that constants fold."""
