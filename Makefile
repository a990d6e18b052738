# One word each. `make demo` and `make test` need nothing but Python 3.11 and a way to its packages.
#
#   demo     a synthetic patient through the whole service; ONCE=1 ends after it, STUDY=head.nii.gz sends that too
#   serve    the service on http://127.0.0.1:8000, with what the demo left on record
#   test     every test           check    lint, types, import contracts, formatting, the API's description
#   bench    how fast it is       soak     the long proofs
#   openapi  writes the API's description
#   lock     pins what the image is made of   sbom   lists it (CycloneDX)   audit   looks for known vulnerabilities in it
#   test-gpu the tests that need a CUDA device
#   clean    removes what the tools made; never the data folder

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SERVICE := $(VENV)/.service
DEV := $(VENV)/.dev
BENCH := $(VENV)/.bench

.PHONY: demo serve test check bench soak openapi lock sbom audit test-gpu clean
.DEFAULT_GOAL := help
.PHONY: help
help:
	@sed -n '3,10s/^# *//p' Makefile

# torch first, by its own: pip then takes the CPU build where one is provided, not gigabytes of CUDA.
$(SERVICE): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet "torch>=2.10,<2.14"
	$(BIN)/pip install --quiet --editable .
	@touch $@

$(DEV): $(SERVICE)
	$(BIN)/pip install --quiet --group dev
	@touch $@

$(BENCH): $(DEV)
	$(BIN)/pip install --quiet --group bench
	$(BIN)/pip install --quiet --no-deps "antspyx>=0.6,<1"
	@touch $@

demo: $(SERVICE)
	$(BIN)/rlvo demo $(if $(ONCE),--once) $(if $(STUDY),--study "$(STUDY)")

serve: $(SERVICE)
	$(BIN)/rlvo serve

# One test process per core, one thread each: two processes of many threads would wait for each other.
test: $(DEV)
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 --dist loadgroup -m "not soak and not gpu"

check: $(DEV)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/rlvo openapi --check

bench: $(BENCH)
	$(BIN)/python -m bench

soak: $(DEV)
	$(BIN)/pytest -q -m soak

test-gpu: $(DEV)
	$(BIN)/pytest -q -m gpu

openapi: $(SERVICE)
	$(BIN)/rlvo openapi

# uv resolves for every platform at once; what only a CUDA build of torch needs is dropped.
EXTRAS := --extra openvino --extra otel --extra postgres --extra s3
lock: $(DEV)
	{ sed -n '/^#/p' requirements.lock; \
	  $(BIN)/uv pip compile pyproject.toml $(EXTRAS) --quiet --universal --python-version 3.11 --generate-hashes \
	    --no-emit-index-url --no-annotate --no-header \
	  | awk '/^[a-z]/ {keep = !/^(torch|triton|nvidia-|cuda-)/} keep'; } > requirements.new
	mv requirements.new requirements.lock

# The bill of materials of the image: the lock, which is what the image is built from.
sbom: $(DEV)
	mkdir -p build
	$(BIN)/cyclonedx-py requirements requirements.lock --pyproject pyproject.toml --output-format JSON \
	  --output-reproducible --output-file build/sbom.json
	@echo "build/sbom.json: $$($(BIN)/python -c 'import json; print(len(json.load(open("build/sbom.json"))["components"]))') components"

# Asks a service of known vulnerabilities (PyPI, or OSV with AUDIT="--vulnerability-service osv") about the lock; --strict:
# a package that could not be asked about is a failure, not a pass.
audit: $(DEV)
	mkdir -p build
	$(BIN)/pip-audit --requirement requirements.lock --require-hashes --disable-pip --strict --progress-spinner off $(AUDIT) \
	  --format json --output build/audit.json

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist *.egg-info
	find app tests -name __pycache__ -prune -exec rm -rf {} +
