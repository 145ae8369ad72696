"""Arithmetic and memory of a training step, counted without computing anything."""
