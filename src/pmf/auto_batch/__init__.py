"""Finding the micro-batch that the hardware bears."""
