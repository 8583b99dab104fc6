"""Graphs from traces: stamped, fused, checked against an engine and made to conform."""
