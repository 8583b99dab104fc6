"""Facts about devices, each with its source, and the strict reader of their profiles."""
