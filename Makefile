# florilegium: `make demo` installs everything and runs the main job; `make test` installs and tests.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.set-up
RUN ?= runs/demo
# processes of the tests and of mypy, of one thread each
WORKERS ?= 2
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# where it is set, each of the many processes of a run compiles its libraries anew
unexport PYTHONDONTWRITEBYTECODE
test test-long check: export OMP_NUM_THREADS ?= 1

# uv takes half a minute where pip takes three; pip knows the indices of its own settings, should uv find too little
define install
$(BIN)/python -m pip install --quiet -c constraints.txt uv && $(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '$(1)' \
  || $(BIN)/python -m pip install --quiet --no-compile -c constraints.txt -e '$(1)'
endef

.PHONY: help demo test check test-long test-faults site tour assets bench set-up clean
.DEFAULT_GOAL := help

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */\1|/' | column -t -s '|'

set-up: $(STAMP)  ## a virtual environment in .venv with the pinned stack (skipped when it is up to date)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' \
	  || { echo "florilegium needs Python 3.11 or 3.12: make PYTHON=python3.11 ..." >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(call install,.[dev])
	touch $@

demo: $(STAMP)  ## the main job: FedMMKT on the embedded data beside two controls, into runs/demo
	rm -rf $(RUN)
	$(BIN)/florilegium run out=$(RUN) references=controls evaluation.every=4 $(ARGS)

test: $(STAMP)  ## ruff (lint and format), mypy and the tests of every day
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -n $(WORKERS)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

check: $(STAMP)  ## ruff, mypy and the tests that start no Flower processes
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -n $(WORKERS)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m 'not flower and not browser and not faults and not long' $(ARGS)

test-long: $(STAMP)  ## tests that take long: the notebook, Ctrl-C and errors of whole launches, several processes, more cases of one kind
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m long $(ARGS)

test-faults: $(STAMP)  ## processes killed, refused and slowed on real federations over loopback (under 15 minutes)
	$(BIN)/python -m pytest -m faults tests/faults tests/field $(ARGS)

site: $(STAMP)  ## the documentation as a site, into build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet $(ARGS)

tour: $(STAMP)  ## run docs/tour.ipynb and store its outputs
	$(BIN)/python tools/tour.py

assets: $(STAMP)  ## rebuild the embedded data and models from packages (hours on a CPU; resumable)
	$(call install,.[assets])
	$(BIN)/python tools/build_assets.py $(ARGS)

bench: $(STAMP)  ## the figures that have a bar, without those of long scripts, into bench/results, docs/performance.md and docs/scaling.md (under 20 minutes)
	$(BIN)/python bench/all.py $(ARGS)

clean:  ## remove the virtual environment and what tests leave behind
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache
