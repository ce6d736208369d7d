# Every target sets up what it needs: Debian packages, the virtual environment, the project in it.
SHELL := /bin/bash
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

SECONDS_EACH = $(or $(SECONDS),10)

.PHONY: help demo up test check bench bench-history kill-rounds soak fuzz format clean

help: ## Say what there is to make
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1|/' | column -t -s '|'

$(READY): pyproject.toml tools/setup
	tools/setup $(PYTHON) $(VENV)
	touch $@

demo: $(READY) ## A minute of payments, three partners in trouble, and what it did to the others
	$(BIN)/python -m chaos.demo

up: $(READY) ## Run the gateway until Ctrl-C
	$(BIN)/bulkhead up

check: $(READY) ## Format, lint, types, import contracts, unit tests: about a minute
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -n 4 tests/unit tests/contract

test: check ## Everything that is to pass before a change lands
	tools/setup-tests
	$(BIN)/pytest tests/integration tests/acceptance

kill-rounds: $(READY) ## SIGKILL of everything at random moments, ten rounds
	BULKHEAD_TEST_ROUNDS=10 $(BIN)/pytest --timeout=1500 tests/acceptance/test_kill_everything.py

bench: $(READY) ## Throughput and latency of the whole gateway, open loop, up to its knee
	$(BIN)/python -m bench.gateway $(if $(REPORT),--report $(REPORT))

bench-history: $(READY) ## What a payment costs as its partner's history grows to PAYMENTS (1000000: about 20 minutes)
	$(BIN)/python -m bench.history --payments $(or $(PAYMENTS),100000)

MINUTES ?= 10
soak: $(READY) ## Everything is killed and stopped under load, for MINUTES=10; SEED= repeats a run
	$(BIN)/python -m chaos.soak --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))

fuzz: $(READY) ## Fuzz what reads bytes of others, each target for so long: make fuzz SECONDS=60
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --group fuzz || echo "atheris can't be installed here"
	for target in frames messages records requests directories; do \
		$(BIN)/python -m tests.fuzz.decoders $$target --seconds $(SECONDS_EACH) || exit 1; \
	done

format: $(READY) ## Put all files into the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## Remove the virtual environment, the demo's data and the soak's
	rm -rf $(VENV) .demo .soak *.egg-info
