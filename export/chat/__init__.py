"""Proof that the device renders and encodes conversations as transformers does."""
