"""Pack: write a bundle so that a kill at any moment loses neither the bundle that was there nor finished work."""
