"""The original model, in memory or streamed layer by layer."""
