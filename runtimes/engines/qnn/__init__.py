"""A Qualcomm NPU through onnxruntime-qnn."""
