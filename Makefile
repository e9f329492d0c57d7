# Everything from nothing: `make demo` sets up and writes a story, `make train-demo` sets up and trains a model to write
# like a book, `make test` sets up and checks the project, and the app too where there is Swift.
# PYTHON chooses the interpreter (3.10 or later), VENV the folder of the environment, SWIFT the compiler of the app.

SHELL := /bin/bash
VENV ?= .venv
SWIFT ?= swift
BIN := $(VENV)/bin
PYTHON ?= $(shell for each in python3.13 python3.12 python3.11 python3.10 python3 python; do \
	$$each -c 'import sys; raise SystemExit(sys.version_info < (3, 10))' 2>/dev/null && echo $$each && break; done)
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check

ALICE := runs/alice
ALICE_SETTINGS := --data docs/alice.txt --preset nano --vocabulary 2048 --length 128 --batch 8 --steps 300 \
	--dropout 0.1 --weight-decay 0.5 --evaluate-every 100 --sample-every 100 --sample-prompt "Alice"

APP_FOLDERS := $(patsubst ios_demo/%,%,$(wildcard $(addprefix ios_demo/,Package.swift Sources Tests App)))

.PHONY: demo train-demo test test-app setup clean

demo: $(VENV)/.demo
	@$(BIN)/python -m trm_mlx doctor
	@echo
	$(BIN)/python -m trm_mlx.generate --prompt "One morning the little fox" --temperature 0.6 --repetition-penalty 1.1 --no-repeat-ngram 6 --seed 5

# A run that is there, whole or stopped by Ctrl-C, is gone on with; only its owner removes it. docs/alice.txt is
# Alice's Adventures in Wonderland by Lewis Carroll, 1865, in the public domain; see docs/choices.md for the settings.
train-demo: $(VENV)/.demo
	@[ ! -e $(ALICE) ] || echo "going on with $(ALICE), which is there already; for a new run, first: rm -r $(ALICE)"
	$(BIN)/python -m trm_mlx.train $(if $(wildcard $(ALICE)),--resume $(ALICE),--out $(ALICE) $(ALICE_SETTINGS))
	$(BIN)/python -m trm_mlx.generate --model $(ALICE) --prompt "Alice" --temperature 0.5 --repetition-penalty 1.1 --seed 4

test: $(VENV)/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/ty check --python $(VENV) trm_mlx convert benchmarks
	@$(MAKE) --no-print-directory test-app
	SWIFT="$(SWIFT)" $(BIN)/python -m pytest -q

test-app: $(VENV)/.test
	@set -e; for script in $(wildcard ios_demo/scripts/check_*.py); do (set -x; $(BIN)/python $$script); done
	@if command -v "$(SWIFT)" >/dev/null; then set -ex; cd ios_demo; \
		"$(SWIFT)" format lint --strict -r $(APP_FOLDERS); \
		"$(SWIFT)" build --build-tests; \
		"$(SWIFT)" test --skip-build --disable-xctest; \
	else echo "$(SWIFT) is not installed: the app's tests were not run"; fi

setup: $(VENV)/.test

$(VENV)/.demo: pyproject.toml | $(BIN)/python
	$(INSTALL) -e ".[blas,plot]"
	@touch $@

$(VENV)/.test: pyproject.toml | $(BIN)/python
	$(INSTALL) -e ".[blas,dev]"
	@touch $@ $(VENV)/.demo

# An ordinary user is told what to install; root, or a user with sudo that asks nothing, gets it installed.
$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Python 3.10 or later is needed: sudo apt-get install python3, or brew install python"; exit 1; }
	@if [ "$$(uname)" = Linux ]; then \
		needed=; \
		command -v g++ >/dev/null || needed="$$needed g++"; \
		$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || needed="$$needed python3-venv"; \
		{ [ "$$(uname -m)" = x86_64 ] && ! grep -q AuthenticAMD /proc/cpuinfo; } || /sbin/ldconfig -p | grep -q libopenblas.so.0 || needed="$$needed libopenblas0-pthread"; \
		if [ -n "$$needed" ]; then \
			root=; [ "$$(id -u)" = 0 ] || root="sudo -n"; \
			{ command -v apt-get >/dev/null && $$root apt-get update -qq && $$root apt-get install -y -qq $$needed; } \
				|| echo "missing on this machine, please install:$$needed (sudo apt-get install$$needed)"; \
		fi; \
	fi
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache ios_demo/.build
