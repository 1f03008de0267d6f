# Two commands do it all: `make demo` and `make test`. CONTRIBUTING.md has the developer's loop.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/uv pip install --quiet --python $(BIN)/python
# PyTorch is only the tests' reference. The registry's plain build carries gigabytes of CUDA, so the
# CPU build is asked for by its full version; where pip cannot find one, uv knows PyTorch's own index.
TORCH := torch==2.13.0
# vLLM has thousands of modules, which would be compiled at each start where nothing may write them.
VLLM_INSTALL := $(INSTALL:$(BIN)/python=.tools/vllm/bin/python) --compile-bytecode

LOADERS_INSTALL := $(INSTALL:$(BIN)/python=.tools/transformers4/bin/python)

# What a server of any lane must do.
CONTRACT_TESTS := $(addprefix tests/serve/test_,contract.py ensemble.py plain_infer.py batches.py \
  token_model.py streams.py sampling.py refusals.py classic_clients.py)

.PHONY: demo test test-docs test-wheel site test-standins test-vllm test-clients test-loaders test-eval test-ray test-images check lint unit lock mutants fuzz loaded-test clean
# DEMO=--exit ends after the answers; DEMO=--free-ports takes other ports than those in use.
demo: $(VENV)/.user
	$(BIN)/nemotron demo $(DEMO)

