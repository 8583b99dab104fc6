"""Memory, ranges and errors of a graph that is run on samples."""
