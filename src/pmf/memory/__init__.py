"""How many bytes a training step needs, counted without computing anything."""
