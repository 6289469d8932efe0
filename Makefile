# Two commands for a fresh machine: `make demo` and `make test`. Both make .venv first.

# The first of these that is 3.11 or newer and can make virtual environments; PYTHON=... takes another one.
FITS := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for name in python3.11 python3.12 python3.13 python3.14 python3 python; do \
	"$$name" -c "$(FITS)" 2>/dev/null && echo "$$name" && break; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# One worker more than cores: the tests wait for second processes, locks and the disk a sixth of their time.
CORES := $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
WORKERS := -n $(shell expr $(CORES) + 1) --maxprocesses 8 --dist worksteal
TEST_STAMP := $(VENV)/.installed-test
TORCH := $(VENV)/.installed-torch

.PHONY: demo test test-quick check format types arrows tests clean

# A shell that forbids .pyc files would have each of the tests' processes compile all that it imports: 15 s each.
export PYTHONDONTWRITEBYTECODE :=
COMPILED := $(VENV)/.compiled

# torch comes first and alone: where a CPU build lies at hand pip takes that one, and nothing later replaces it.
# Modules are compiled when they are first imported: most of what is installed never is.
INSTALL := $(BIN)/pip install --quiet --no-compile
$(TORCH): constraints.txt
	@"$(PYTHON)" -c "$(FITS)" 2>/dev/null || { echo "Espalier needs Python 3.11 or newer with venv and ensurepip (Debian, Ubuntu:" \
		"apt install python3-venv); found: $$(python3 --version 2>&1 || true). Name one: make demo PYTHON=/path/to/python" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(INSTALL) "$$(grep '^torch==' constraints.txt)"
	touch $@

$(STAMP): $(TORCH) pyproject.toml
	$(INSTALL) --constraint constraints.txt --editable .
	touch $@

$(TEST_STAMP): $(TORCH) pyproject.toml
	$(INSTALL) --constraint constraints.txt --editable ".[test,deepspeed]"
	touch $(STAMP) $@

demo: $(STAMP)
	$(BIN)/espalier demo

# The checks need one core for most of a minute; the other one compiles what the tests import.
test: $(TEST_STAMP)
	$(MAKE) --jobs --output-sync=target format types arrows $(COMPILED)
	$(MAKE) tests

# Only time is lost where an import fails: the tests say why.
WHAT_TESTS_IMPORT := import accelerate, deepspeed, peft, lm_eval.__main__, pytest; pytest.main(["--collect-only", "-qq"])
$(COMPILED): $(TEST_STAMP)
	$(BIN)/python -c '$(WHAT_TESTS_IMPORT)' >/dev/null 2>&1 || true
	touch $@

# What takes a fraction of a second each, in about three minutes; `make test` runs all.
test-quick: $(TEST_STAMP)
	$(BIN)/python -m pytest -m "not slow" $(WORKERS)

check: $(TEST_STAMP)
	$(MAKE) --jobs --output-sync=target format types arrows

format: $(TEST_STAMP)
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/ruff check src tests benchmarks

types: $(TEST_STAMP)
	$(BIN)/mypy

arrows: $(TEST_STAMP)
	$(BIN)/lint-imports

tests: $(TEST_STAMP)
	$(BIN)/python -m pytest $(WORKERS)

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .import_linter_cache
