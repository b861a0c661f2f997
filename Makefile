# Everything a clone needs:  make demo   talks to the shipped assistant
#                            make test   builds the wheel and tests what it installs
# PYTHON is the interpreter that virtual environments are made of; JOBS the compiler's processes.
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
JOBS   ?= $(shell nproc)
export CMAKE_BUILD_PARALLEL_LEVEL = $(JOBS)
export PIP_DISABLE_PIP_VERSION_CHECK = 1
export GOMP_SPINCOUNT ?= 1000

.PHONY: demo test check bench dev train clean

demo: $(VENV)/.demo
	$(BIN)/arenite demo

test: $(VENV)/.dev
	$(BIN)/python tests/installed.py

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/.dev
	$(BIN)/python -m arenite.benchmarks.t1 --csv benchmarks/results

dev: $(VENV)/.dev

train: $(VENV)/.dev
	$(BIN)/pip install -q torch safetensors
	$(BIN)/python -m arenite.examples.assistant.train

# The first build of llama-cpp-python compiles llama.cpp: about four minutes on two cores; pip keeps the wheel.
# Debian's Python comes without venv; root gets it here, anybody else is told.
$(VENV)/bin/pip:
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  [ "$$(id -u)" = 0 ] && apt-get update -q && apt-get install -qy python3-venv python3-dev && $(PYTHON) -m venv $(VENV); } \
	  || { rm -rf $(VENV); echo "please: sudo apt-get install python3-venv python3-dev"; exit 1; }

$(VENV)/.demo: $(VENV)/bin/pip pyproject.toml
	@echo "installing; the first time llama.cpp is compiled (about four minutes on two cores)"
	$(BIN)/pip install -q -e '.[convert]'
	touch $@

$(VENV)/.dev: $(VENV)/bin/pip pyproject.toml
	@echo "installing; the first time llama.cpp is compiled (about four minutes on two cores)"
	$(BIN)/pip install -q -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist
