"""Quantized checkpoints as plain ones: `formats` knows them, a file a format finds matrices, `matrix` reads them."""
