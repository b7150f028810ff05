# make help lists the verbs.  Variables: PORT, HOST, MODEL, MULES, WORKERS, THREADS, QUEUE, SERVING_<NAME>; ARGS for chaos, soak, overload, bench and profile; PEERS for bench-peers.
SHELL := /bin/bash
PYTHON ?= python3
PORT ?= 8080
# extras of the package: tensorflow, or gpu for tensorflow[and-cuda]; more engines with commas, as tensorflow,onnx
EXTRA ?= tensorflow
IMAGE ?= muleteer
VENV := .venv
BIN := $(VENV)/bin
export PORT

.PHONY: help serve reload test check chaos soak overload bench bench-peers profile image clean
.DEFAULT_GOAL := help

help: ## list the verbs
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20
	@echo "  for example: make serve PORT=9000 MODEL=examples/fancy MULES=4"

serve: $(VENV)/.ready nginx $(if $(filter-out models/digits,$(MODEL)),,models/digits) ## install what is missing, then serve MODEL (models/digits) on HOST:PORT
	@LOG_DIR="$${LOG_DIR:-run/$(PORT)}" ./entrypoint.sh

reload: ## let the server on PORT take what has changed, without a failed request (ALL=1: everything anew)
	@./entrypoint.sh reload $(if $(ALL),--all)

test: $(VENV)/.dev nginx strace chromium prometheus carbon-cache collectd models/digits ## run all tests, on real processes
	@$(BIN)/python -m pytest $(TESTS)

check: $(VENV)/.dev ## format, lint, types, then the tests
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(MAKE) --no-print-directory test

chaos: $(VENV)/.dev nginx models/digits ## kill, stop, poison and flood a real server under load, and count what it loses
	@$(BIN)/python -m bench.chaos --out bench/results/chaos.md $(ARGS)

soak: $(VENV)/.dev nginx models/digits ## half an hour of load, and what grows under it
	@$(BIN)/python -m bench.soak --out bench/results/chaos.md $(ARGS)

overload: $(VENV)/.dev nginx ## ten times what a server can do, and what it still does
	@$(BIN)/python -m bench.overload --out bench/results/chaos.md $(ARGS)

bench: $(VENV)/.dev nginx ## compare with the peers that are installed, measure how ours grows, and what engines cost
	@$(BIN)/python -m bench.compare $(ARGS)
	@$(if $(ARGS),,$(BIN)/python -m bench.growth)
	@$(if $(ARGS),,$(BIN)/python -m bench.engines)
	@$(if $(ARGS),,$(BIN)/python -m bench.dialects)
	@$(if $(ARGS),,$(BIN)/python -m bench.calls)
	@$(if $(ARGS),,$(BIN)/python -m bench.observe)

bench-peers: $(VENV)/.dev ## install the peers, all or PEERS, each into an environment of its own (12 GB)
	@$(BIN)/python -m bench.peer $(PEERS)

profile: $(VENV)/.dev nginx strace models/digits ## where the time of one request goes: stages, system calls, flame graphs
	@$(BIN)/python -m bench.profile $(ARGS)

image: ## build the image
	docker build -t $(IMAGE) .

clean: ## remove what was built, trained and logged
	rm -rf $(VENV) run models build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

# ---- what the verbs stand on

.PHONY: nginx strace chromium prometheus carbon-cache collectd python
python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null || { \
	  echo "muleteer: $(PYTHON) is not Python 3.11, 3.12 or 3.13: make serve PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "muleteer: Python's venv is missing: apt-get install python3-venv" >&2; exit 1; }
	@command -v cc >/dev/null || command -v gcc >/dev/null || { \
	  echo "muleteer: a C compiler is missing, and uWSGI is built from source: apt-get install gcc libc6-dev" >&2; exit 1; }
	@$(PYTHON) -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' || { \
	  echo "muleteer: Python's headers are missing, and uWSGI is built from source: apt-get install python3-dev" >&2; exit 1; }

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(MAKE) --no-print-directory python
	@echo "muleteer: installing into $(VENV) (TensorFlow is some 250 MB, uWSGI is compiled: a minute or two)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --progress-bar on --disable-pip-version-check -c constraints.txt -e '.[$(EXTRA),examples]'
	@ln -sf ../../entrypoint.sh $(BIN)/muleteer
	@touch $@

$(VENV)/.dev: $(VENV)/.ready
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[$(EXTRA),examples,dev]'
	@# messages for clients alone; it asks for TensorFlow by one of its names, and tensorflow-cpu is another
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt --no-deps tensorflow-serving-api
	@touch $@

# the packages of those that are called otherwise
PACKAGE_carbon-cache := graphite-carbon
PACKAGE_collectd := collectd-core
# Debian starts the nginx and the Prometheus that it installs: not here, where only the binaries are wanted
nginx strace chromium prometheus carbon-cache collectd: PACKAGE = $(or $(PACKAGE_$@),$@)
nginx strace chromium prometheus carbon-cache collectd:
	@PATH="$$PATH:/usr/sbin" command -v $@ >/dev/null || { \
	  if [ "$$(id -u)" != 0 ]; then \
	    echo "muleteer: $@ is missing: sudo apt-get install -y --no-install-recommends $(PACKAGE)" >&2; exit 1; fi; \
	  echo "muleteer: installing $@"; \
	  policy=/usr/sbin/policy-rc.d; \
	  if [ ! -e $$policy ]; then printf '#!/bin/sh\nexit 101\n' > $$policy; chmod +x $$policy; trap "rm -f $$policy" EXIT; fi; \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(PACKAGE) >/dev/null; }

models/digits: | $(VENV)/.ready
	@mkdir -p models run
	@$(BIN)/python examples/digits/train.py $@ 2>run/train.log || { cat run/train.log >&2; exit 1; }
