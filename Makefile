# make            show the commands
# Everything runs in .venv, which is made on first use and again whenever pyproject.toml changes.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.installed
# Two test processes with one torch thread each do not wait for each other's cores.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help demo test test-all lint bench clean

help:  ## show the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	@touch $@

demo: $(READY)  ## set up, export the reference model to every target, run it, show a table
	$(BIN)/python -m benchmarks.demo

test: $(READY)  ## the test suite, within 15 minutes on two cores
	$(PYTEST) -m "not slow"

test-all: $(READY)  ## the test suite with the slow matrix
	$(PYTEST)

lint: $(READY)  ## ruff, and mypy on an installed copy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build/typecheck build/lib
	$(BIN)/python -m pip install --quiet --no-deps --target build/typecheck .
	cd build/typecheck && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p omnigraph

bench: $(READY)  ## every figure of the README
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	$(BIN)/python -m benchmarks.all

clean:  ## remove what the other commands made
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
