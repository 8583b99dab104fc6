"""What works: model x target x precision x format, each exported, compiled, executed and measured on this machine."""
