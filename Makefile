# Everything a person runs here. Each target sets up what it needs in .venv on its first run.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-system test test-fast lint format docs screenshots notebooks bench chaos fuzz pins contract clean

help:  ## list these commands
	@awk -F ':[^#]*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY)  ## .venv with everything that is pinned

$(READY): requirements.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "karmalake needs Python 3.11 or newer; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes --requirement requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

demo: setup  ## events in, scores out, in about a minute; run it again to add to the lake
	$(BIN)/karmalake demo

demo-system: setup  ## a service, PostgreSQL, relay, Kafka, stream, Redis and notify; each killed once (needs Java)
	$(BIN)/python -m examples

test: setup  ## every test; starts the servers that it needs; ONE=tests/test_drain.py or ONE="-k name" for some
	$(BIN)/python -m pytest $(or $(ONE),-n 2 --dist loadfile --durations 10)

test-fast: setup  ## in under two minutes: the embedded servers only, fewer random examples, nothing slow
	HYPOTHESIS_EXAMPLES=10 $(BIN)/python -m pytest -n 2 -m "not jvm and not services and not slow"

lint: setup  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: setup  ## fix what lint can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: setup  ## write the reference pages anew from the code, the chart from the results, and the site into site/
	$(BIN)/python -m docs._site.reference docs
	$(BIN)/python -m benchmarks.chart
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

notebooks: setup  ## run the notebooks on the tests' small world, and keep their outputs
	$(BIN)/python -m tests.notebooks

screenshots: setup  ## take the pictures of dashboard and Dagster anew (needs chromium)
	$(BIN)/python docs/_site/screenshots.py

bench: setup  ## measure for 15 minutes on a quiet machine; BENCH="dedup history" for what takes longer
	$(BIN)/python -m benchmarks $(or $(BENCH),ingest backfill publish freshness footprint)

chaos: setup  ## kill whatever works on a lake for 30 minutes, then audit it; MINUTES=5 for less
	$(BIN)/python -m tests.chaos $(or $(MINUTES),30)

fuzz: setup  ## attack every door for bytes from outside, a minute each; TARGETS="avro json" SECONDS=3600 for some by the hour
	$(BIN)/python -m tests.fuzz $(TARGETS) --seconds $(or $(SECONDS),60) $(if $(SEED),--seed $(SEED))

pins: setup  ## compile requirements.txt, and requirements-image.txt for the Dockerfile, from pyproject.toml
	$(BIN)/uv pip compile pyproject.toml --group dev --universal --python-version 3.11 --generate-hashes --no-strip-extras --no-emit-index-url --upgrade --quiet --output-file requirements.txt
	$(BIN)/uv pip compile pyproject.toml --group image --extra avro --extra dashboard --extra postgresql --constraint requirements.txt --universal --python-version 3.11 --generate-hashes --no-strip-extras --no-emit-index-url --quiet --output-file requirements-image.txt

contract: setup  ## generate the Protobuf module from event.proto
	$(BIN)/python -m grpc_tools.protoc --proto_path=. --python_out=. --pyi_out=. pipelines/contract/event.proto

clean:  ## stop the local services and remove what was made, the lake included
	-$(BIN)/karmalake local stop
	rm -rf $(VENV) data
