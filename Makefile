# `make demo` and `make test` need only Python 3.11 and access to a package index; the browser tests also need chromium.
#
#   demo              run the service and predict one synthetic patient; ONCE=1 stops then, STUDY=head.nii.gz also sends this NCCT
#   demo-dicom        the same as DICOM, through an Orthanc (Debian: orthanc, orthanc-dicomweb); ONCE=1 stops then
#   serve             run the service on http://127.0.0.1:8000 with the data of the demo
#   test              run every test; COVERAGE=1 measures coverage, here and in the next three, COVERAGE=unit of the unit tests
#   test-unit         run the tests of single modules (under 2 minutes)
#   test-integration  run the tests of several modules with a database, a server or a worker process
#   test-e2e          run the tests of the whole service, with a browser
#   check             lint, types, import contracts, spelling, words to avoid, the OpenAPI document
#   structure         print the size and the structure of app/
#   bench             measure speed and accuracy
#   demo-model        make both demo versions from nothing, in build/demo-model (hours; an interrupted run continues)
#   soak              run the long durability tests
#   openapi           write the OpenAPI document and the Postman collection
#   lock              pin the packages of the image
#   sbom              list the packages of the image (CycloneDX)
#   audit             look for known vulnerabilities in the packages of the image
#   test-gpu          run the tests that need a CUDA device
#   clean             remove everything that these commands created, except the data folder

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SERVICE := $(VENV)/.service
DEV := $(VENV)/.dev
BENCH := $(VENV)/.bench

.PHONY: demo demo-dicom demo-model serve test test-unit test-integration test-e2e check structure bench soak openapi lock sbom audit test-gpu clean
.DEFAULT_GOAL := help
.PHONY: help
help:
	@sed -n '3,20s/^# *//p' Makefile

# torch is installed first and alone, so that pip takes a CPU build if the index has one, not gigabytes of CUDA.
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

demo-dicom: $(SERVICE)
	$(BIN)/rlvo demo --dicom $(if $(ONCE),--once)

serve: $(SERVICE)
	$(BIN)/rlvo serve

# One test process per core with one thread each: several threads per process would compete for the cores.
PYTEST := OMP_NUM_THREADS=1 RLVO_DEVICE=cpu $(BIN)/pytest -q -n 2 --dist loadgroup
COVER := --cov=app --cov-report=term:skip-covered
# Processes of the tests of servers and workers, which wait for a part of their time.
PROCESSES ?= 3

# The unit tests run apart: the measurement of their coverage would slow tests that send many requests at once.
test: $(DEV)
	@status=0; \
	$(PYTEST) $(if $(COVERAGE),$(COVER)) -m "unit and not soak and not gpu" || status=$$?; \
	$(PYTEST) $(if $(filter 1,$(COVERAGE)),$(COVER) --cov-append) -n $(PROCESSES) -m "not unit and not soak and not gpu" || status=$$?; \
	exit $$status

test-unit test-integration test-e2e: $(DEV)
	$(PYTEST) $(if $(COVERAGE),$(COVER)) -m "$(@:test-%=%) and not soak and not gpu"

check: $(DEV)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell
	$(BIN)/python tools/check_words.py
	$(BIN)/rlvo openapi --check

structure:
	$(PYTHON) tools/structure.py

bench: $(BENCH)
	$(BIN)/python -m bench

demo-model: $(SERVICE)
	$(BIN)/python tools/demo_model.py build/demo-model

soak: $(DEV)
	$(BIN)/pytest -q -m soak

test-gpu: $(DEV)
	RLVO_DEVICE=cuda $(BIN)/pytest -q -m gpu

openapi: $(SERVICE)
	$(BIN)/rlvo openapi
	$(BIN)/python tools/postman_collection.py

# uv resolves for all platforms. Packages that only a CUDA build of torch needs have a separate lock.
EXTRAS := --extra dicom --extra openvino --extra otel --extra postgres --extra s3
COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	--no-annotate --no-header
CUDA := ^(torch|triton|nvidia-|cuda-)
lock: $(DEV)
	mkdir -p build
	$(COMPILE) pyproject.toml $(EXTRAS) > build/all.lock
	echo 'hatchling>=1.27' | $(COMPILE) - > build/build.lock
	{ sed -n '/^#/p' requirements.lock; awk '/^[a-z]/ {keep = !/$(CUDA)/} keep' build/all.lock; } > build/requirements.lock
	{ sed -n '/^#/p' requirements-torch.lock; awk '/^[a-z]/ {keep = /$(CUDA)/} keep' build/all.lock; } > build/torch.lock
	{ sed -n '/^#/p' requirements-build.lock; cat build/build.lock; } > build/build-tool.lock
	mv build/requirements.lock requirements.lock
	mv build/torch.lock requirements-torch.lock
	mv build/build-tool.lock requirements-build.lock

# The bill of materials of the image, made from the lock.
sbom: $(DEV)
	mkdir -p build
	$(BIN)/cyclonedx-py requirements requirements.lock --pyproject pyproject.toml --output-format JSON \
	  --output-reproducible --output-file build/sbom.json
	@echo "build/sbom.json: $$($(BIN)/python -c 'import json; print(len(json.load(open("build/sbom.json"))["components"]))') components"

# Searches a database of vulnerabilities (PyPI, or OSV with AUDIT="--vulnerability-service osv") for the packages of the lock.
# With --strict, a package that cannot be searched is a failure.
audit: $(DEV)
	mkdir -p build
	$(BIN)/pip-audit --requirement requirements.lock --require-hashes --disable-pip --strict --progress-spinner off $(AUDIT) \
	  --format json --output build/audit.json

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist *.egg-info
	find app tests -name __pycache__ -prune -exec rm -rf {} +
