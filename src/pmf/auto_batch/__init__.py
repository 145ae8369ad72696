"""Finding the micro-batch that fits the hardware."""
