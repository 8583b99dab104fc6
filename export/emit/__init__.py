"""Emitters, one file per artifact format."""
