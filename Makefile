# The commands of a developer. Each target creates .venv on its first run.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
COMPILE := $(BIN)/uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --no-strip-extras --no-emit-index-url --quiet

# Without byte code each process compiles all that it imports, for seconds: uv installs none, and tests start hundreds.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-system demo-sources services test test-fast test-containers lint format docs screenshots notebooks bench chaos fuzz pins contract release clean

help:  ## list the targets
	@awk -F ':[^#]*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.ready  ## create .venv with all pinned packages

$(VENV)/.ready: requirements.txt pyproject.toml | $(VENV)/.uv
	$(call install,requirements.txt,250 packages and the tests' servers: a few minutes)

$(VENV)/.demo: requirements-demo.txt pyproject.toml | $(VENV)/.uv
	$(call install,requirements-demo.txt,150 packages: one to two minutes)

# The locked uv installs, in a fraction of pip's time, and shows progress; pip does it where uv cannot.
$(VENV)/.uv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "karmalake needs Python 3.11 or newer; set PYTHON=")'
	@echo "creating $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@awk '/^[^ ]/ {found = /^uv==/} found' requirements.txt >$(VENV)/uv.txt
	-@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement $(VENV)/uv.txt
	@touch $@

define install
	@echo "installing $(2), once"
	@$(BIN)/uv pip install --python $(BIN)/python --require-hashes --requirement $(1) || $(BIN)/python -m pip install --require-hashes --requirement $(1)
	@$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@
endef

demo: $(VENV)/.demo  ## events in, scores out, in about a minute; run it again to add to the lake
	@$(BIN)/karmalake demo

demo-system: setup  ## service, PostgreSQL, relay, Kafka, stream, Redis and notify, each killed once (needs Java)
	$(BIN)/python -m examples

demo-sources: setup  ## four topics that others designed, by four source files, under kills of the ingest
	$(BIN)/python -m examples.foreign

services: setup  ## install the servers of the tests that pip does not have, as root or with sudo on Debian
	@$(BIN)/python -m tests.services.install

# With jemalloc, where it is installed, tests with many statements of DuckDB take a seventh less.
# The processes that they start have the system's malloc, as with a user.
PYTEST = LD_PRELOAD=$$($(BIN)/python -c "from ctypes.util import find_library; print(find_library('jemalloc') or '')") $(BIN)/python -m pytest

test: services  ## all tests, on servers that they start; ONE=tests/test_drain.py or ONE="-k name" selects some, LONG=1 leaves out no case
	$(PYTEST) $(or $(ONE),-n 4 --dist loadfile --no-loadscope-reorder --durations 10)

test-fast: setup  ## the fast tests: without servers; SHARE=4 runs the files of today, of four days that run all
	$(PYTEST) -n 2 -m "not jvm and not services and not slow" --share $(or $(SHARE),1)

test-containers: setup  ## build the images and run compose.yaml, where Docker is; as root it is started if it only is installed
	$(BIN)/python -m pytest tests/containers

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

pins: setup  ## pin the requirements*.txt from pyproject.toml, and the jars of the tests from their poms (with Maven)
	$(COMPILE) --group dev --all-extras --upgrade --output-file requirements.txt
	$(COMPILE) --group build --extra all --constraint requirements.txt --output-file requirements-demo.txt
	$(COMPILE) --group build --extra avro --extra postgresql --extra proto --extra s3 --constraint requirements.txt --output-file requirements-stream.txt
	$(COMPILE) --group image --extra avro --extra dagster --extra dashboard --extra outbox --extra postgresql --extra proto --extra s3 --constraint requirements.txt --output-file requirements-dagster.txt
	$(BIN)/python -m tests.services.jars kafka cassandra

contract: setup  ## generate the Protobuf modules from event.proto and score_change.proto
	cd pipelines/contract && $(abspath $(BIN))/python -m grpc_tools.protoc --proto_path=. --python_out=. --pyi_out=. event.proto score_change.proto

release: setup  ## make a release here and publish nothing: VERSION=x.y.z; CONTRIBUTING.md has the steps
	$(BIN)/python -m tools.release "$(VERSION)"

clean:  ## stop the local services; delete .venv and data, the lake included
	-$(BIN)/karmalake local stop
	rm -rf $(VENV) data
