# The commands of development and CI. `make help` lists them.
#
#   make test PYTHON=/usr/bin/python3.11     choose the interpreter (3.11 or 3.12)
#   make run ARGS="--port 8080 --workers 2"  pass arguments on
#   make test JOBS=1                         run one test at a time; most of the time of the tests is waiting

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

VENV ?= .venv
PYTHON ?=
ARGS ?=
JOBS ?= 4
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --extra build pyproject.toml

.PHONY: help run demo test faults fuzz soak bench check format lock

help:           ## this list
	@sed -n 's/^\([a-z]*\):[^#]*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 20

run: $(VENV)/run.stamp           ## start everything on http://127.0.0.1:8000, with servers of its own unless URLs are set
	@exec $(BIN)/adjourn serve $(ARGS)

demo: $(VENV)/run.stamp          ## play a day of traffic through everything, and compare the result with the script
	@exec $(BIN)/adjourn demo $(ARGS)

test: $(VENV)/dev.stamp          ## all tests but the slow ones
	@exec $(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m "not slow" $(ARGS)

faults: $(VENV)/dev.stamp        ## kill and stop every part, many times, and compare the result with an oracle (27 minutes)
	@exec $(BIN)/python -m pytest tests/faults -m faults $(ARGS)

fuzz: $(VENV)/dev.stamp          ## requests generated from the OpenAPI document, with every kind of key (schemathesis, all checks)
	@exec $(BIN)/python -m pytest tests/acceptance/test_openapi_cases.py -m slow -rP $(ARGS)

bench: $(VENV)/dev.stamp         ## measure; FAST=1 for a quick round
	@exec $(BIN)/python -m bench $(ARGS)

check: $(VENV)/dev.stamp         ## format, lint, types, import contracts, tests; must pass before a commit
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	@$(MAKE) test

format: $(VENV)/dev.stamp        ## lay out the code and apply mechanical fixes
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: $(VENV)/dev.stamp          ## pin the newest versions that pyproject.toml allows, with hashes
	$(COMPILE) --upgrade --output-file requirements.lock
	$(COMPILE) --upgrade --extra embedded --constraint requirements.lock --output-file requirements-embedded.lock
	$(COMPILE) --upgrade --extra dev --constraint requirements-embedded.lock --output-file requirements-dev.lock

$(VENV)/run.stamp: requirements-embedded.lock pyproject.toml .ci/find-python
	@if ! $(BIN)/python -c '' 2>/dev/null; then \
		python="$$(.ci/find-python $(PYTHON))"; \
		echo "making $(VENV) with $$python"; \
		"$$python" -m venv --clear $(VENV); \
	fi
	$(PIP) install --quiet --require-hashes --requirement requirements-embedded.lock
	@# The lock holds setuptools, so nothing unpinned is fetched to build the project.
	$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/dev.stamp: $(VENV)/run.stamp requirements-dev.lock
	$(PIP) install --quiet --require-hashes --requirement requirements-dev.lock
	@touch $@
