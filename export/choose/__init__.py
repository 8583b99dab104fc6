"""Choices that need no weight: precision, format, size of images."""
