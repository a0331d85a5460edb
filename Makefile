# The commands of a developer. Each target creates .venv on its first run.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-system services test test-fast lint format docs screenshots notebooks bench chaos fuzz pins contract clean

help:  ## list the targets
	@awk -F ':[^#]*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY)  ## create .venv with all pinned packages

$(READY): requirements.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "karmalake needs Python 3.11 or newer; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes --requirement requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

demo: setup  ## events in, scores out, in about a minute; run it again to add to the lake
	$(BIN)/karmalake demo

demo-system: setup  ## service, PostgreSQL, relay, Kafka, stream, Redis and notify, each killed once (needs Java)
	$(BIN)/python -m examples

services: setup  ## install the servers of the tests that pip does not have, as root or with sudo on Debian
	@$(BIN)/python -m tests.services.install

test: services  ## all tests, on servers that they start; ONE=tests/test_drain.py or ONE="-k name" selects some
	$(BIN)/python -m pytest $(or $(ONE),-n 3 --dist loadfile --no-loadscope-reorder --durations 10)

test-fast: setup  ## the fast tests, in under two minutes: embedded servers only, fewer random examples
	HYPOTHESIS_EXAMPLES=10 $(BIN)/python -m pytest -n 2 -m "not jvm and not services and not slow"

lint: setup  ## style, types, spelling and vocabulary
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/codespell
	$(BIN)/python -m tests.words

format: setup  ## fix what ruff can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: setup  ## regenerate the reference pages and the chart, and build the site in site/
	$(BIN)/python -m docs._site.reference docs
	$(BIN)/python -m benchmarks.chart
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

notebooks: setup  ## run the notebooks on a small simulated world and save their outputs
	$(BIN)/python -m tests.notebooks

screenshots: setup  ## retake the pictures of the dashboard and of Dagster (needs Chromium)
	$(BIN)/python docs/_site/screenshots.py

bench: setup  ## run the benchmarks of 15 minutes on an idle machine; BENCH="dedup history" selects others
	$(BIN)/python -m benchmarks $(or $(BENCH),ingest backfill publish freshness footprint)

chaos: setup  ## inject faults for 30 minutes, then audit the lake; MINUTES=5 for less, SEED=1 to repeat
	$(BIN)/python -m tests.chaos $(or $(MINUTES),30) $(if $(SEED),--seed $(SEED))

fuzz: setup  ## fuzz every input for a minute each; TARGETS="avro json" SECONDS=3600 selects some, for longer
	$(BIN)/python -m tests.fuzz $(TARGETS) --seconds $(or $(SECONDS),60) $(if $(SEED),--seed $(SEED))

pins: setup  ## pin requirements.txt and requirements-image.txt from pyproject.toml, the tests' jars from their poms
	$(BIN)/uv pip compile pyproject.toml --group dev --universal --python-version 3.11 --generate-hashes --no-strip-extras --no-emit-index-url --upgrade --quiet --output-file requirements.txt
	$(BIN)/uv pip compile pyproject.toml --group image --extra avro --extra dashboard --extra postgresql --constraint requirements.txt --universal --python-version 3.11 --generate-hashes --no-strip-extras --no-emit-index-url --quiet --output-file requirements-image.txt

	$(BIN)/python -m tests.services.jars kafka cassandra # with Maven

contract: setup  ## generate the Protobuf module from event.proto
	$(BIN)/python -m grpc_tools.protoc --proto_path=. --python_out=. --pyi_out=. pipelines/contract/event.proto

clean:  ## stop the local services; delete .venv and data, the lake included
	-$(BIN)/karmalake local stop
	rm -rf $(VENV) data
