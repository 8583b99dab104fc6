"""The choices of a bundle of a user's graph, and the memory that they take."""
