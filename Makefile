.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help
help:  ## list what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --constraint constraints.txt --build-constraint constraints.txt --editable '.[test]'
	@touch $@

.PHONY: setup
setup: $(READY)  ## build .venv from constraints.txt

.PHONY: demo
demo: $(READY)  ## a simulated night through real Airflow, from export to results, in a few minutes
	$(BIN)/python -m demo

.PHONY: up
up: $(READY)  ## the same, and leave Airflow running to look at
	$(BIN)/python -m demo --keep

.PHONY: down
down: $(READY)  ## stop what 'make up' left running
	$(BIN)/python -m demo --stop

.PHONY: cluster
cluster: $(READY)  ## docker-compose.yaml without Docker: two nights, a worker and a triggerer lost; needs PostgreSQL, Redis, Orthanc
	$(BIN)/python -m cluster

.PHONY: chaos
chaos: $(READY)  ## everything that may go wrong, on purpose, and all counted after each; NAME=... for one scenario, REMAINING=1 for what did not pass
	$(BIN)/python -m chaos $(if $(REMAINING),--remaining) $(NAME)

.PHONY: test
test: $(READY)  ## all tests that need no system package
	$(BIN)/python -m pytest -n 2 -m 'not system' --cov --cov-report=term:skip-covered --cov-fail-under=90

OLDEST := build/oldest
$(OLDEST)/.ready: $(READY) constraints-oldest.txt
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(OLDEST)
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(OLDEST)/bin/python --constraint constraints-oldest.txt \
	  --build-constraint constraints.txt --editable '.[test]'
	@touch $@

.PHONY: test-oldest
test-oldest: $(OLDEST)/.ready  ## the unit tests on the oldest Airflow that is promised
	$(OLDEST)/bin/python -m pytest -n 2 -m 'not system' tests/unit

.PHONY: test-system
test-system: $(READY)  ## the tests against real servers: Orthanc, dcmtk, PostgreSQL, a browser, Airflow's components
	$(BIN)/python -m pytest -m system

CASES ?= 100000

.PHONY: fuzz
fuzz: $(READY)  ## damage real files and answers, CASES=100000 times, and see whether anything but a named outcome comes of it
	PYTHONPATH=tests $(BIN)/python -m fuzz --cases $(CASES) $(if $(SEED),--seed $(SEED))

MINUTES ?= $(if $(FAST),2,15)

.PHONY: soak
soak: $(READY)  ## nights back to back with faults, to see whether anything grows; MINUTES=15, or 2 with FAST=1
	PYTHONPATH=tests $(BIN)/python -m soak --minutes $(MINUTES)

.PHONY: bench
bench: $(READY)  ## how fast, against peers and limits, side by side; FAST=1 takes less than 4 minutes
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --constraint constraints.txt --requirement pyproject.toml --extra bench
	$(BIN)/python -m benchmarks $(if $(FAST),--fast)

.PHONY: docs
docs: $(READY)  ## write docs/settings.md anew, from what Airflow is told
	$(BIN)/python -m docs.settings

.PHONY: lint
lint: $(READY)  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.PHONY: format
format: $(READY)  ## mend the style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-emit-index-url --no-annotate --no-header

.PHONY: constraints
constraints:  ## compile the constraints anew
	$(COMPILE) --all-extras pyproject.toml --output-file constraints.txt
	echo 'apache-airflow==3.3.0' | $(COMPILE) --extra test pyproject.toml - --output-file constraints-oldest.txt

.PHONY: clean
clean:  ## remove what was built
	rm -rf build dist $(VENV)
