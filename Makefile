# hotset: everything a developer runs. `make help` lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install -qq --disable-pip-version-check
JOBS ?= $(shell nproc)
MODEL ?= smollm2-135m-instruct
PROMPT ?= Why is the sky blue?
STORY ?= Once upon a time
TORCH := torch==2.13.0

export CMAKE_BUILD_PARALLEL_LEVEL := $(JOBS)
ifneq ($(shell command -v ccache),)
export CMAKE_CXX_COMPILER_LAUNCHER := ccache
endif

NATIVE := CMakeLists.txt pyproject.toml $(shell find native tests/native -name '*.cc' -o -name '*.h' 2>/dev/null)
PACKAGE := $(NATIVE) $(shell find src -name '*.py')
CXX_FILES = $(shell git ls-files -co --exclude-standard 'native/*.cc' 'native/*.h' 'tests/native/*.cc' 'tests/native/*.h')
PY_DIRS := src tests scripts bench

.PHONY: help demo demo-chat dev test lint format native-test count-test py-test test-full test-arm sanitize bench-dense bench-sparse bench-start bench-ppl \
  bench-micro check-instructions report clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-18s %s\n", $$1, $$2}'

# --- environments: a stamp file says what is up to date ------------------------------------------------
$(BIN)/python:
	@scripts/bootstrap.sh $(VENV)

$(VENV)/installed: $(PACKAGE) | $(BIN)/python
	@echo "building and installing hotset into $(VENV)"
	@$(PIP) .
	@touch $@

# Editable: Python is used in place, and one build tree serves the extension and the native tests.
$(VENV)/dev: $(NATIVE) | $(BIN)/python
	@echo "building hotset for development in build/dev"
	@$(PIP) $$($(BIN)/python scripts/requirements.py dev)
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(PIP) --no-build-isolation --no-deps -Cbuild-dir=build/dev \
	  -Ccmake.define.HOTSET_NATIVE_TESTS=ON -e .
	@touch $@

dev: $(VENV)/dev  ## the development environment in .venv

demo: $(if $(wildcard $(VENV)/dev),$(VENV)/dev,$(VENV)/installed)  ## build; a sparse model tells a story with a third of its neurons in memory
	@mkdir -p build
	@$(BIN)/hotset plan stories-13m --set predictor=gate --set hot=0 --set cold_slots=2560 --output build/story-plan.json
	@$(BIN)/hotset run stories-13m "$(STORY)" --echo --temperature 0.6 --top-k 40 --stats --plan build/story-plan.json

demo-chat: $(if $(wildcard $(VENV)/dev),$(VENV)/dev,$(VENV)/installed)  ## build, get a real model, let it answer
	@$(BIN)/hotset pull $(MODEL)
	@$(BIN)/hotset run $(MODEL) "$(PROMPT)" --max-tokens 128

# --- tests ---------------------------------------------------------------------------------------------
test: lint native-test count-test py-test  ## all checks and tests of a commit; pytest's summary comes last

lint: $(VENV)/dev  ## ruff, mypy, clang-format, direction of imports
	$(BIN)/ruff check $(PY_DIRS)
	$(BIN)/ruff format --check --quiet $(PY_DIRS)
	$(BIN)/mypy
	@$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)
	$(BIN)/python scripts/check_imports.py

format: $(VENV)/dev  ## rewrite the sources in the house format
	$(BIN)/ruff check --quiet --fix $(PY_DIRS) || true
	$(BIN)/ruff format --quiet $(PY_DIRS)
	$(BIN)/clang-format -i $(CXX_FILES)

native-test: $(VENV)/dev
	@PATH="$(CURDIR)/$(BIN):$$PATH" ctest --test-dir build/dev --output-on-failure --no-tests=error

count-test: $(VENV)/dev
	@$(BIN)/python -m bench.instructions --if-comparable

py-test: $(VENV)/dev
	$(BIN)/python -m pytest -m "not full"

# Live comparison with PyTorch and transformers, in an environment of its own.
build/full-venv/ready: $(NATIVE)
	@scripts/bootstrap.sh build/full-venv
	@build/full-venv/bin/pip install -qq --disable-pip-version-check $(TORCH) \
	  $$(build/full-venv/bin/python scripts/requirements.py dev peers train)
	@PATH="$(CURDIR)/build/full-venv/bin:$$PATH" build/full-venv/bin/pip install -qq --no-build-isolation --no-deps \
	  -Cbuild-dir=build/full -e .
	@touch $@

test-full: build/full-venv/ready  ## every test, the slow ones and those against transformers included
	build/full-venv/bin/python -m pytest

test-arm: $(VENV)/dev  ## native tests for aarch64 under qemu
	PATH="$(CURDIR)/$(BIN):$$PATH" scripts/test_arm.sh build/arm

sanitize: $(VENV)/dev  ## native tests under address, undefined-behaviour and thread sanitizers
	PATH="$(CURDIR)/$(BIN):$$PATH" scripts/sanitize.sh build

# --- measurements --------------------------------------------------------------------------------------
bench-dense: $(VENV)/dev  ## hotset and llama.cpp on the same weights, in turn
	$(BIN)/python -m bench.dense

bench-sparse: $(VENV)/dev  ## a packed 7B and llama.cpp under memory limits; as root, STORE=folder WINDOW=folder
	$(BIN)/python -m bench.sparse $(if $(STORE),--store $(STORE)) $(if $(WINDOW),--window-store $(WINDOW)) --no-limit --losses 4%,10%,1%

bench-start: $(VENV)/dev  ## start to first token of `hotset run`, and its memory
	$(BIN)/python -m bench.start

bench-ppl: $(VENV)/dev  ## perplexity against llama.cpp: make bench-ppl TEXT=file
	$(BIN)/python -m bench.ppl $(TEXT)

bench-micro: $(VENV)/dev  ## rates of the kernels beside this host's memory and int8 peak, and the roofline plot
	$(BIN)/python -m bench.roofline

check-instructions: $(VENV)/dev  ## kernels take no more instructions than before; needs valgrind
	$(BIN)/python -m bench.instructions

report: $(VENV)/dev  ## tables of the newest results into docs/reference/results.md, the headline into README.md
	$(BIN)/python -m bench.report

clean:  ## remove builds and the environment
	rm -rf build $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
