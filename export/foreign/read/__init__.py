"""A user's file, read with distrust, and the samples of its inputs."""
