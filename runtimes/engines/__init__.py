"""Engines, one folder each; a folder is imported when a module of its engine is opened."""
