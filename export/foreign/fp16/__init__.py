"""A user's graph in fp16, and the nodes that stay in fp32."""
