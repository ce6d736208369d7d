# Every target sets up what it needs: Debian packages, the virtual environment, the project in it.
SHELL := /bin/bash
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

LOCKED = --universal --python-version 3.11 --generate-hashes pyproject.toml --extra chaos --group dev --group build
SECONDS_EACH = $(or $(SECONDS),10)

# STORE=fdb CLUSTER_FILE=… runs demo, soak, benchmarks and kill-rounds on FoundationDB.
ON_STORE = $(if $(STORE),--store $(STORE)) $(if $(CLUSTER_FILE),--cluster-file '$(CLUSTER_FILE)')

.PHONY: help demo up test test-long lock test-floors audit-dependencies rebalance bench-moves check bench bench-stores bench-bad-keys bench-directory bench-history kill-rounds soak chaos fuzz format clean

help: ## Say what there is to make
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1|/' | column -t -s '|'

$(READY): pyproject.toml requirements.lock tools/setup
	tools/setup $(PYTHON) $(VENV)
	touch $@

demo: $(READY) ## A minute of payments, three partners in trouble, and what it did to the others
	$(BIN)/python -m chaos.demo $(ON_STORE)

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
	$(BIN)/pytest -n 2 --dist loadfile tests/integration
	$(BIN)/pytest -m 'not long' tests/acceptance

test-long: $(READY) ## Tests that take too long for `make test`
	tools/setup-tests
	$(BIN)/pytest -m long tests/acceptance

lock: $(READY) ## Make requirements.lock anew: the newest versions that pyproject.toml allows, with their hashes
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --group lock
	$(BIN)/uv pip compile --quiet --upgrade $(LOCKED) --no-header --no-annotate -o requirements.lock

test-floors: $(READY) ## The unit tests on the oldest versions that pyproject.toml allows
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --group lock
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python .venv-floors
	VIRTUAL_ENV=.venv-floors $(BIN)/uv pip install --quiet --resolution lowest-direct --editable '.[chaos]'
	VIRTUAL_ENV=.venv-floors $(BIN)/uv pip install --quiet --group dev
	.venv-floors/bin/pytest -n 2 tests/unit tests/contract

audit-dependencies: $(READY) ## Known vulnerabilities of what requirements.lock names: asks pypi.org
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --group audit
	$(BIN)/pip-audit --strict --require-hashes --disable-pip --requirement requirements.lock

kill-rounds: $(READY) ## SIGKILL of everything at random moments, ten rounds
	@[ '$(STORE)' != fdb ] || [ -f '$(CLUSTER_FILE)' ] || { echo 'STORE=fdb needs CLUSTER_FILE=…, an existing file'; exit 2; }
	BULKHEAD_TEST_ROUNDS=10 $(if $(CLUSTER_FILE),BULKHEAD_TEST_FDB_CLUSTER_FILE='$(abspath $(CLUSTER_FILE))') \
		$(BIN)/pytest --timeout=1500 -k $(or $(STORE),sqlite) tests/acceptance/test_kill_everything.py

bench: $(READY) ## Throughput and latency of the whole gateway, open loop, up to its knee
	$(BIN)/python -m bench.gateway $(ON_STORE) $(if $(REPORT),--report $(REPORT))

bench-stores: $(READY) ## SQLite and FoundationDB in one table of one run: make bench-stores CLUSTER_FILE=…
	$(BIN)/python -m bench.gateway --stores sqlite,fdb $(if $(CLUSTER_FILE),--cluster-file '$(CLUSTER_FILE)') \
		$(if $(RATES),--rates $(RATES)) $(if $(REPORT),--report $(REPORT))

bench-bad-keys: $(READY) ## What a bad API key costs the router, beside a payment, and the cells
	$(BIN)/python -m bench.bad_keys $(if $(REPORT),--report $(REPORT))

bench-directory: $(READY) ## How soon a router goes by a revoked key, other limits or a suspension, with Redis and without
	$(BIN)/python -m bench.directory $(if $(REPORT),--report $(REPORT))

rebalance: $(READY) ## A cell added, partners rebalanced, one drained and removed under load: CELLS, PARTNERS, PER_SECOND, KILLS
	$(BIN)/python -m chaos.rebalance --cells $(or $(CELLS),8) --partners $(or $(PARTNERS),200) \
	  --per-second $(or $(PER_SECOND),300) --kills $(or $(KILLS),0) $(ON_STORE)

bench-moves: $(READY) ## What a move costs at several lengths of a partner's history
	$(BIN)/python -m bench.moves

bench-history: $(READY) ## What a payment costs as its partner's history grows to PAYMENTS (1000000: about 20 minutes)
	$(BIN)/python -m bench.history --payments $(or $(PAYMENTS),100000) $(ON_STORE)

MINUTES ?= 10
soak: $(READY) ## Everything is killed and stopped under load, for MINUTES=10; SEED= repeats a run
	$(BIN)/python -m chaos.soak --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) $(ON_STORE)

chaos: $(READY) ## Experiments on a gateway of their own: make chaos NAME=worker-killed; all of them without NAME
	$(BIN)/bulkhead chaos run --own $(or $(NAME),--all) $(if $(SECONDS),--duration $(SECONDS)) $(if $(SEED),--seed $(SEED))

fuzz: $(READY) ## Fuzz what reads bytes of others, each target for so long: make fuzz SECONDS=60
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --group fuzz || echo "atheris can't be installed here"
	for target in frames messages records requests directories; do \
		$(BIN)/python -m tests.fuzz.decoders $$target --seconds $(SECONDS_EACH) || exit 1; \
	done

format: $(READY) ## Put all files into the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## Remove the virtual environment, the data of demo, soak and chaos
	rm -rf $(VENV) .demo .soak .chaos *.egg-info
