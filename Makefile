# Every target sets up .venv by itself; PYTHON picks the interpreter that it is made from.
PYTHON ?= python3
BIN := .venv/bin
PROTO := exproto_app/hosts/grpc

.PHONY: run test unit check coverage matrix format lint types bench chaos fuzz proto clean

run: .venv/run
	$(BIN)/exproto-app run examples/echo.py

# As many processes as there are cores; WORKERS=0 runs all in one, as pytest by itself does.
WORKERS ?= auto
SPREAD := -n $(WORKERS) --dist worksteal

test: .venv/dev
	$(BIN)/python -m pytest $(SPREAD)

# All that runs in memory, with a few examples of each property: for every time that a file is saved.
unit: .venv/dev
	$(BIN)/python -m pytest -q $(SPREAD) -m 'not live and not system' --hypothesis-profile=unit

check: lint types test

# What runs in memory, counted by line and by branch. CORE_BAR is for the core alone.
CORE_BAR ?= 95
coverage: .venv/dev
	rm -f .venv/coverage .venv/coverage.*
	$(BIN)/python -m coverage run -m pytest -q $(SPREAD) -m 'not live and not system' --hypothesis-profile=unit
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report
	$(BIN)/python -m tests.covered --fail-under $(CORE_BAR)

# ROWS picks some, e.g. ROWS="python3.12 debian14"; .venv/bin/python -m tests.matrix --help tells the rest.
matrix: .venv/dev
	$(BIN)/python -m tests.matrix $(ROWS)

format: .venv/dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: .venv/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: .venv/dev
	$(BIN)/mypy

# protoc of protobuf 4.25, so that what it writes runs with that version and all newer ones.
proto: .venv/proto
	.venv/proto/bin/python -m grpc_tools.protoc -I $(PROTO) --python_out=$(PROTO) --pyi_out=$(PROTO) $(PROTO)/exproto.proto

bench: .venv/dev
	$(BIN)/python -m tests.bench

# A gateway with workers and a Mosquitto in bad weather, SECONDS long; SEED repeats one.
SECONDS ?= 180
chaos: .venv/dev
	$(BIN)/python -m tests.chaos $(SECONDS) $(SEED)

# Hostile bytes and hostile structure for everything that reads from outside.
FUZZ := tests/test_framing_fuzz.py tests/test_examples_devices.py tests/mqtt_server/test_packets.py \
	tests/mqtt_server/test_hostile.py tests/test_fuzz.py tests/test_terms.py tests/test_proxy.py \
	tests/test_recording.py tests/test_capture.py tests/test_structure_fuzz.py tests/test_lines_fuzz.py tests/test_store_format.py \
	tests/grpc/test_hostile.py \
	tests/grpc/test_wire.py
fuzz: .venv/dev
	$(BIN)/python -m pytest $(FUZZ) -q --hypothesis-profile=fuzz

# The guide and the docstrings as a site.
.PHONY: docs
docs: .venv/dev
	$(BIN)/python -m tests.docs site

clean:
	rm -rf .venv build dist site .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "exproto-app needs Python 3.10 or newer; try make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	touch $@

.venv/proto: .venv/python
	$(PYTHON) -m venv $@
	$@/bin/python -m pip install --quiet --disable-pip-version-check grpcio-tools==1.62.3 'setuptools<81'

.venv/run: .venv/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

.venv/dev: .venv/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,crc,grpc,metrics,mqtt,reload,uvloop,web]'
	touch $@ .venv/run
