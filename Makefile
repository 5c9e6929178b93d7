# The two commands of the README, and what developers use. Everything is safe to repeat.
MOUNT ?= /mnt/gfs
ROOT ?= ./var
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do command -v $$p >/dev/null && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' && echo $$p && exit; done; echo python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq
TESTS ?= tests integration
PEER ?=
EVENTS ?= 1000
SEEDS ?= 1000
SEED ?=

.PHONY: mount unmount test simulate bench chaos lint format proto install develop clean

mount: install
	@scripts/mount "$(MOUNT)" "$(ROOT)"

unmount:
	@scripts/unmount "$(ROOT)"

test: develop
	$(BIN)/python -m pytest -q --durations=20 $(TESTS)

# Histories of a whole cluster in one process, each from one seed. SEED=n tells the story of one.
simulate: develop
	@$(BIN)/python tests/simulation $(if $(SEED),--seed $(SEED),--seeds $(SEEDS))

bench: develop
	@scripts/bench "$(PEER)"

# Random SIGKILL and SIGSTOP on all roles under load; a failing run prints its seed and the command that repeats it.
chaos: develop
	$(BIN)/python integration/chaos.py --events $(EVENTS) $(if $(SEED),--seed $(SEED))

lint: develop
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@scripts/check-proto

format: develop
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The generated half of the wire contract; `make lint` fails when it is not what gfs.proto says.
proto: develop
	@scripts/generate-proto gfscore/proto

install: $(VENV)/.installed
	@scripts/install-system-packages $(PYTHON)

develop: $(VENV)/.developing
	@scripts/install-system-packages $(PYTHON) --test

$(VENV)/.installed: requirements-build.txt requirements.txt pyproject.toml
	@scripts/install-system-packages $(PYTHON)
	@[ -x $(BIN)/python ] || { echo "Making $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "Installing Python packages into $(VENV)"
	@$(PIP) install --require-hashes --only-binary :all: -r requirements-build.txt
	@$(PIP) install --require-hashes --no-build-isolation -r requirements.txt
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.developing: $(VENV)/.installed requirements-dev.txt
	@scripts/install-system-packages $(PYTHON) --test
	@echo "Installing what the tests need into $(VENV)"
	@$(PIP) install --require-hashes --no-build-isolation -r requirements-dev.txt
	@touch $@

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info
