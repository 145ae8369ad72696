"""Official checkpoints, from and to ours."""
