# Everything is installed from the locked requirements into .venv, once; a stamp file says that it is done.
PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/installed.stamp
PYTEST := $(VENV)/bin/python -m pytest
SUITE := $(PYTEST) -n 4 --dist worksteal  # most tests wait most of the time
COMPILE := $(VENV)/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-emit-find-links --no-annotate --no-header

.DEFAULT_GOAL := help
.PHONY: help demo run test check format bench bench-peers soak lock clean

help:
	@echo "make demo    install, let a fleet work on an embedded PostgreSQL, print what happened"
	@echo "make run     install and serve until Ctrl-C"
	@echo "make test    the whole test suite"
	@echo "make check   format, lint, types, import contracts, docs freshness, tests: what CI runs"
	@echo "make format  let the formatter and the linter mend what they can"
	@echo "make bench   measured comparisons"
	@echo "make bench-peers  the same work on other queues, which it installs into .bench-peers"
	@echo "make soak    the tests that run for many minutes"
	@echo "make lock    resolve the dependencies again and pin them with hashes"
	@echo "make clean   remove the installation and caches (.devmesh, which holds data, is kept)"
	@echo "PYTHON=python3.12 chooses an interpreter (3.11 to 3.13)"

demo: $(STAMP)
	$(VENV)/bin/devmesh demo

run: $(STAMP)
	$(VENV)/bin/devmesh up

test: $(STAMP)
	$(SUITE)

check: $(STAMP)
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	$(VENV)/bin/devmesh docs --check
	$(SUITE)

format: $(STAMP)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

bench: $(STAMP)
	$(VENV)/bin/python -m bench

bench-peers: $(STAMP)
	$(VENV)/bin/python -m bench.peers

soak: $(STAMP)
	$(PYTEST) -m soak --timeout 0

lock: $(STAMP)
	$(COMPILE) pyproject.toml --output-file requirements.txt
	$(COMPILE) pyproject.toml --group dev --constraint requirements.txt --output-file requirements-dev.txt
	$(COMPILE) --group build --constraint requirements-dev.txt --output-file requirements-build.txt

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The build backend is among the locked requirements, so that the package itself installs without a further download.
$(STAMP): requirements-dev.txt pyproject.toml
	@command -v "$(PYTHON)" >/dev/null 2>&1 || { \
		echo "DevMesh needs Python 3.11, 3.12 or 3.13, and there is no '$(PYTHON)'. Name one: make PYTHON=python3.12" >&2; \
		exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { \
		echo "DevMesh needs Python 3.11, 3.12 or 3.13; $$("$(PYTHON)" --version 2>&1) is what '$(PYTHON)' is." \
			"Name another: make PYTHON=python3.12" >&2; \
		exit 1; }
	@"$(PYTHON)" -c 'import venv, ensurepip' 2>/dev/null || { \
		echo "'$(PYTHON)' cannot make a virtual environment. On Debian and Ubuntu: apt install python3-venv" >&2; \
		exit 1; }
	"$(PYTHON)" -m venv --clear $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.txt
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@
