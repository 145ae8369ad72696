"""Official checkpoints: their names and layouts, in and out."""
