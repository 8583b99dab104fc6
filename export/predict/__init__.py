"""Memory and sizes before an export begins."""
