"""Search for the best bundle that passes, on this machine or on a cluster."""
