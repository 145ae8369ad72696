"""The run: steps, checkpoints, samples and evaluations along the way."""
