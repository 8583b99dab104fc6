"""The report of a bundle: what it is, what it lost, and where, as one HTML file."""
