"""The tables of docs/scaling.md."""
