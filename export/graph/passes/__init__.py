"""Graph passes of the ``ort`` dialect, one a file, in the manner of onnx-ir: each states its rule and when it holds."""
