# make            show the commands
# Everything runs in .venv, which is made on first use and again whenever pyproject.toml changes.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.installed
# Two test processes with one torch thread each do not wait for each other's cores.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal
# Builds the sdist, and the wheel from it: nothing that lies in build/ gets in.
BUILD  := $(BIN)/python -m build --quiet --no-isolation
# What a build leaves in the root hides, from Python started there, the metadata of the installed
# package and so its entry points; and a later sdist would hold the files that it lists.
TIDY   := rm -rf *.egg-info

.DEFAULT_GOAL := help
.PHONY: help ready demo demo-all test test-all fuzz lint bench bench-quick dist clean

help:  ## show the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	@touch $@

ready: $(READY)  ## set up .venv, and nothing else
	@$(TIDY)

demo: ready  ## set up, export the reference model to every target, run it, show a table
	$(BIN)/python -m benchmarks.demo

demo-all: ready  ## the same for every precision
	$(BIN)/python -m benchmarks.demo --all

test: ready  ## the test suite, within 15 minutes on two cores
	$(PYTEST) -m "not slow"

test-all: ready  ## the test suite with the slow matrix
	$(PYTEST)

fuzz: ready  ## 10,000 damages to artifacts and models, within an hour or two
	$(BIN)/python -m benchmarks.fuzz

lint: ready  ## ruff, and mypy on an installed copy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build
	$(BUILD) --outdir build/wheel
	@$(TIDY)
	$(BIN)/python -m pip install --quiet --no-deps --target build/typecheck build/wheel/*.whl
	cd build/typecheck && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p omnigraph

bench: ready  ## every figure of the README
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	@$(TIDY)
	$(BIN)/python -m benchmarks.all

bench-quick: ready  ## integers beside floats and beside the vendors' own, in 3 minutes
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	@$(TIDY)
	$(BIN)/python -m benchmarks.quick

dist: ready  ## wheel and sdist, in dist/
	rm -rf dist
	$(BUILD) --outdir dist
	@$(TIDY)

clean:  ## remove what the other commands made
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
