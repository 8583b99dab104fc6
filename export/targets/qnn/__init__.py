"""QNN: compilation and proof of modules for a Qualcomm NPU."""
