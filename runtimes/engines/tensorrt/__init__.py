"""TensorRT on a GPU."""
