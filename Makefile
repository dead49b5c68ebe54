# `make test` and `make demo` need only Python (3.10 or newer) and make; everything else goes into .venv.
#
#   make demo     train a small GPT three ways: torch eager, torch under Inductor, pynn compiled
#   make demo-vision
#                 train a small convolutional network on real images: torch eager, pynn compiled
#   make test     the suite (about 20 minutes on 2 cores, the first time)
#   make test-networks   whole networks that `make test` leaves out (several minutes)
#   make check    lint, types and, of each fast test, up to 5 rows (about a minute once the kernels are cached)
#   make bench    every benchmark, then the table in README.md: takes long, less with QUICK=1
#   make clean    remove what these commands wrote, .venv included
#
# PyPI's torch for Linux is the CUDA build, several GB. The CPU build is enough here:
#   make test TORCH_INDEX=https://download.pytorch.org/whl/cpu

PYTHON      ?= python3
TORCH_INDEX ?=
THREADS     ?= 1 2
WORKERS     ?= 2
QUICK       ?=

VENV  := .venv
BIN   := $(VENV)/bin
STAMP := $(VENV)/installed
TORCH := $(shell grep '^torch==' requirements.txt)

.PHONY: demo demo-vision test check bench clean install

demo: $(STAMP)
	$(BIN)/python -m benchmarks.demo

demo-vision: $(STAMP)
	$(BIN)/python -m benchmarks.demo_vision

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

test-networks: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m networks

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/pyright compiler_bridge
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not slow and not networks" --rows=5

bench: $(STAMP)
	$(BIN)/python -m benchmarks --threads $(THREADS) $(if $(QUICK),--quick)
	$(BIN)/python -m benchmarks report

install: $(STAMP)

# The stamp names this install; a changed pin installs again, anything else does not.
$(STAMP): requirements.txt requirements-dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "needs Python 3.10 or newer; name one with: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	touch $(STAMP)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .hypothesis .ruff_cache demo_output parity_report.html
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
