"""What a run folder says of its run: facts, curves, strips of samples, a page."""
