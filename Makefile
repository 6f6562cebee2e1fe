# Two commands do everything: make speedrun, make test. make help lists the rest.

PYTHON ?= python3
TRACK ?= tiny
ENTRANTS ?= adamw muon
SEEDS ?= 3
TRIALS ?= 32
ARGS ?=

PY := .venv/bin/python

.PHONY: help speedrun test setup data race tune plots report verify readme bench clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo '  variables: TRACK=$(TRACK) ENTRANTS="$(ENTRANTS)" SEEDS=$(SEEDS) TRIALS=$(TRIALS) ARGS="..."'
	@echo '  a quick look:  make race ARGS="--steps 20 --width 64"   more: $(PY) speedrun.py --help'

speedrun: race plots  ## set up, race Muon against AdamW, draw the charts

race: data  ## race ENTRANTS on TRACK, SEEDS runs each (ARGS=--resume goes on with a stopped race)
	$(PY) speedrun.py $(ENTRANTS) --track $(TRACK) --seeds $(SEEDS) $(ARGS)

tune: data  ## search settings for ENTRANTS, TRIALS each, into optim/tuned.toml
	$(PY) speedrun.py tune $(ENTRANTS) --track $(TRACK) --trials $(TRIALS) $(ARGS)

plots: setup  ## draw the charts of the newest race into plots/
	$(PY) -m plots.make

report: setup  ## print the table of the newest race
	$(PY) -m results.report

verify: setup  ## recompute every committed number from its files
	$(PY) -m results.verify

readme: setup  ## write the committed race's figures into README.md
	$(PY) -m results.report --readme README.md

bench: data  ## measure the step and the optimizers (the machine to itself)
	$(PY) -m bench.step
	$(PY) -m bench.optimizer_step
	$(PY) -m bench.newton_schulz

test: .venv/dev data  ## set up, lint, check types, run the tests
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) -m pytest -q

setup: .venv/installed  ## make .venv with the pinned packages

data: .venv/installed  ## prepare and check the embedded corpus
	$(PY) -m data.corpus

.venv/installed: requirements.txt
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet -r requirements.txt
	@touch $@

.venv/dev: requirements-dev.txt .venv/installed
	$(PY) -m pip install --quiet -r requirements-dev.txt
	@touch $@

clean:  ## remove .venv and the prepared corpus; results stay
	rm -rf .venv data/tiny
