"""Matrix of what works: model x target x precision x format, each exported, compiled, executed and measured here."""
