"""An average: the plain mean of all weights since the start."""


def mean_since(first: float, images_seen: int, images_per_step: int) -> float:
    """beta for the mean over the steps after ``first`` images."""
    steps = (images_seen - first) / images_per_step
    return (steps - 1) / steps if steps > 1 else 0.0
