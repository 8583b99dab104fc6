"""State behind prefixes that a bundle ships."""
