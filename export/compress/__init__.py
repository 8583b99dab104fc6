"""Make a smaller checkpoint of a checkpoint."""
