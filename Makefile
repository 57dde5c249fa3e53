# The one door: `make quickstart` and `make test` work in a fresh clone; `make help` lists the rest.
#
#   PYTHON   interpreter that creates the environment (3.11)      make test PYTHON=/opt/python3.11/bin/python3
#   ARGS     arguments of the target's program, or of pytest      make quickstart ARGS="--data FOLDER"
#   WORKERS  test files that run at the same time; 0 is none      make test WORKERS=0

PYTHON ?= $(shell command -v python3.11 || command -v python3)
ARGS ?=
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TYPES := .mypy_cache/packages

# Nothing outside the environment may leak in.
export PYTHONNOUSERSITE := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
unexport PYTHONPATH PYTHONHOME

.DEFAULT_GOAL := help
.PHONY: help install quickstart test lint types bench ablation results clean

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

install: $(STAMP)  ## create .venv with the pinned versions (done by the other targets when needed)

$(STAMP): setup.cfg pyproject.toml
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
	  { echo 'edge_seg needs Python 3.11: install it, or name it: make PYTHON=/path/to/python3.11' >&2; exit 1; }
	"$(PYTHON)" -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

quickstart: $(STAMP)  ## the whole chain on synthetic scenes: train, convert, verify, score, measure, report
	$(BIN)/edge-seg quickstart $(ARGS)

test: $(STAMP)  ## run the test suite
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile $(ARGS)

lint: $(STAMP)  ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The packages lie in three top-level folders; mypy sees them under the names they are imported by.
types: $(STAMP)  ## check the types
	@rm -rf $(TYPES) && mkdir -p $(TYPES)/edge_seg
	@ln -s $(addprefix $(CURDIR)/,$(wildcard edge_seg/*) converters benchmarks) $(TYPES)/edge_seg/
	MYPYPATH=$(TYPES) $(BIN)/mypy -p edge_seg

bench: $(STAMP)  ## speed of every network in one interleaved run on one core, then of the decoder
	$(BIN)/python -m edge_seg.studies.network_speed $(ARGS)
	OMP_NUM_THREADS=1 $(BIN)/python -m edge_seg.studies.decoder_speed --json runs/bench/decoder.json

ablation: $(STAMP)  ## compare choices one at a time on a short schedule (hours; stopped, it goes on)
	$(BIN)/python -m edge_seg.studies.ablation edge_seg/configs/facade_ablation.toml $(ARGS)

results: $(STAMP)  ## rewrite results/TABLES.md, the results in README.md and its figures from results/
	$(BIN)/python -m edge_seg.studies.results.page README.md results

clean:  ## remove the environment and caches; runs/ is kept
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache ./*.egg-info
	find edge_seg converters benchmarks tests -name __pycache__ -type d -prune -exec rm -rf {} +
