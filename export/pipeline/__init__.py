"""The composer: from a request to a proven bundle."""
