# Two commands for a new clone: `make demo` and `make test`. Everything runs in .venv, installed from the lock file.
PYTHON ?= $(shell for p in python3.11 python3.12 python3; do $$p -c 'import sys; exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
PACKAGES := config boxes dataset symbol train evaluate detect deploy tools

.PHONY: help venv demo test test-slow format lint types imports unit lock clean

help:
	@echo "make demo        install, draw shapes, train a small SSD on them, export it, detect (about 6 minutes)"
	@echo "make test        format check, lint, types, import contracts, default tests"
	@echo "make test-slow   the tests marked slow as well"
	@echo "make format      reformat the code"
	@echo "make lock        recompute requirements.lock from pyproject.toml (needs uv)"

venv: .venv/ready

.venv/ready: requirements.lock
	@test -n "$(PYTHON)" || { echo "Python 3.11 or 3.12 is needed; set PYTHON=/path/to/python3.11"; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@touch $@

demo: venv
	$(BIN)/python -m tools.demo_run

test: venv format-check lint types imports unit

.PHONY: format-check
format-check: venv
	$(BIN)/ruff format --check .

lint: venv
	$(BIN)/ruff check .

types: venv
	$(BIN)/mypy

imports: venv
	$(BIN)/lint-imports --config pyproject.toml

unit: venv
	$(BIN)/python -m pytest

test-slow: venv
	$(BIN)/python -m pytest -m "slow or not slow"

format: venv
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock:
	uv pip compile pyproject.toml --extra cpu --extra dev --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-header --no-annotate -o requirements.lock

clean:
	rm -rf .venv build
