"""Weights to play with: an app on this machine, and a page that runs them in the browser."""
