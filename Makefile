# Two commands do it all: `make demo` and `make test`. CONTRIBUTING.md has the developer's loop.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# PyTorch is only the tests' reference. The registry's plain build carries gigabytes of CUDA, so the
# CPU build is asked for by its full version; where pip cannot find one, uv knows PyTorch's own index.
TORCH := torch==2.13.0

.PHONY: demo test lint clean
demo: $(VENV)/.user
	scripts/demo.sh

test: $(VENV)/.dev $(VENV)/.tools
	$(BIN)/pytest

lint: $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	for model in model_repository/*/1/model.py; do $(BIN)/mypy $$model || exit 1; done

clean:
	rm -rf $(VENV) .tools demo .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 10), (3, 11), (3, 12)))' || \
	  { echo "make: Python 3.10, 3.11 or 3.12 is needed (Triton's Python backend and NumPy 1.26 meet there); name one: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.user: $(VENV)/.python pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[cpu]'
	touch $@

$(VENV)/.dev: $(VENV)/.python pyproject.toml
	$(BIN)/python -c 'import torch' 2>/dev/null || $(BIN)/pip install --quiet --disable-pip-version-check '$(TORCH)+cpu' || \
	  { $(BIN)/pip install --quiet uv && $(BIN)/uv pip install --python $(BIN)/python --torch-backend cpu '$(TORCH)'; }
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@ $(VENV)/.user

$(VENV)/.tools: $(VENV)/.dev scripts/test_tools.sh $(wildcard tests/tools/*)
	scripts/test_tools.sh
	touch $@
