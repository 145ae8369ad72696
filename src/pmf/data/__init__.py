"""Data sets, the order of their images, and the loader that hands them to a rank."""
