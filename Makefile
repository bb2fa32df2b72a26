# make serve   start the server with the bundled demo model (creates .venv, serving packages only)
# make test    every check but those with Chromium or Prometheus (adds the development and training packages to .venv)
#              On Linux, pypi.org's PyTorch brings several GB of CUDA; without a GPU, let pip find PyTorch's CPU build:
#              make test PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
# make test-system   those; installs what they need first where it may (Debian, as root)
.PHONY: help serve test test-system system-packages test-slow lint format clean
.DEFAULT_GOAL := help

HOST ?= 127.0.0.1
PORT ?= 8000
VENV ?= .venv
# The first interpreter that is new enough; `make PYTHON=/path/to/python serve` overrides it.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo "$$p"; break; }; done)
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check --quiet --no-input
BIN := $(VENV)/bin

help:
	@sed -n 's/^# //p' $(firstword $(MAKEFILE_LIST))

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or newer found; install one, or name it: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "==> creating $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/serve.stamp: pyproject.toml | $(BIN)/python
	@echo "==> installing the serving packages into $(VENV) (once; about 300 MB)"
	@$(PIP) install -e .
	@touch $@

# PIP_EXTRA_INDEX_URL has no default: pip would ask that index for every package, and wait for it where there is no way there.
$(VENV)/test.stamp: pyproject.toml | $(BIN)/python
	@echo "==> installing the development and training packages into $(VENV) (once; about 2 GB, and several more if PyTorch comes with CUDA: see make help)"
	@$(PIP) install -e '.[train,quantize,tensorrt,filter,otel,dev]'
	@touch $@ $(VENV)/serve.stamp

serve: $(VENV)/serve.stamp
	@echo "==> starting the server at http://$(HOST):$(PORT) (stop it with Ctrl-C)"
	@exec $(BIN)/pixart serve --host $(HOST) --port $(PORT)

lint: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	$(BIN)/python -m pytest

# Without root, install them by hand; a test whose program is missing fails and names it.
system-packages:
	@for program in chromium docker-compose prometheus promtool; do command -v $$program >/dev/null || missing="$$missing $$program"; done; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then echo "==> please install:$$missing" >&2; exit 0; fi; \
	echo "==> installing Chromium, Prometheus and Docker Compose from Debian's packages"; \
	export DEBIAN_FRONTEND=noninteractive; \
	apt-get -qq update && apt-get -qq install -y --no-install-recommends chromium docker-compose prometheus >/dev/null

test-system: $(VENV)/test.stamp system-packages
	$(BIN)/python -m pytest -m system tests/server tests/deploy

test-slow: $(VENV)/test.stamp
	$(BIN)/python -m pytest -m slow

format: $(VENV)/test.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist *.egg-info
