"""A user's own ONNX graph: read, checked, converted, measured."""
