# Python 3.11, make and git are all this needs; everything else comes through pip into .venv.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# Numerics are single-threaded within a process; processes scale.
export OMP_NUM_THREADS ?= 1
export OPENBLAS_NUM_THREADS ?= 1
export TF_CPP_MIN_LOG_LEVEL ?= 3

.DEFAULT_GOAL := help
.PHONY: help run test lint bench torture clean setup

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 16

setup: $(STAMP)  ## make the virtual environment and install the project

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

run: $(STAMP)  ## simulate a small night, stream it through Kafka, end with a summary
	@$(BIN)/ztf-stream demo

# Two processes: on two cores that is what the tests of services, which wait a lot, leave room for.
TEST_PROCESSES ?= 2
test: $(STAMP)  ## run the tests (with a real Kafka broker and Redis, started here)
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadgroup --cov --cov-report=term:skip-covered

lint: $(STAMP)  ## ruff and mypy --strict on our own code
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)  ## the design's figures on this machine (minutes)
	$(BIN)/ztf-stream bench quadrant --json

N ?= 1000
SEED ?= 1
torture: $(STAMP)  ## N faults by SEED on a running system, compared with a clean run (N=1000: an hour)
	$(BIN)/python ops/torture.py --faults $(N) --seed $(SEED) --out torture-$(SEED).json

clean:  ## remove what was built, simulated and stored here (keeps .venv)
	rm -rf run store build dist htmlcov .coverage* .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
