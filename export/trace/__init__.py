"""Trace the parts of a model, weightless, from transformers' own classes; `tracer` runs `child` in a process."""
