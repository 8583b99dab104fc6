"""The composer: `prepare` knows all of a bundle but its bytes, `export` writes them, `prove` says what they lost."""
