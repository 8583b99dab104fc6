"""Graph fixes for what an engine refuses, one a file, in the manner of onnx-ir: each states its rule."""
