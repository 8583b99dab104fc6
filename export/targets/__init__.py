"""Modules that need a vendor's compiler or another file format, one folder each."""
