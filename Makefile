# Two commands for a new clone: `make demo` and `make test`. Everything runs in .venv, installed from a lock file.
PYTHON ?= $(shell for p in python3.11 python3.12 python3; do $$p -c 'import sys; exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null && echo $$p && break; done)
# requirements.lock: CPU; requirements-cu112.lock: NVIDIA GPU. Without LOCK, what .venv was made from stays.
LOCK ?= $(or $(patsubst .venv/%.ready,%,$(firstword $(wildcard .venv/*.ready))),requirements.lock)
OTHER_WHEEL = $(if $(findstring cu112,$(LOCK)),mxnet,mxnet-cu112)
BIN := .venv/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
COMPILE := uv pip compile pyproject.toml --extra dev --extra onnx --extra openvino --extra serve --extra tensorboard --extra pretrained --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-header --no-annotate --quiet

.PHONY: help python venv demo test test-slow faults format-check lint types imports unit format lock clean

help:
	@echo "make demo        install, draw shapes, train a small SSD on them, export it, detect (a few minutes)"
	@echo "make test        format check, lint, types, import contracts, default tests; PROCESSES=4 for four at a time"
	@echo "make test-slow   the tests marked slow as well"
	@echo "make faults      kills, bit flips and inputs by the thousand; KILLS=10 FLIPS=100 INPUTS=10000 for fewer"
	@echo "make venv        install only; with LOCK=requirements-cu112.lock for an NVIDIA GPU"
	@echo "make format      reformat the code"
	@echo "make lock        recompute the lock files from pyproject.toml (needs uv)"
	@echo "make clean       remove .venv and caches"

python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or 3.12 is needed; set PYTHON=/path/to/python3.11" >&2; exit 2; }
	@echo $(PYTHON)

venv: .venv/$(LOCK).ready

.venv/$(LOCK).ready: $(LOCK)
	@$(MAKE) --silent python >/dev/null
	$(PYTHON) -m venv .venv
	@rm -f .venv/*.ready
	@$(PIP) --quiet uninstall --yes $(OTHER_WHEEL)
	$(PIP) install --require-hashes -r $(LOCK)
	@touch $@

demo: venv
	$(BIN)/python -m tools.demo_run

test: venv format-check lint types imports unit

format-check: venv
	$(BIN)/ruff format --check .

lint: venv
	$(BIN)/ruff check .

types: venv
	$(BIN)/mypy

imports: venv
	$(BIN)/lint-imports --config pyproject.toml

# Tests of one file share what they prepare, so they run in one process.
PROCESSES ?= 2
unit: venv
	$(BIN)/python -m pytest -n $(PROCESSES) --dist loadfile

test-slow: venv
	$(BIN)/python -m pytest -m "slow or not slow"

# A table for docs/reliability.md; of each phase, kind of file and parser.
KILLS ?= 100
FLIPS ?= 1000
INPUTS ?= 100000
ONLY ?= kills,flips,inputs
faults: venv
	$(BIN)/python -m tests.faults --kills $(KILLS) --flips $(FLIPS) --inputs $(INPUTS) --only $(ONLY) --write

format: venv
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock:
	$(COMPILE) --extra cpu -o requirements.lock
	$(COMPILE) --extra cu112 -o requirements-cu112.lock

clean:
	rm -rf .venv build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
