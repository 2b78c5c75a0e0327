# Every target sets itself up: a virtual environment in .venv, made once and brought up to date
# when pyproject.toml changes. Name an interpreter with `make test PYTHON=/path/to/python`.

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip
READY := $(VENV)/.ready
PYTHONS := $(or $(PYTHON),python3.13 python3.12 python3.11 python3)

# torch on PyPI brings gigabytes of CUDA libraries to Linux. Without an NVIDIA driver the CPU build
# does; where its index cannot be reached, this release is asked of the configured index.
TORCH_CPU := https://download.pytorch.org/whl/cpu
TORCH_FALLBACK := torch==2.13.0

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DELETE_ON_ERROR:
.PHONY: help setup demo test figures clean

help:
	@echo "make demo     erase a cat from the bundled model and report on it"
	@echo "make test     linter, formatter, type checker and tests"
	@echo "make figures  measure the figures of the documentation again (takes long)"
	@echo "make setup    only the virtual environment in $(VENV)"
	@echo "make clean    delete $(VENV), caches and builds; runs/ stays"

setup: $(READY)

demo: $(READY)
	$(BIN)/expunge demo

# One thread in each worker: two workers with two threads each would fight over two cores.
test: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

figures: $(READY)
	$(BIN)/python benchmarks/figures.py

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@for python in $(PYTHONS); do \
	  if "$$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' \
	    2>/dev/null; then exec "$$python" -m venv $(VENV); fi; \
	done; \
	echo "Expunge needs Python 3.11 or newer with its venv module; none of these is:" \
	  "$(PYTHONS). Install one, or name it: make PYTHON=/path/to/python" >&2; \
	exit 1

$(READY): pyproject.toml | $(BIN)/python
	$(PIP) install --quiet --upgrade "pip>=25.1"
	@if [ "$$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null; then \
	  echo "no NVIDIA driver here: torch comes as its CPU build"; \
	  $(PIP) install --timeout 10 --retries 0 --index-url $(TORCH_CPU) torch || \
	  { echo "that index gave no torch; $(TORCH_FALLBACK) comes from the configured one"; \
	    $(PIP) install "$(TORCH_FALLBACK)"; }; \
	fi
	$(PIP) install --editable . --group dev
	@touch $@
