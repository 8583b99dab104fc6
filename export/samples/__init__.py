"""Samples that a model is calibrated with or judged on, read with distrust."""
