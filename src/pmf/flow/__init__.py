"""The papers: objective, derivative, guidance, sampler."""
