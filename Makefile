# Each target sets up what it needs in .venv, once.
PYTHON ?= python3
SEED ?= 0
BIN := .venv/bin

.PHONY: quickstart pipeline recipes test test-slow lint benchmarks clean

quickstart: .venv/installed  ## train a small reasoning model from random weights
	$(BIN)/python examples/quickstart.py --seed $(SEED)

pipeline: .venv/installed  ## every stage from text to a model that reasons, and what each can do
	$(BIN)/pip install --quiet --editable '.[pipeline]'
	$(BIN)/python examples/pipeline.py

recipes: .venv/installed-dev  ## the smoke size of every recipe, on this machine and without a network
	OMP_NUM_THREADS=1 $(BIN)/python recipes/smoke/run.py

test: .venv/installed-dev  ## the tests that CI runs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

test-slow: .venv/installed-dev  ## launches on several processes, kills, long runs
	$(BIN)/python -m pytest -m slow

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

benchmarks: .venv/installed-dev  ## the tables of benchmarks/RESULTS.md
	$(BIN)/python -m benchmarks.correctness
	$(BIN)/python -m benchmarks.balancing
	$(BIN)/python -m benchmarks.architecture
	$(BIN)/python -m benchmarks.training
	$(BIN)/python -m benchmarks.faults

.venv/created:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "r1llama needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv
	touch $@

.venv/installed: pyproject.toml .venv/created
	$(BIN)/pip install --quiet --editable .
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv build runs .pytest_cache .ruff_cache .mypy_cache
