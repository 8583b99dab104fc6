"""Measures of a model: a phone agent's actions, a language model's text."""
