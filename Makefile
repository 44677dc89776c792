# Each target does its own set-up: a machine with Python 3.11 and make is enough.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# The first of these that runs and is 3.11 or newer (a name that is there may be a shim of a version that is not).
PYTHON ?= $(shell for python in python3.11 python3 python3.12 python3.13; do \
	"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo "$$python" && break; done)
BIN := .venv/bin
STAMP := .venv/installed
EXTRAS := bandits,box2d,hub,minari,minatar,onnx,tensorboard,video,window,test,lint
WORKERS ?= 2

.PHONY: help setup demo test quick lint bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-6s  %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## create .venv and install into it (the others do it themselves)

# A .venv that is there already is used as it is; what it lacks is installed.
$(STAMP): pyproject.toml constraints.txt
	@if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
		test -n "$(PYTHON)" || { echo "rldistill needs Python 3.11 or newer: install it, or say make PYTHON=/path/to/python"; exit 1; }; \
		echo "creating .venv with $(PYTHON)"; \
		$(PYTHON) -m venv .venv; \
	fi
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@

demo: $(STAMP) ## distil the shipped Pong teacher, evaluate the student, write the report
	$(BIN)/rldistill demo

lint: $(STAMP) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict src

test: lint ## lint, then all tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)

quick: $(STAMP) ## the tests that are not marked slow
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) -m "not slow"

bench: $(STAMP) ## measure the rates of this machine and of the pipeline
	$(BIN)/python benchmarks/throughput.py

clean: ## remove what the tools and the demo leave (.venv, runs and data stay)
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist demo
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
