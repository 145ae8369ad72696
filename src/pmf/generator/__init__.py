"""Weights as an object of Python: loaded from anywhere, making images."""
