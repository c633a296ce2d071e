# Everything a first visitor needs. The environment is made once, in .venv, by the first target that needs it.
#
#   make demo                   train five skills with three recipes, print what was learned and forgotten
#   make test                   the test suite
#   make tiny FAMILY=next       train an embedded model again, from scratch (onevision, next or qwen2_5_vl)
#   PYTHON=python3.12 make …    choose the interpreter the environment is made from

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test lint format tiny clean

PYTHON ?=
FAMILY ?= onevision

VENV  := .venv
PY    := $(VENV)/bin/python
READY := $(VENV)/.ready
QUIET := $(if $(CI),--quiet,)

# PyTorch's CPU threads otherwise spin while they wait: one busy neighbour then slows a step twentyfold.
export GOMP_SPINCOUNT = 0
export OMP_WAIT_POLICY = passive
export TOKENIZERS_PARALLELISM = false

help: ## this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 18

demo: $(READY) ## five skills in sequence, three recipes, on the embedded model
	$(PY) -m lmm_forget.run -m experiment=demo recipe=sa_proj,mlp_gateup,llm

test: $(READY) ## the test suite, two files at a time
	$(PY) -m pytest -n 2 --dist loadfile

lint: $(READY) ## ruff, mypy and import-linter, changing nothing
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/lint-imports

format: $(READY) ## let ruff fix and format
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

docs/configuration.md: $(READY) $(wildcard lmm_forget/config/schema/*.py conf/*.yaml conf/*/*.yaml)
	$(PY) -c "from lmm_forget.config.schema.reference import format_markdown_reference as text; print(text(), end='')" > $@

tiny: $(READY) ## train an embedded model from scratch (FAMILY=onevision, next or qwen2_5_vl); resumes
	$(PY) -m lmm_forget.tiny.pretrain --family $(FAMILY)

clean: ## remove the environment, caches and builds; runs in multirun/ stay
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find lmm_forget hydra_plugins tests -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is written last, so an interrupted installation goes on with the next command.
$(READY): pyproject.toml constraints.txt
	@set -eu; \
	usable='import sys; sys.exit(sys.version_info < (3, 11))'; \
	if ! $(PY) -c "$$usable" >/dev/null 2>&1; then \
	  found=; \
	  for candidate in $(or $(PYTHON),python3 python3.11 python3.12 python3.13 python); do \
	    if "$$candidate" -c "$$usable" >/dev/null 2>&1; then found="$$candidate"; break; fi; \
	  done; \
	  if [ -z "$$found" ]; then \
	    echo "lmm-forget needs Python 3.11 or newer: $(or $(PYTHON),none of python3 python3.11 python3.12 python3.13 python) is; name one with PYTHON=/path/to/python make $(MAKECMDGOALS)" >&2; \
	    exit 1; \
	  fi; \
	  echo "Making $(VENV) with $$($$found --version) (once; about 6 GB on Linux, a few minutes, mostly PyTorch)"; \
	  "$$found" -m venv --clear $(VENV); \
	fi; \
	$(PY) -m pip install $(QUIET) --disable-pip-version-check -c constraints.txt -e '.[test,dev]'; \
	touch $@
