"""Weights from fp32 rows to the bytes that an engine stores, and the nodes that read them."""