# Three processes, because tests that serve wait most of the time.
test: $(VENV)/.dev $(VENV)/.tools
	$(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder

# The pages' slow commands too.
test-docs: $(VENV)/.dev
	$(BIN)/pytest --docs tests/docs

# sdist and wheel, installed in a clean environment, with which the demo runs elsewhere.
test-wheel: $(VENV)/.dev
	scripts/test_wheel.sh

# The pages as a site in site/, which python -m http.server -d site serves, with its search.
site: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# The contract on the lanes of TensorRT-LLM, with a stand-in for the library.
test-standins: $(VENV)/.dev
	$(BIN)/pytest --lane tensorrt $(CONTRACT_TESTS)
	$(BIN)/pytest --lane pytorch $(CONTRACT_TESTS)

# The contract on a real vLLM, which takes two gigabytes in .tools/vllm and Python 3.11 or later.
test-vllm: $(VENV)/.dev $(VENV)/.vllm
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder --lane vllm tests/vllm $(CONTRACT_TESTS)

# Clients of others, unmodified, each in an environment of its own: 0.8 GB in .tools/clients.
CLIENT_TOOLS ?= .tools/clients
test-clients: $(VENV)/.dev
	scripts/client_tools.sh $(CLIENT_TOOLS)
	$(BIN)/pytest --clients $(CLIENT_TOOLS) tests/clients

# The Hugging Face folder in transformers 4 and 5, vLLM and llama.cpp's converter: 4 GB in .tools.
test-loaders: $(VENV)/.dev $(VENV)/.vllm $(VENV)/.loaders
	$(BIN)/pytest --lane loaders tests/loaders

# The harnesses of `nemotron eval` and `nemotron redteam` on the real stack, and one of them on vLLM.
HARNESSES ?= .tools/harnesses
LOG_LIKELIHOOD := "tests/harnesses/test_lm_eval.py::test_by_log_likelihood[HF tokenizer, 4 at once]"
test-eval: $(VENV)/.dev $(VENV)/.vllm $(addprefix $(VENV)/.harness-,lm-eval garak mt-bench) \
  $(addprefix $(VENV)/.tried-,guardrails inspect)
	$(BIN)/pytest --harnesses $(HARNESSES) tests/harnesses
	$(BIN)/pytest --harnesses $(HARNESSES) --lane vllm $(LOG_LIKELIHOOD)

# Shards of batches and recipes as tasks of a real Ray: 0.4 GB in .tools/ray.
RAY ?= .tools/ray
test-ray: $(VENV)/.dev $(VENV)/.ray
	$(BIN)/pytest --ray $(RAY) tests/ray

# The images, built by buildah and run by podman in a store of their own, as root on Debian. Where the
# store lacks a base, it gets a stand-in of Debian and this Python 3.12: 4 GB, some minutes.
IMAGES ?= demo/images
IMAGE_PYTHON ?= python3.12
test-images: $(VENV)/.dev
	scripts/debian_packages.sh tests/containers/debian.list
	$(BIN)/pytest --lane containers --images $(IMAGES) --image-python $(IMAGE_PYTHON) tests/containers

# Lint, types, import contracts and the fast tests, in a minute and a half.
check: lint unit

lint: $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	for model in model_repository/*/1/model.py; do $(BIN)/mypy $$model || exit 1; done
	$(BIN)/lint-imports
	$(BIN)/vulture
	$(BIN)/codespell

unit: $(VENV)/.dev
	$(BIN)/pytest -n 3 -m "not slow"

lock: $(VENV)/.python
	scripts/lock.sh

# By hand, for about an hour: mutate core rules and run their unit tests. ONLY="stop fp8" takes some.
mutants: $(VENV)/.mutants
	$(BIN)/python -m tests.mutants $(ONLY)

# By hand, for eleven minutes: damaged checkpoints for the readers; findings stay in FINDINGS.
FINDINGS ?= demo/findings
fuzz: $(VENV)/.dev
	$(BIN)/python -m tests.fuzz.readers --minutes 11 --findings $(FINDINGS)

# By hand: all tests beside eight busy processes, to show that none depends on time. In six processes,
# because two would get a fifth of the machine: two hours on two cores.
loaded-test: $(VENV)/.dev $(VENV)/.tools
	scripts/beside_load.sh $(BIN)/pytest -n 6 --dist loadfile --no-loadscope-reorder

clean:
	rm -rf $(VENV) .tools demo my site dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 10), (3, 11), (3, 12)))' || \
	  { echo "make: Python 3.10, 3.11 or 3.12 is needed (Triton's Python backend and NumPy 1.26 meet there); name one: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check 'uv>=0.9,<1'
	touch $@

$(VENV)/.user: $(VENV)/.python pyproject.toml locks/demo.txt
	$(INSTALL) --require-hashes --requirements locks/demo.txt
	$(INSTALL) --no-deps --editable .
	touch $@

$(VENV)/.dev: $(VENV)/.python pyproject.toml locks/test.txt
	$(BIN)/python -c 'import torch' 2>/dev/null || $(BIN)/pip install --quiet --disable-pip-version-check '$(TORCH)+cpu' || \
	  $(INSTALL) --torch-backend cpu '$(TORCH)'
	$(INSTALL) --require-hashes --requirements locks/test.txt
	$(INSTALL) --no-deps --editable .
	touch $@ $(VENV)/.user

$(VENV)/.tools: $(VENV)/.dev scripts/test_tools.sh $(wildcard tests/tools/*)
	scripts/test_tools.sh
	touch $@

$(VENV)/.vllm: $(VENV)/.dev $(VENV)/.tools tests/vllm/requirements.txt tests/vllm/left_out.txt
	$(BIN)/uv venv --quiet --allow-existing --python $(BIN)/python .tools/vllm
	$(BIN)/pip --python .tools/vllm/bin/python install --quiet --disable-pip-version-check '$(TORCH)+cpu' || \
	  $(VLLM_INSTALL) --torch-backend cpu '$(TORCH)'
	$(VLLM_INSTALL) --override tests/vllm/left_out.txt --requirements tests/vllm/requirements.txt
	$(VLLM_INSTALL) --no-deps --editable .
	touch $@

$(VENV)/.loaders: $(VENV)/.dev tests/loaders/requirements.txt tests/loaders/fetch_llama_cpp.py
	$(BIN)/uv venv --quiet --allow-existing --python $(BIN)/python .tools/transformers4
	$(BIN)/pip --python .tools/transformers4/bin/python install --quiet --disable-pip-version-check '$(TORCH)+cpu' || \
	  $(LOADERS_INSTALL) --torch-backend cpu '$(TORCH)'
	$(LOADERS_INSTALL) --requirements tests/loaders/requirements.txt
	$(BIN)/python tests/loaders/fetch_llama_cpp.py .tools/llama_cpp
	touch $@

# Each harness by its lock, and beside them what only the tests run.
$(VENV)/.harness-%: $(VENV)/.dev evaluate/nemotron_evaluate/harnesses/locks/%.txt
	$(BIN)/nemotron eval install $* --environments $(HARNESSES)
	touch $@

$(VENV)/.tried-%: $(VENV)/.dev tests/harnesses/%.txt
	$(BIN)/uv venv --quiet --allow-existing --python $(BIN)/python $(HARNESSES)/$*
	$(INSTALL:$(BIN)/python=$(HARNESSES)/$*/bin/python) --requirements tests/harnesses/$*.txt
	touch $@

$(VENV)/.ray: $(VENV)/.dev tests/ray/requirements.txt
	$(BIN)/uv venv --quiet --allow-existing --python $(BIN)/python $(RAY)
	$(INSTALL:$(BIN)/python=$(RAY)/bin/python) --constraint tests/ray/requirements.txt --editable '.[ray]'
	touch $@

$(VENV)/.mutants: $(VENV)/.dev tests/mutants/requirements.txt
	$(BIN)/uv venv --quiet --allow-existing --python $(BIN)/python .tools/mutants
	$(INSTALL:$(BIN)/python=.tools/mutants/bin/python) --requirements tests/mutants/requirements.txt
	touch $@
