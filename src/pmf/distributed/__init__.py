"""Processes: who is there, what each owns, weights in shards. The only room that knows Accelerate."""
