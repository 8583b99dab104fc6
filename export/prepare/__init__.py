"""Prepare: all of a bundle but its bytes, from headers alone."""
