"""From weights to images, and from images to numbers."""
