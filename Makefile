# make run      a demonstration on a temporary tree; or SOURCE=/a SITE=/b [JOURNAL=/c]: mirror it
# make test     all tests that this machine can run
# make check    a minute: format, lint, types, imports (make lint), unit tests
# make torture  long campaigns with random seeds
# make bench    measure beside peers: see benchmarks/README.md
# make install  [PREFIX=/usr/local] [DESTDIR=DIR], make uninstall: see mount-scripts/install.mk
# Each does the set-up it needs first; the second time that takes no time.

VENV := $(CURDIR)/.venv
BIN := $(VENV)/bin
SEED ?= $(shell date +%N)
# Mounting needs root: what mounts is run through sudo where we are not root and there is one.
ROOT := $(shell [ "$$(id -u)" -eq 0 ] || command -v sudo)
AS_ROOT = $(ROOT) env PATH="$(BIN):$$PATH" PYTHONDONTWRITEBYTECODE=1

.PHONY: run test lint check torture bench setup clean

run: setup
ifeq ($(SOURCE)$(SITE),)
	@$(AS_ROOT) python -m tests.demo
else
	@$(AS_ROOT) JOURNAL="$(JOURNAL)" mount-scripts/mirror "$(SOURCE)" $(SITE)
endif

test: EXTRA_PACKAGES := postgresql
test: setup
	@$(AS_ROOT) REQUIRE="$(REQUIRE)" CI="$(CI)" COVERAGE_FILE=/tmp/mirrorfs-coverage.$$$$ sh -c ' \
	    python -m coverage run -m pytest -p no:cacheprovider $(ARGS) && python -m coverage report \
	        && python -m coverage report --fail-under=100 --include="$$(python -m tests.test_tidy)"; \
	    status=$$?; rm -f "$$COVERAGE_FILE"; exit $$status'

lint: setup
	@$(BIN)/ruff format --check --quiet . || { echo "to mend it: $(BIN)/ruff format"; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy --no-error-summary
	@out=$$($(BIN)/lint-imports --no-logo) || { echo "$$out"; exit 1; }

check: lint
	@$(BIN)/python -m pytest -q tests/unit tests/test_tidy.py

torture: EXTRA_PACKAGES := postgresql
torture: setup
	@echo "CAMPAIGN=long SEED=$(SEED)"
	@$(AS_ROOT) CAMPAIGN=long SEED=$(SEED) HYPOTHESIS_PROFILE=explore python -m pytest --timeout=0 -s $(ARGS)

bench: EXTRA_PACKAGES := xrootd-fuse lsyncd
bench: setup
	@for each in engine lag through burst catchup hot_names large backlog federation journal; do $(AS_ROOT) python -m benchmarks.$$each $(ARGS) || exit; echo; done

setup:
	@.ci/setup "$(VENV)" $(EXTRA_PACKAGES)

include mount-scripts/install.mk

clean:
	@rm -rf "$(VENV)" .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	@rm -rf build ./*.egg-info
