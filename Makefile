# Every target sets up what it needs, and can run twice.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SYSTEM_STAMP := $(VENV)/.system-packages
DOCS_STAMP := $(VENV)/.docs-installed
PIP_ARGS ?=
PYTEST_ARGS ?=
TEST_MARKS ?= not long and not sweep
TEST_PROCESSES ?= $(shell echo $$(( $$(getconf _NPROCESSORS_ONLN) + 2 )))
BENCH_ARGS ?=
EXPERIMENT_ARGS ?=
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(TEST_PROCESSES) --maxprocesses 4 \
  --dist loadscope --no-loadscope-reorder

# Where it is forbidden to write bytecode, each process compiles all modules and rewrites all tests for itself.
export PYTHONDONTWRITEBYTECODE :=
# libgomp spins at barriers unless told otherwise before torch is imported: one training step took 3,780 ms
# instead of 46 while another process used a core.
export OMP_WAIT_POLICY := PASSIVE
export DAGSTER_DISABLE_TELEMETRY := 1
export TOKENIZERS_PARALLELISM := false

.DEFAULT_GOAL := help
.PHONY: help setup demo experiment test faults check lint types ui bench docs clean

help:  ## Show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: $(SYSTEM_STAMP) $(STAMP)  ## Create .venv with everything, at the versions of constraints.txt

$(STAMP): pyproject.toml setup.py constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed: make setup PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check $(PIP_ARGS) "$$(grep '^torch==' constraints.txt)" -c constraints.txt
	$(BIN)/python -m pip install -q --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e ".[dev]"
	@touch $@

# Both are optional: tests that compare with ffprobe use the one, tests of the page the other. The headless shell takes
# half the processor time of the whole Chromium. They are looked for once: what is not to be had is not asked for again.
$(SYSTEM_STAMP):
	@mkdir -p $(VENV)
	@command -v ffprobe >/dev/null && command -v chromium-headless-shell >/dev/null || { \
	  if command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
	    install="apt-get install -y -qq --no-install-recommends"; \
	    (apt-get update -qq && $$install ffmpeg && { $$install chromium-headless-shell || $$install chromium; }) \
	      >/dev/null 2>&1 || echo "ffmpeg or chromium could not be installed; tests that need them are skipped"; \
	  else command -v ffprobe >/dev/null && command -v chromium >/dev/null \
	      || echo "no ffprobe or no chromium here: tests that need them are skipped (install them to run these)"; fi; }
	@touch $@

demo: setup  ## Build the toy dataset, raw videos to report, and print the metrics
	$(BIN)/vsr1 build --dataset toy
	$(BIN)/vsr1 report --dataset toy

experiment: setup  ## Three seeds of all methods on the toy corpus: means, intervals, claims (under 2 hours)
	$(BIN)/vsr1 experiment $(EXPERIMENT_ARGS)

# How they are shared out says tests/conftest.py. Two processes more than there are cores, as some tests wait.
test: setup  ## All tests but for a few long ones and the sweeps (with the long ones: TEST_MARKS="not sweep")
	$(PYTEST) -m "$(TEST_MARKS)" $(PYTEST_ARGS)

faults: setup  ## The long sweeps: every random edit, lost link and kill of which `make test` runs a few
	$(PYTEST) -m sweep $(PYTEST_ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: setup
	$(BIN)/mypy

check: lint types  ## Lint, format, types, import rules, and the fast tests
	$(PYTEST) -m "not slow and not sweep" $(PYTEST_ARGS)

ui: setup  ## Dagster's web UI on http://localhost:3000
	$(BIN)/vsr1 ui

bench: setup  ## Benchmarks: one table of ratios to plain ways, in build/bench.md (a part: BENCH_ARGS="test_search")
	$(BIN)/python -m tests.benchmarks $(BENCH_ARGS)

$(DOCS_STAMP): $(STAMP)
	$(BIN)/python -m pip install -q --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e ".[docs]"
	@touch $@

# The tests cover what mkdocs does not see: commands, variables, and the links of README.md.
docs: setup $(DOCS_STAMP)  ## Build the site in build/site; fails on a broken link or anchor and on a stale command
	$(BIN)/python -m pytest -q -m "not slow" tests/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "Wrote build/site/index.html"

clean:  ## Remove the environment and caches; the data under vsr1_home stays
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis
