"""ONNX Runtime on the CPU: graphs as they are."""
