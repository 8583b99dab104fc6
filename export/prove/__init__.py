"""Prove: how far an emitted module is from the original, segment by segment, in the memory of one block."""
