"""Inputs that are not text, as the encoders take them."""
