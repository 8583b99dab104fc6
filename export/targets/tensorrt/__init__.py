"""TensorRT: graphs that its builder takes."""
