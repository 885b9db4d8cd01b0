# Two commands do everything on a fresh machine with Python >= 3.11: `make quickstart` and `make test`.
# VENV= names the environment to use or create; it is filled once and reused.
VENV ?= .venv
PYTHON ?= python3
# More options of the quickstart, e.g. ARGS="--seed 1".
ARGS ?=
BIN = $(VENV)/bin
# One environment may serve several checkouts: each run points it at this one.
STAMP = $(VENV)/.hiergen-installed

.PHONY: quickstart test lint types docs install clean

quickstart: install
	$(BIN)/hiergen quickstart $(ARGS)

test: install lint types
	$(BIN)/python -m pytest -n 2 --dist worksteal --jaxtyping-packages=hiergen,beartype.beartype

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

# The documentation as a site, to be opened as files: site/html/index.html.
docs: install
	$(BIN)/python docs/site/build.py

# Install once for each pyproject.toml; afterwards only point the environment at this checkout.
install:
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@cmp -s pyproject.toml $(STAMP) || { \
		$(BIN)/python -m pip install --upgrade pip hatchling editables && \
		$(BIN)/python -m pip install --editable ".[dev]" && \
		cp pyproject.toml $(STAMP); }
	@test "$$($(BIN)/python -P -c 'import importlib.util as u; print(u.find_spec("hiergen").origin)')" = "$(CURDIR)/hiergen/__init__.py" \
		|| $(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .

clean:
	rm -rf .venv build dist site .pytest_cache .mypy_cache .ruff_cache
