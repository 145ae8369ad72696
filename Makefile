.PHONY: check test lint bench

# The tests start many processes; with bytecode off each compiles torch's sources anew, for ten seconds or more.
unexport PYTHONDONTWRITEBYTECODE

# Everything that has to be green before a change lands.
check: lint test

lint:
	uv run ruff check .
	uv run ruff format --check .
	uv run mypy

test:
	uv run pytest -n auto --dist worksteal

# Timings of everything: one table, and a dated file in benchmarks/results. Leave the machine alone meanwhile.
bench:
	uv run python benchmarks/run_all.py
