"""Calibrate: what flows through the original on real inputs, reduced to what a quantizer takes, as it flows."""
