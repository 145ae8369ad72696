.PHONY: check lint test slow bench

# The tests start many processes; with bytecode off each compiles torch's sources anew, for ten seconds or more.
unexport PYTHONDONTWRITEBYTECODE

PYTEST = uv run pytest -n auto --dist worksteal

# Everything that has to be green before a change lands, but for the slow tests.
check: lint test

lint:
	uv run ruff check .
	uv run ruff format --check .
	uv run mypy

test:
	$(PYTEST) -m "not slow"

# Restarts by torchrun, kills at random, searches for a batch size, the recipe on JPEGs: minutes.
slow:
	$(PYTEST) -m slow

# Timings of everything: one table, and a dated file in benchmarks/results. Leave the machine alone meanwhile.
bench:
	uv run python benchmarks/run_all.py
