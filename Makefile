# Every target does its own set-up: a virtual environment from the lock file, and the tools, built once and cached.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test unit lint bench soak fuzz audit docs sbom tools lock clean help

help:
	@echo "make demo | test | unit | lint | bench | soak | fuzz | audit | docs | sbom | tools | lock | clean"

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Tollgate needs Python 3.11 or newer, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

tools: $(STAMP)
	$(BIN)/tollgate tools build

demo: tools
	$(BIN)/tollgate demo

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

unit: lint
	$(BIN)/pytest -m "not cluster and not browser and not slow"

# Fast tests by which the components must be covered.
COVERING := tests/components tests/gate/test_benchmark_job.py tests/bench/batch/test_batch_job.py

# With all optional programs: their tests would otherwise have nothing to test. First what covers the components, then the
# others. In three processes, each with a cluster of its own, because most tests wait for something: two cores are busy for two
# thirds of the time then. By file, the longest first (tests/conftest.py).
#
# Most tests start real programs and many of them look at the clock, on machines that others use, too. One that fails is run
# again, once, and the summary says so with its traceback (RERUN): what is wrong fails twice; what failed once is to be looked at.
AGAIN := --reruns 1 --reruns-delay 2 --rerun-show-tracebacks -r aR

test: lint
	$(BIN)/tollgate tools build --with ollama --with lws --with coscheduling --with haproxy --with promtool
	$(BIN)/pytest -n 3 -m "not cluster and not browser and not slow" $(AGAIN) $(COVERING) --cov
	$(BIN)/pytest -n 3 $(AGAIN) --durations 25 --dist loadfile --no-loadscope-reorder $(addprefix --covered=,$(COVERING))

bench: $(STAMP)
	for script in $(filter-out benchmarks/soak.py,$(wildcard benchmarks/*.py)); do $(BIN)/python $$script || exit 1; done

# Half an hour of load and faults on the embedded cluster.
soak: tools
	$(BIN)/python benchmarks/soak.py

# Ten minutes of hostile input for each of what reads input.
fuzz: $(STAMP)
	$(BIN)/python .ci/fuzz.py

# Known vulnerabilities of what is locked, out of a checkout of a database: make audit ADVISORIES=DIR. With a way to the internet,
# `pip-audit --disable-pip --require-hashes -r requirements.lock` asks the same of a server.
audit: $(STAMP)
	$(BIN)/python .ci/audit.py $(addprefix --advisories ,$(ADVISORIES)) $(addprefix --programs ,$(PROGRAMS))

sbom:
	@mkdir -p dist
	$(PYTHON) .ci/sbom.py dist/sbom.json

docs: $(STAMP)
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_build

# Resolves anew within the ranges of pyproject.toml; needs uv.
lock:
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --extra dev pyproject.toml -o requirements.lock

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis dist build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
