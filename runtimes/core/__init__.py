"""The runner: from a prompt to tokens, one phase at a time."""
