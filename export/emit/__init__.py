"""One file an artifact format: `onnx` today; TensorRT, TFLite and QNN context binaries go beside it."""
