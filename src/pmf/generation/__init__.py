"""From weights to images: image i of a plan is a function of the seed and i."""
