# make run      a demonstration on a temporary tree; or SOURCE=/a SITE=/b [JOURNAL=/c]: mirror it
# make test     all tests that this machine can run
# make check    a minute: format, lint, types, imports, unit tests
# make torture  long campaigns with random seeds
# Each does the set-up it needs first; the second time that takes no time.

VENV := $(CURDIR)/.venv
BIN := $(VENV)/bin
SEED ?= $(shell date +%N)

.PHONY: run test check torture setup clean

run: setup
	@PATH="$(BIN):$$PATH" SOURCE="$(SOURCE)" SITE="$(SITE)" JOURNAL="$(JOURNAL)" mount-scripts/mirror

test: setup
	@$(BIN)/python -m coverage run -m pytest
	@$(BIN)/python -m coverage report

check: setup
	@$(BIN)/ruff format --check --quiet . || { echo "run: $(BIN)/ruff format"; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/python -m pytest -q tests/unit tests/test_tidy.py

torture: setup
	@echo "CAMPAIGN=long SEED=$(SEED)"
	@CAMPAIGN=long SEED=$(SEED) HYPOTHESIS_PROFILE=explore $(BIN)/python -m pytest --timeout=0 -s

setup:
	@.ci/setup "$(VENV)"

clean:
	@rm -rf "$(VENV)" .coverage .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	@rm -rf build ./*.egg-info
