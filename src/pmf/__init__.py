"""Pixel Mean Flows in PyTorch."""
