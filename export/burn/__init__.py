"""Runs a bundle on a device, or an emulated one, and compares what it answers with this machine."""
