"""Weights and states on disk: complete or absent, found, verified, read; ours and the official ones."""
