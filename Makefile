.PHONY: check test lint bench

# Everything that has to be green before a change lands.
check: lint test

lint:
	uv run ruff check .
	uv run ruff format --check .
	uv run mypy

test:
	uv run pytest

# Timings; each prints a table and says what it ran on.
bench:
	uv run python benchmarks/bench_step.py --preset cpu
	uv run python benchmarks/bench_optimizer.py --preset tiny
	uv run python benchmarks/bench_loader.py --images 500 --workers 0 1 2
