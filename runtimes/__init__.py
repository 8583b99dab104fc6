"""The device side: loads and runs a bundle with numpy and one engine; never torch, never edgeglm.export."""
